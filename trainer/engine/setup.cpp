#include "trainer/engine/setup.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "comm/launch.h"
#include "data_loader/mean.h"
#include "data_loader/subset.h"
#include "ops/core/error.h"
#include "ops/core/isa.h"
#include "ops/core/log.h"
#include "trainer/job/graph_text.h"
#include "trainer/job/limits.h"
#include "trainer/models/models.h"

namespace convoy::trainer {

std::string cache_folder() {
  const auto environment = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  std::string folder = environment("CONVOY_CACHE");
  if (folder.empty() && !environment("XDG_CACHE_HOME").empty())
    folder = environment("XDG_CACHE_HOME") + "/convoy";
  if (folder.empty() && !environment("HOME").empty())
    folder = environment("HOME") + "/.cache/convoy";
  if (folder.empty()) return "";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : folder;
}

std::unique_ptr<data::Dataset> open_split(const Job& job, data::Split split) {
  using Format = Job::Data::Format;
  data::DatasetSpec spec;
  switch (job.data.format) {
    case Format::kAuto:
      spec.format = data::Format::kAuto;
      break;
    case Format::kImageFolder:
      spec.format = data::Format::kImageFolder;
      break;
    case Format::kIdx:
      spec.format = data::Format::kIdx;
      break;
    case Format::kCifar:
      spec.format = data::Format::kCifar;
      break;
    case Format::kSynthetic:
      spec.format = data::Format::kSynthetic;
      break;
    case Format::kTarShards:
      spec.format = data::Format::kTarShards;
      break;
  }
  if (job.data.path.empty() && spec.format != data::Format::kSynthetic)
    fail(ExitCode::kUsage, "no dataset: give --data DIR or data.path in the job file");
  spec.path = job.data.path;
  // Where some of its classes are chosen, the dataset says how many it has.
  const bool chosen = !job.data.only_classes.empty();
  spec.classes = chosen ? 0 : static_cast<int>(job.data.classes);
  spec.cache_folder = cache_folder();
  spec.follow_links = job.data.follow_links;
  // Evaluation has one order, whatever the training's.
  if (job.data.shuffle == Job::Data::Shuffle::kWindow && split == data::Split::kTrain)
    spec.order = data::SampleOrder::kByShard;
  spec.synthetic_samples = job.data.synthetic_samples;
  const int size = static_cast<int>(job.data.train.size);
  spec.synthetic_shape = {.height = size, .width = size, .channels = 3};
  std::unique_ptr<data::Dataset> whole = data::open_dataset(spec, split);
  // Evaluation takes all images of the classes.
  const uint64_t wanted = split == data::Split::kTrain ? job.data.images_per_class : 0;
  if (!chosen && wanted == 0) return whole;
  return data::make_subset(
      std::move(whole),
      {.classes = job.data.only_classes, .images_per_class = wanted, .seed = job.seed});
}

data::TrainTransform train_transform(const Job& job) {
  using Crop = Job::Data::Train::Crop;
  const Job::Data::Train& t = job.data.train;
  data::TrainTransform out;
  switch (t.crop) {
    case Crop::kRandomResized:
      out.crop = data::Crop::kRandomResized;
      break;
    case Crop::kScaleAndCrop:
      out.crop = data::Crop::kScaleAndCrop;
      break;
    case Crop::kPadAndCrop:
      out.crop = data::Crop::kPadAndCrop;
      break;
    case Crop::kCenter:
      out.crop = data::Crop::kCenter;
      break;
  }
  out.size = static_cast<int>(t.size);
  out.area_min = t.area_min;
  out.area_max = t.area_max;
  out.ratio_min = t.ratio_min;
  out.ratio_max = t.ratio_max;
  out.scale_min = static_cast<int>(t.scale_min);
  out.scale_max = static_cast<int>(t.scale_max);
  out.pad = static_cast<int>(t.pad);
  out.resize = static_cast<int>(job.data.eval.resize);
  out.flip = t.flip;
  out.pca_jitter = t.pca_jitter;
  out.brightness = t.brightness;
  out.contrast = t.contrast;
  out.saturation = t.saturation;
  out.hue = t.hue;
  return out;
}

data::EvalTransform eval_transform(const Job& job) {
  const uint32_t size = job.data.eval.size > 0 ? job.data.eval.size : job.data.train.size;
  return {.resize = static_cast<int>(job.data.eval.resize), .size = static_cast<int>(size)};
}

data::BadSample bad_sample_policy(const Job& job) {
  return job.data.bad_sample == Job::Data::BadSample::kFail ? data::BadSample::kFail
                                                            : data::BadSample::kSubstitute;
}

uint64_t window_shards(const Job& job) {
  return job.data.shuffle == Job::Data::Shuffle::kWindow ? job.data.window_shards : 0;
}

data::LoaderConfig loader_config(const Job& job) {
  return {.transform = train_transform(job),
          .seed = job.seed,
          .window_shards = window_shards(job),
          .batch_per_worker = static_cast<int>(job.batch_per_worker),
          .workers = static_cast<int>(job.workers),
          .bad_sample = bad_sample_policy(job),
          .max_pixels = job.data.max_pixels,
          .apply_exif_orientation = job.data.apply_exif_orientation};
}

data::EvalLoaderConfig eval_loader_config(const Job& job) {
  return {.looks = {.transform = eval_transform(job)},
          .batch = static_cast<int>(job.evaluation.batch),
          .max_pixels = job.data.max_pixels,
          .apply_exif_orientation = job.data.apply_exif_orientation};
}

data::Windows windows_of(const Job& job, const data::Dataset& train) {
  return data::windows_of(train, window_shards(job));
}

comm::WatchdogConfig watchdog_config(const Job& job) {
  const Job::Watchdog& w = job.watchdog;
  comm::WatchdogConfig config;
  config.deadlines = {.start = w.start_seconds,
                      .input = w.input_seconds,
                      .compute = w.compute_seconds,
                      .reduce = w.reduce_seconds,
                      .save = w.save_seconds,
                      .silence = w.silence_seconds};
  config.heartbeat = w.heartbeat_seconds;
  config.interface = w.interface;
  config.straggler_factor = w.straggler_factor;
  config.straggler_window = w.straggler_seconds;
  return config;
}

std::string file_in_progress(const std::optional<data::InProgress>& progress) {
  return progress ? fmt::format("file {}", printable(progress->name)) : "";
}

Normalisation resolve(Job& job, const data::Dataset& train, comm::Communicator& communicator,
                      int data_threads, const std::function<void()>& progress) {
  using Mean = Job::Data::MeanSubtraction;
  const data::ImageShape shape = data::output_shape(train_transform(job), train);
  if (job.data.train.size == 0 && shape.height == shape.width)
    job.data.train.size = static_cast<uint32_t>(shape.height);
  job.data.classes = static_cast<uint32_t>(train.classes().size());
  const auto channels = static_cast<size_t>(shape.channels);

  Normalisation out;
  const bool per_pixel = job.data.mean_subtraction == Mean::kPerPixel;
  if (job.data.mean_subtraction == Mean::kNone) {
    job.data.mean.assign(channels, 0.0);
    job.data.std.assign(channels, 1.0);
  } else if (job.data.mean.empty() || per_pixel) {
    // Rank 0 looks at the data; the numbers travel as bytes, so that all ranks have the same bits.
    std::vector<double> numbers;
    if (communicator.rank() == 0) {
      const data::ImageStatistics s =
          data::image_statistics(train, {.transform = eval_transform(job),
                                         .threads = data_threads,
                                         .bad_sample = bad_sample_policy(job),
                                         .max_pixels = job.data.max_pixels,
                                         .apply_exif_orientation = job.data.apply_exif_orientation,
                                         .cache_folder = cache_folder(),
                                         .progress = progress});
      if (per_pixel) {
        numbers = s.mean_image;
        numbers.push_back(s.mean_image_std);
      } else {
        numbers = s.mean;
        numbers.insert(numbers.end(), s.std.begin(), s.std.end());
      }
    }
    std::vector<std::byte> bytes(numbers.size() * sizeof(double));
    if (!bytes.empty()) std::memcpy(bytes.data(), numbers.data(), bytes.size());
    communicator.broadcast(bytes, 0);
    numbers.resize(bytes.size() / sizeof(double));
    std::memcpy(numbers.data(), bytes.data(), bytes.size());
    if (per_pixel) {
      job.data.mean.assign(channels, 0.0);
      job.data.std.assign(channels, numbers.back());
      out.mean_image.assign(numbers.begin(), numbers.end() - 1);
    } else {
      job.data.mean.assign(numbers.begin(), numbers.begin() + static_cast<int64_t>(channels));
      job.data.std.assign(numbers.begin() + static_cast<int64_t>(channels), numbers.end());
    }
  }
  if (job.data.mean.size() != channels)
    fail(ExitCode::kBadJob, "data.mean has {} numbers, the images have {} channels",
         job.data.mean.size(), channels);
  return out;
}

ops::ImageInput image_input(const Job& job, const Normalisation& normalisation,
                            const data::ImageShape& shape, int64_t batch) {
  const Shape input = {.n = batch, .c = shape.channels, .h = shape.height, .w = shape.width};
  ops::ImageInput out = ops::per_channel_input(input, job.data.mean, job.data.std);
  if (normalisation.mean_image.empty()) return out;
  if (normalisation.mean_image.size() != out.mean.size())
    fail(ExitCode::kBadJob,
         "data.mean_subtraction PER_PIXEL: the mean image has {} values, an image of {} has {}; "
         "evaluation must use the training size",
         normalisation.mean_image.size(), to_string(shape), out.mean.size());
  for (size_t i = 0; i < out.mean.size(); ++i) out.mean[i] = normalisation.mean_image[i] * 255.0f;
  return out;
}

namespace {

// The job's own network, if the data fit it.
ops::Graph own_network(const Job& job, const data::ImageShape& shape) {
  ops::Graph graph = parse_graph(job.model.graph, "model.graph");
  const std::string name = graph.name.empty() ? "network" : graph.name;  // as load_job says
  if (job.model.name != name)
    fail(ExitCode::kBadJob,
         "model.name is \"{}\", but model.graph holds the network \"{}\"; clear model.graph (--set "
         "model.graph=) to train a model of the list or of another file",
         printable(job.model.name), printable(name));
  const Shape& image = graph.image;
  if (image.c != shape.channels || image.h != shape.height || image.w != shape.width)
    fail(ExitCode::kBadJob,
         "network \"{}\" is made for {} x {} x {} (channels x height x width), the images are {} x "
         "{} "
         "x {}; set data.train.size or change its text",
         printable(job.model.name), image.c, image.h, image.w, shape.channels, shape.height,
         shape.width);
  const Shape logits = ops::infer_shapes(graph, 1).back();
  if (!(logits == Shape{1, logits.c, 1, 1}))
    fail(
        ExitCode::kBadJob,
        "network \"{}\": its last node, \"{}\", gives {}; it must give a logit for each class, {}; "
        "end with global_avg_pool or linear",
        printable(job.model.name), printable(graph.nodes.back().name), to_string(logits),
        to_string({1, job.data.classes, 1, 1}));
  if (logits.c != job.data.classes)
    fail(ExitCode::kBadJob, "network \"{}\" gives {} classes, the data have {}",
         printable(job.model.name), logits.c, job.data.classes);
  return graph;
}

ops::Graph listed_network(const Job& job, const data::ImageShape& shape, bool inference) {
  ModelOptions options;
  options.inference = inference;
  options.image = {.n = 1, .c = shape.channels, .h = shape.height, .w = shape.width};
  options.classes = job.data.classes;
  options.stride_in_first_conv = job.model.stride_in_first_conv;
  switch (job.model.shortcut) {
    case Job::Model::Shortcut::kDefault:
      break;
    case Job::Model::Shortcut::kA:
      options.shortcut = ModelOptions::Shortcut::kA;
      break;
    case Job::Model::Shortcut::kB:
      options.shortcut = ModelOptions::Shortcut::kB;
      break;
    case Job::Model::Shortcut::kC:
      options.shortcut = ModelOptions::Shortcut::kC;
      break;
  }
  options.zero_init_residual = job.model.zero_init_residual;
  options.batch_norm_momentum = job.model.batch_norm_momentum;
  options.batch_norm_epsilon = job.model.batch_norm_epsilon;
  options.dropout = job.model.dropout;
  return make_model(job.model.name, options);
}

}  // namespace

ops::Graph graph_of(const Job& job, const data::ImageShape& shape) {
  return job.model.graph.empty() ? listed_network(job, shape, false) : own_network(job, shape);
}

ops::Graph inference_graph_of(const Job& job, const data::ImageShape& shape) {
  return job.model.graph.empty() ? listed_network(job, shape, true)
                                 : ops::inference_graph(own_network(job, shape));
}

DType precision_type(Job::Precision precision) {
  switch (precision) {
    case Job::Precision::kFp32:
    case Job::Precision::kTf32:
      return DType::kFloat32;
    case Job::Precision::kBf16:
      return DType::kBfloat16;
    case Job::Precision::kFp16:
      return DType::kFloat16;
  }
  return DType::kFloat32;
}

EngineConfig engine_config(const Job& job, const std::string& device, int gpu,
                           const ops::ImageInput& input, int lanes) {
  const Job::Optimizer& o = job.optimizer;
  return {.device = device,
          .gpu = gpu,
          .workers = static_cast<int>(job.workers),
          .batch_per_worker = job.batch_per_worker,
          .threads_per_worker = static_cast<int>(job.threads_per_worker),
          .lanes = lanes,
          .type = precision_type(job.precision),
          .tf32 = job.precision == Job::Precision::kTf32,
          .scale_loss = job.precision == Job::Precision::kFp16,
          .input = input,
          .label_smoothing = job.model.label_smoothing,
          .mixing = {job.mixing.mixup_alpha, job.mixing.cutmix_alpha},
          .optimizer = {.kind = o.kind == Job::Optimizer::Kind::kLars
                                    ? ops::OptimizerConfig::Kind::kLars
                                    : ops::OptimizerConfig::Kind::kSgd,
                        .momentum = o.momentum,
                        .nesterov = o.nesterov,
                        .weight_decay = o.weight_decay,
                        .decay_batch_norm_and_bias = o.decay_batch_norm_and_bias,
                        .trust_coefficient = o.trust_coefficient,
                        .lars_epsilon = o.lars_epsilon,
                        .clip_norm = o.clip_norm,
                        .ema_decay = o.ema_decay},
          .reduction = job.reduction.order == Job::Reduction::Order::kFast
                           ? comm::ReductionOrder::kFast
                           : comm::ReductionOrder::kExact,
          .bucket_mib = job.reduction.bucket_mib,
          .seed = job.seed,
          .record = job.gpu.graphs,
          .aside = job.gpu.overlap,
          .merge = job.gpu.merge};
}

int stay_near_gpu(const comm::Communicator& communicator, const std::string& device) {
  const int cpus = usable_cpus(), rank = communicator.local_rank();
  const int ranks = communicator.local_size();
  const std::string near = ops::near_cpus(device, rank);
  if (near.empty()) return cpus;
  int sharers = 0;
  for (int other = 0; other < ranks; ++other) sharers += ops::near_cpus(device, other) == near;
  const comm::CpuSet before = comm::cpu_set();
  const comm::CpuSet now = comm::stay_near(near, sharers * cpu_share(cpus, ranks));
  if (now.count < before.count)
    log::debug("of the CPUs {} rank {} uses those near its GPU: {}", before.list,
               communicator.rank(), now.list);
  return usable_cpus();
}

Fingerprint fingerprint(const std::string& device, int gpu) {
  const auto d = ops::make_device(device, 1, gpu);
  return {.device = d->name(),
          .instruction_set = d->instruction_set(),
          .libraries = d->libraries(),
          .build = "g++ " __VERSION__ " " CONVOY_BUILD_TYPE,
          .caches = cpu_caches()};
}

}  // namespace convoy::trainer
