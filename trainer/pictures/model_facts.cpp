#include "trainer/pictures/model_facts.h"

#include <fmt/format.h>

#include <algorithm>

namespace convoy::trainer {
namespace {

// Fields of absurd networks stop here.
constexpr double kMostPixels = 1e15;

int64_t bounded(double pixels) {
  return static_cast<int64_t>(std::min(pixels, kMostPixels));
}

struct WindowOf {
  std::optional<Window> operator()(const ops::Conv2d& s) const {
    return Window{s.kernel, s.stride, s.padding, s.groups, false};
  }
  std::optional<Window> operator()(const ops::MaxPool& s) const {
    return Window{s.kernel, s.stride, s.padding, 1, s.ceil_mode};
  }
  std::optional<Window> operator()(const ops::AvgPool& s) const {
    return Window{s.kernel, s.stride, s.padding, 1, false};
  }
  std::optional<Window> operator()(const ops::Subsample& s) const {
    return Window{1, s.stride, 0, 1, true};
  }
  template <typename Other>
  std::optional<Window> operator()(const Other&) const {
    return std::nullopt;
  }
};

// How a side of y comes about.
std::string side_text(const ops::OpSpec& op, const Window& w, int64_t in, int64_t out) {
  if (std::holds_alternative<ops::Subsample>(op))
    return in % w.stride == 0 ? fmt::format("{}/{} = {}", in, w.stride, out)
                              : fmt::format("ceil({}/{}) = {}", in, w.stride, out);
  const int64_t room = in + 2 * w.padding - w.kernel;
  std::string quotient = fmt::format("({}+2*{}-{})/{}", in, w.padding, w.kernel, w.stride);
  int64_t windows = room / w.stride + 1;
  if (room % w.stride != 0) {
    quotient = fmt::format("{}({})", w.ceil ? "ceil" : "floor", quotient);
    windows += w.ceil ? 1 : 0;
  }
  // Rounded up, the last window may lie outside altogether and does not count.
  return fmt::format("{} + 1{} = {}", quotient, windows > out ? " - 1" : "", out);
}

std::string size_text(const ops::OpSpec& op, const std::optional<Window>& w, const Shape& x,
                      const Shape& y) {
  if (!w) return "";
  const std::string h = side_text(op, *w, x.h, y.h);
  return x.h == x.w ? h : fmt::format("h {}; w {}", h, side_text(op, *w, x.w, y.w));
}

// The window of a node as it acts: of a classifier and a global pool the whole input, of a pool
// whose windows fit themselves the largest of them.
Window acting_window(const ops::OpSpec& op, const Shape& x, const Shape& y) {
  if (const auto w = std::visit(WindowOf{}, op)) return *w;
  const int64_t side = std::max(x.h, x.w), sides = std::max<int64_t>(1, std::max(y.h, y.w));
  if (side == sides) return {};
  const int64_t stride = std::max<int64_t>(1, side / sides);
  return {.kernel = sides == 1 ? side : side - (sides - 1) * stride, .stride = stride};
}

ReceptiveField field_of(const ops::Graph& graph, size_t node, const std::vector<LayerFacts>& before,
                        const Shape& x, const Shape& y) {
  ReceptiveField in{0, 0};
  for (const int input : graph.nodes[node].inputs) {
    const ReceptiveField& f =
        input == ops::kImage ? ReceptiveField{} : before[static_cast<size_t>(input)].field;
    in = {std::max(in.size, f.size), std::max(in.jump, f.jump)};
  }
  const Window w = acting_window(graph.nodes[node].op, x, y);
  const auto jump = static_cast<double>(in.jump);
  return {bounded(static_cast<double>(in.size) + static_cast<double>(w.kernel - 1) * jump),
          bounded(jump * static_cast<double>(w.stride))};
}

// "64*3*7*7 + 64"; tensors of the same size are counted.
std::string formula_of(const std::vector<ops::ParameterSpec>& parameters) {
  std::vector<std::pair<std::string, int>> terms;
  for (const ops::ParameterSpec& p : parameters) {
    const std::string term = fmt::format("{}", fmt::join(p.dims, "*"));
    const auto same =
        std::find_if(terms.begin(), terms.end(), [&](const auto& t) { return t.first == term; });
    if (same == terms.end())
      terms.emplace_back(term, 1);
    else
      ++same->second;
  }
  std::string text;
  for (const auto& [term, count] : terms)
    text += fmt::format("{}{}{}", text.empty() ? "" : " + ",
                        count > 1 ? fmt::format("{}*", count) : std::string(), term);
  return text;
}

}  // namespace

std::vector<LayerFacts> layer_facts(const ops::Graph& graph) {
  const std::vector<Shape> shapes = ops::infer_shapes(graph, 1);
  std::vector<LayerFacts> layers;
  layers.reserve(graph.nodes.size());
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const ops::Node& node = graph.nodes[i];
    const std::vector<Shape> x = ops::input_shapes(graph, shapes, i, 1);
    const std::optional<Window> window = std::visit(WindowOf{}, node.op);
    const std::vector<ops::ParameterSpec> parameters = ops::parameters(node.op, x);
    LayerFacts layer{.name = node.name,
                     .kind = ops::kind_of(node.op),
                     .y = shapes[i],
                     .window = window,
                     .arithmetic = size_text(node.op, window, x[0], shapes[i]),
                     .field = field_of(graph, i, layers, x[0], shapes[i]),
                     .formula = formula_of(parameters),
                     .macs = ops::macs(node.op, x),
                     .bytes = shapes[i].elements() * 4};
    for (const ops::ParameterSpec& p : parameters) layer.parameters += p.elements();
    layers.push_back(std::move(layer));
  }
  return layers;
}

ModelTotals total(const std::vector<LayerFacts>& layers) {
  ModelTotals t;
  for (const LayerFacts& l : layers) {
    t.parameters += l.parameters;
    t.macs += l.macs;
    t.bytes += l.bytes;
  }
  return t;
}

ModelTotals auxiliary_total(const ops::Graph& graph) {
  const ModelTotals all = total(layer_facts(graph));
  const ModelTotals kept = total(layer_facts(ops::inference_graph(graph)));
  return {all.parameters - kept.parameters, all.macs - kept.macs, all.bytes - kept.bytes};
}

std::string grouped(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

}  // namespace convoy::trainer
