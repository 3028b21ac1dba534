// List -> list: what usually follows a batch norm moves into it, so that memory is passed once.
#pragma once

#include <limits>

#include "ops/graph.h"

namespace convoy::ops {

// BatchNorm -> ReLU, BatchNorm -> Add and BatchNorm -> Add -> ReLU become one BatchNorm node with
// the batch norm's name, in the place of the last of them, wherever nobody else reads what lies
// between; an auxiliary classifier's loss reads its node. Of an Add of two batch norms the first
// input's is taken. Names of parameters stay.
Graph fuse(const Graph& graph);

// What inference runs: of what inference_graph() leaves, a convolution that a batch norm alone
// reads takes it over with its residual and ReLU, in the batch norm's place, under the
// convolution's name. The result is written over the residual, so a batch norm stays where a later
// node, or the convolution itself, reads that.
struct InferenceGraph {
  Graph graph;
  // Per node of the fused graph, which still says where parameters lie: who computes it here.
  std::vector<size_t> node_of;
};
inline constexpr size_t kNobody = std::numeric_limits<size_t>::max();  // only training needs it
// fold false: batch norms stay as they are.
InferenceGraph fold_batch_norms(const Graph& fused, bool fold = true);

}  // namespace convoy::ops
