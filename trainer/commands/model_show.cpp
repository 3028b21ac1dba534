// convoy model show: a model as a table, JSON, text or picture.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "ops/fusion.h"
#include "ops/network.h"
#include "trainer/base/file.h"
#include "trainer/base/text.h"
#include "trainer/commands/commands.h"
#include "trainer/job/graph_text.h"
#include "trainer/pictures/model_drawing.h"
#include "trainer/pictures/model_facts.h"
#include "trainer/pictures/model_picture.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

// ---- The table ----

struct Column {
  const char* title;
  bool left;  // aligned
  int rank;   // columns of the highest rank go first where a line is too narrow
  std::vector<std::string> cells;
  size_t width = 0;
};

// Columns of a terminal; 120 where there is none.
size_t terminal_width() {
  winsize size{};
  constexpr size_t kUsual = 120;
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

std::vector<Column> columns_of(const std::vector<LayerFacts>& layers) {
  std::vector<Column> columns = {
      {"layer", true, 0, {}},       {"kind", true, 0, {}},
      {"output", false, 0, {}},     {"side of the output", true, 2, {}},
      {"sees/every", false, 3, {}}, {"parameters", false, 0, {}},
      {"by formula", true, 4, {}},  {"MACs", false, 1, {}},
      {"bytes", false, 5, {}},
  };
  constexpr size_t kLongest = 60;  // of a name
  for (const LayerFacts& l : layers) {
    const std::string cells[] = {
        printable(l.name, kLongest),
        l.kind,
        fmt::format("{},{},{}", l.y.c, l.y.h, l.y.w),
        l.arithmetic,
        fmt::format("{}/{}", l.field.size, l.field.jump),
        l.parameters > 0 ? grouped(l.parameters) : "",
        l.formula,
        l.macs > 0 ? grouped(l.macs) : "",
        grouped(l.bytes),
    };
    for (size_t c = 0; c < columns.size(); ++c) columns[c].cells.push_back(cells[c]);
  }
  const ModelTotals t = total(layers);
  const std::string totals[] = {
      "total", "", "", "", "", grouped(t.parameters), "", grouped(t.macs), grouped(t.bytes)};
  for (size_t c = 0; c < columns.size(); ++c) {
    columns[c].cells.push_back(totals[c]);
    columns[c].width = std::string_view(columns[c].title).size();
    for (const std::string& cell : columns[c].cells)
      columns[c].width = std::max(columns[c].width, cell.size());
  }
  return columns;
}

size_t line_width(const std::vector<Column>& columns) {
  size_t width = 0;
  for (const Column& c : columns) width += c.width + 2;
  return width - 2;
}

// Leaves out what a terminal has no room for.
void fit(std::vector<Column>& columns, size_t width) {
  while (line_width(columns) > width) {
    const auto last =
        std::max_element(columns.begin(), columns.end(),
                         [](const auto& a, const auto& b) { return a.rank < b.rank; });
    if (last->rank == 0) return;
    columns.erase(last);
  }
}

std::string line_of(const std::vector<Column>& columns, const auto& cell_of) {
  std::string line;
  for (const Column& c : columns) {
    const std::string cell = cell_of(c);
    line +=
        c.left ? fmt::format("{:<{}}  ", cell, c.width) : fmt::format("{:>{}}  ", cell, c.width);
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string table_of(const ops::Graph& graph, const std::vector<LayerFacts>& layers, bool wide) {
  std::vector<Column> columns = columns_of(layers);
  const size_t all = columns.size();
  if (!wide) fit(columns, terminal_width());
  const std::string rule(line_width(columns), '-');
  std::string text =
      fmt::format("{}: input {} x {} x {} (channels x height x width)\n\n", printable(graph.name),
                  graph.image.c, graph.image.h, graph.image.w);
  text += line_of(columns, [](const Column& c) { return std::string(c.title); }) + rule + "\n";
  for (size_t row = 0; row <= layers.size(); ++row) {
    if (row == layers.size()) text += rule + "\n";
    text += line_of(columns, [&](const Column& c) { return c.cells[row]; });
  }
  text +=
      "\noutput: channels, height, width. Its side: (input + 2*padding - window)/stride + 1, "
      "rounded "
      "as it says.\n"
      "sees/every: pixels of a side of the image that one value depends on, and from one to the "
      "next.\n";
  if (columns.size() < all) text += "--wide shows all columns.\n";
  return text;
}

std::string memory_of(const ops::Graph& graph, const std::vector<LayerFacts>& layers, int64_t batch,
                      DType type) {
  const ModelTotals t = total(layers);
  std::string text;
  if (!graph.auxiliary.empty()) {
    const ModelTotals auxiliary = auxiliary_total(graph);
    text = fmt::format(
        "\nAuxiliary classifiers, gone in inference: {} of the parameters, {} of the MACs.\n",
        grouped(auxiliary.parameters), grouped(auxiliary.macs));
  }
  const auto plan = [&](bool training) {
    return ops::planned_arena(graph, batch, type, training,
                              ops::make_device("cpu", 1)->slice_bytes());
  };
  const ops::MemoryPlan train = plan(true), infer = plan(false);
  return text +
         fmt::format(
             "\nOne image: {:.2f} GMAC forward. Parameters take {}.\n"
             "Arena for a batch of {} in {} (naive: had every tensor its own place):\n"
             "  training   {:>12}  (naive {:>12}, {:.0f} %)\n"
             "  inference  {:>12}  (naive {:>12}, {:.0f} %)\n",
             static_cast<double>(t.macs) / 1e9, mebibytes(4.0 * static_cast<double>(t.parameters)),
             batch, name_of(type), mebibytes(static_cast<double>(train.bytes)),
             mebibytes(static_cast<double>(train.naive_bytes)),
             100.0 * static_cast<double>(train.bytes) / static_cast<double>(train.naive_bytes),
             mebibytes(static_cast<double>(infer.bytes)),
             mebibytes(static_cast<double>(infer.naive_bytes)),
             100.0 * static_cast<double>(infer.bytes) / static_cast<double>(infer.naive_bytes));
}

// ---- JSON ----

nlohmann::ordered_json json_of(const LayerFacts& l, const ops::Graph& graph, size_t node) {
  nlohmann::ordered_json object = {{"name", printable(l.name)}, {"kind", l.kind}};
  nlohmann::ordered_json inputs = nlohmann::ordered_json::array();
  for (const int input : graph.nodes[node].inputs)
    inputs.push_back(
        input == ops::kImage ? "input" : printable(graph.nodes[static_cast<size_t>(input)].name));
  object["inputs"] = inputs;
  object["output"] = {l.y.c, l.y.h, l.y.w};
  if (l.window) {
    object["window"] = {{"kernel", l.window->kernel},
                        {"stride", l.window->stride},
                        {"padding", l.window->padding},
                        {"groups", l.window->groups},
                        {"rounded", l.window->ceil ? "up" : "down"}};
    object["arithmetic"] = l.arithmetic;
  }
  object["receptive_field"] = {{"size", l.field.size}, {"jump", l.field.jump}};
  object["parameters"] = l.parameters;
  if (!l.formula.empty()) object["formula"] = l.formula;
  object["macs"] = l.macs;
  object["bytes"] = l.bytes;
  return object;
}

std::string json_text(const ops::Graph& graph, const std::vector<LayerFacts>& layers) {
  const ModelTotals t = total(layers);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (size_t i = 0; i < layers.size(); ++i) list.push_back(json_of(layers[i], graph, i));
  nlohmann::ordered_json out = {{"model", printable(graph.name)},
                                {"input", {graph.image.c, graph.image.h, graph.image.w}},
                                {"parameters", t.parameters},
                                {"macs", t.macs}};
  if (!graph.auxiliary.empty()) {
    const ModelTotals auxiliary = auxiliary_total(graph);
    out["auxiliary"] = {{"parameters", auxiliary.parameters}, {"macs", auxiliary.macs}};
  }
  out["layers"] = list;
  return out.dump(2) + "\n";
}

// How files of a format end; empty: there is no such format.
std::vector<std::string> ends_of(const std::string& format) {
  if (format == "table") return {".txt"};
  if (format == "dot") return {".dot", ".gv"};
  if (format == "json" || format == "txtpb" || format == "svg") return {"." + format};
  return {};
}

// What goes with the format, and with a network that is a file.
void check(const po::variables_map& values, const std::string& name, const std::string& format,
           const std::string& out) {
  const std::vector<std::string> ends = ends_of(format);
  if (ends.empty())
    fail(ExitCode::kUsage, "--format {}: there are table, json, txtpb, svg and dot",
         printable(format));
  if (given(values, "json") && format != "json")
    fail(ExitCode::kUsage, "--json and --format {}: choose one", format);
  if (given(values, "fold") && given(values, "unfold"))
    fail(ExitCode::kUsage, "--fold and --unfold: choose one");
  if (format != "svg") refuse_given(values, {"fold", "unfold"}, "--format svg");
  if (format != "table") refuse_given(values, {"wide", "batch", "precision"}, "the table");
  if (name.ends_with(".txtpb"))
    refuse_given(values, {"input", "classes", "shortcut", "stride-in-first-conv"},
                 "models of convoy model list; a network of your own says it in its file");
  expect_end("--out", out, ends);
  if (out.empty()) refuse_given(values, {"force"}, "--out");
  std::error_code error;
  if (format == "txtpb" && !given(values, "force") &&
      std::filesystem::exists(std::filesystem::symlink_status(out, error)))
    fail(ExitCode::kUsage,
         "--out {}: is there already, and may hold changes of yours; --force "
         "replaces it",
         printable(out));
}

int model_show(const Arguments& arguments) {
  std::string name, format, input, shortcut, precision, out;
  bool wide = false, json = false, fold = false, unfold = false;
  int64_t batch = 32;
  ModelOptions options;
  po::options_description flags("Options");
  flags.add_options()("name", po::value(&name)->required(),
                      "a name of convoy model list, or a .txtpb file")(
      "format", po::value(&format)->default_value("table"),
      "table; json (all of it); txtpb (as text, to be changed and trained); svg (a picture for a "
      "browser); dot (for Graphviz)")("json", po::bool_switch(&json), "the same as --format json")(
      "out", po::value(&out),
      "a file with the format's ending (a table: .txt), replaced if it is there, but for .txtpb; "
      "standard output without it")("force", po::bool_switch(),
                                    "replace a .txtpb that is there, too")(
      "wide", po::bool_switch(&wide), "all columns of the table, however narrow the terminal")(
      "fold", po::bool_switch(&fold),
      "svg: each block (layer1.0) as one box; so, too, where more than 150 boxes would be drawn")(
      "unfold", po::bool_switch(&unfold), "svg: every box")(
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

  if (json && !given(*values, "format")) format = "json";
  check(*values, name, format, out);

  // A network of the user's own is a file; it says its input and classes itself.
  const ops::Graph graph = name.ends_with(".txtpb") ? load_graph(name) : make_model(name, options);
  const std::vector<LayerFacts> layers = layer_facts(graph);
  std::string text;
  if (format == "json")
    text = json_text(graph, layers);
  else if (format == "table")
    text = table_of(graph, layers, wide) + memory_of(graph, layers, batch, type);
  else if (format == "txtpb")
    text = to_text(graph);
  else if (format == "dot")
    text = to_dot(graph, layers);
  else
    text = to_svg(graph, layers,
                  make_picture(graph, layers,
                               fold     ? Fold::kYes
                               : unfold ? Fold::kNo
                                        : Fold::kAuto));
  if (out.empty())
    std::cout << text << std::flush;
  else
    rewrite_file(out, text);
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
