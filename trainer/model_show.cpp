// convoy model show: a model as a table or JSON.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "ops/fusion.h"
#include "ops/network.h"
#include "trainer/commands.h"
#include "trainer/graph_text.h"
#include "trainer/text.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

struct Layer {
  std::string name, kind;
  Shape y;
  int64_t parameters = 0, macs = 0, bytes = 0;  // of one image; activations in fp32
};

std::vector<Layer> layers_of(const ops::Graph& graph) {
  const std::vector<Shape> shapes = ops::infer_shapes(graph, 1);
  std::vector<Layer> layers;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const auto x = ops::input_shapes(graph, shapes, i, 1);
    Layer layer{.name = graph.nodes[i].name,
                .kind = ops::kind_of(graph.nodes[i].op),
                .y = shapes[i],
                .macs = ops::macs(graph.nodes[i].op, x),
                .bytes = shapes[i].elements() * 4};
    for (const auto& p : ops::parameters(graph.nodes[i].op, x)) layer.parameters += p.elements();
    layers.push_back(layer);
  }
  return layers;
}

// 25557032 -> "25,557,032".
std::string grouped(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

struct Totals {
  int64_t parameters = 0, macs = 0, bytes = 0;

  Totals operator-(const Totals& t) const {
    return {parameters - t.parameters, macs - t.macs, bytes - t.bytes};
  }
};

Totals total(const std::vector<Layer>& layers) {
  Totals t;
  for (const Layer& l : layers) {
    t.parameters += l.parameters;
    t.macs += l.macs;
    t.bytes += l.bytes;
  }
  return t;
}

// What training alone has: auxiliary classifiers.
Totals auxiliary_total(const ops::Graph& graph) {
  return total(layers_of(graph)) - total(layers_of(ops::inference_graph(graph)));
}

void print_table(const ops::Graph& graph, const std::vector<Layer>& layers, int64_t batch,
                 DType type) {
  size_t width = 5;
  for (const Layer& l : layers) width = std::max(width, l.name.size());
  const std::string rule(width + 75, '-');
  std::cout << fmt::format("{}: input {} x {} x {} (channels x height x width)\n\n", graph.name,
                           graph.image.c, graph.image.h, graph.image.w);
  std::cout << fmt::format("{:<{}}  {:<13}  {:>16}  {:>12}  {:>14}  {:>10}\n{}\n", "layer", width,
                           "kind", "output C,H,W", "parameters", "MACs", "bytes", rule);
  for (const Layer& l : layers)
    std::cout << fmt::format("{:<{}}  {:<13}  {:>16}  {:>12}  {:>14}  {:>10}\n", l.name, width,
                             l.kind, fmt::format("{},{},{}", l.y.c, l.y.h, l.y.w),
                             grouped(l.parameters), grouped(l.macs), grouped(l.bytes));
  const Totals t = total(layers);
  std::cout << fmt::format("{}\n{:<{}}  {:<13}  {:>16}  {:>12}  {:>14}  {:>10}\n\n", rule, "total",
                           width, "", "", grouped(t.parameters), grouped(t.macs), grouped(t.bytes));

  if (!graph.auxiliary.empty()) {
    const Totals auxiliary = auxiliary_total(graph);
    std::cout << fmt::format(
        "Auxiliary classifiers, gone in inference: {} of the parameters, {} of the MACs.\n\n",
        grouped(auxiliary.parameters), grouped(auxiliary.macs));
  }
  const auto plan = [&](bool training) {
    return ops::planned_arena(graph, batch, type, training,
                              ops::make_device("cpu", 1)->slice_bytes());
  };
  const ops::MemoryPlan train = plan(true), infer = plan(false);
  std::cout << fmt::format(
      "One image: {:.2f} GMAC forward. Parameters take {}.\n"
      "Arena for a batch of {} in {} (naive: had every tensor its own place):\n"
      "  training   {:>12}  (naive {:>12}, {:.0f} %)\n"
      "  inference  {:>12}  (naive {:>12}, {:.0f} %)\n",
      static_cast<double>(t.macs) / 1e9, mebibytes(4.0 * static_cast<double>(t.parameters)), batch,
      name_of(type), mebibytes(static_cast<double>(train.bytes)),
      mebibytes(static_cast<double>(train.naive_bytes)),
      100.0 * static_cast<double>(train.bytes) / static_cast<double>(train.naive_bytes),
      mebibytes(static_cast<double>(infer.bytes)),
      mebibytes(static_cast<double>(infer.naive_bytes)),
      100.0 * static_cast<double>(infer.bytes) / static_cast<double>(infer.naive_bytes));
}

void print_json(const ops::Graph& graph, const std::vector<Layer>& layers) {
  const Totals t = total(layers);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Layer& l : layers)
    list.push_back({{"name", l.name},
                    {"kind", l.kind},
                    {"output", {l.y.c, l.y.h, l.y.w}},
                    {"parameters", l.parameters},
                    {"macs", l.macs},
                    {"bytes", l.bytes}});
  nlohmann::ordered_json out = {{"model", graph.name},
                                {"input", {graph.image.c, graph.image.h, graph.image.w}},
                                {"parameters", t.parameters},
                                {"macs", t.macs}};
  if (!graph.auxiliary.empty()) {
    const Totals auxiliary = auxiliary_total(graph);
    out["auxiliary"] = {{"parameters", auxiliary.parameters}, {"macs", auxiliary.macs}};
  }
  out["layers"] = list;
  std::cout << out.dump(2) << std::endl;
}

int model_show(const Arguments& arguments) {
  std::string name, format, input, shortcut, precision;
  int64_t batch = 32;
  ModelOptions options;
  po::options_description flags("Options");
  flags.add_options()("name", po::value(&name)->required(),
                      "a name of convoy model list, or a .txtpb file")(
      "format", po::value(&format)->default_value("table"), "table, json or txtpb")(
      "input", po::value(&input), "channels x height x width, e.g. 3x224x224")(
      "classes", po::value(&options.classes)->default_value(0), "0: the model's usual")(
      "batch", po::value(&batch)->default_value(32), "for the memory plan")(
      "precision", po::value(&precision)->default_value("fp32"),
      "for the memory plan: fp32, bf16, fp16")(
      "shortcut", po::value(&shortcut)->default_value("default"), "a, b, c or default")(
      "stride-in-first-conv", po::bool_switch(&options.stride_in_first_conv),
      "bottlenecks of v1 (the paper's) instead of v1.5");
  const auto values =
      parse_options(arguments, flags, "model show NAME [OPTIONS]",
                    "Counts are of one image; bytes are each layer's output in fp32.\n", "name");
  if (!values) return 0;
  if (!input.empty()) options.image = parse_image(input);
  using Shortcut = ModelOptions::Shortcut;
  if (shortcut == "a")
    options.shortcut = Shortcut::kA;
  else if (shortcut == "b")
    options.shortcut = Shortcut::kB;
  else if (shortcut == "c")
    options.shortcut = Shortcut::kC;
  else if (shortcut != "default")
    fail(ExitCode::kUsage, "--shortcut {}: there are a, b, c and default", printable(shortcut));
  const DType type = parse_precision(precision);
  if (batch <= 0 || batch > 1000000 || options.classes < 0)
    fail(ExitCode::kUsage, "--batch must lie in 1 ... 1000000, --classes not be negative");

  // A network of the user's own is a file; it says its input and classes itself.
  const ops::Graph graph = name.ends_with(".txtpb") ? load_graph(name) : make_model(name, options);
  const std::vector<Layer> layers = layers_of(graph);
  if (format == "json")
    print_json(graph, layers);
  else if (format == "table")
    print_table(graph, layers, batch, type);
  else if (format == "txtpb")
    std::cout << to_text(graph) << std::flush;
  else
    fail(ExitCode::kUsage, "--format {}: there are table, json and txtpb", printable(format));
  return 0;
}

}  // namespace

int model_command(const Arguments& arguments) {
  const std::string what = arguments.empty() ? "" : arguments[0];
  if (what == "list") return model_list({arguments.begin() + 1, arguments.end()});
  if (what == "show") return model_show({arguments.begin() + 1, arguments.end()});
  if (what == "--help" || what == "-h") {
    std::cout << "Usage: convoy model list\n       convoy model show NAME [OPTIONS]\n";
    return 0;
  }
  fail(ExitCode::kUsage, "convoy model needs to know what: list or show NAME");
}

}  // namespace convoy::trainer
