#include "ops/fusion.h"

#include <algorithm>
#include <numeric>

namespace convoy::ops {
namespace {

// The graph with a count of readers per node; merging marks nodes as gone.
class Fuser {
 public:
  explicit Fuser(const Graph& graph)
      : graph_(graph),
        readers_(graph.nodes.size(), 0),
        last_reader_(graph.nodes.size(), 0),
        merged_into_(graph.nodes.size()),
        overwritten_(graph.nodes.size(), false) {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      merged_into_[i] = i;
      for (const int input : graph_.nodes[i].inputs) {
        if (input == kImage) continue;
        ++readers_[index(input)];
        last_reader_[index(input)] = i;
      }
    }
    for (const Auxiliary& a : graph_.auxiliary) ++readers_[index(a.node)];
  }

  Graph run() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      Node& node = graph_.nodes[i];
      if (std::holds_alternative<Add>(node.op))
        merge_add(i);
      else if (std::holds_alternative<Relu>(node.op))
        merge_relu(i);
    }
    return compact().graph;
  }

  RunningGraph fold() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i)
      if (std::holds_alternative<BatchNorm>(graph_.nodes[i].op)) fold_into_convolution(i);
    return compact();
  }

  RunningGraph merge() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (std::holds_alternative<BatchNorm>(graph_.nodes[i].op))
        merge_shortcut(i);
      else if (std::holds_alternative<MaxPool>(graph_.nodes[i].op))
        merge_pool(i);
    }
    RunningGraph out = compact();
    keep_gradients_compact(out.graph);
    return out;
  }

 private:
  static size_t index(int node) { return static_cast<size_t>(node); }

  bool is_read_once(int node) const { return node != kImage && readers_[index(node)] == 1; }

  // The batch norm that node `input` is, if only one node reads it.
  const BatchNorm* batch_norm_of_one(int input) const {
    return is_read_once(input) ? std::get_if<BatchNorm>(&graph_.nodes[index(input)].op) : nullptr;
  }

  // Node i becomes the node `from` with the given spec and inputs.
  void become(size_t i, int from, const OpSpec& spec, std::vector<int> inputs) {
    const Node& source = graph_.nodes[index(from)];
    graph_.nodes[i] = {source.name, spec, std::move(inputs), source.position, source.frozen};
    merged_into_[index(from)] = i;
  }

  void merge_add(size_t i) {
    const std::vector<int> inputs = graph_.nodes[i].inputs;
    for (size_t k = 0; k < inputs.size() && inputs.size() == 2; ++k) {
      const BatchNorm* bn = batch_norm_of_one(inputs[k]);
      if (!bn || bn->relu || bn->residual) continue;
      BatchNorm spec = *bn;
      spec.residual = true;
      become(i, inputs[k], spec, {graph_.nodes[index(inputs[k])].inputs[0], inputs[1 - k]});
      return;
    }
  }

  void merge_relu(size_t i) {
    const int input = graph_.nodes[i].inputs[0];
    const BatchNorm* bn = batch_norm_of_one(input);
    if (!bn || bn->relu) return;
    BatchNorm spec = *bn;
    spec.relu = true;
    become(i, input, spec, graph_.nodes[index(input)].inputs);
  }

  // A batch norm without residual that another node takes over: only that one reads it, and it
  // alone reads what it normalises, since gradients that reach a node are added in the order of
  // those who read it.
  const BatchNorm* can_be_taken_over(int input) const {
    const BatchNorm* bn = batch_norm_of_one(input);
    if (!bn || bn->residual || bn->frozen || bn->pool) return nullptr;
    const int x = graph_.nodes[index(input)].inputs[0];
    return x == kImage || is_read_once(x) ? bn : nullptr;
  }

  void merge_shortcut(size_t i) {
    Node& node = graph_.nodes[i];
    auto& spec = std::get<BatchNorm>(node.op);
    if (!spec.residual || spec.frozen) return;
    const int residual = node.inputs[1];
    const BatchNorm* bn = can_be_taken_over(residual);
    if (!bn || bn->relu) return;
    const Node& source = graph_.nodes[index(residual)];
    spec.shortcut = BatchNorm::Shortcut{.epsilon = bn->epsilon};
    node.inputs[1] = source.inputs[0];
    node.frozen |= source.frozen << kBatchNormParameters;
    merged_into_[index(residual)] = i;
  }

  void merge_pool(size_t i) {
    const int input = graph_.nodes[i].inputs[0];
    const auto& pool = std::get<MaxPool>(graph_.nodes[i].op);
    const BatchNorm* bn = can_be_taken_over(input);
    if (!bn || !can_follow_batch_norm(pool)) return;
    BatchNorm spec = *bn;
    spec.pool = pool;
    become(i, input, spec, graph_.nodes[index(input)].inputs);
  }

  // Of the two gradients that a batch norm adds; of more, or of one alone, nobody takes it compact.
  static void keep_gradients_compact(Graph& graph) {
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      auto* bn = std::get_if<BatchNorm>(&graph.nodes[i].op);
      if (!bn || bn->pool) continue;
      const auto is_it = [&](int node) { return node == static_cast<int>(i); };
      ptrdiff_t gradients = std::ranges::count_if(graph.auxiliary, is_it, &Auxiliary::node);
      Conv2d* skips = nullptr;  // the last who reads it of those that do
      for (Node& reader : graph.nodes) {
        const ptrdiff_t reads = std::ranges::count_if(reader.inputs, is_it);
        gradients += reads;
        auto* conv = std::get_if<Conv2d>(&reader.op);
        if (reads > 0 && conv && skips_pixels(*conv)) skips = conv;
      }
      if (!skips || gradients != 2) continue;
      skips->compact_dx = true;
      bn->dy1_stride = skips->stride;
    }
  }

  void fold_into_convolution(size_t i) {
    const std::vector<int> inputs = graph_.nodes[i].inputs;
    if (!is_read_once(inputs[0])) return;
    const Node& source = graph_.nodes[index(inputs[0])];
    const auto* conv = std::get_if<Conv2d>(&source.op);
    if (!conv || conv->batch_norm) return;
    // The convolution moves to here: what it reads must still be there.
    const int x = source.inputs[0];
    if (x != kImage && overwritten_[index(x)]) return;
    std::vector<int> folded_inputs = {x};
    if (inputs.size() == 2) {
      const int residual = inputs[1];
      if (residual == kImage || residual == x || last_reader_[index(residual)] != i) return;
      overwritten_[index(residual)] = true;
      folded_inputs.push_back(residual);
    }
    Conv2d spec = *conv;
    spec.batch_norm = std::get<BatchNorm>(graph_.nodes[i].op);
    become(i, inputs[0], spec, std::move(folded_inputs));
  }

  RunningGraph compact() const {
    RunningGraph out{.graph = {.name = graph_.name, .image = graph_.image, .nodes = {}},
                     .node_of = std::vector<size_t>(graph_.nodes.size())};
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (merged_into_[i] != i) continue;
      Node node = graph_.nodes[i];
      for (int& input : node.inputs)
        if (input != kImage) input = static_cast<int>(out.node_of[index(input)]);
      out.node_of[i] = out.graph.nodes.size();
      out.graph.nodes.push_back(std::move(node));
    }
    for (size_t i = graph_.nodes.size(); i-- > 0;) out.node_of[i] = out.node_of[merged_into_[i]];
    for (const Auxiliary& a : graph_.auxiliary)
      out.graph.auxiliary.push_back({static_cast<int>(out.node_of[index(a.node)]), a.weight});
    return out;
  }

  Graph graph_;
  std::vector<int> readers_;
  std::vector<size_t> last_reader_;
  std::vector<size_t> merged_into_;  // another node: gone
  std::vector<bool> overwritten_;    // by a convolution whose residual it is
};

}  // namespace

Graph fuse(const Graph& graph) {
  return Fuser(graph).run();
}

RunningGraph fold_batch_norms(const Graph& fused, bool fold) {
  const Graph needed = inference_graph(fused);
  RunningGraph folded{.graph = needed, .node_of = std::vector<size_t>(needed.nodes.size())};
  std::iota(folded.node_of.begin(), folded.node_of.end(), size_t{0});
  if (fold) folded = Fuser(needed).fold();
  std::vector<size_t> node_of;
  size_t next = 0;  // of the needed nodes, which are a part of the fused ones, in their order
  for (const Node& node : fused.nodes) {
    const bool is_needed = next < needed.nodes.size() && needed.nodes[next].name == node.name;
    node_of.push_back(is_needed ? folded.node_of[next++] : kNobody);
  }
  folded.node_of = std::move(node_of);
  return folded;
}

RunningGraph merge_batch_norms(const Graph& fused) {
  return Fuser(fused).merge();
}

}  // namespace convoy::ops
