// Which workers each rank hosts: a pure function of (W, R).
#pragma once

#include <vector>

#include "comm/reduction_tree.h"

namespace convoy::comm {

// Element r: the contiguous workers [begin, end) of rank r, in order of rank. Ranks below W host at
// least one and nobody more than ceil(W / R), which is what sets the time of a step; within that,
// the cuts lie where the ranges make the fewest nodes of the tree, so that the exchange sends
// least. Ranks from W on host none. Throws Error (kFault) unless workers and ranks are at least 1.
std::vector<WorkerRange> map_workers(int workers, int ranks);

}  // namespace convoy::comm
