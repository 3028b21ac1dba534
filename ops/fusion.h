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

// A graph as it runs. The fused graph still says where parameters lie.
struct RunningGraph {
  Graph graph;
  std::vector<size_t> node_of;  // per node of the fused graph: who computes it here
};
inline constexpr size_t kNobody = std::numeric_limits<size_t>::max();  // only training needs it

// What inference runs: of what inference_graph() leaves, a convolution that a batch norm alone
// reads takes it over with its residual and ReLU, in the batch norm's place, under the
// convolution's name. The result is written over the residual, so a batch norm stays where a later
// node, or the convolution itself, reads that.
// fold false: batch norms stay as they are.
RunningGraph fold_batch_norms(const Graph& fused, bool fold = true);

// What training runs on a device that merges batch norms (Device::merges_batch_norms), with the
// same bits where a batch is one slice. A batch norm takes over another one that is its residual
// and has neither residual nor ReLU itself, as in the shortcut of a ResNet's stage
// (BatchNorm::shortcut); and a max pooling behind it (BatchNorm::pool, can_follow_batch_norm).
// Nobody else reads what lies between or what the one that moves normalises, and none of them is
// frozen. Of the two gradients that any other batch norm adds, one stays compact where it comes
// from a convolution that skips pixels, as in the shortcut of the stage that follows
// (BatchNorm::dy1_stride).
RunningGraph merge_batch_norms(const Graph& fused);

}  // namespace convoy::ops
