#include "ops/freezing.h"

#include <algorithm>

namespace convoy::ops {
namespace {

// Of each node, as many as parameters() has.
std::vector<std::vector<ParameterSpec>> parameters_of(const Graph& graph) {
  const std::vector<Shape> outputs = infer_shapes(graph, 1);
  std::vector<std::vector<ParameterSpec>> all;
  for (size_t i = 0; i < graph.nodes.size(); ++i)
    all.push_back(parameters(graph.nodes[i].op, input_shapes(graph, outputs, i, 1)));
  return all;
}

unsigned all_bits(size_t count) {
  return (1u << count) - 1u;
}

bool is_trained(const Node& node, const std::vector<ParameterSpec>& own) {
  return (node.frozen & all_bits(own.size())) != all_bits(own.size());
}

}  // namespace

Graph freeze(const Graph& graph, const std::function<bool(const std::string&)>& is_frozen) {
  Graph out = graph;
  const std::vector<std::vector<ParameterSpec>> all = parameters_of(graph);
  for (size_t i = 0; i < out.nodes.size(); ++i) {
    Node& node = out.nodes[i];
    node.frozen = 0;
    for (size_t k = 0; k < all[i].size(); ++k)
      if (is_frozen(node.name + "." + all[i][k].name)) node.frozen |= 1u << k;
    if (auto* bn = std::get_if<BatchNorm>(&node.op)) bn->frozen = !is_trained(node, all[i]);
  }
  return out;
}

Graph freeze(const Graph& graph, const std::set<std::string>& frozen) {
  return freeze(graph, [&](const std::string& name) { return frozen.contains(name); });
}

std::vector<bool> trained_nodes(const Graph& graph) {
  const std::vector<std::vector<ParameterSpec>> all = parameters_of(graph);
  std::vector<bool> trained;
  for (size_t i = 0; i < all.size(); ++i) trained.push_back(is_trained(graph.nodes[i], all[i]));
  return trained;
}

std::vector<bool> wanted_gradients(const Graph& graph) {
  std::vector<bool> wanted = trained_nodes(graph);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const std::vector<int>& inputs = graph.nodes[i].inputs;
    wanted[i] = wanted[i] || std::any_of(inputs.begin(), inputs.end(), [&](int input) {
                  return input != kImage && wanted[static_cast<size_t>(input)];
                });
  }
  return wanted;
}

bool acts_in_training(const OpSpec& spec) {
  const auto* bn = std::get_if<BatchNorm>(&spec);
  return (bn && !bn->frozen) || std::holds_alternative<Dropout>(spec);
}

}  // namespace convoy::ops
