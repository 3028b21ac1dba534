// Which parts of a graph are trained. Frozen parameters have no gradient, and nothing changes them;
// a batch norm all of whose parameters are frozen uses and keeps its running statistics (the usual
// practice of fine-tuning: torch's eval()). Backward ends at the lowest node that is trained.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "ops/graph.h"

namespace convoy::ops {

// The graph with those parameters frozen whose names ("layer1.0.conv1.weight") is_frozen takes, and
// no others. Names and places of all parameters stay. Throws as infer_shapes() does.
Graph freeze(const Graph& graph, const std::function<bool(const std::string& name)>& is_frozen);
// The same, with those names frozen.
Graph freeze(const Graph& graph, const std::set<std::string>& frozen);

// Per node: has it parameters that are trained?
std::vector<bool> trained_nodes(const Graph& graph);

// Per node: it, or a node before it, is trained, so that training wants the gradient of its output.
std::vector<bool> wanted_gradients(const Graph& graph);

// Does the op compute something else in training than in inference, backward apart?
bool acts_in_training(const OpSpec& spec);

}  // namespace convoy::ops
