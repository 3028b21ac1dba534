#include "data_loader/loader.h"

#include <algorithm>
#include <mutex>

#include "data_loader/batch_ring.h"
#include "data_loader/colour.h"
#include "data_loader/read_ahead.h"
#include "data_loader/sample_maker.h"
#include "data_loader/sampler.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/core/random.h"

namespace convoy::data {

LoaderStats& LoaderStats::operator+=(const LoaderStats& other) {
  wait_seconds += other.wait_seconds;
  work_seconds += other.work_seconds;
  samples += other.samples;
  bytes += other.bytes;
  substituted += other.substituted;
  acquired += other.acquired;
  ready += other.ready;
  times += other.times;
  return *this;
}

LoaderStats& LoaderStats::operator-=(const LoaderStats& earlier) {
  wait_seconds -= earlier.wait_seconds;
  work_seconds -= earlier.work_seconds;
  samples -= earlier.samples;
  bytes -= earlier.bytes;
  substituted -= earlier.substituted;
  acquired -= earlier.acquired;
  ready -= earlier.ready;
  times -= earlier.times;
  return *this;
}

Windows windows_of(const Dataset& dataset, uint64_t window_shards) {
  if (window_shards == 0) return {};
  const std::span<const uint64_t> shards = dataset.shard_sizes();
  if (shards.empty()) fail(ExitCode::kFault, "windows of shards, but the dataset has none");
  return {.shards = {shards.begin(), shards.end()}, .window = window_shards};
}

class Loader::Impl {
 public:
  Impl(const Dataset& dataset, const LoaderConfig& config)
      : config_(config),
        sampler_(config.seed, dataset.size(), windows_of(dataset, config.window_shards)),
        maker_(dataset, output_shape(config.transform, dataset), config.max_pixels,
               config.apply_exif_orientation),
        read_ahead_(make_read_ahead()),
        ring_(
            ring_config(config, maker_), [this](Batch& batch, uint64_t k) { begin(batch, k); },
            [this](uint8_t* out, Batch& batch, uint64_t k, int i, SampleScratch& scratch) {
              make(out, batch, k, i, scratch);
            }) {}

  static uint64_t hosted(const LoaderConfig& config) {
    return static_cast<uint64_t>(config.end_worker - config.first_worker);
  }

  static BatchRing::Config ring_config(const LoaderConfig& config, const SampleMaker& maker) {
    if (config.batch_per_worker < 1 || config.first_worker < 0 ||
        config.first_worker >= config.end_worker || config.end_worker > config.workers ||
        config.first_step > config.end_step || config.threads < 0)
      fail(ExitCode::kFault,
           "loader: batch {}, workers {} ... {} of {}, steps {} ... {}, {} threads",
           config.batch_per_worker, config.first_worker, config.end_worker, config.workers,
           config.first_step, config.end_step, config.threads);
    const int most = config.end_worker - config.first_worker;
    const int lanes = config.lanes > 0 ? std::min(config.lanes, most) : most;
    return {.batches = (config.end_step - config.first_step) * hosted(config),
            .batch_size = config.batch_per_worker,
            .shape = maker.output(),
            .threads = config.threads,
            .slots = ring_slots(config.threads, lanes, config.batch_per_worker),
            .group = group_size(maker.dataset()),
            .profile = config.profile,
            .pin = config.pin};
  }

  const Batch& acquire(uint64_t step, int worker) {
    if (!has(step, worker))
      fail(ExitCode::kFault,
           "loader: step {}, worker {} is not among steps {} ... {}, workers {} ... {}", step,
           worker, config_.first_step, config_.end_step, config_.first_worker, config_.end_worker);
    return ring_.acquire(number_of(step, worker));
  }
  void release(const Batch& batch) { ring_.release(batch); }
  const Batch* peek(uint64_t step, int worker) const {
    return has(step, worker) ? ring_.peek(number_of(step, worker)) : nullptr;
  }
  void stop(std::exception_ptr error) { ring_.stop(std::move(error)); }
  ImageShape shape() const { return maker_.output(); }
  const BatchRing& ring() const { return ring_; }

  LoaderStats stats() const {
    LoaderStats stats = ring_.stats();
    const std::lock_guard lock(mutex_);
    stats.substituted = substitutions_.size();
    return stats;
  }

  std::optional<InProgress> in_progress() const { return ring_.in_progress(maker_.dataset()); }

  std::vector<Substitution> substitutions() const {
    std::vector<Substitution> all;
    {
      const std::lock_guard lock(mutex_);
      all = substitutions_;
    }
    std::sort(all.begin(), all.end(),
              [](const Substitution& a, const Substitution& b) { return a.position < b.position; });
    return all;
  }

 private:
  void begin(Batch& batch, uint64_t k) const {
    batch.step = config_.first_step + k / hosted(config_);
    batch.worker = config_.first_worker + static_cast<int>(k % hosted(config_));
  }

  bool has(uint64_t step, int worker) const {
    return step >= config_.first_step && step < config_.end_step &&
           worker >= config_.first_worker && worker < config_.end_worker;
  }
  uint64_t number_of(uint64_t step, int worker) const {
    return (step - config_.first_step) * hosted(config_) +
           static_cast<uint64_t>(worker - config_.first_worker);
  }

  // nullptr: none.
  std::unique_ptr<ReadAhead> make_read_ahead() const {
    ring_config(config_, maker_);  // refuses what is no configuration
    if (config_.threads == 0 || config_.read_ahead <= 0 || maker_.dataset().raw_shape())
      return nullptr;
    return std::make_unique<ReadAhead>(
        maker_.dataset(), images(), static_cast<uint64_t>(config_.read_ahead),
        [this](uint64_t n) { return sampler_.at(position_of(n)).sample; });
  }

  uint64_t batch_size() const { return static_cast<uint64_t>(config_.batch_per_worker); }
  // That are made here, in the order of the ring.
  uint64_t images() const {
    return (config_.end_step - config_.first_step) * hosted(config_) * batch_size();
  }
  // The stream's position of the n-th of them.
  uint64_t position_of(uint64_t n) const {
    const uint64_t batch = n / batch_size();
    const uint64_t step = config_.first_step + batch / hosted(config_);
    const uint64_t worker = static_cast<uint64_t>(config_.first_worker) + batch % hosted(config_);
    return (step * static_cast<uint64_t>(config_.workers) + worker) * batch_size() +
           n % batch_size();
  }

  void make(uint8_t* out, Batch& batch, uint64_t k, int i, SampleScratch& scratch) {
    const uint64_t n = k * batch_size() + static_cast<uint64_t>(i);
    if (read_ahead_) read_ahead_->reached(n);
    const uint64_t position = position_of(n);
    const StreamPoint point = sampler_.at(position);
    const auto at = static_cast<size_t>(i);
    batch.sample_ids[at] = point.sample;
    batch.epochs[at] = point.epoch;
    batch.substitutes[at] = kNoSubstitute;
    const auto geometry = [&](ImageShape image, const std::string& name) {
      return train_geometry(config_.transform, image, maker_.output(), config_.seed, point.epoch,
                            point.sample, name);
    };
    try {
      batch.labels[at] = maker_.make(out, point.sample, geometry, scratch);
    } catch (const BadContent& bad) {
      if (config_.bad_sample == BadSample::kFail) throw with_remedy(bad);
      const Substitute s = substitute(out, point, position, geometry, scratch, bad.what());
      batch.labels[at] = s.label;
      batch.substitutes[at] = s.sample;
    }
    if (config_.transform.changes_colour())
      change_colour(out, maker_.output(),
                    train_colour(config_.transform, config_.seed, point.epoch, point.sample));
  }

  struct Substitute {
    uint64_t sample;
    int32_t label;
  };
  // Draws samples until one is whole. The crop stays that of the place.
  template <typename MakeGeometry>
  Substitute substitute(uint8_t* out, StreamPoint point, uint64_t position,
                        const MakeGeometry& geometry, SampleScratch& scratch,
                        const std::string& reason) {
    constexpr uint64_t kTries = 16;
    for (uint64_t attempt = 0; attempt < kTries; ++attempt) {
      const Random4 words =
          random4(config_.seed, Purpose::kSubstitute, point.epoch + (attempt << 32), point.sample);
      const uint64_t word = uint64_t{words[0]} << 32 | words[1];
      const auto chosen =
          static_cast<uint64_t>((static_cast<unsigned __int128>(word) * sampler_.samples()) >> 64);
      try {
        const int32_t label = maker_.make(out, chosen, geometry, scratch);
        note({position, point.epoch, point.sample, chosen, reason});
        return {chosen, label};
      } catch (const BadContent&) {
        continue;
      }
    }
    fail(ExitCode::kBadData, "{} ({} substitutes drawn for it were bad too)", reason, kTries);
  }

  void note(Substitution substitution) {
    constexpr size_t kSaidAloud = 10;
    const std::lock_guard lock(mutex_);
    if (substitutions_.size() < kSaidAloud)
      log::warning("sample {} of epoch {} replaced by {}: {}{}", substitution.sample,
                   substitution.epoch, substitution.substitute, substitution.reason,
                   substitutions_.size() + 1 == kSaidAloud ? " (more are counted, not said)" : "");
    substitutions_.push_back(std::move(substitution));
  }

  const LoaderConfig config_;
  const Sampler sampler_;
  const SampleMaker maker_;
  mutable std::mutex mutex_;
  std::vector<Substitution> substitutions_;  // guarded by mutex_
  const std::unique_ptr<ReadAhead> read_ahead_;
  BatchRing ring_;  // last: its threads use all of the above
};

BadContent with_remedy(const BadContent& bad) {
  return BadContent(fmt::format("{}; or set data.bad_sample: SUBSTITUTE", bad.what()),
                    bad.damage());
}

Loader::Loader(const Dataset& dataset, const LoaderConfig& config)
    : impl_(std::make_unique<Impl>(dataset, config)) {}
Loader::~Loader() = default;
const Batch& Loader::acquire(uint64_t step, int worker) {
  return impl_->acquire(step, worker);
}
const Batch* Loader::peek(uint64_t step, int worker) const {
  return impl_->peek(step, worker);
}
void Loader::stop(std::exception_ptr error) {
  impl_->stop(std::move(error));
}
void Loader::release(const Batch& batch) {
  impl_->release(batch);
}
ImageShape Loader::shape() const {
  return impl_->shape();
}
LoaderStats Loader::stats() const {
  return impl_->stats();
}
int Loader::slots() const {
  return impl_->ring().config().slots;
}
uint64_t Loader::ring_bytes() const {
  return impl_->ring().config().bytes();
}
uint64_t Loader::ring_bytes(const Dataset& dataset, const LoaderConfig& config) {
  const SampleMaker maker(dataset, output_shape(config.transform, dataset), config.max_pixels);
  return Impl::ring_config(config, maker).bytes();
}
std::optional<InProgress> Loader::in_progress() const {
  return impl_->in_progress();
}
std::vector<Substitution> Loader::substitutions() const {
  return impl_->substitutions();
}

}  // namespace convoy::data
