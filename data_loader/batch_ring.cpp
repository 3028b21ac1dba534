#include "data_loader/batch_ring.h"

#include <algorithm>

#include "ops/core/clock.h"
#include "ops/core/trace.h"

namespace convoy::data {

BatchRing::BatchRing(const Config& config, BeginBatch begin, MakeImage make)
    : config_(config), begin_(std::move(begin)), make_(std::move(make)) {
  const size_t size = static_cast<size_t>(config_.batch_size);
  slots_.resize(static_cast<size_t>(config_.slots));
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    slot.number = i;
    slot.pixels = AlignedBuffer(size * config_.shape.bytes());
    if (config_.pin) slot.pinned = config_.pin(slot.pixels.data(), slot.pixels.size());
    slot.batch.size = config_.batch_size;
    slot.batch.shape = config_.shape;
    slot.batch.pixels = slot.pixels.as<uint8_t>();
    slot.batch.labels.resize(size);
    slot.batch.sample_ids.resize(size);
    slot.batch.epochs.resize(size);
    slot.batch.substitutes.resize(size, kNoSubstitute);
  }
  for (int t = 0; t < config_.threads; ++t)
    threads_.emplace_back([this](std::stop_token stop) { work(stop); });
}

BatchRing::~BatchRing() {
  // All at once; their destructors then join.
  for (std::jthread& thread : threads_) thread.request_stop();
}

const Batch& BatchRing::acquire(uint64_t k) {
  Lock lock(mutex_);
  Slot& slot = slots_[k % slots_.size()];
  if (k >= config_.batches || slot.number > k || (slot.number == k && slot.state == State::kHeld))
    fail(ExitCode::kFault, "loader: batch {} of {} was acquired before or does not exist", k,
         config_.batches);
  ++stats_.acquired;
  stats_.ready += static_cast<uint64_t>(ready_slots_);
  const State wanted = config_.threads == 0 ? State::kFree : State::kReady;
  const auto here = [&] {
    return stopped_ || (slot.number == k && (slot.state == wanted || slot.state == State::kReady));
  };
  if (!here()) {
    const TraceRange trace("waiting for images");
    const Clock::time_point start = Clock::now();
    ready_.wait(lock, here);
    stats_.wait_seconds += seconds_since(start);
  }
  if (stopped_) std::rethrow_exception(stopped_);
  if (slot.state == State::kFree) {
    begin(slot);
    thread_local SampleScratch scratch;
    scratches_.push_back(&scratch);
    fill(lock, slot, 0, config_.batch_size, scratch);
    std::erase(scratches_, &scratch);
  }
  if (slot.error) {
    stop_locked(slot.error);
    std::rethrow_exception(stopped_);
  }
  slot.state = State::kHeld;
  --ready_slots_;
  return slot.batch;
}

const Batch* BatchRing::peek(uint64_t k) const {
  const Lock lock(mutex_);
  const Slot& slot = slots_[k % slots_.size()];
  const bool ready = slot.number == k && slot.state == State::kReady && !slot.error && !stopped_;
  return ready ? &slot.batch : nullptr;
}

void BatchRing::release(const Batch& batch) {
  const Lock lock(mutex_);
  const auto slot =
      std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return &s.batch == &batch; });
  if (slot == slots_.end() || slot->state != State::kHeld)
    fail(ExitCode::kFault, "loader: a batch was released that is not held");
  slot->state = State::kFree;
  slot->number += slots_.size();
  work_.notify_all();
  if (config_.threads == 0) ready_.notify_all();
}

void BatchRing::stop(std::exception_ptr error) {
  const Lock lock(mutex_);
  stop_locked(std::move(error));
}

void BatchRing::stop_locked(std::exception_ptr error) {
  if (!stopped_) stopped_ = std::move(error);
  ready_.notify_all();
}

LoaderStats BatchRing::stats() const {
  const Lock lock(mutex_);
  return stats_;
}

std::optional<InProgress> BatchRing::in_progress(const Dataset& dataset) const {
  uint64_t sample = SampleScratch::kNone;
  Clock::time_point since;
  {
    const Lock lock(mutex_);
    for (const SampleScratch* scratch : scratches_) {
      const uint64_t making = scratch->now_making.load(std::memory_order_relaxed);
      const Clock::time_point begun = scratch->since.load(std::memory_order_relaxed);
      if (making == SampleScratch::kNone || (sample != SampleScratch::kNone && begun >= since))
        continue;
      sample = making;
      since = begun;
    }
  }
  if (sample == SampleScratch::kNone) return std::nullopt;
  return InProgress{dataset.name(sample), seconds_since(since)};
}

void BatchRing::begin(Slot& slot) {
  slot.state = State::kFilling;
  slot.left = config_.batch_size;
  slot.error = nullptr;
  begin_(slot.batch, slot.number);
}

void BatchRing::work(std::stop_token stop) {
  SampleScratch scratch;
  Lock lock(mutex_);
  scratches_.push_back(&scratch);
  make_batches(lock, stop, scratch);
  std::erase(scratches_, &scratch);
}

void BatchRing::make_batches(Lock& lock, const std::stop_token& stop, SampleScratch& scratch) {
  const auto has_work = [this] {
    const Slot& slot = slots_[next_batch_ % slots_.size()];
    return next_batch_ == config_.batches || next_image_ > 0 ||
           (slot.number == next_batch_ && slot.state == State::kFree);
  };
  while (next_batch_ < config_.batches) {
    // Waiting registers with the stop token even where there is nothing to wait for.
    if (!has_work()) work_.wait(lock, stop, has_work);
    if (stop.stop_requested() || next_batch_ == config_.batches) return;
    Slot& slot = slots_[next_batch_ % slots_.size()];
    if (next_image_ == 0) begin(slot);
    const int first = next_image_;
    const int n = std::min(config_.group, config_.batch_size - first);
    next_image_ += n;
    if (next_image_ == config_.batch_size) {
      next_image_ = 0;
      ++next_batch_;
    }
    fill(lock, slot, first, n, scratch);
  }
}

void BatchRing::fill(Lock& lock, Slot& slot, int first, int n, SampleScratch& scratch) {
  const uint64_t number = slot.number;
  const Clock::time_point start = Clock::now();
  scratch.now_making.store(SampleScratch::kNone, std::memory_order_relaxed);
  scratch.since.store(start, std::memory_order_relaxed);
  scratch.profile = config_.profile;
  scratch.decoder.profile(config_.profile ? &scratch.times : nullptr);
  scratch.times = {};
  scratch.bytes = 0;
  lock.unlock();
  std::exception_ptr error;
  int error_at = 0;
  for (int i = first; i < first + n && !error; ++i) {
    const TraceRange trace("image");
    try {
      uint8_t* out = slot.pixels.as<uint8_t>() + static_cast<size_t>(i) * config_.shape.bytes();
      make_(out, slot.batch, number, i, scratch);
    } catch (...) {
      error = std::current_exception();
      error_at = i;
    }
  }
  const double seconds = seconds_since(start);
  lock.lock();
  scratch.now_making.store(SampleScratch::kNone, std::memory_order_relaxed);
  stats_.work_seconds += seconds;
  stats_.samples += static_cast<uint64_t>(n);
  stats_.bytes += scratch.bytes;
  stats_.times += scratch.times;
  if (error && (!slot.error || error_at < slot.error_at)) {
    slot.error = error;
    slot.error_at = error_at;
  }
  slot.left -= n;
  if (slot.left > 0) return;
  slot.state = State::kReady;
  ++ready_slots_;
  ready_.notify_all();
}

int ring_slots(int threads, int lanes, int batch) {
  if (threads == 0) return lanes;
  return lanes + std::max(lanes, 1 + (4 * threads + batch - 1) / batch);
}

int group_size(const Dataset& dataset) {
  return dataset.raw_shape() ? 32 : 1;
}

}  // namespace convoy::data
