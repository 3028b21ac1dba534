#include "ops/network.h"

#include <algorithm>

#include "ops/core/error.h"
#include "ops/fusion.h"

namespace convoy::ops {
namespace {

// The moments of a step; see NetworkMemory.
struct Moments {
  int nodes;
  int forward(size_t node) const { return static_cast<int>(node) + 1; }
  int loss() const { return nodes + 1; }
  int backward(size_t node) const { return 2 * nodes + 1 - static_cast<int>(node); }
};

DType output_type(const Graph& graph, size_t node, DType type) {
  const bool is_logits = node + 1 == graph.nodes.size();
  return is_logits && std::holds_alternative<Linear>(graph.nodes[node].op) ? DType::kFloat32 : type;
}

size_t bytes_of(const Shape& shape, DType type) {
  return static_cast<size_t>(shape.elements()) * size_of(type);
}

}  // namespace

NetworkMemory network_memory(const Graph& graph, int64_t batch, DType type, bool training) {
  const std::vector<Shape> shapes = infer_shapes(graph, batch);
  const size_t n = graph.nodes.size();
  const Moments when{static_cast<int>(n)};
  NetworkMemory m;
  const auto add = [&](size_t bytes, int first, int last) {
    m.buffers.push_back({bytes, first, last});
    return static_cast<int>(m.buffers.size()) - 1;
  };
  const auto lives_until = [&](int buffer, int moment) {
    int& last = m.buffers[static_cast<size_t>(buffer)].last;
    last = std::max(last, moment);
  };
  const auto value_of = [](int node) { return static_cast<size_t>(node + 1); };

  Shape image = graph.image;
  image.n = batch;
  m.value.push_back(add(bytes_of(image, type), 0, 0));
  for (size_t i = 0; i < n; ++i)
    m.value.push_back(
        add(bytes_of(shapes[i], output_type(graph, i, type)), when.forward(i), when.forward(i)));
  lives_until(m.value[n], when.loss());
  for (size_t i = 0; i < n; ++i) {
    const BackwardNeeds needs = backward_needs(graph.nodes[i].op);
    const std::vector<int>& inputs = graph.nodes[i].inputs;
    for (size_t k = 0; k < inputs.size(); ++k) {
      const int value = m.value[value_of(inputs[k])];
      lives_until(value, when.forward(i));
      if (training && (needs.inputs >> k & 1u) != 0) lives_until(value, when.backward(i));
    }
  }

  m.saved.assign(n, -1);
  m.dy.resize(n + 1);
  m.dx.resize(n);
  if (!training) return m;

  m.dlogits = add(bytes_of(shapes[n - 1], type), when.loss(), when.backward(n - 1));
  m.dy[n].push_back(m.dlogits);
  for (size_t i = n; i-- > 0;) {
    const Node& node = graph.nodes[i];
    const size_t saved = saved_bytes(node.op, shapes[i]);
    if (saved > 0) m.saved[i] = add(saved, when.forward(i), when.backward(i));
    if (m.dy[i + 1].empty())
      fail(ExitCode::kBadJob, "{} \"{}\": nobody reads its output", kind_of(node.op),
           printable(node.name));
    const int in_place = backward_needs(node.op).dx_in_place;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const int source = node.inputs[k];
      if (source == kImage) {
        m.dx[i].push_back(-1);
        continue;
      }
      // A gradient lives until the node that made the value has read it.
      const int read_at = when.backward(static_cast<size_t>(source));
      int buffer = m.dy[i + 1][0];
      if (static_cast<int>(k) == in_place)
        lives_until(buffer, read_at);
      else
        buffer =
            add(bytes_of(shapes[static_cast<size_t>(source)], type), when.backward(i), read_at);
      m.dx[i].push_back(buffer);
      m.dy[value_of(source)].push_back(buffer);
    }
  }
  return m;
}

Network::Network(Device& device, const Graph& graph, const NetworkConfig& config)
    : device_(device),
      config_(config),
      graph_(fuse(graph)),
      layout_(layout_of(graph_)),
      shapes_(infer_shapes(graph_, config.batch)),
      memory_(network_memory(graph_, config.batch, config.type, config.training)) {
  if (config_.batch <= 0) fail(ExitCode::kBadJob, "a batch of {} samples is empty", config_.batch);
  if (!device_.supports(config_.type))
    fail(ExitCode::kBadJob, "this {} cannot compute in {}; use precision FP32", device_.name(),
         name_of(config_.type));
  const size_t n = graph_.nodes.size();
  const Moments when{static_cast<int>(n)};

  size_t scratch_bytes = 0;
  for (size_t i = 0; i < n; ++i) {
    OpConfig op{.name = graph_.nodes[i].name,
                .x = input_shapes(graph_, shapes_, i, config_.batch),
                .y = shapes_[i],
                .type = config_.type,
                .y_type = output_type(graph_, i, config_.type),
                .training = config_.training,
                .wants_dx = {}};
    for (const int input : graph_.nodes[i].inputs) op.wants_dx.push_back(input != kImage);
    ops_.push_back(device_.make(graph_.nodes[i].op, op));
    scratch_bytes = std::max(scratch_bytes, ops_[i]->scratch_bytes());
  }
  // One scratch buffer serves all ops, one after the other.
  const int scratch = static_cast<int>(memory_.buffers.size());
  memory_.buffers.push_back({scratch_bytes, when.forward(0), when.backward(0)});
  plan_ = plan_memory(memory_.buffers);
  arena_ = device_.allocate(plan_.bytes);

  nodes_.resize(n);
  extra_dy_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    NodeMemory& m = nodes_[i];
    for (const int input : graph_.nodes[i].inputs)
      m.x.push_back(at(memory_.value[static_cast<size_t>(input + 1)]));
    m.y = at(memory_.value[i + 1]);
    m.saved = at(memory_.saved[i]);
    m.scratch = at(scratch);
    if (!config_.training) continue;
    for (const int buffer : memory_.dx[i]) m.dx.push_back(at(buffer));
    const auto sources = static_cast<size_t>(backward_needs(graph_.nodes[i].op).dy_sources);
    for (size_t k = 0; k < memory_.dy[i + 1].size(); ++k)
      (k < sources ? m.dy : extra_dy_[i]).push_back(at(memory_.dy[i + 1][k]));
  }

  ready_.assign(n, 0);
  for (const ParameterLayout::Parameter& p : layout_.parameters)
    ready_[p.node] = p.offset + p.floats();
}

Network::~Network() = default;

void* Network::at(int buffer) const {
  if (buffer < 0) return nullptr;
  return static_cast<char*>(arena_.data.get()) + plan_.offsets[static_cast<size_t>(buffer)];
}

void Network::bind(const Buffers& b) {
  for (NodeMemory& m : nodes_) {
    m.parameters.clear();
    m.gradients.clear();
  }
  // Parameters stand in backward order, but weight before bias inside a node, as ops expect them.
  for (const ParameterLayout::Parameter& p : layout_.parameters) {
    nodes_[p.node].parameters.push_back(b.parameters + p.offset);
    nodes_[p.node].gradients.push_back(b.gradients ? b.gradients + p.offset : nullptr);
  }
  for (const ParameterLayout::Statistics& s : layout_.statistics) {
    nodes_[s.node].running = b.running ? b.running + s.offset : nullptr;
    nodes_[s.node].statistics = b.statistics ? b.statistics + s.offset : nullptr;
  }
}

void Network::prepare() {
  for (size_t i = 0; i < ops_.size(); ++i) ops_[i]->prepare(nodes_[i]);
}

void Network::forward(const uint8_t* pixels, const StepInfo& step) {
  device_.make_input(*config_.input, at(memory_.value[0]), config_.type, pixels);
  run_forward(step);
}

void Network::forward_activations(const void* x, const StepInfo& step) {
  Shape image = graph_.image;
  image.n = config_.batch;
  device_.upload(at(memory_.value[0]), x, bytes_of(image, config_.type));
  run_forward(step);
}

void Network::run_forward(const StepInfo& step) {
  for (size_t i = 0; i < ops_.size(); ++i) ops_[i]->forward(nodes_[i], step);
}

LossResult Network::loss(const int32_t* labels, double gradient_scale) {
  const TensorView x = logits();
  return device_.loss({.n = config_.batch,
                       .classes = x.shape.c,
                       .label_smoothing = config_.label_smoothing,
                       .gradient_scale = gradient_scale},
                      at(memory_.dlogits), config_.type, x.data, x.type, labels);
}

void Network::backward(const StepInfo& step, const std::function<void(size_t)>& ready) {
  for (size_t i = ops_.size(); i-- > 0;) {
    const NodeMemory& m = nodes_[i];
    for (const void* extra : extra_dy_[i])
      device_.accumulate(m.dy[0], extra, shapes_[i].elements(), config_.type);
    ops_[i]->backward(m, step);
    if (ready_[i] > 0) ready(ready_[i]);
  }
}

TensorView Network::logits() const {
  const size_t last = graph_.nodes.size() - 1;
  return {at(memory_.value[last + 1]), shapes_[last], output_type(graph_, last, config_.type)};
}

}  // namespace convoy::ops
