#include "ops/network.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/core/cache_line.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/trace.h"
#include "ops/freezing.h"
#include "ops/fusion.h"

namespace convoy::ops {
namespace {

// Logits that only a loss reads.
bool is_logits(const Graph& graph, size_t node) {
  if (node + 1 == graph.nodes.size()) return true;
  const auto is_node = [&](int other) { return other == static_cast<int>(node); };
  const auto reads_it = [&](const Node& n) { return std::ranges::any_of(n.inputs, is_node); };
  return std::ranges::any_of(graph.auxiliary, is_node, &Auxiliary::node) &&
         std::ranges::none_of(graph.nodes, reads_it);
}

DType output_type(const Graph& graph, size_t node, DType type) {
  return is_logits(graph, node) && std::holds_alternative<Linear>(graph.nodes[node].op)
             ? DType::kFloat32
             : type;
}

size_t bytes_of(const Shape& shape, DType type) {
  return static_cast<size_t>(shape.elements()) * size_of(type);
}

std::string trace_name(const std::string& node, Call::Kind kind) {
  switch (kind) {
    case Call::Kind::kGatherForward:
      return node + " forward, statistics";
    case Call::Kind::kForward:
      return node + " forward";
    case Call::Kind::kGatherBackward:
      return node + " backward, statistics";
    case Call::Kind::kBackward:
      break;
  }
  return node + " backward";
}

// Adds the seconds it lives to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += seconds_since(start_); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& sum_;
  Clock::time_point start_ = Clock::now();
};

// The moments at which each node is called; see NetworkMemory.
struct Moments {
  std::vector<int> forward, backward;  // per node
  int loss = 0;
  std::vector<int> begin = {0}, end = {0};  // per moment: of its segment

  Moments(const PassPlan& passes, size_t nodes) : forward(nodes), backward(nodes) {
    visit(passes.forward, Call::Kind::kForward, forward);
    loss = count();
    add_segment(1);
    visit(passes.backward, Call::Kind::kBackward, backward);
  }

 private:
  int count() const { return static_cast<int>(begin.size()); }
  void add_segment(size_t calls) {
    const int first = count();
    begin.resize(begin.size() + calls, first);
    end.resize(begin.size(), count() - 1);
  }
  void visit(const std::vector<Segment>& segments, Call::Kind kind, std::vector<int>& moments) {
    for (const Segment& segment : segments) {
      const int first = count();
      for (size_t c = 0; c < segment.calls.size(); ++c)
        if (segment.calls[c].kind == kind)
          moments[segment.calls[c].node] = first + static_cast<int>(c);
      add_segment(segment.calls.size());
    }
  }
};

// What one slice of a node saves, kept apart from the next slice's by whole cache lines.
size_t saved_stride(const OpSpec& spec, Shape y, int64_t slice) {
  y.n = slice;
  return round_up(saved_bytes(spec, y), kCacheLineBytes);
}

void expect_fits(const Device& device, const NetworkConfig& config) {
  if (config.batch <= 0) fail(ExitCode::kBadJob, "a batch of {} samples is empty", config.batch);
  if (!device.supports(config.type))
    fail(ExitCode::kBadJob, "this {} cannot compute in {}; use precision FP32", device.name(),
         name_of(config.type));
}

// Batch norms that take their statistics from what a node gives.
std::vector<size_t> gathering_readers(const Graph& graph, size_t node, bool training) {
  std::vector<size_t> readers;
  for (size_t j = 0; j < graph.nodes.size(); ++j)
    if (gathers(graph.nodes[j].op, training) &&
        std::ranges::count(gathered_inputs(graph.nodes[j]), static_cast<int>(node)) > 0)
      readers.push_back(j);
  return readers;
}

RunningGraph running_graph(const Device& device, const Graph& fused, const NetworkConfig& config) {
  if (!config.training) return fold_batch_norms(fused, config.fold);
  if (config.merge && device.merges_batch_norms()) return merge_batch_norms(fused);
  std::vector<size_t> node_of(fused.nodes.size());
  std::iota(node_of.begin(), node_of.end(), size_t{0});
  return {fused, std::move(node_of)};
}

// Whether the image has four channels in memory: where all who read it would have it so.
bool wants_four_channels(const Device& device, const Graph& graph, int64_t batch, DType type) {
  Shape image = graph.image;
  image.n = batch;
  bool any = false;
  for (const Node& node : graph.nodes) {
    if (std::ranges::count(node.inputs, kImage) == 0) continue;
    const auto* conv = std::get_if<Conv2d>(&node.op);
    if (!conv || !device.wants_four_channels(*conv, image, type)) return false;
    any = true;
  }
  return any;
}

PassPlan passes_of(const Device& device, const Graph& graph, const NetworkConfig& config) {
  return plan_passes(graph, config.batch, config.type, config.training,
                     config.slice_bytes > 0 ? config.slice_bytes : device.slice_bytes());
}

// Whether a node may give the sums that batch norms behind it want: of the whole batch at once.
bool gives_sums_of_a_batch(const Graph& graph, size_t node, const PassPlan& passes,
                           const NetworkConfig& config) {
  const std::vector<size_t> readers = gathering_readers(graph, node, config.training);
  const auto is_whole = [&](size_t i) { return passes.slice[i] == config.batch; };
  return !readers.empty() && is_whole(node) && std::ranges::all_of(readers, is_whole);
}

// What each node of a graph as it runs is made for.
std::vector<OpConfig> op_configs(const Graph& graph, const std::vector<Shape>& shapes,
                                 const PassPlan& passes, const NetworkConfig& config,
                                 bool four_channels) {
  const size_t n = graph.nodes.size();
  const std::vector<bool> wanted = config.training ? wanted_gradients(graph) : std::vector<bool>(n);
  const std::vector<bool> trained = trained_nodes(graph);
  std::vector<OpConfig> all;
  for (size_t i = 0; i < n; ++i) {
    const Node& node = graph.nodes[i];
    OpConfig op{.name = node.name,
                .x = input_shapes(graph, shapes, i, passes.slice[i]),
                .y = shapes[i],
                .batch = config.batch,
                .type = config.type,
                .y_type = output_type(graph, i, config.type),
                .four_channels = four_channels && node.inputs[0] == kImage,
                .tf32 = config.tf32,
                // What never goes backward keeps nothing for it.
                .training = wanted[i] || (config.training && acts_in_training(node.op)),
                .wants_dx = {},
                .wants_gradients = trained[i],
                .wants_sums = gives_sums_of_a_batch(graph, i, passes, config)};
    op.y.n = passes.slice[i];
    for (const int input : node.inputs)
      op.wants_dx.push_back(input != kImage && wanted[static_cast<size_t>(input)]);
    all.push_back(std::move(op));
  }
  return all;
}

}  // namespace

void decide(Device& device, const Graph& graph, const NetworkConfig& config) {
  expect_fits(device, config);
  const Graph runs = running_graph(device, fuse(graph), config).graph;
  // First, as it names the node that does not fit.
  const std::vector<Shape> shapes = infer_shapes(runs, config.batch);
  const std::vector<OpConfig> ops =
      op_configs(runs, shapes, passes_of(device, runs, config), config,
                 wants_four_channels(device, runs, config.batch, config.type));
  for (size_t i = 0; i < ops.size(); ++i) device.decide(runs.nodes[i].op, ops[i]);
}

NetworkMemory network_memory(const Graph& graph, const PassPlan& passes, int64_t batch, DType type,
                             bool training, bool aside, bool four_channels) {
  const std::vector<Shape> shapes = infer_shapes(graph, batch);
  const size_t n = graph.nodes.size();
  const Moments when(passes, n);
  // What goes backward: the output's gradient, per node.
  const std::vector<bool> wanted = training ? wanted_gradients(graph) : std::vector<bool>(n);
  const std::vector<bool> trained = trained_nodes(graph);
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
  const auto begin_of = [&](int moment) { return when.begin[static_cast<size_t>(moment)]; };

  Shape image = graph.image;
  image.n = batch;
  m.value.push_back(add(bytes_of(four_channels ? with_four_channels(image) : image, type), 0, 0));
  for (size_t i = 0; i < n; ++i) {
    const int in_place = y_in_place(graph.nodes[i].op);
    if (in_place >= 0)
      m.value.push_back(m.value[value_of(graph.nodes[i].inputs[static_cast<size_t>(in_place)])]);
    else
      m.value.push_back(
          add(bytes_of(shapes[i], output_type(graph, i, type)), when.forward[i], when.forward[i]));
  }
  lives_until(m.value[n], when.loss);
  for (const Auxiliary& a : graph.auxiliary)
    if (wanted[static_cast<size_t>(a.node)]) lives_until(m.value[value_of(a.node)], when.loss);
  for (size_t i = 0; i < n; ++i) {
    const BackwardNeeds needs = backward_needs(graph.nodes[i].op);
    if (wanted[i] && needs.output) lives_until(m.value[i + 1], when.backward[i]);
    const bool reads = wanted[i] && (!needs.for_parameters || trained[i]);
    const std::vector<int>& inputs = graph.nodes[i].inputs;
    for (size_t k = 0; k < inputs.size(); ++k) {
      const int value = m.value[value_of(inputs[k])];
      lives_until(value, when.forward[i]);
      if (reads && needs.reads_input(k)) lives_until(value, when.backward[i]);
    }
  }

  m.saved.assign(n, -1);
  m.dy.resize(n + 1);
  m.dx.resize(n);
  if (training) {
    const auto is_wanted = [&](const Auxiliary& a) { return wanted[static_cast<size_t>(a.node)]; };
    if (!wanted[n - 1] && std::ranges::none_of(graph.auxiliary, is_wanted))
      fail(ExitCode::kBadJob, "network \"{}\": all of it is frozen, so there is nothing to train",
           printable(graph.name));
    // The loss of the last node is reported, whether its gradient is wanted or not.
    m.dlogits = add(bytes_of(shapes[n - 1], type), when.loss,
                    wanted[n - 1] ? when.backward[n - 1] : when.loss);
    if (wanted[n - 1]) m.dy[n].push_back(m.dlogits);
    for (const Auxiliary& a : graph.auxiliary) {
      const auto node = static_cast<size_t>(a.node);
      m.auxiliary_dlogits.push_back(-1);
      if (!wanted[node]) continue;
      m.auxiliary_dlogits.back() =
          add(bytes_of(shapes[node], type), when.loss, when.backward[node]);
      m.dy[node + 1].push_back(m.auxiliary_dlogits.back());
    }
  }
  for (size_t i = n; training && i-- > 0;) {
    const Node& node = graph.nodes[i];
    const size_t saved = saved_stride(node.op, shapes[i], passes.slice[i]) *
                         static_cast<size_t>(batch / passes.slice[i]);
    const bool saves = wanted[i] || acts_in_training(node.op);
    if (saved > 0 && saves)
      m.saved[i] = add(saved, when.forward[i], wanted[i] ? when.backward[i] : when.forward[i]);
    if (!wanted[i]) {
      m.dx[i].assign(node.inputs.size(), -1);
      continue;
    }
    if (m.dy[i + 1].empty())
      fail(ExitCode::kBadJob, "{} \"{}\": nobody reads its output", kind_of(node.op),
           printable(node.name));
    const BackwardNeeds needs = backward_needs(node.op);
    const int in_place = needs.dx_in_place;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const int source = node.inputs[k];
      if (source == kImage || !wanted[static_cast<size_t>(source)]) {
        m.dx[i].push_back(-1);
        continue;
      }
      // A gradient lives until the node that made the value has read it.
      const int read_at = when.backward[static_cast<size_t>(source)];
      int buffer = m.dy[i + 1][0];
      if (static_cast<int>(k) == in_place)
        lives_until(buffer, read_at);
      else
        buffer = add(bytes_of(compact(shapes[static_cast<size_t>(source)], needs.dx_stride), type),
                     when.backward[i], read_at);
      m.dx[i].push_back(buffer);
      // A compact one comes second.
      std::vector<int>& dy = m.dy[value_of(source)];
      const bool before =
          needs.dx_stride == 1 &&
          backward_needs(graph.nodes[static_cast<size_t>(source)].op).dy1_stride > 1;
      dy.insert(before ? dy.begin() : dy.end(), buffer);
    }
  }

  // Where the batch comes in slices, the next one would overwrite what is still read aside.
  m.aside.assign(n, false);
  for (size_t i = 0; i < n; ++i)
    m.aside[i] = aside && training && wanted[i] && trained[i] && passes.slice[i] == batch &&
                 std::holds_alternative<Conv2d>(graph.nodes[i].op);
  for (size_t i = 0; i < n; ++i) {
    if (!m.aside[i]) continue;
    int next = static_cast<int>(when.begin.size()) - 1;
    for (size_t j = 0; j < n; ++j)
      if (m.aside[j] && when.backward[j] > when.backward[i])
        next = std::min(next, when.backward[j]);
    for (const int input : graph.nodes[i].inputs) lives_until(m.value[value_of(input)], next);
    for (const int buffer : m.dy[i + 1]) lives_until(buffer, next);
  }

  // What lives in one segment alone is overwritten by the next slice.
  m.one_slice.assign(m.buffers.size(), false);
  const auto keep_one_slice = [&](int buffer, size_t node) {
    Lifetime& b = m.buffers[static_cast<size_t>(buffer)];
    const bool one_segment = begin_of(b.first) == begin_of(b.last);
    if (!one_segment || m.one_slice[static_cast<size_t>(buffer)]) return;
    m.one_slice[static_cast<size_t>(buffer)] = true;
    b.bytes /= static_cast<size_t>(batch / passes.slice[node]);
  };
  for (size_t i = 0; i < n; ++i) {
    keep_one_slice(m.value[i + 1], i);
    for (const int buffer : m.dx[i])
      if (buffer >= 0) keep_one_slice(buffer, i);
  }
  // A slice leaves the memory of its calls to the next slice; a batch is there for all slices of
  // its first and its last segment.
  for (size_t i = 0; i < m.buffers.size(); ++i) {
    if (m.one_slice[i]) continue;
    m.buffers[i].first = begin_of(m.buffers[i].first);
    m.buffers[i].last = when.end[static_cast<size_t>(m.buffers[i].last)];
  }
  return m;
}

MemoryPlan planned_arena(const Graph& graph, int64_t batch, DType type, bool training,
                         int64_t slice_bytes) {
  Graph runs = fuse(graph);
  if (!training) runs = fold_batch_norms(runs).graph;
  const PassPlan passes = plan_passes(runs, batch, type, training, slice_bytes);
  return plan_memory(network_memory(runs, passes, batch, type, training).buffers);
}

Network::Network(Device& device, const Graph& graph, const NetworkConfig& config)
    : device_(device),
      config_(config),
      graph_(fuse(graph)),
      layout_(config.whole ? layout_within(*config.whole, graph_) : layout_of(graph_)) {
  expect_fits(device_, config_);
  RunningGraph running = running_graph(device_, graph_, config_);
  graph_ = std::move(running.graph);
  node_of_ = std::move(running.node_of);
  shapes_ = infer_shapes(graph_, config_.batch);
  four_channels_ = wants_four_channels(device_, graph_, config_.batch, config_.type);
  passes_ = passes_of(device_, graph_, config_);
  memory_ =
      network_memory(graph_, passes_, config_.batch, config_.type, config_.training,
                     config_.aside && !config_.profile && device_.works_aside(), four_channels_);
  const size_t n = graph_.nodes.size();

  size_t scratch_bytes = 0, aside_bytes = 0;
  const std::vector<OpConfig> ops = op_configs(graph_, shapes_, passes_, config_, four_channels_);
  for (size_t i = 0; i < n; ++i) {
    ops_.push_back(device_.make(graph_.nodes[i].op, ops[i]));
    scratch_bytes = std::max(scratch_bytes, ops_[i]->scratch_bytes());
    if (memory_.aside[i]) aside_bytes = std::max(aside_bytes, ops_[i]->aside_bytes());
  }
  // Buffers that live as long as the network.
  const auto add_lasting = [&](size_t bytes) {
    memory_.buffers.push_back({bytes, 0, std::numeric_limits<int>::max()});
    memory_.one_slice.push_back(true);
    return static_cast<int>(memory_.buffers.size()) - 1;
  };
  // One scratch buffer serves all ops, one after the other.
  const int scratch = add_lasting(scratch_bytes);
  // Likewise for the gradients of parameters that are frozen beside trained ones of their node.
  const std::vector<bool> trained = trained_nodes(graph_);
  size_t unwanted_floats = 0;
  for (const ParameterLayout::Parameter& p : layout_.parameters)
    if (config_.training && !p.trained && trained[node_of_[p.node]])
      unwanted_floats = std::max(unwanted_floats, p.floats());
  const int unwanted = add_lasting(unwanted_floats * sizeof(float));
  // And for what is aside, beside those.
  const int aside = add_lasting(aside_bytes);
  // Sums that convolutions give, all in one.
  std::vector<size_t> sums_of(n, 0);
  size_t sums_bytes = 0;
  for (size_t i = 0; i < n; ++i)
    if (ops_[i]->gives_sums()) {
      sums_of[i] = sums_bytes;
      sums_bytes +=
          round_up(2 * sizeof(float) * static_cast<size_t>(shapes_[i].c), kCacheLineBytes);
    }
  const int sums = add_lasting(sums_bytes);
  plan_ = plan_memory(memory_.buffers);
  arena_ = device_.allocate(plan_.bytes);
  if (config_.input) {
    ImageInput input = *config_.input;
    input.four_channels = four_channels_;
    input_ = device_.make_input(input, config_.type);
  }
  loss_result_ = device_.allocate(2 * sizeof(LossResult));
  if (unwanted_floats > 0) unwanted_ = static_cast<float*>(at(unwanted));

  nodes_.resize(n);
  extra_dy_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const std::vector<Shape> x = input_shapes(graph_, shapes_, i, config_.batch);
    const auto slices = static_cast<size_t>(config_.batch / passes_.slice[i]);
    for (size_t s = 0; s < slices; ++s) {
      NodeMemory m;
      m.slice = {.begin = static_cast<int64_t>(s) * passes_.slice[i],
                 .first = s == 0,
                 .last = s + 1 == slices};
      for (size_t k = 0; k < x.size(); ++k) {
        const auto value = static_cast<size_t>(graph_.nodes[i].inputs[k] + 1);
        const bool padded = value == 0 && four_channels_;
        m.x.push_back(
            at(memory_.value[value], padded ? with_four_channels(x[k]) : x[k], config_.type, i, s));
      }
      m.y = at(memory_.value[i + 1], shapes_[i], output_type(graph_, i, config_.type), i, s);
      if (memory_.saved[i] >= 0)
        m.saved = static_cast<char*>(at(memory_.saved[i])) +
                  s * saved_stride(graph_.nodes[i].op, shapes_[i], passes_.slice[i]);
      m.scratch = at(scratch);
      if (memory_.aside[i] && ops_[i]->aside_bytes() > 0) m.aside = at(aside);
      std::vector<void*> extra;
      if (config_.training) {
        const BackwardNeeds needs = backward_needs(graph_.nodes[i].op);
        for (size_t k = 0; k < x.size(); ++k)
          m.dx.push_back(at(memory_.dx[i][k], compact(x[k], needs.dx_stride), config_.type, i, s));
        const auto sources = static_cast<size_t>(needs.dy_sources);
        for (size_t k = 0; k < memory_.dy[i + 1].size(); ++k) {
          const Shape shape = compact(shapes_[i], k == 1 ? needs.dy1_stride : 1);
          (k < sources ? m.dy : extra)
              .push_back(at(memory_.dy[i + 1][k], shape, config_.type, i, s));
        }
      }
      nodes_[i].push_back(std::move(m));
      extra_dy_[i].push_back(std::move(extra));
    }
  }

  for (size_t i = 0; i < n; ++i)
    if (ops_[i]->gives_sums()) {
      auto* const here = reinterpret_cast<float*>(static_cast<char*>(at(sums)) + sums_of[i]);
      nodes_[i][0].sums = here;
      for (const size_t reader : gathering_readers(graph_, i, config_.training)) {
        NodeMemory& m = nodes_[reader][0];
        const std::span<const int> inputs = gathered_inputs(graph_.nodes[reader]);
        for (size_t k = 0; k < inputs.size(); ++k)
          if (inputs[k] == static_cast<int>(i)) (k == 0 ? m.sums : m.shortcut_sums) = here;
      }
    }

  plan_backward();
  for (const auto* segments : {&passes_.forward, &passes_.backward})
    for (const Segment& segment : *segments)
      for (const Call& call : segment.calls) {
        times_.calls.emplace_back(call, 0.0);
        traces_.push_back(trace_name(graph_.nodes[call.node].name, call.kind));
      }
}

Network::~Network() = default;

// Gradients become final node by node, but nodes of one segment all at its end. A merged node may
// have some whose turn in the buffer comes later.
void Network::plan_backward() {
  std::vector<bool> is_final(graph_.nodes.size(), false);
  size_t next = 0;  // parameter
  const auto final_floats = [&] {
    const auto& all = layout_.parameters;
    while (next < all.size() && (!all[next].trained || is_final[node_of_[all[next].node]])) ++next;
    return next < all.size() ? all[next].gradient : layout_.gradient_floats;
  };
  const auto is_stop = [&](size_t before, size_t now) {
    return now > before &&
           (config_.stops.empty() ||
            std::ranges::any_of(config_.stops, [&](size_t s) { return before < s && s <= now; }));
  };
  size_t ready = 0, told = 0, begin = 0, time = 0, first_time = 0;
  for (const Segment& segment : passes_.forward) first_time = time += segment.calls.size();
  const std::span<const Segment> segments = passes_.backward;
  for (size_t i = 0; i < segments.size(); ++i) {
    for (const Call& call : segments[i].calls)
      if (call.kind == Call::Kind::kBackward) is_final[call.node] = true;
    ready = final_floats();
    time += segments[i].calls.size();
    if (!is_stop(told, ready) && i + 1 < segments.size()) continue;
    backward_.push_back({segments.subspan(begin, i + 1 - begin), first_time, ready});
    told = ready;
    begin = i + 1;
    first_time = time;
  }
}

Network::Recordings* Network::recordings_with(const Buffers& buffers) {
  if (!config_.record || config_.profile) return nullptr;
  const auto found = std::ranges::find(recordings_, buffers, &Recordings::buffers);
  if (found != recordings_.end()) return &*found;
  Recordings& made = recordings_.emplace_back(
      Recordings{buffers, device_.make_recording(), device_.make_recording(), {}});
  for (size_t i = 0; i < backward_.size(); ++i) made.backward.push_back(device_.make_recording());
  return &made;
}

void* Network::at(int buffer) const {
  if (buffer < 0) return nullptr;
  return static_cast<char*>(arena_.data.get()) + plan_.offsets[static_cast<size_t>(buffer)];
}

void* Network::at(int buffer, const Shape& shape, DType type, size_t node, size_t slice) const {
  if (buffer < 0) return nullptr;
  if (memory_.one_slice[static_cast<size_t>(buffer)]) return at(buffer);
  const size_t sample = bytes_of(shape, type) / static_cast<size_t>(shape.n);
  return static_cast<char*>(at(buffer)) + sample * static_cast<size_t>(passes_.slice[node]) * slice;
}

void Network::bind(const Buffers& b) {
  recorded_ = recordings_with(b);
  for (auto& slices : nodes_)
    for (NodeMemory& m : slices) {
      m.parameters.clear();
      m.gradients.clear();
    }
  // Parameters stand in backward order, but weight before bias inside a node, as ops expect them;
  // those of a folded batch norm before its convolution's, and of a batch norm before its
  // shortcut's.
  for (const ParameterLayout::Parameter& p : layout_.parameters) {
    if (node_of_[p.node] == kNobody) continue;
    for (NodeMemory& m : nodes_[node_of_[p.node]]) {
      m.parameters.push_back(b.parameters + p.offset);
      m.gradients.push_back(!p.trained    ? unwanted_
                            : b.gradients ? b.gradients + p.gradient
                                          : nullptr);
    }
  }
  for (const ParameterLayout::Statistics& s : layout_.statistics) {
    if (node_of_[s.node] == kNobody) continue;
    const Node& node = graph_.nodes[node_of_[s.node]];
    const auto* bn = std::get_if<BatchNorm>(&node.op);
    const bool of_shortcut = bn && bn->shortcut && node.name != s.name;
    float* const statistics = b.statistics && s.gathered ? b.statistics + s.batch : nullptr;
    for (NodeMemory& m : nodes_[node_of_[s.node]]) {
      if (of_shortcut) {
        m.shortcut_statistics = statistics;
        continue;
      }
      m.running = b.running ? b.running + s.offset : nullptr;
      m.statistics = statistics;
    }
  }
}

void Network::prepare(int part, int parts) {
  // Contiguous nodes with about the same number of parameters.
  const auto border = [&](int p) {
    return layout_.parameter_floats * static_cast<size_t>(p) / static_cast<size_t>(parts);
  };
  std::vector<bool> mine(ops_.size(), part == 0);
  for (const ParameterLayout::Parameter& p : layout_.parameters)
    if (node_of_[p.node] != kNobody)
      mine[node_of_[p.node]] = p.offset >= border(part) && p.offset < border(part + 1);
  run(recorded_ ? recorded_->preparing.get() : nullptr, nullptr, [&] {
    for (size_t i = 0; i < ops_.size(); ++i)
      if (mine[i]) ops_[i]->prepare(nodes_[i][0]);
    device_.prepared();
  });
}

void Network::share_weights(const Network& other) {
  recorded_ = nullptr;  // other addresses
  recordings_.clear();
  for (size_t i = 0; i < ops_.size(); ++i) ops_[i]->share_weights(*other.ops_[i]);
}

void Network::forward(const uint8_t* pixels, const StepInfo& step, const BatchMix& mix) {
  {
    const Stopwatch watch(times_.input);
    const TraceRange trace("pixels to activations");
    if (pixels) send(pixels);
    input_->run(at(memory_.value[0]), mix);
    if (config_.profile) device_.wait();
  }
  run_forward(step);
}

void Network::forward_activations(const void* x, const StepInfo& step) {
  Shape image = graph_.image;
  image.n = config_.batch;
  size_t bytes = bytes_of(image, config_.type);
  std::vector<char> padded;
  if (four_channels_) {
    padded.resize(bytes = bytes_of(with_four_channels(image), config_.type));
    pad_to_four_channels(image, x, padded.data(), size_of(config_.type));
    x = padded.data();
  }
  device_.upload(at(memory_.value[0]), x, bytes);
  run_forward(step);
}

void Network::run(Recording* recording, const StepInfo* step, const std::function<void()>& work) {
  recording ? recording->run(step, work) : work();
}

void Network::run_forward(const StepInfo& step) {
  run(recorded_ ? recorded_->forward.get() : nullptr, &step,
      [&] { run(passes_.forward, step, 0); });
}

void Network::run(std::span<const Segment> segments, const StepInfo& step, size_t first_time) {
  for (const Segment& segment : segments) {
    run(segment, step, first_time);
    first_time += segment.calls.size();
  }
}

void Network::run(const Segment& segment, const StepInfo& step, size_t first_time) {
  const size_t slices = nodes_[segment.calls[0].node].size();
  for (size_t slice = 0; slice < slices; ++slice)
    for (size_t c = 0; c < segment.calls.size(); ++c) {
      const Stopwatch watch(times_.calls[first_time + c].second);
      const TraceRange trace(traces_[first_time + c].c_str());
      run(segment.calls[c], slice, step);
      if (config_.profile) device_.wait();
    }
}

void Network::run(const Call& call, size_t slice, const StepInfo& step) {
  Op& op = *ops_[call.node];
  const NodeMemory& m = nodes_[call.node][slice];
  const bool gathered = gathers(graph_.nodes[call.node].op, config_.training);
  switch (call.kind) {
    case Call::Kind::kGatherForward:
      return op.gather_forward(m);
    case Call::Kind::kForward:
      return op.forward(m, step);
    case Call::Kind::kGatherBackward:
      add_extra_dy(call.node, slice);
      return op.gather_backward(m);
    case Call::Kind::kBackward:
      if (!gathered) add_extra_dy(call.node, slice);
      if (memory_.aside[call.node]) device_.join();  // NetworkMemory counts on it
      return op.backward(m, step);
  }
}

void Network::add_extra_dy(size_t node, size_t slice) {
  for (const void* extra : extra_dy_[node][slice])
    device_.accumulate(nodes_[node][slice].dy[0], extra,
                       shapes_[node].elements() / shapes_[node].n * passes_.slice[node],
                       config_.type);
}

void Network::loss(const int32_t* labels, double gradient_scale, float* head, double loss_scale,
                   double label_share) {
  const Stopwatch watch(times_.loss);
  const TraceRange trace("loss");
  SoftmaxCrossEntropy spec = {.n = config_.batch,
                              .classes = shapes_.back().c,
                              .label_smoothing = config_.label_smoothing,
                              .gradient_scale = gradient_scale,
                              .loss_scale = loss_scale,
                              .label_share = label_share};
  auto* results = static_cast<LossResult*>(loss_result_.data.get());
  const TensorView x = logits();
  device_.loss(spec, at(memory_.dlogits), config_.type, x.data, x.type, labels, &results[0], head);
  for (size_t k = 0; k < memory_.auxiliary_dlogits.size(); ++k) {
    if (memory_.auxiliary_dlogits[k] < 0) continue;  // all that it could train is frozen
    const TensorView y = output_of(static_cast<size_t>(graph_.auxiliary[k].node));
    spec.gradient_scale = gradient_scale * graph_.auxiliary[k].weight;
    device_.loss(spec, at(memory_.auxiliary_dlogits[k]), config_.type, y.data, y.type, labels,
                 &results[1], nullptr);
  }
  if (config_.profile) device_.wait();
}

LossResult Network::loss_result() const {
  LossResult result;
  device_.download(&result, loss_result_.data.get(), sizeof result);
  return result;
}

void Network::backward(const StepInfo& step, const std::function<void(size_t)>& ready) {
  size_t last = 0;
  for (size_t p = 0; p < backward_.size(); ++p) {
    const Piece& piece = backward_[p];
    run(recorded_ ? recorded_->backward[p].get() : nullptr, &step, [&] {
      run(piece.segments, step, piece.first_time);
      device_.join();
    });
    if (piece.ready > last) ready(last = piece.ready);
  }
}

TensorView Network::logits() const {
  return output_of(graph_.nodes.size() - 1);
}

TensorView Network::output_of(size_t node) const {
  return {at(memory_.value[node + 1]), shapes_[node], output_type(graph_, node, config_.type)};
}

}  // namespace convoy::ops
