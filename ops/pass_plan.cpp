#include "ops/pass_plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "ops/freezing.h"
#include "ops/winograd_cpu.h"

namespace convoy::ops {
namespace {

using Kind = Call::Kind;

// As packed: of a 3x3 convolution that Winograd's kernels can compute, 36 floats for 9 weights, as
// 4x4 tiles need, also where another processor does without or takes larger tiles, so that slices
// do not depend on the processor.
int64_t weight_bytes(const OpSpec& spec, const std::vector<Shape>& x) {
  int64_t floats = 0;
  for (const ParameterSpec& p : parameters(spec, x)) floats += p.is_weight ? p.elements() : 0;
  const auto* conv = std::get_if<Conv2d>(&spec);
  if (conv && winograd_computes(*conv, x[0].c)) floats *= 36 / 9;
  return floats * static_cast<int64_t>(sizeof(float));
}

// The divisor of `batch` that is nearest to `wanted` as a ratio; the larger of two.
int64_t nearest_divisor(int64_t batch, int64_t wanted) {
  int64_t below = wanted, above = wanted;
  while (batch % below != 0) --below;
  while (batch % above != 0) ++above;
  return above * below <= wanted * wanted ? above : below;
}

// All nodes of one resolution take slices of one size, so that they share segments: as many samples
// as fit slice_bytes, or more where weights are large, since every slice reads them and adds to
// their gradients.
std::vector<int64_t> choose_slices(const Graph& graph, const std::vector<Shape>& shapes,
                                   int64_t batch, DType type, int64_t slice_bytes) {
  struct Resolution {
    int64_t sample_bytes = 0, weight_bytes = 0;  // the largest of a node
  };
  std::map<std::pair<int64_t, int64_t>, Resolution> resolutions;
  for (size_t i = 0; i < shapes.size(); ++i) {
    Resolution& r = resolutions[{shapes[i].h, shapes[i].w}];
    const int64_t elements = shapes[i].elements() / shapes[i].n;
    r.sample_bytes = std::max(r.sample_bytes, elements * static_cast<int64_t>(size_of(type)));
    r.weight_bytes = std::max(
        r.weight_bytes, weight_bytes(graph.nodes[i].op, input_shapes(graph, shapes, i, batch)));
  }
  std::vector<int64_t> slices;
  for (const Shape& shape : shapes) {
    const Resolution& r = resolutions[{shape.h, shape.w}];
    const int64_t wanted = std::max(slice_bytes, r.weight_bytes) / r.sample_bytes;
    slices.push_back(nearest_divisor(batch, std::clamp<int64_t>(wanted, 1, batch)));
  }
  return slices;
}

// Cuts a list of calls where a node goes on that was gathered in the same segment, and where the
// size of the slices changes.
std::vector<Segment> cut(const std::vector<Call>& calls, const std::vector<int64_t>& slice) {
  std::vector<Segment> segments;
  std::vector<bool> gathered(slice.size(), false);
  for (const Call& call : calls) {
    const bool gathers = call.kind == Kind::kGatherForward || call.kind == Kind::kGatherBackward;
    if (segments.empty() || (!gathers && gathered[call.node]) ||
        slice[segments.back().calls.back().node] != slice[call.node]) {
      segments.emplace_back();
      gathered.assign(slice.size(), false);
    }
    segments.back().calls.push_back(call);
    gathered[call.node] = gathered[call.node] || gathers;
  }
  return segments;
}

// Statistics are gathered as soon as all their values are there, while those are in the cache.
std::vector<Call> forward_calls(const Graph& graph, bool training) {
  std::vector<Call> calls;
  const auto gather_readers = [&](int value) {
    for (size_t j = 0; j < graph.nodes.size(); ++j)
      if (gathers(graph.nodes[j].op, training) &&
          std::ranges::max(gathered_inputs(graph.nodes[j])) == value)
        calls.push_back({Kind::kGatherForward, j});
  };
  gather_readers(kImage);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    calls.push_back({Kind::kForward, i});
    gather_readers(static_cast<int>(i));
  }
  return calls;
}

// The list reversed, without the nodes at and before which nothing is trained. A node is gathered
// as soon as all gradients of its output are there.
std::vector<Call> backward_calls(const Graph& graph) {
  const size_t n = graph.nodes.size();
  const std::vector<bool> wanted = wanted_gradients(graph);
  std::vector<int> awaited(n, 0);  // gradients of the node's output that are still to come
  for (size_t i = 0; i < n; ++i)
    for (const int input : graph.nodes[i].inputs)
      if (wanted[i] && input != kImage) ++awaited[static_cast<size_t>(input)];
  const std::vector<int> readers = awaited;
  const auto is_gathered = [&](size_t i) { return gathers(graph.nodes[i].op, true); };

  std::vector<Call> calls;
  std::vector<bool> done(n, false);  // gathered
  const std::function<void(size_t)> gather = [&](size_t i) {
    calls.push_back({Kind::kGatherBackward, i});
    done[i] = true;
    // What lies over dy[0] is final now, without a shortcut; who only reads it can be gathered
    // behind us.
    const int in_place = backward_needs(graph.nodes[i].op).dx_in_place;
    if (in_place < 0 || std::get<BatchNorm>(graph.nodes[i].op).shortcut) return;
    const int source = graph.nodes[i].inputs[static_cast<size_t>(in_place)];
    if (source == kImage) return;
    const auto s = static_cast<size_t>(source);
    const auto* bn = std::get_if<BatchNorm>(&graph.nodes[s].op);
    if (bn && !bn->residual && is_gathered(s) && readers[s] == 1) gather(s);
  };
  for (size_t i = n; i-- > 0;) {
    if (!wanted[i]) continue;
    if (is_gathered(i) && !done[i]) gather(i);
    calls.push_back({Kind::kBackward, i});
    for (const int input : graph.nodes[i].inputs) {
      if (input == kImage) continue;
      const auto source = static_cast<size_t>(input);
      if (--awaited[source] == 0 && is_gathered(source) && !done[source]) gather(source);
    }
  }
  return calls;
}

}  // namespace

bool gathers(const OpSpec& spec, bool training) {
  const auto* bn = std::get_if<BatchNorm>(&spec);
  return training && bn && !bn->frozen;
}

std::span<const int> gathered_inputs(const Node& node) {
  const auto* bn = std::get_if<BatchNorm>(&node.op);
  return std::span(node.inputs).first(bn && bn->shortcut ? 2 : 1);
}

PassPlan plan_passes(const Graph& graph, int64_t batch, DType type, bool training,
                     int64_t slice_bytes) {
  const std::vector<Shape> shapes = infer_shapes(graph, batch);
  PassPlan plan;
  plan.slice = choose_slices(graph, shapes, batch, type, slice_bytes);
  plan.forward = cut(forward_calls(graph, training), plan.slice);
  if (training) plan.backward = cut(backward_calls(graph), plan.slice);
  return plan;
}

Work work_of(const Graph& graph, const Call& call, int64_t batch, DType type, bool training) {
  const std::vector<Shape> shapes = infer_shapes(graph, batch);
  const Node& node = graph.nodes[call.node];
  const std::vector<Shape> x_shapes = input_shapes(graph, shapes, call.node, batch);
  const auto bytes = [&](const Shape& s) {
    return static_cast<double>(s.elements()) * static_cast<double>(size_of(type));
  };
  const double y = bytes(shapes[call.node]);
  const double saved =
      training ? static_cast<double>(saved_bytes(node.op, shapes[call.node])) : 0.0;
  const std::vector<bool> wanted =
      training ? wanted_gradients(graph) : std::vector<bool>(graph.nodes.size());
  const BackwardNeeds needs = backward_needs(node.op);
  double x = 0, dx = 0, floats = 0, read_again = needs.output ? y : 0;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    x += bytes(x_shapes[k]);
    if (needs.reads_input(k)) read_again += bytes(x_shapes[k]);
    if (node.inputs[k] != kImage && wanted[static_cast<size_t>(node.inputs[k])])
      dx += bytes(compact(x_shapes[k], needs.dx_stride));
  }
  for (const ParameterSpec& p : parameters(node.op, x_shapes))
    floats += static_cast<double>(p.elements());
  const double flops = 2.0 * static_cast<double>(macs(node.op, x_shapes));
  const double weights = flops > 0 ? floats * static_cast<double>(size_of(type)) : 0.0;

  if (const auto* bn = std::get_if<BatchNorm>(&node.op)) {
    double dy = 0;
    for (const Node& reader : graph.nodes)
      dy += y * static_cast<double>(std::count(reader.inputs.begin(), reader.inputs.end(),
                                               static_cast<int>(call.node)));
    if (bn->dy1_stride > 1) dy = y + bytes(compact(shapes[call.node], bn->dy1_stride));
    const bool stored = !bn->pool && ((bn->residual && !bn->shortcut) || dy > y);
    // Gradients that it cannot add itself are added to the first one before.
    dy += 2 * std::max(0.0, dy - needs.dy_sources * y);
    const double gathered = static_cast<double>(gathered_inputs(node).size()) * bytes(x_shapes[0]);
    switch (call.kind) {
      case Kind::kGatherForward:
        return {0, gathered};
      case Kind::kForward:
        return {0, x + y + saved};
      case Kind::kGatherBackward:
        return {0, dy + gathered + saved + (stored ? y : 0.0)};
      case Kind::kBackward:
        if (bn->frozen) return {0, dy + saved + dx};
        return {0, 2 * gathered + y + (stored ? 0.0 : saved)};
    }
  }
  if (call.kind == Kind::kForward) return {flops, x + weights + y + saved};
  // A weight's gradient reads x and dy, the data's dy and the weights.
  if (flops > 0) {
    const bool trained = trained_nodes(graph)[call.node];
    return {(dx > 0 ? flops : 0.0) + (trained ? flops : 0.0),
            (trained ? x + y + floats * sizeof(float) : 0.0) + (dx > 0 ? y + weights + dx : 0.0)};
  }
  return {0, y + saved + read_again + dx};
}

}  // namespace convoy::ops
