#include "comm/reduction_tree.h"

#include <algorithm>
#include <bit>

namespace convoy::comm {
namespace {

int power_of_two_from(int size) {
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(size)));
}

}  // namespace

int split_of(WorkerRange node) {
  return node.begin + power_of_two_from(node.size()) / 2;
}

WorkerRange parent_of(WorkerRange node, int workers) {
  // A cut node stands for several levels at once; go up until the range grows.
  for (int size = power_of_two_from(node.size());; size *= 2) {
    const WorkerRange parent =
        (node.begin & size) ? WorkerRange{node.begin - size, node.end}
                            : WorkerRange{node.begin, std::min(node.begin + 2 * size, workers)};
    if (parent != node) return parent;
  }
}

WorkerRange sibling_of(WorkerRange node, int workers) {
  const WorkerRange parent = parent_of(node, workers);
  return parent.begin == node.begin ? WorkerRange{node.end, parent.end}
                                    : WorkerRange{parent.begin, node.begin};
}

WorkerRange first_node_of(WorkerRange range, int workers) {
  int size = range.begin == 0 ? power_of_two_from(workers) : range.begin & -range.begin;
  while (std::min(range.begin + size, workers) > range.end) size /= 2;
  return {range.begin, std::min(range.begin + size, workers)};
}

std::vector<WorkerRange> nodes_of(WorkerRange range, int workers) {
  std::vector<WorkerRange> nodes;
  for (int begin = range.begin; begin < range.end; begin = nodes.back().end)
    nodes.push_back(first_node_of({begin, range.end}, workers));
  return nodes;
}

}  // namespace convoy::comm
