// convoy export: the weights of a checkpoint for other programs, as safetensors or ONNX.
#include <charconv>
#include <filesystem>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "ops/core/error.h"
#include "trainer/base/file.h"
#include "trainer/base/text.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/setup.h"
#include "trainer/weights/model_state.h"
#include "trainer/weights/onnx_export.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;
using nlohmann::ordered_json;

struct ExportOptions {
  std::string source, out, format, weights, batch, input;
  bool normalise = false, force = false, json = false;
  OnnxOptions onnx;
};

// The model's tensors; where the average is wanted, with its parameters (the running statistics are
// the same). Borrows the state's memory.
TensorList chosen_weights(const LoadedCheckpoint& loaded, bool average) {
  TensorList list{loaded.state.model.tensors, nullptr};
  if (!average) return list;
  if (loaded.state.ema.tensors.empty())
    fail(ExitCode::kBadData,
         "{}: has no moving average (the job's optimizer.ema_decay is 0); use --weights trained",
         printable(loaded.folder));
  std::unordered_map<std::string_view, const NamedTensor*> averages;
  for (const NamedTensor& t : loaded.state.ema.tensors) averages.emplace(t.name, &t);
  for (NamedTensor& t : list.tensors)
    if (const auto found = averages.find(t.name); found != averages.end())
      t.bytes = found->second->bytes;
  return list;
}

// What the network was evaluated on, as the job says.
data::ImageShape image_of(const ExportOptions& o, const Job& job, const std::string& folder) {
  if (!o.input.empty()) {
    const Shape s = parse_image(o.input);
    return {.height = static_cast<int>(s.h),
            .width = static_cast<int>(s.w),
            .channels = static_cast<int>(s.c)};
  }
  const int size = eval_transform(job).size;
  if (size == 0 || job.data.mean.empty())
    fail(ExitCode::kUsage,
         "{}: does not say how large its images are; give --input, e.g. 3x224x224",
         printable(folder));
  return {.height = size, .width = size, .channels = static_cast<int>(job.data.mean.size())};
}

// A file of that name appears whole or not at all.
void write_whole(const std::string& path, const std::function<void(const std::string&)>& write) {
  const std::string temporary = path + ".exporting";
  write_by_way_of(temporary, path, Written::kFile, [&] { write(temporary); });
}

void expect_free(const ExportOptions& o) {
  std::error_code error;
  if (fs::is_directory(o.out, error))
    fail(ExitCode::kUsage, "{}: is a folder; name a file", printable(o.out));
  const fs::path folder = fs::path(o.out).parent_path();
  if (!folder.empty() && !fs::is_directory(folder, error))
    fail(ExitCode::kIo, "{}: there is no folder {}; make it first", printable(o.out),
         printable(folder.string()));
  if (!o.force && fs::exists(fs::symlink_status(o.out, error)))
    fail(ExitCode::kUsage, "{}: is there already; --force replaces it", printable(o.out));
}

// What whoever uses the file must do before, in words and numbers.
Metadata metadata_of(const ExportOptions& o, const Job& job, const CheckpointFacts& facts,
                     bool mean_image) {
  const data::EvalTransform transform = eval_transform(job);
  std::string input = "pixels in 0..255";
  if (!o.normalise)
    input = mean_image ? "(pixel / 255 - mean image) / std" : "(pixel / 255 - mean) / std";
  return {{"model", job.model.name},
          {"step", std::to_string(facts.step)},
          {"weights", o.weights},
          {"input", input},
          {"mean", fmt::format("{}", fmt::join(job.data.mean, ","))},
          {"std", fmt::format("{}", fmt::join(job.data.std, ","))},
          {"resize", std::to_string(transform.resize)},
          {"crop", std::to_string(transform.size)}};
}

// --input must be of a size that the weights fit.
void expect_weights_of(const ExportOptions& o, const ops::Graph& graph, const TensorList& weights) {
  for (const auto& p : ops::layout_of(graph).parameters)
    if (const NamedTensor* t = weights.find(p.name); t && t->shape != p.spec.dims)
      fail(ExitCode::kUsage,
           "--input {}: \"{}\" would be [{}], the checkpoint's is [{}]; leave out --input for the "
           "size that it was evaluated on",
           printable(o.input), printable(p.name), fmt::join(p.spec.dims, ", "),
           fmt::join(t->shape, ", "));
}

// The network for these images; where --input says their size, mistakes name it.
ops::Graph exported_graph(const ExportOptions& o, const Job& job, const data::ImageShape& shape,
                          const TensorList& weights) {
  if (o.input.empty()) return inference_graph_of(job, shape);
  try {
    const ops::Graph graph = inference_graph_of(job, shape);
    expect_weights_of(o, graph, weights);
    return graph;
  } catch (const Error& e) {
    if (e.code() == ExitCode::kUsage) throw;
    fail(ExitCode::kUsage, "--input {}: {}", printable(o.input), e.what());
  }
}

void export_onnx(const ExportOptions& o, const LoadedCheckpoint& loaded, const Job& job,
                 const TensorList& weights) {
  const data::ImageShape shape = image_of(o, job, loaded.folder);
  const Normalisation normalisation = stored_normalisation(loaded.state);
  OnnxOptions options = o.onnx;
  options.metadata = metadata_of(o, job, loaded.state.facts, !normalisation.mean_image.empty());
  if (o.normalise) options.pixels = image_input(job, normalisation, shape, 1);
  const std::string bytes = onnx_model(exported_graph(o, job, shape, weights), weights, options);
  write_whole(o.out, [&](const std::string& path) { write_text(path, bytes); });
}

int run_export(const ExportOptions& o) {
  expect_free(o);
  const LoadedCheckpoint loaded = load_newest(o.source);
  const Job job = parse_job(loaded.state.facts.job, loaded.folder + "/manifest.txtpb", {}, "");
  const TensorList weights = chosen_weights(loaded, o.weights == "average");
  if (o.format == "onnx")
    export_onnx(o, loaded, job, weights);
  else
    write_whole(o.out, [&](const std::string& path) {
      write_safetensors(path, weights.tensors, {{"format", "pt"}});
    });
  const uint64_t bytes = fs::file_size(o.out);
  if (o.json) {
    const ordered_json out = {{"out", o.out},
                              {"format", o.format},
                              {"checkpoint", loaded.folder},
                              {"step", loaded.state.facts.step},
                              {"model", job.model.name},
                              {"weights", o.weights},
                              {"bytes", bytes}};
    std::cout << out.dump(2, ' ', false, ordered_json::error_handler_t::replace) << std::endl;
  } else {
    std::cout << fmt::format("{}: {} of step {} as {}, {}\n", printable(o.out),
                             printable(job.model.name), loaded.state.facts.step, o.format,
                             mebibytes(static_cast<double>(bytes)));
  }
  return 0;
}

// "dynamic", or a number of images.
int64_t parse_batch(const std::string& text) {
  if (text == "dynamic") return 0;
  int64_t batch = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), batch);
  if (error != std::errc() || end != text.data() + text.size() || batch < 1 || batch > 1 << 20)
    fail(ExitCode::kUsage, "--batch {}: must be dynamic or a number of images", printable(text));
  return batch;
}

void check(const po::variables_map& values, ExportOptions& o) {
  if (o.format.empty()) {
    const std::string ending = fs::path(o.out).extension().string();
    if (ending != ".safetensors" && ending != ".onnx")
      fail(ExitCode::kUsage,
           "{}: ends in neither .onnx nor .safetensors; give --format onnx or --format safetensors",
           printable(o.out));
    o.format = ending.substr(1);
  }
  if (o.format != "safetensors" && o.format != "onnx")
    fail(ExitCode::kUsage, "--format {}: there are safetensors and onnx", printable(o.format));
  if (o.weights != "trained" && o.weights != "average")
    fail(ExitCode::kUsage, "--weights {}: there are trained and average", printable(o.weights));
  if (o.format == "safetensors")
    refuse_given(values, {"fold", "normalise", "softmax", "opset", "batch", "input"},
                 "--format onnx");
  if (o.onnx.opset < kOldestOpset || o.onnx.opset > kNewestOpset)
    fail(ExitCode::kUsage, "--opset {}: must be from {} to {}", o.onnx.opset, kOldestOpset,
         kNewestOpset);
  o.onnx.batch = parse_batch(o.batch);
}

}  // namespace

int export_command(const Arguments& arguments) {
  ExportOptions o;
  po::options_description options("Options");
  options.add_options()("source", po::value(&o.source)->required(),
                        "a run (its newest whole checkpoint is taken) or a checkpoint")(
      "out", po::value(&o.out)->required(), "the file")(
      "format", po::value(&o.format), "safetensors or onnx; default: as OUT ends")(
      "weights", po::value(&o.weights)->default_value("trained"),
      "trained, or average: their moving average")(
      "fold", po::bool_switch(&o.onnx.fold),
      "onnx: batch norms right behind a convolution become part of it")(
      "normalise", po::bool_switch(&o.normalise),
      "onnx: the input is pixels in 0..255; mean and std are in the graph")(
      "softmax", po::bool_switch(&o.onnx.softmax), "onnx: probabilities in place of logits")(
      "opset", po::value(&o.onnx.opset)->default_value(o.onnx.opset),
      "onnx: version of its operators, 13 to 22")(
      "batch", po::value(&o.batch)->default_value("dynamic"),
      "onnx: images in one input: a number, or dynamic")(
      "input", po::value(&o.input),
      "onnx: channels x height x width; default: as it was evaluated")(
      "force", po::bool_switch(&o.force), "replace OUT if it is there")(
      "json", po::bool_switch(&o.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "export RUN|CHECKPOINT OUT [OPTIONS]",
      "safetensors has torchvision's names and shapes: load_state_dict(strict=True) takes it. ONNX "
      "is\n"
      "the network as evaluation runs it, fp32, NCHW, without dropout and auxiliary heads; "
      "initializers\n"
      "are named as parameters. Without --normalise its input is (pixel / 255 - mean) / std; mean, "
      "std,\n"
      "resize and crop stand in the file's metadata.\n",
      "source out");
  if (!values) return 0;
  check(*values, o);
  return run_export(o);
}

}  // namespace convoy::trainer
