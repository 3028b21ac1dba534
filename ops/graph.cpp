#include "ops/graph.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::ops {

namespace {

// Memory plans compare nodes in pairs, which takes seconds for so many.
constexpr size_t kMostNodes = size_t{1} << 15;
// Elements of a node's output or parameter: int64_t then counts those of kMostNodes together. And
// multiply-adds of all nodes. Products of sizes are taken in double here, where they cannot
// overflow.
constexpr double kMostElements = 0x1p44, kMostMacs = 0x1p56;

double product(const Shape& s) {
  return static_cast<double>(s.n) * static_cast<double>(s.c) * static_cast<double>(s.h) *
         static_cast<double>(s.w);
}

// Throws Error (kBadJob) where a node's output, weights or, with `macs` of those before it, work
// are beyond all memory and time.
void check_size(const OpSpec& spec, const std::vector<Shape>& x, const Shape& y, double& macs) {
  if (y.n <= 0 || y.c <= 0 || y.h <= 0 || y.w <= 0 || product(y) > kMostElements)
    fail(ExitCode::kBadJob, "an output of {} has more than 2^44 elements", to_string(y));
  for (const ParameterSpec& p : parameters(spec, x)) {
    double elements = 1;
    for (const int64_t d : p.dims) elements *= static_cast<double>(d);
    macs += product(y) * static_cast<double>(p.fan_in);
    if (elements > kMostElements || macs > kMostMacs)
      fail(ExitCode::kBadJob, "its {} [{}] for an output of {} is beyond any computer", p.name,
           fmt::join(p.dims, ", "), to_string(y));
  }
}

void check_auxiliary(const Graph& graph, const std::vector<Shape>& outputs) {
  const size_t last = outputs.size() - 1;
  for (size_t k = 0; k < graph.auxiliary.size(); ++k) {
    const auto [node, weight] = graph.auxiliary[k];
    if (node < 0 || static_cast<size_t>(node) > last)
      fail(ExitCode::kBadJob, "network \"{}\": auxiliary classifier {} is node {}, there are {}",
           printable(graph.name), k, node, last + 1);
    const auto i = static_cast<size_t>(node);
    const std::string name = printable(graph.nodes[i].name);
    if (i == last)
      fail(ExitCode::kBadJob,
           "auxiliary classifier \"{}\" is the last node, whose loss counts anyway", name);
    if (!(outputs[i] == Shape{outputs[last].n, outputs[last].c, 1, 1}))
      fail(ExitCode::kBadJob,
           "auxiliary classifier \"{}\" gives {}; it must give a logit for each of the {} classes, "
           "{}",
           name, to_string(outputs[i]), outputs[last].c,
           to_string({outputs[last].n, outputs[last].c, 1, 1}));
    if (!std::isfinite(weight) || weight < 0)
      fail(ExitCode::kBadJob, "auxiliary classifier \"{}\": its weight is {}, must be 0 or more",
           name, weight);
    for (size_t other = 0; other < k; ++other)
      if (graph.auxiliary[other].node == node)
        fail(ExitCode::kBadJob, "auxiliary classifier \"{}\" is there twice; add up the weights",
             name);
  }
}

}  // namespace

int Graph::add(std::string node_name, OpSpec op, std::vector<int> inputs) {
  const auto index = static_cast<int>(nodes.size());
  nodes.push_back({std::move(node_name), std::move(op), std::move(inputs), index});
  return index;
}

std::vector<Shape> input_shapes(const Graph& graph, const std::vector<Shape>& outputs, size_t node,
                                int64_t batch) {
  std::vector<Shape> shapes;
  for (const int input : graph.nodes[node].inputs) {
    Shape shape = input == kImage ? graph.image : outputs[static_cast<size_t>(input)];
    shape.n = batch;
    shapes.push_back(shape);
  }
  return shapes;
}

std::vector<Shape> infer_shapes(const Graph& graph, int64_t batch) {
  if (graph.nodes.empty())
    fail(ExitCode::kBadJob, "network \"{}\" has no nodes", printable(graph.name));
  if (graph.nodes.size() > kMostNodes)
    fail(ExitCode::kBadJob, "network \"{}\" has {} nodes, more than {}", printable(graph.name),
         graph.nodes.size(), kMostNodes);
  if (graph.image.c <= 0 || graph.image.h <= 0 || graph.image.w <= 0)
    fail(ExitCode::kBadJob, "network \"{}\": an image of {} channels, {} x {} pixels is empty",
         printable(graph.name), graph.image.c, graph.image.h, graph.image.w);
  Shape images = graph.image;
  images.n = batch;
  if (product(images) > kMostElements)
    fail(ExitCode::kBadJob, "network \"{}\": images of {} have more than 2^44 elements",
         printable(graph.name), to_string(images));
  std::unordered_set<std::string> names;
  std::vector<Shape> outputs;
  double macs = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    if (node.name.empty() || !names.insert(node.name).second)
      fail(ExitCode::kBadJob, "network \"{}\": node {} is called \"{}\", which is {}",
           printable(graph.name), i, printable(node.name), node.name.empty() ? "empty" : "taken");
    for (const int input : node.inputs)
      if (input < kImage || input >= static_cast<int>(i))
        fail(ExitCode::kBadJob, "node \"{}\": input {} is not an earlier node",
             printable(node.name), input);
    try {
      const std::vector<Shape> x = input_shapes(graph, outputs, i, batch);
      const Shape y = output_shape(node.op, x);
      check_size(node.op, x, y, macs);
      outputs.push_back(y);
    } catch (const Error& e) {
      fail(e.code(), "{} \"{}\": {}", kind_of(node.op), printable(node.name), e.what());
    }
  }
  check_auxiliary(graph, outputs);
  return outputs;
}

Graph inference_graph(const Graph& graph) {
  std::vector<bool> needed(graph.nodes.size(), false);
  if (!needed.empty()) needed.back() = true;
  for (size_t i = needed.size(); i-- > 0;)
    for (const int input : graph.nodes[i].inputs)
      if (needed[i] && input != kImage) needed[static_cast<size_t>(input)] = true;
  Graph out{.name = graph.name, .image = graph.image, .nodes = {}};
  std::vector<int> index(graph.nodes.size());
  for (size_t i = 0; i < needed.size(); ++i) {
    if (!needed[i]) continue;
    index[i] = static_cast<int>(out.nodes.size());
    out.nodes.push_back(graph.nodes[i]);
    for (int& input : out.nodes.back().inputs)
      if (input != kImage) input = index[static_cast<size_t>(input)];
  }
  return out;
}

ParameterLayout layout_of(const Graph& graph) {
  const std::vector<Shape> outputs = infer_shapes(graph, 1);
  std::vector<size_t> by_position(graph.nodes.size());
  std::iota(by_position.begin(), by_position.end(), size_t{0});
  std::sort(by_position.begin(), by_position.end(),
            [&](size_t a, size_t b) { return graph.nodes[a].position < graph.nodes[b].position; });

  ParameterLayout layout;
  int order = 0;
  for (const size_t i : by_position) {
    const Node& node = graph.nodes[i];
    unsigned bit = 1;
    for (ParameterSpec& spec : parameters(node.op, input_shapes(graph, outputs, i, 1))) {
      const std::string name = node.name + "." + spec.name;
      layout.parameters.push_back(
          {name, std::move(spec), i, 0, order++, /*trained=*/(node.frozen & bit) == 0});
      bit <<= 1;
    }
    if (const auto* bn = std::get_if<BatchNorm>(&node.op)) {
      const int64_t channels = outputs[i].c;
      layout.statistics.push_back({node.name, i, layout.statistics_floats, channels, bn->momentum,
                                   !bn->frozen, layout.batch_floats});
      layout.statistics_floats += 2 * static_cast<size_t>(channels);
      if (!bn->frozen) layout.batch_floats += 2 * static_cast<size_t>(channels);
    }
  }
  // Backward order of the nodes; inside a node weight comes before bias.
  std::stable_sort(layout.parameters.begin(), layout.parameters.end(),
                   [](const auto& a, const auto& b) { return a.node > b.node; });
  for (ParameterLayout::Parameter& p : layout.parameters) {
    p.offset = layout.parameter_floats;
    p.gradient = layout.gradient_floats;
    layout.parameter_floats += p.floats();
    if (p.trained) layout.gradient_floats += p.floats();
  }
  return layout;
}

ParameterLayout layout_within(const ParameterLayout& whole, const Graph& part) {
  ParameterLayout layout = layout_of(part);
  // By name: offset and size.
  std::unordered_map<std::string, std::pair<size_t, size_t>> places;
  for (const auto& p : whole.parameters) places[p.name] = {p.offset, p.floats()};
  const auto place = [&](const std::string& name, size_t floats) {
    const auto found = places.find(name);
    if (found == places.end() || found->second.second != floats)
      fail(ExitCode::kFault, "network \"{}\": {} of {} floats is not part of the whole",
           printable(part.name), printable(name), floats);
    return found->second.first;
  };
  for (auto& p : layout.parameters) p.offset = place(p.name, p.floats());
  places.clear();
  for (const auto& s : whole.statistics)
    places[s.name] = {s.offset, static_cast<size_t>(s.channels)};
  for (auto& s : layout.statistics) s.offset = place(s.name, static_cast<size_t>(s.channels));
  layout.parameter_floats = whole.parameter_floats;
  layout.statistics_floats = whole.statistics_floats;
  return layout;
}

void initialise(const ParameterLayout& layout, uint64_t seed, float* out) {
  for (const ParameterLayout::Parameter& p : layout.parameters) {
    float* w = out + p.offset;
    const auto words = [&](size_t draw) {
      return random4(seed, Purpose::kInitialise, static_cast<uint64_t>(p.order), draw);
    };
    switch (p.spec.init) {
      case Init::kZeros:
        std::fill_n(w, p.floats(), 0.0f);
        break;
      case Init::kOnes:
        std::fill_n(w, p.floats(), 1.0f);
        break;
      case Init::kUniform: {
        const float bound = 1.0f / std::sqrt(static_cast<float>(p.spec.fan_in));
        for (size_t i = 0; i < p.floats(); ++i)
          w[i] = bound * (2.0f * uniform_float(words(i / 4)[i % 4]) - 1.0f);
        break;
      }
      case Init::kConstant:
        std::fill_n(w, p.floats(), static_cast<float>(p.spec.value));
        break;
      case Init::kNormal:
      case Init::kHeNormal: {
        const double std = p.spec.init == Init::kNormal
                               ? p.spec.value
                               : std::sqrt(2.0 / static_cast<double>(p.spec.fan_out));
        for (size_t i = 0; i < p.floats(); ++i)
          w[i] = static_cast<float>(std * normal2(words(i / 2))[i % 2]);
        break;
      }
    }
  }
}

void initialise_statistics(const ParameterLayout& layout, float* out) {
  for (const ParameterLayout::Statistics& s : layout.statistics) {
    std::fill_n(out + s.offset, s.channels, 0.0f);
    std::fill_n(out + s.offset + s.channels, s.channels, 1.0f);
  }
}

}  // namespace convoy::ops
