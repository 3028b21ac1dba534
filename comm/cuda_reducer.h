// The reducer of gradients in a GPU's memory. Only what is built with CUDA includes this.
//
// Everything is enqueued in the order of the calls: contribute() says that at this point of the
// queue a bucket is final, wait() makes the queue wait for its sum. Workers of a rank are combined
// on the queue itself, so that memory that is not kept is taken in its order; the exchange is on a
// stream of its own, of high priority. Buckets are exchanged in order of their numbers, because all
// ranks must enqueue transfers in one order: bucket b goes when b and all before it are contributed
// (backward finishes them in this order). Where there are several reducers, all ranks use them in
// the same order, too.
//
// NCCL: wait() never blocks the host (where this rank has contributed the bucket). Staged: a rank's
// nodes are copied to host memory and go the way of a GradientReducer; wait() blocks the host until
// the sum lies there.
#pragma once

#include "comm/reducer.h"

namespace convoy::comm {

// As make_reducer.
std::unique_ptr<Reducer> make_cuda_reducer(Communicator& communicator, int workers,
                                           std::vector<Range> buckets,
                                           const ReducerOptions& options, void* queue);

}  // namespace convoy::comm
