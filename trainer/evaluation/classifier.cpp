#include "trainer/evaluation/classifier.h"

#include <algorithm>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/job/limits.h"
#include "trainer/weights/model_state.h"

namespace convoy::trainer {
namespace {

// What the network was made for.
data::ImageShape training_shape(const Trained& trained, const data::Dataset* dataset) {
  const auto size = static_cast<int>(trained.job.data.train.size);
  if (size > 0) return {size, size, trained.channels()};
  const std::optional<data::ImageShape> raw = dataset ? dataset->raw_shape() : std::nullopt;
  if (!raw)
    fail(ExitCode::kBadData,
         "{}: trained on images of a size of their own (data.train.size: 0), which is not known "
         "without a dataset of that format",
         printable(trained.folder));
  return *raw;
}

data::ImageShape look_shape(const Trained& trained, const data::EvalTransform& transform,
                            const data::Dataset* dataset) {
  const int channels = trained.channels();
  if (!dataset) return {transform.size, transform.size, channels};
  data::ImageShape shape = data::output_shape(transform, *dataset);
  const bool becomes_grey = !dataset->raw_shape() && channels == 1;
  if (shape.channels != channels && !becomes_grey)
    fail(ExitCode::kBadData, "{}: takes images of {} channel(s), those of the dataset have {}",
         printable(trained.folder), channels, shape.channels);
  shape.channels = channels;
  return shape;
}

}  // namespace

Trained load_trained(comm::Communicator& communicator, const std::string& path,
                     const std::string& device) {
  Trained out;
  if (communicator.rank() == 0) {
    LoadedCheckpoint loaded = load_newest(path);
    out.folder = std::move(loaded.folder);
    out.state = std::move(loaded.state);
  }
  communicator.broadcast(out.folder, 0);
  if (communicator.rank() != 0) out.state = load_checkpoint(out.folder);
  out.job = parse_job(out.facts().job, out.folder + "/manifest.txtpb", {}, "");
  Job& job = out.job;
  if (device == "cpu" &&
      (job.precision == Job::Precision::kFp16 || job.precision == Job::Precision::kTf32)) {
    if (communicator.rank() == 0)
      log::info("trained in a precision that GPUs alone have; evaluated in FP32");
    job.precision = Job::Precision::kFp32;
  }
  job.workers = 1;
  job.threads_per_worker = std::max(1u, job.threads_per_worker);
  out.normalisation = stored_normalisation(out.state);
  return out;
}

Classifier::Classifier(comm::Communicator& communicator, Trained trained,
                       const data::Dataset* dataset, const std::string& device, int lanes)
    : trained_(std::move(trained)), transform_(eval_transform(trained_.job)) {
  const data::ImageShape made_for = training_shape(trained_, dataset);
  if (!dataset) {
    // Photographs come in any size, so the one that the network wants is made of them.
    if (transform_.size == 0) transform_.size = made_for.height;
    if (transform_.resize == 0) transform_.resize = transform_.size;
  }
  look_ = trainer::look_shape(trained_, transform_, dataset);
  const ops::Graph graph = graph_of(trained_.job, made_for);
  classes_ = ops::infer_shapes(graph, 1).back().c;
  // The engine's own input serves training alone.
  EngineConfig config = engine_config(trained_.job, device, communicator.local_rank(), {}, lanes);
  config.training = false;
  config.plans.cache_folder = cache_folder();
  engine_ = std::make_unique<Engine>(communicator, graph, config);
  restore(*engine_, trained_.state, true);
  // The engine has them now.
  trained_.state.model = {};
  trained_.state.optimizer = {};
  trained_.state.ema = {};
}

void expect_memory(const comm::Communicator& communicator, const ImageNetwork& network,
                   const data::Dataset& dataset, const data::EvalLoaderConfig& config,
                   uint64_t slices, std::string_view remedy) {
  const auto ranks = static_cast<uint64_t>(communicator.size());
  const auto busy = std::min(slices, static_cast<uint64_t>(communicator.local_size()));
  const int64_t rows = int64_t{config.batch} * config.looks.count();
  const data::ImageShape& image = config.shape;
  const uint64_t bytes =
      network.engine.evaluation_bytes((slices + ranks - 1) / ranks,
                                      {rows, image.channels, image.height, image.width}) +
      data::EvalLoader::ring_bytes(dataset, config);
  const std::string warning =
      expect_memory(fmt::format("{}: {} image(s) of {} x {} at once", printable(network.name), rows,
                                image.height, image.width),
                    bytes, static_cast<int>(busy), memory_limit(), remedy);
  if (communicator.local_rank() == 0 && !warning.empty()) log::warning("{}", warning);
}

std::vector<std::string> read_class_names(const std::string& path, int64_t classes) {
  constexpr size_t kMostBytes = size_t{16} << 20;
  const std::string text = read_text(path, kMostBytes);
  std::vector<std::string> names;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    names.push_back(text.substr(begin, end - begin));
    if (names.back().ends_with('\r')) names.back().pop_back();
    begin = end + 1;
  }
  if (names.size() != static_cast<size_t>(classes))
    fail(ExitCode::kBadData,
         "--classes-file {}: has {} lines; the network has {} classes, one line each",
         printable(path), names.size(), classes);
  return names;
}

int classifying_lanes(const Job& job, const std::string& device, int cpus) {
  return lanes_for(device, cpus, cpus, static_cast<int>(job.threads_per_worker));
}

}  // namespace convoy::trainer
