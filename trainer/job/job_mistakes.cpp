#include "trainer/job/job_mistakes.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "ops/core/error.h"
#include "trainer/job/job.h"

namespace convoy::trainer {
namespace {

constexpr size_t kMostSaid = 50;

}  // namespace

std::string Mistakes::at(int line, int column) const {
  return fmt::format("{}:{}:{}", source_, line + 1, column + 1);
}

void Mistakes::add(const std::string& where, const std::string& key, const std::string& what) {
  if (!key.empty()) bad_.insert(key);
  if (++count_ > kMostSaid) return;
  const std::string_view between = where == kSet ? " " : ": ";
  text_ += fmt::format("\n  {}{}{}: {}", where, key.empty() ? "" : between, printable(key), what);
}

bool Mistakes::full() const {
  return count_ >= kMostSaid;
}

void Mistakes::require(bool holds, std::initializer_list<const char*> keys,
                       const std::string& what) {
  if (holds || !readable_) return;
  const std::string* where = &source_;
  const char* named = *keys.begin();
  for (const char* key : keys) {
    if (bad_.contains(key)) return;
    const auto origin = origin_.find(key);
    if (where == &source_ && origin != origin_.end()) {
      where = &origin->second;
      named = key;
    }
  }
  add(*where, named, what);
}

void Mistakes::throw_if_any() const {
  if (count_ == 0) return;
  std::string more;
  if (count_ > kMostSaid) more = fmt::format("\n  ... and {} more", count_ - kMostSaid);
  fail(ExitCode::kBadJob, "{}: {} mistake{} in the job:{}{}", source_, count_,
       count_ == 1 ? "" : "s", text_, more);
}

namespace {

void check_transfer(const Job& job, Mistakes& mistakes) {
  const Job::Transfer& transfer = job.transfer;
  const auto is_empty = [](const std::string& pattern) { return pattern.empty(); };
  mistakes.require(std::ranges::none_of(transfer.freeze, is_empty), {"transfer.freeze"},
                   "has an empty pattern");
  mistakes.require(std::ranges::none_of(transfer.start_anew, is_empty), {"transfer.start_anew"},
                   "has an empty pattern");
  mistakes.require(transfer.start_anew.empty() || !transfer.init_from.empty(),
                   {"transfer.start_anew", "transfer.init_from"},
                   "needs transfer.init_from: without it everything starts anew");
  mistakes.require(transfer.init_sha256.empty() || !transfer.init_from.empty(),
                   {"transfer.init_sha256", "transfer.init_from"}, "needs transfer.init_from");
  const bool is_digest =
      transfer.init_sha256.size() == 64 &&
      transfer.init_sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  mistakes.require(transfer.init_sha256.empty() || is_digest, {"transfer.init_sha256"},
                   "must have 64 hexadecimal digits, in small letters");
  mistakes.require(
      transfer.unfreeze.empty() || !transfer.freeze.empty() || transfer.train_last_blocks > 0,
      {"transfer.unfreeze", "transfer.freeze"},
      "needs something frozen: transfer.freeze or transfer.train_last_blocks");
  for (const Job::Transfer::Unfreeze& each : transfer.unfreeze) {
    mistakes.require(!each.pattern.empty(), {"transfer.unfreeze"},
                     "has no pattern; give one, e.g. unfreeze { epoch: 2 pattern: \"layer4.*\" }");
    mistakes.require(each.epoch > 0 && each.epoch < job.epochs, {"transfer.unfreeze", "epochs"},
                     fmt::format("has the epoch {}; it must be above 0 and below the run's {}",
                                 each.epoch, job.epochs));
  }
}

}  // namespace

void check(const Job& job, std::string_view device, Mistakes& mistakes) {
  const auto whole = [&](const char* key, uint64_t value, uint64_t min, uint64_t max) {
    mistakes.require(value >= min && value <= max, {key},
                     fmt::format("is {}; it must be from {} to {}", value, min, max));
  };
  const auto number = [&](const char* key, double value, bool inside, const char* interval) {
    mistakes.require(inside, {key}, fmt::format("is {}; it must be {}", value, interval));
  };
  const auto not_negative = [&](const char* key, double value) {
    number(key, value, value >= 0, "at least 0");
  };
  const auto positive = [&](const char* key, double value) {
    number(key, value, value > 0, "above 0");
  };
  const auto below_one = [&](const char* key, double value) {
    number(key, value, value >= 0 && value < 1, "at least 0 and below 1");
  };
  const auto fraction = [&](const char* key, double value) {
    number(key, value, value > 0 && value <= 1, "above 0 and at most 1");
  };
  const auto share = [&](const char* key, double value) {
    number(key, value, value >= 0 && value <= 1, "from 0 to 1");
  };
  const auto ordered = [&](const char* min_key, auto min, const char* max_key, auto max) {
    const auto word = [](std::string_view key) { return key.substr(key.rfind('.') + 1); };
    mistakes.require(min <= max, {min_key, max_key},
                     fmt::format("{} {} is above {} {}", word(min_key), min, word(max_key), max));
  };

  mistakes.require(!job.model.name.empty(), {"model.name"},
                   "is missing; `convoy model list` shows the names");
  whole("workers", job.workers, 0, 65536);
  whole("batch_per_worker", job.batch_per_worker, 1, 65536);
  whole("threads_per_worker", job.threads_per_worker, 0, 1024);
  whole("epochs", job.epochs, 1, 1000000);
  mistakes.require(device != "cpu" || (job.precision != Job::Precision::kTf32 &&
                                       job.precision != Job::Precision::kFp16),
                   {"precision"}, "TF32 and FP16 need --device cuda; on cpu use FP32 or BF16");

  const Job::Data& data = job.data;
  const Job::Data::Train& train = data.train;
  using Crop = Job::Data::Train::Crop;
  // A stored job may be of imported weights, which came without any.
  mistakes.require(
      !data.path.empty() || data.format == Job::Data::Format::kSynthetic || device.empty(),
      {"data.path"}, "is missing; give the dataset's folder here or with --data");
  whole("data.classes", data.classes, 0, 1u << 20);
  using Format = Job::Data::Format;
  mistakes.require(
      train.size > 0 || (data.format != Format::kImageFolder && data.format != Format::kTarShards),
      {"data.train.size", "data.format"},
      "is 0, but the images of a folder have no common size; give one, e.g. 224");
  mistakes.require(data.shuffle != Job::Data::Shuffle::kWindow || data.format == Format::kAuto ||
                       data.format == Format::kTarShards,
                   {"data.shuffle", "data.format"},
                   "is WINDOW, which only TAR_SHARDS have (convoy pack makes them)");
  whole("data.window_shards", data.window_shards, 1, 1000000);
  whole("data.train.size", train.size, 0, 8192);
  fraction("data.train.area_min", train.area_min);
  fraction("data.train.area_max", train.area_max);
  ordered("data.train.area_min", train.area_min, "data.train.area_max", train.area_max);
  positive("data.train.ratio_min", train.ratio_min);
  positive("data.train.ratio_max", train.ratio_max);
  ordered("data.train.ratio_min", train.ratio_min, "data.train.ratio_max", train.ratio_max);
  whole("data.train.scale_min", train.scale_min, 1, 8192);
  whole("data.train.scale_max", train.scale_max, 1, 8192);
  ordered("data.train.scale_min", train.scale_min, "data.train.scale_max", train.scale_max);
  mistakes.require(train.crop != Crop::kScaleAndCrop || train.size <= train.scale_min,
                   {"data.train.size", "data.train.scale_min"},
                   fmt::format("a crop of {} pixels does not fit into a shorter side of scale_min "
                               "{}",
                               train.size, train.scale_min));
  whole("data.train.pad", train.pad, 0, 8192);
  const auto colour = [&](const char* key, double value, double most) {
    number(key, value, value >= 0 && value <= most, fmt::format("from 0 to {}", most).c_str());
    mistakes.require(!(value > 0) || train.crop != Crop::kCenter, {key, "data.train.crop"},
                     fmt::format("is {}, but the crop CENTER knows no randomness; set it to 0, or "
                                 "choose another crop",
                                 value));
  };
  colour("data.train.pca_jitter", train.pca_jitter, 10);
  colour("data.train.brightness", train.brightness, 1);
  colour("data.train.contrast", train.contrast, 1);
  colour("data.train.saturation", train.saturation, 1);
  colour("data.train.hue", train.hue, 0.5);
  whole("data.eval.resize", data.eval.resize, 0, 8192);
  whole("data.eval.size", data.eval.size, 0, 8192);
  const uint32_t eval_size = data.eval.size ? data.eval.size : train.size;
  mistakes.require(data.eval.resize == 0 || eval_size <= data.eval.resize,
                   {"data.eval.resize", "data.eval.size", "data.train.size"},
                   fmt::format("evaluation crops {} pixels from a shorter side of {}; make "
                               "data.eval.resize at least as large, or 0",
                               eval_size, data.eval.resize));
  mistakes.require(data.mean.size() == data.std.size(), {"data.mean", "data.std"},
                   fmt::format("mean has {} values and std {}", data.mean.size(), data.std.size()));
  mistakes.require(std::all_of(data.std.begin(), data.std.end(), [](double s) { return s > 0; }),
                   {"data.std"}, "must be above 0");
  // Zeros are what a run records where nothing is subtracted per channel.
  mistakes.require(
      data.mean_subtraction == Job::Data::MeanSubtraction::kPerChannel ||
          std::all_of(data.mean.begin(), data.mean.end(), [](double m) { return m == 0; }),
      {"data.mean", "data.mean_subtraction"},
      "has no effect unless data.mean_subtraction is PER_CHANNEL; leave it out");
  whole("data.max_pixels", data.max_pixels, 1, uint64_t{1} << 40);
  whole("data.synthetic_samples", data.synthetic_samples, 1, uint64_t{1} << 40);
  const std::set<uint32_t> chosen(data.only_classes.begin(), data.only_classes.end());
  mistakes.require(chosen.size() == data.only_classes.size(), {"data.only_classes"},
                   "names a class twice");
  mistakes.require(
      chosen.empty() || (*chosen.rbegin() < 1u << 20 && data.format != Format::kSynthetic),
      {"data.only_classes", "data.format"},
      "is for classes below 1048576 of a dataset that is not SYNTHETIC");
  mistakes.require(chosen.empty() || data.classes == 0 || data.classes == chosen.size(),
                   {"data.classes", "data.only_classes"},
                   fmt::format("is {}, but data.only_classes names {}; leave data.classes out",
                               data.classes, chosen.size()));

  const Job::Model& model = job.model;
  share("model.batch_norm_momentum", model.batch_norm_momentum);
  fraction("model.batch_norm_epsilon", model.batch_norm_epsilon);
  below_one("model.dropout", model.dropout);
  below_one("model.label_smoothing", model.label_smoothing);

  const auto beta = [&](const char* key, double alpha) {
    number(key, alpha, alpha >= 0 && alpha <= 100, "from 0 (off) to 100");
    mistakes.require(alpha == 0 || job.batch_per_worker > 1, {key, "batch_per_worker"},
                     "mixes an image with another of its worker's batch, which needs a "
                     "batch_per_worker above 1");
  };
  beta("mixing.mixup_alpha", job.mixing.mixup_alpha);
  beta("mixing.cutmix_alpha", job.mixing.cutmix_alpha);

  const Job::Optimizer& optimizer = job.optimizer;
  positive("optimizer.learning_rate", optimizer.learning_rate);
  whole("optimizer.base_batch", optimizer.base_batch, 1, 1u << 30);
  below_one("optimizer.momentum", optimizer.momentum);
  mistakes.require(!optimizer.nesterov || optimizer.momentum > 0,
                   {"optimizer.nesterov", "optimizer.momentum"},
                   "nesterov needs a momentum above 0");
  not_negative("optimizer.weight_decay", optimizer.weight_decay);
  positive("optimizer.trust_coefficient", optimizer.trust_coefficient);
  not_negative("optimizer.lars_epsilon", optimizer.lars_epsilon);
  not_negative("optimizer.clip_norm", optimizer.clip_norm);
  below_one("optimizer.ema_decay", optimizer.ema_decay);
  for (const Job::Optimizer::Group& group : optimizer.group) {
    mistakes.require(!group.pattern.empty(), {"optimizer.group"},
                     "has a group without a pattern; give one, e.g. \"layer1.*\"");
    number("optimizer.group", group.learning_rate_factor, group.learning_rate_factor > 0,
           "a learning_rate_factor above 0 (transfer.freeze is for what stays as it is)");
    number("optimizer.group", group.weight_decay_factor, group.weight_decay_factor >= 0,
           "a weight_decay_factor of at least 0");
  }
  check_transfer(job, mistakes);

  const Job::Schedule& schedule = job.schedule;
  const auto& milestones = schedule.milestones;
  mistakes.require(std::adjacent_find(milestones.begin(), milestones.end(),
                                      std::greater_equal<>()) == milestones.end() &&
                       (milestones.empty() || milestones.front() > 0),
                   {"schedule.milestones"},
                   fmt::format("must be above 0 and rising, not {}", fmt::join(milestones, ", ")));
  positive("schedule.gamma", schedule.gamma);
  not_negative("schedule.warmup_epochs", schedule.warmup_epochs);
  mistakes.require(schedule.warmup_epochs <= job.epochs, {"schedule.warmup_epochs", "epochs"},
                   fmt::format("a warm-up of {} epochs is longer than the run of {} (set "
                               "schedule.warmup_epochs too)",
                               schedule.warmup_epochs, job.epochs));
  share("schedule.warmup_start_factor", schedule.warmup_start_factor);
  share("schedule.end_factor", schedule.end_factor);
  positive("schedule.power", schedule.power);
  whole("schedule.patience", schedule.patience, 1, 1000000);
  below_one("schedule.threshold", schedule.threshold);
  mistakes.require(
      schedule.kind != Job::Schedule::Kind::kPlateau || job.evaluation.every_epochs > 0,
      {"evaluation.every_epochs", "schedule.kind"},
      "PLATEAU needs evaluations during the run; evaluation.every_epochs must not be 0");

  whole("evaluation.batch", job.evaluation.batch, 1, 65536);
  not_negative("checkpoint.every_minutes", job.checkpoint.every_minutes);
  whole("checkpoint.keep", job.checkpoint.keep, 1, 1000000);
  number("checkpoint.lease_seconds", job.checkpoint.lease_seconds,
         job.checkpoint.lease_seconds >= 1 && job.checkpoint.lease_seconds <= 3600,
         "from 1 to 3600");
  number("reduction.bucket_mib", job.reduction.bucket_mib,
         job.reduction.bucket_mib > 0 && job.reduction.bucket_mib <= 4096,
         "above 0 and at most 4096");
  const Job::Watchdog& watchdog = job.watchdog;
  not_negative("watchdog.start_seconds", watchdog.start_seconds);
  not_negative("watchdog.input_seconds", watchdog.input_seconds);
  not_negative("watchdog.compute_seconds", watchdog.compute_seconds);
  not_negative("watchdog.reduce_seconds", watchdog.reduce_seconds);
  not_negative("watchdog.save_seconds", watchdog.save_seconds);
  number("watchdog.heartbeat_seconds", watchdog.heartbeat_seconds,
         watchdog.heartbeat_seconds >= 0.05 && watchdog.heartbeat_seconds <= 60, "from 0.05 to 60");
  mistakes.require(
      watchdog.silence_seconds == 0 || watchdog.silence_seconds >= 3 * watchdog.heartbeat_seconds,
      {"watchdog.silence_seconds", "watchdog.heartbeat_seconds"},
      fmt::format("is {}; it must be 0 (never) or at least three heartbeats, {}",
                  watchdog.silence_seconds, 3 * watchdog.heartbeat_seconds));
  number("watchdog.straggler_factor", watchdog.straggler_factor,
         watchdog.straggler_factor == 0 || watchdog.straggler_factor > 1, "0 (off) or above 1");
  positive("watchdog.straggler_seconds", watchdog.straggler_seconds);
  whole("log.every_steps", job.log.every_steps, 1, std::numeric_limits<uint32_t>::max());
}

}  // namespace convoy::trainer
