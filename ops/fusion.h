// List -> list: what usually follows a batch norm moves into it, so that memory is passed once.
#pragma once

#include "ops/graph.h"

namespace convoy::ops {

// BatchNorm -> ReLU, BatchNorm -> Add and BatchNorm -> Add -> ReLU become one BatchNorm node with
// the batch norm's name, in the place of the last of them, wherever nobody else reads what lies
// between. Of an Add of two batch norms the first input's is taken. Names of parameters stay.
Graph fuse(const Graph& graph);

}  // namespace convoy::ops
