// A job: all that a run is told, read once from a text file and checked, as a plain struct. Fields,
// units and defaults are those of proto/job.proto; enumerator kOneCycle is ONE_CYCLE there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::trainer {

struct Job {
  enum class Precision { kFp32, kBf16, kTf32, kFp16 };

  struct Data {
    enum class Format { kAuto, kImageFolder, kIdx, kCifar, kSynthetic, kTarShards };
    enum class MeanSubtraction { kPerChannel, kPerPixel, kNone };
    enum class BadSample { kFail, kSubstitute };
    enum class Shuffle { kFull, kWindow };

    struct Train {
      enum class Crop { kRandomResized, kScaleAndCrop, kPadAndCrop, kCenter };
      Crop crop = Crop::kRandomResized;
      uint32_t size = 224;  // 0: the dataset's own
      double area_min = 0.08, area_max = 1.0;
      double ratio_min = 0.75, ratio_max = 1.3333333333333333;
      uint32_t scale_min = 256, scale_max = 480;
      uint32_t pad = 4;
      bool flip = true;
      double pca_jitter = 0;  // standard deviation
      double brightness = 0, contrast = 0, saturation = 0, hue = 0;
    };
    struct Eval {
      uint32_t resize = 256;  // 0: no resize
      uint32_t size = 0;      // 0: train.size
    };

    Format format = Format::kAuto;
    std::string path;
    uint32_t classes = 0;  // 0: as many as the dataset has
    Train train;
    Eval eval;
    MeanSubtraction mean_subtraction = MeanSubtraction::kPerChannel;
    std::vector<double> mean, std;  // of the same length; empty: computed
    BadSample bad_sample = BadSample::kFail;
    uint64_t max_pixels = 178956970;
    uint64_t synthetic_samples = 10000;
    bool apply_exif_orientation = false;
    bool follow_links = false;
    Shuffle shuffle = Shuffle::kFull;
    uint32_t window_shards = 16;
    std::vector<uint32_t> only_classes;  // empty: all
    uint32_t images_per_class = 0;       // 0: all
  };

  struct Model {
    enum class Shortcut { kDefault, kA, kB, kC };
    std::string name;
    bool stride_in_first_conv = false;
    Shortcut shortcut = Shortcut::kDefault;
    bool zero_init_residual = false;
    double batch_norm_momentum = 0.1;
    double batch_norm_epsilon = 1e-5;
    double dropout = 0.0;
    double label_smoothing = 0.0;
    std::string graph;  // a network of one's own as text; empty: `name` is in the list
  };

  struct Optimizer {
    enum class Kind { kSgd, kLars };
    Kind kind = Kind::kSgd;
    double learning_rate = 0.1;
    bool linear_scaling = false;
    uint32_t base_batch = 256;
    double momentum = 0.9;
    bool nesterov = false;
    double weight_decay = 1e-4;
    bool decay_batch_norm_and_bias = true;
    double trust_coefficient = 0.001;
    double lars_epsilon = 1e-9;
    double clip_norm = 0.0;  // 0: off
    double ema_decay = 0.0;  // 0: off

    struct Group {
      std::string pattern;
      double learning_rate_factor = 1.0, weight_decay_factor = 1.0;
    };
    std::vector<Group> group;
  };

  struct Schedule {
    enum class Kind { kStep, kPlateau, kCosine, kPolynomial, kOneCycle, kConstant };
    Kind kind = Kind::kStep;
    std::vector<double> milestones;  // epochs, rising
    double gamma = 0.1;
    double warmup_epochs = 0.0;
    double warmup_start_factor = 0.0;
    double end_factor = 0.0;
    double power = 2.0;
    uint32_t patience = 3;
    double threshold = 1e-4;
  };

  struct Evaluation {
    uint32_t every_epochs = 1;  // 0: only at the end
    uint32_t batch = 100;
  };

  struct Checkpoint {
    uint64_t every_steps = 0;     // 0: not by steps
    double every_minutes = 15.0;  // 0: not by time
    uint32_t keep = 3;
    bool keep_best = true;
    uint64_t keep_every_steps = 0;  // 0: none
    double lease_seconds = 30.0;
  };

  struct Reduction {
    enum class Order { kExact, kFast };
    Order order = Order::kExact;
    double bucket_mib = 4.0;
  };

  struct Logging {
    uint32_t every_steps = 50;
    bool samples = false, batch_digests = false;
    uint32_t gradients = 0;  // steps; 0: off
  };

  struct Watchdog {  // seconds; 0: never
    double start_seconds = 3600, input_seconds = 600, compute_seconds = 600;
    double reduce_seconds = 300, save_seconds = 1800, silence_seconds = 60;
    double heartbeat_seconds = 1;
    std::string interface;  // "": any
    double straggler_factor = 1.3, straggler_seconds = 60;
  };

  struct NonFinite {
    enum class Policy { kStop, kSkip, kRollBack };
    Policy policy = Policy::kStop;
    uint32_t max_skips = 10;
  };

  struct Checks {
    uint32_t replicas_every_steps = 50;  // 0: only before each save
    uint32_t recompute_every_steps = 0;  // 0: never
    uint32_t max_roll_backs = 3;
  };

  struct Mixing {  // parameters of Beta distributions; 0: off
    double mixup_alpha = 0.0, cutmix_alpha = 0.0;
  };

  struct Transfer {
    struct Unfreeze {
      double epoch = 0.0;
      std::string pattern;
    };
    std::string init_from;  // "": the initialisation that the model's layers say
    std::vector<std::string> freeze;
    uint32_t train_last_blocks = 0;  // 0: all
    std::vector<Unfreeze> unfreeze;
    std::vector<std::string> start_anew;
    std::string init_sha256;  // "": the caller fills it in where there is an init_from
  };

  struct Gpu {
    bool autotune = false;
    bool graphs = true;
    bool overlap = true;
    bool merge = true;
  };

  std::string name = "job";
  Data data;
  Model model;
  uint32_t workers = 0;  // 0: as many as ranks at the first start; the caller fills it in then
  uint32_t batch_per_worker = 32;
  uint32_t threads_per_worker = 0;  // 0: see proto/job.proto; the caller fills it in as well
  Precision precision = Precision::kFp32;
  uint64_t seed = 1;
  uint32_t epochs = 90;
  uint64_t stop_after_steps = 0;  // 0: at the end
  Optimizer optimizer;
  Schedule schedule;
  Evaluation evaluation;
  Checkpoint checkpoint;
  Reduction reduction;
  Logging log;
  Watchdog watchdog;
  NonFinite non_finite;
  Checks checks;
  Mixing mixing;
  Transfer transfer;
  Gpu gpu;
};

// Reads the job file at `path` (protobuf text format, at most 1 MiB), then applies each
// "key.of.field=value" of `sets` in order: enums in any case, bools true/false/1/0, repeated fields
// as a comma list that replaces the file's. `device` is "cpu" or "cuda". `--data DIR` is the set
// "data.path=DIR".
// Throws one Error (kBadJob) whose message has a line for every mistake found, each with
// file:line:column or `--set key`; kIo where the file cannot be read. Where model.name is a file
// *.txtpb, the network in it becomes model.graph.
Job load_job(const std::string& path, const std::vector<std::string>& sets,
             std::string_view device);

// The same from a text in memory, e.g. a manifest's; `source` stands for the file in messages. Of a
// stored job `device` is "": another device than ours may have run it.
Job parse_job(std::string_view text, const std::string& source,
              const std::vector<std::string>& sets, std::string_view device);

// The job as a job file with every field written out; parse_job reads it back to the same values.
std::string to_text(const Job& job);

// SHA-256 over every field that can change a result (all but those that job.proto marks "not part
// of the identity") with its effective value, and the digest of the dataset's contents. Does not
// depend on the order of the file nor on whether a default was written out.
std::string identity_digest(const Job& job, std::string_view dataset_digest);

struct JobDifference {
  std::string key;        // "optimizer.learning_rate"
  std::string old_value;  // as in a job file; a list in brackets
  std::string new_value;
  bool changes_result;  // part of the identity
};

// Keys whose effective values differ, in the order of job.proto. Both texts are job files (as
// to_text() writes them); throws Error (kBadJob) where one is not.
std::vector<JobDifference> differing_keys(std::string_view old_text, std::string_view new_text);

}  // namespace convoy::trainer
