// The binary tree over the job's workers that fixes the order of every sum (architecture: exact
// reduction). Leaves are workers; a node is written as the range of workers it covers, always an
// aligned power-of-two range cut at W: [i * 2^l, min((i + 1) * 2^l, W)). Its value is
// left + right in fp32; a node whose right half lies beyond W is the same range as its left half,
// so it passes through without arithmetic. Pure functions, no state.
#pragma once

#include <vector>

namespace convoy::comm {

// Workers [begin, end): a node of the tree, or what a rank hosts.
struct WorkerRange {
  int begin = 0, end = 0;

  int size() const { return end - begin; }
  bool operator==(const WorkerRange&) const = default;
};

// Where a node of at least two workers divides: its children are [begin, split) and [split, end).
int split_of(WorkerRange node);

// The smallest node that covers `node` and more. Needs node != [0, workers).
WorkerRange parent_of(WorkerRange node, int workers);

// The other child of parent_of(node, workers).
WorkerRange sibling_of(WorkerRange node, int workers);

// The largest node that begins where `range` does and lies inside it. `range` is not empty.
WorkerRange first_node_of(WorkerRange range, int workers);

// The fewest nodes that make up `range`, in order; none for an empty range.
std::vector<WorkerRange> nodes_of(WorkerRange range, int workers);

}  // namespace convoy::comm
