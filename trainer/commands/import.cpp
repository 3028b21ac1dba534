// convoy import: weights from elsewhere become a checkpoint that is evaluated, verified and
// exported like any other.
#include <fcntl.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/setup.h"
#include "trainer/evaluation/classifier.h"
#include "trainer/job/graph_text.h"
#include "trainer/weights/model_state.h"
#include "trainer/weights/weight_mapping.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;
using nlohmann::ordered_json;

// torchvision's, of ImageNet.
const std::vector<double> kMean = {0.485, 0.456, 0.406}, kStd = {0.229, 0.224, 0.225};
constexpr size_t kMostSaid = 100;  // problems of one file
// The largest network of the list has 7,208 tensors; for many more no model is looked for.
constexpr size_t kMostTensors = 20'000;

struct ImportOptions {
  std::string model, weights, out, input, mean, std, classes_file;
  int64_t classes = 0;
  std::vector<std::string> sets;
  bool dry_run = false, json = false;
};

// A pickle can run code; what torch.save writes is one, in a zip archive or bare. A safetensors
// file's header begins at byte 8 with a brace.
void refuse_pickle(const std::string& path) {
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_regular_file(path, error))
    fail(ExitCode::kBadData, "{}: is no file", printable(path));
  char head[9] = {};
  File(path, O_RDONLY).read(head, sizeof head);
  const bool zip = std::memcmp(head, "PK\3\4", 4) == 0;
  const bool bare = head[0] == '\x80' && head[1] >= 2 && head[1] <= 5;
  if ((!zip && !bare) || head[8] == '{') return;
  const std::string name = printable(path);
  fail(
      ExitCode::kBadData,
      "{}: a pickle of Python's, which can run code, so it is not read. Python makes a safetensors "
      "file of it:\n"
      "  import torch, safetensors.torch\n"
      "  safetensors.torch.save_file(torch.load(\"{}\", map_location=\"cpu\", weights_only=True), "
      "\"{}\")",
      name, name, printable(fs::path(path).replace_extension(".safetensors").string()));
}

// "0.485,0.456,0.406"
std::vector<double> parse_numbers(const char* flag, const std::string& text) {
  std::vector<double> numbers;
  const char* at = text.c_str();
  for (;;) {
    char* end = nullptr;
    numbers.push_back(std::strtod(at, &end));
    const bool good = end != at && std::isfinite(numbers.back()) && (*end == ',' || *end == '\0');
    if (!good)
      fail(ExitCode::kUsage, "{} {}: must be numbers with commas between, in units of 0 to 1", flag,
           printable(text));
    if (*end == '\0') return numbers;
    at = end + 1;
  }
}

std::string list_text(const std::vector<double>& numbers) {
  return fmt::format("[{}]", fmt::join(numbers, ", "));
}

// What evaluation must know, as a job file; what it leaves open the model decides.
std::string job_text(const ImportOptions& o, const std::string& name, const Shape& image,
                     int64_t classes) {
  if (image.h != image.w)
    fail(ExitCode::kUsage, "images of {} x {} pixels: evaluation crops squares", image.h, image.w);
  std::vector<double> mean = kMean, std = kStd;
  if (o.mean.empty() != o.std.empty())
    fail(ExitCode::kUsage, "--mean and --std belong together: give both or neither");
  if (!o.mean.empty()) {
    mean = parse_numbers("--mean", o.mean);
    std = parse_numbers("--std", o.std);
    if (std::ranges::any_of(std, [](double s) { return s <= 0; }))
      fail(ExitCode::kUsage, "--std {}: must be above 0", printable(o.std));
  }
  const auto channels = static_cast<size_t>(image.c);
  if (mean.size() != channels || std.size() != channels)
    fail(ExitCode::kUsage,
         "{}{} means and {} standard deviations for images of {} channel(s); give --mean and --std",
         o.input.empty() ? "" : fmt::format("--input {}: ", printable(o.input)), mean.size(),
         std.size(), channels);
  // 256 for 224, as torchvision; small images are taken as they are.
  const int64_t resize = image.h >= 128 ? (image.h * 8 + 3) / 7 : 0;
  return fmt::format(
      "name: \"import\" model {{ name: \"{}\" }} workers: 1 threads_per_worker: 1\n"
      "data {{ classes: {} train {{ size: {} }} eval {{ resize: {} size: {} }} mean: {} std: {} "
      "}}\n",
      name, classes, image.h, resize, image.h, list_text(mean), list_text(std));
}

struct Import {
  Job job;
  ops::Graph graph;  // as it is trained
  TensorList file;
  WeightMapping mapping;
  std::vector<std::string> class_names;  // empty: not known
};

// The network with its usual number of classes, or the one of the options; from a file, as that
// says.
ops::Graph usual_network(const ImportOptions& o) {
  if (o.model.ends_with(".txtpb")) return load_graph(o.model);
  ModelOptions options;
  options.classes = o.classes;
  if (!o.input.empty()) options.image = parse_image(o.input);
  return make_model(o.model, options);
}

Import read_import(const ImportOptions& o) {
  const ops::Graph usual = usual_network(o);
  const bool own = o.model.ends_with(".txtpb");
  const int64_t usual_classes = ops::infer_shapes(usual, 1).back().c;
  const Shape image = o.input.empty() ? usual.image : parse_image(o.input);
  if (own && image != usual.image)
    fail(ExitCode::kUsage, "--input {}: the network of {} is made for {}x{}x{}; leave out --input",
         printable(o.input), printable(o.model), usual.image.c, usual.image.h, usual.image.w);
  refuse_pickle(o.weights);
  Import import;
  import.file = read_safetensors(o.weights);
  int64_t classes = o.classes;
  if (classes == 0 && !own) classes = classes_in(import.file, usual);
  if (classes == 0) classes = usual_classes;
  const std::string name = own ? "network" : o.model, text = own ? to_text(usual) : "";
  import.job = parse_job(job_text(o, name, image, classes), "import", o.sets, "");
  if (import.job.model.name != name || !import.job.model.graph.empty())
    fail(ExitCode::kUsage, "--set model.name, --set model.graph: --model says which network it is");
  import.job.model.graph = text;
  if (own && !usual.name.empty()) import.job.model.name = usual.name;
  // Whoever reads the checkpoint must be able to read its job.
  parse_job(to_text(import.job), fmt::format("the job of {}", o.model), {}, "");
  import.graph = graph_of(import.job, {.height = static_cast<int>(image.h),
                                       .width = static_cast<int>(image.w),
                                       .channels = static_cast<int>(image.c)});
  import.mapping = map_weights(import.file, import.graph);
  if (!o.classes_file.empty() && import.mapping.misfits.empty())
    import.class_names = read_class_names(o.classes_file, import.job.data.classes);
  return import;
}

// Does the file have as many tensors as a state of it may have, with auxiliary heads or without?
bool could_be(const TensorList& file, const ops::Graph& graph) {
  const auto tensors_of = [](const ops::Graph& g) {
    return static_cast<std::ptrdiff_t>(map_weights({}, g).tensors.size());
  };
  const auto tensors = std::ranges::count_if(
      file.tensors, [](const NamedTensor& t) { return !t.name.ends_with(".num_batches_tracked"); });
  return tensors >= tensors_of(ops::inference_graph(graph)) && tensors <= tensors_of(graph);
}

// The classes with which the file is a state of this model; 0: it is none.
int64_t classes_that_fit(const ImportOptions& o, const Import& import, const std::string& model) {
  try {
    ModelOptions options;
    if (model == o.model) options.image = import.graph.image;
    options.image.c = import.graph.image.c;
    const ops::Graph graph = make_model(model, options);
    if (!could_be(import.file, graph)) return 0;
    options.classes = classes_in(import.file, graph);
    if (options.classes == 0) return 0;
    const bool fits = map_weights(import.file, make_model(model, options)).misfits.empty();
    return fits ? options.classes : 0;
  } catch (const Error&) {  // a number of classes that no network has
    return 0;
  }
}

// What of the command to change, where the file is a state of a model of the list; empty: none is
// known.
std::string what_fits(const ImportOptions& o, const Import& import) {
  if (import.file.tensors.size() > kMostTensors) return "";
  std::vector<std::string> names;
  for (const ModelEntry& entry : model_table()) names.push_back(entry.name);
  std::stable_partition(names.begin(), names.end(),
                        [&](const std::string& name) { return name == o.model; });
  for (const std::string& name : names) {
    const int64_t classes = classes_that_fit(o, import, name);
    if (classes == 0) continue;
    std::string text = name == o.model ? "" : fmt::format("\n  the file fits the model {}", name);
    if (o.classes != 0 && o.classes != classes)
      text += fmt::format("\n  leave out --classes (the file has {})", classes);
    return text;
  }
  return "";
}

[[noreturn]] void refuse(const ImportOptions& o, const Import& import) {
  const std::vector<std::string> problems = problems_of(import.mapping);
  std::string text;
  for (size_t i = 0; i < std::min(problems.size(), kMostSaid); ++i) text += "\n  " + problems[i];
  if (problems.size() > kMostSaid)
    text += fmt::format("\n  ... and {} more (--dry-run names all)", problems.size() - kMostSaid);
  text += what_fits(o, import);
  fail(ExitCode::kBadData, "{}: not a state of {} with {} classes: {} tensor(s) do not fit{}{}",
       printable(o.weights), printable(o.model), import.job.data.classes, problems.size(),
       import.mapping.prefix.empty()
           ? ""
           : fmt::format(" (behind \"{}\")", printable(import.mapping.prefix)),
       text);
}

std::vector<std::string> notes_of(const ImportOptions& o, const WeightMapping& mapping) {
  std::vector<std::string> notes;
  if (!mapping.prefix.empty())
    notes.push_back(
        fmt::format("\"{}\" in front of the names was cut off", printable(mapping.prefix)));
  for (const std::string& head : mapping.absent_heads)
    notes.push_back(
        fmt::format("the file has no \"{}\", a head that training alone uses; it starts anew",
                    printable(head)));
  if (!mapping.absent_heads.empty() && o.model == "googlenet" && o.mean.empty())
    notes.emplace_back(
        "torchvision's pretrained googlenet was trained with --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5");
  return notes;
}

size_t tensors_of(const WeightMapping& mapping) {
  return static_cast<size_t>(
      std::ranges::count_if(mapping.tensors, [](const MappedTensor& t) { return t.source; }));
}

int print_mapping(const ImportOptions& o, const Import& import) {
  const std::vector<std::string> problems = problems_of(import.mapping);
  if (o.json) {
    ordered_json out = {{"model", o.model},
                        {"classes", import.job.data.classes},
                        {"prefix", printable(import.mapping.prefix)},
                        {"tensors", ordered_json::array()},
                        {"problems", problems},
                        {"notes", notes_of(o, import.mapping)}};
    for (const MappedTensor& t : import.mapping.tensors)
      if (t.source)
        out["tensors"].push_back({{"from", printable(t.source->name)},
                                  {"to", printable(t.name)},
                                  {"type", name_of(t.source->type)},
                                  {"shape", t.shape}});
    std::cout << out.dump(2, ' ', false, ordered_json::error_handler_t::replace) << std::endl;
  } else {
    for (const MappedTensor& t : import.mapping.tensors)
      if (t.source)
        std::cout << fmt::format("{} {} {} -> {} {}\n", printable(t.source->name),
                                 name_of(t.source->type), shape_text(t.source->shape),
                                 printable(t.name), shape_text(t.shape));
    for (const std::string& note : notes_of(o, import.mapping))
      std::cout << fmt::format("note: {}\n", note);
    for (const std::string& problem : problems) std::cout << fmt::format("problem: {}\n", problem);
    std::cout << fmt::format("{} tensor(s) of {} fit {}, {} problem(s); nothing was written\n",
                             tensors_of(import.mapping), import.mapping.tensors.size(),
                             printable(o.model), problems.size());
  }
  return static_cast<int>(problems.empty() ? ExitCode::kDone : ExitCode::kBadData);
}

// --out, without a slash at its end.
fs::path target_of(const std::string& out) {
  const fs::path target = fs::absolute(out).lexically_normal();
  return target.has_filename() ? target : target.parent_path();
}

void expect_free(const std::string& out) {
  std::error_code error;
  const fs::path target = target_of(out);
  const fs::file_status status = fs::symlink_status(target, error);
  if (!fs::exists(status)) return;
  if (fs::is_symlink(status))
    fail(ExitCode::kUsage, "--out {}: is a link; choose a new folder", printable(out));
  if (!fs::is_directory(status)) fail(ExitCode::kUsage, "--out {}: is no folder", printable(out));
  if (!fs::is_empty(target, error))
    fail(ExitCode::kUsage, "--out {}: is not empty; choose a new folder", printable(out));
}

// What write_folder() puts into a folder, and nothing else?
bool is_of_import(const std::string& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().filename() != "checkpoints" && entry.path().filename() != "job.txtpb")
      return false;
  return !error;
}

// The folder appears whole, by a rename, or not at all. Returns the checkpoint's digest.
std::string write_folder(const std::string& out, const CheckpointState& state) {
  const fs::path target = target_of(out);
  make_folder(target.parent_path());
  const std::string temporary = target.string() + ".importing";
  write_by_way_of(
      temporary, target, Written::kFolder,
      [&] {
        save_checkpoint(temporary, state);
        write_text(temporary + "/job.txtpb", state.facts.job);
        sync_folder(temporary);
      },
      [&] { return is_of_import(temporary); });
  return state_digest(state);
}

int run_import(const ImportOptions& o) {
  expect_free(o.out);
  const Import import = read_import(o);
  if (o.dry_run) return print_mapping(o, import);
  if (!import.mapping.misfits.empty()) refuse(o, import);

  const ops::ParameterLayout layout = ops::layout_of(import.graph);
  const ImportedWeights weights = take_weights(import.mapping, layout);
  for (const std::string& warning : weights.warnings)
    log::warning("{}: {}", printable(o.weights), warning);
  CheckpointState state;
  state.facts.job = to_text(import.job);
  state.facts.job_digest = identity_digest(import.job, "");
  state.facts.imported_from = fs::path(o.weights).filename().string();
  state.facts.class_names = import.class_names;
  state.model = model_tensors(layout, weights.parameters, weights.running,
                              static_cast<uint64_t>(import.mapping.batches_tracked));
  const std::string digest = write_folder(o.out, state);

  const std::vector<std::string> notes = notes_of(o, import.mapping);
  const size_t tensors = tensors_of(import.mapping);
  if (o.json) {
    const ordered_json out = {{"out", o.out},
                              {"model", o.model},
                              {"classes", import.job.data.classes},
                              {"tensors", tensors},
                              {"parameters", layout.parameter_floats},
                              {"prefix", printable(import.mapping.prefix)},
                              {"notes", notes},
                              {"warnings", weights.warnings},
                              {"digest", digest}};
    std::cout << out.dump(2, ' ', false, ordered_json::error_handler_t::replace) << std::endl;
    return 0;
  }
  for (const std::string& note : notes) std::cout << fmt::format("note: {}\n", note);
  std::cout << fmt::format("{}: {} with {} classes, {} tensors of {}\ndigest {}\n",
                           printable(o.out), printable(o.model), import.job.data.classes, tensors,
                           printable(o.weights), digest);
  return 0;
}

}  // namespace

int import_command(const Arguments& arguments) {
  ImportOptions o;
  po::options_description options("Options");
  options.add_options()("model", po::value(&o.model)->required(),
                        "a name of convoy model list, or a .txtpb file")(
      "weights", po::value(&o.weights)->required(), "a safetensors file: a state of torchvision")(
      "out", po::value(&o.out)->required(), "a new folder for the checkpoint")(
      "classes", po::value(&o.classes)->default_value(0), "0: as many as the file has")(
      "classes-file", po::value(&o.classes_file),
      "names of the classes, one a line, in the order of the file's outputs: eval matches a "
      "dataset's by them, predict prints them; default: not known")(
      "input", po::value(&o.input),
      "channels x height x width, e.g. 3x224x224; default: the model's")(
      "mean", po::value(&o.mean),
      "of the training images, per channel, in units of 0 to 1; "
      "default: ImageNet's, 0.485,0.456,0.406")("std", po::value(&o.std),
                                                "likewise; default: 0.229,0.224,0.225")(
      "set", po::value(&o.sets)->composing(),
      "key=value for a field of the recorded job, e.g. data.eval.resize=232; may be repeated")(
      "dry-run", po::bool_switch(&o.dry_run),
      "list which tensor becomes which and all that does not fit, write nothing")(
      "json", po::bool_switch(&o.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options,
      "import --model NAME|GRAPH.txtpb --weights FILE.safetensors --out DIR [OPTIONS]",
      "Makes a checkpoint folder of weights from elsewhere, which eval, verify and export take "
      "like "
      "any\n"
      "other. Names are torchvision's; a prefix of all names, such as \"module.\", is cut off; F16 "
      "and\n"
      "BF16 become F32; num_batches_tracked and auxiliary heads may be missing. Evaluation resizes "
      "the\n"
      "shorter side to 8/7 of the input's (256 for 224; inputs below 128 pixels: not at all) and "
      "crops\n"
      "the centre. To train from the weights use transfer.init_from in a job, not this folder.\n");
  if (!values) return 0;
  if (o.classes < 0 || o.classes > 1 << 20)
    fail(ExitCode::kUsage, "--classes {}: must be from 0 to {}", o.classes, 1 << 20);
  return run_import(o);
}

}  // namespace convoy::trainer
