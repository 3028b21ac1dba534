#include "data_loader/read_ahead.h"

#include <algorithm>

#include "ops/core/error.h"

namespace convoy::data {
namespace {

// They wait for the disk, mostly to find a file.
constexpr int kThreads = 4;

}  // namespace

ReadAhead::ReadAhead(const Dataset& dataset, uint64_t count, uint64_t depth,
                     std::function<uint64_t(uint64_t)> sample)
    : dataset_(dataset),
      count_(count),
      depth_(depth),
      sample_(std::move(sample)),
      limit_(std::min(count, depth)) {
  for (int t = 0; t < kThreads; ++t)
    threads_.emplace_back([this](std::stop_token stop) { work(stop); });
}

ReadAhead::~ReadAhead() {
  for (std::jthread& thread : threads_) thread.request_stop();
}

void ReadAhead::reached(uint64_t k) {
  const std::lock_guard lock(mutex_);
  const uint64_t limit = std::min(count_, k + depth_);
  if (limit <= limit_) return;
  limit_ = limit;
  // What was overtaken needs no asking any more.
  next_ = std::max(next_, std::min(limit_, k + 1));
  moved_.notify_one();
}

void ReadAhead::work(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  while (next_ < count_) {
    if (!moved_.wait(lock, stop, [this] { return next_ < limit_ || next_ == count_; })) return;
    if (next_ == count_) return;
    const uint64_t k = next_++;
    if (next_ == count_) moved_.notify_all();
    lock.unlock();
    try {
      dataset_.will_read(sample_(k));
    } catch (const Error&) {
      // Whoever reads it says what is wrong.
    }
    lock.lock();
    if (stop.stop_requested()) return;
  }
}

}  // namespace convoy::data
