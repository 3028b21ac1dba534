#include "ops/graph.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::ops {

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
  if (graph.image.c <= 0 || graph.image.h <= 0 || graph.image.w <= 0)
    fail(ExitCode::kBadJob, "network \"{}\": an image of {} channels, {} x {} pixels is empty",
         printable(graph.name), graph.image.c, graph.image.h, graph.image.w);
  std::unordered_set<std::string> names;
  std::vector<Shape> outputs;
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
      outputs.push_back(output_shape(node.op, input_shapes(graph, outputs, i, batch)));
    } catch (const Error& e) {
      fail(e.code(), "{} \"{}\": {}", kind_of(node.op), printable(node.name), e.what());
    }
  }
  return outputs;
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
    for (ParameterSpec& spec : parameters(node.op, input_shapes(graph, outputs, i, 1))) {
      const std::string name = node.name + "." + spec.name;
      layout.parameters.push_back({name, std::move(spec), i, 0, order++});
    }
    if (const auto* bn = std::get_if<BatchNorm>(&node.op)) {
      const int64_t channels = outputs[i].c;
      layout.statistics.push_back({node.name, i, layout.statistics_floats, channels, bn->momentum});
      layout.statistics_floats += 2 * static_cast<size_t>(channels);
    }
  }
  // Backward order of the nodes; inside a node weight comes before bias.
  std::stable_sort(layout.parameters.begin(), layout.parameters.end(),
                   [](const auto& a, const auto& b) { return a.node > b.node; });
  for (ParameterLayout::Parameter& p : layout.parameters) {
    p.offset = layout.parameter_floats;
    layout.parameter_floats += p.floats();
  }
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
      case Init::kHeNormal: {
        const double std = std::sqrt(2.0 / static_cast<double>(p.spec.fan_out));
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
