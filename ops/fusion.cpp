#include "ops/fusion.h"

#include <algorithm>

namespace convoy::ops {
namespace {

constexpr int kGone = -2;

// The graph with a count of readers per node; merging marks nodes as gone.
class Fuser {
 public:
  explicit Fuser(const Graph& graph) : graph_(graph), readers_(graph.nodes.size(), 0) {
    for (const Node& node : graph_.nodes)
      for (const int input : node.inputs)
        if (input != kImage) ++readers_[index(input)];
  }

  Graph run() {
    gone_.assign(graph_.nodes.size(), false);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      Node& node = graph_.nodes[i];
      if (std::holds_alternative<Add>(node.op))
        merge_add(i);
      else if (std::holds_alternative<Relu>(node.op))
        merge_relu(i);
    }
    return compact();
  }

 private:
  static size_t index(int node) { return static_cast<size_t>(node); }

  // The batch norm that node `input` is, if only one node reads it and it has no ReLU yet.
  BatchNorm* mergeable(int input) {
    if (input == kImage || readers_[index(input)] != 1) return nullptr;
    auto* bn = std::get_if<BatchNorm>(&graph_.nodes[index(input)].op);
    return bn && !bn->relu ? bn : nullptr;
  }

  // Node i becomes the batch norm `from` with the given spec and inputs.
  void become(size_t i, int from, const BatchNorm& spec, std::vector<int> inputs) {
    const Node& source = graph_.nodes[index(from)];
    graph_.nodes[i] = {source.name, spec, std::move(inputs), source.position};
    gone_[index(from)] = true;
  }

  void merge_add(size_t i) {
    const std::vector<int> inputs = graph_.nodes[i].inputs;
    for (size_t k = 0; k < inputs.size() && inputs.size() == 2; ++k) {
      const BatchNorm* bn = mergeable(inputs[k]);
      if (!bn || bn->residual) continue;
      BatchNorm spec = *bn;
      spec.residual = true;
      become(i, inputs[k], spec, {graph_.nodes[index(inputs[k])].inputs[0], inputs[1 - k]});
      return;
    }
  }

  void merge_relu(size_t i) {
    const int input = graph_.nodes[i].inputs[0];
    const BatchNorm* bn = mergeable(input);
    if (!bn) return;
    BatchNorm spec = *bn;
    spec.relu = true;
    become(i, input, spec, graph_.nodes[index(input)].inputs);
  }

  Graph compact() const {
    Graph out{.name = graph_.name, .image = graph_.image, .nodes = {}};
    std::vector<int> moved(graph_.nodes.size(), kGone);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (gone_[i]) continue;
      Node node = graph_.nodes[i];
      for (int& input : node.inputs)
        if (input != kImage) input = moved[index(input)];
      moved[i] = static_cast<int>(out.nodes.size());
      out.nodes.push_back(std::move(node));
    }
    return out;
  }

  Graph graph_;
  std::vector<int> readers_;
  std::vector<bool> gone_;
};

}  // namespace

Graph fuse(const Graph& graph) {
  return Fuser(graph).run();
}

}  // namespace convoy::ops
