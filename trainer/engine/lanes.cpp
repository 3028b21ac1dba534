#include "trainer/engine/lanes.h"

namespace convoy::trainer {

Lanes::Lanes(int count) : errors_(static_cast<size_t>(count)) {
  try {
    for (int lane = 0; lane < count; ++lane) threads_.emplace_back([this, lane] { work(lane); });
  } catch (...) {
    stop();  // those that were started would be waited for
    throw;
  }
}

Lanes::~Lanes() {
  stop();
}

void Lanes::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
}

void Lanes::run(std::function<void(int)> body) {
  std::unique_lock lock(mutex_);
  body_ = std::move(body);
  running_ = count();
  ++round_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return running_ == 0; });
  std::exception_ptr first;
  for (std::exception_ptr& error : errors_)
    if (std::exception_ptr e = std::exchange(error, nullptr); e && !first) first = e;
  if (first) std::rethrow_exception(first);
}

void Lanes::work(int lane) {
  uint64_t done = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || round_ != done; });
    if (round_ == done) return;
    done = round_;
    lock.unlock();
    std::exception_ptr error;
    try {
      body_(lane);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    errors_[static_cast<size_t>(lane)] = error;
    if (--running_ == 0) changed_.notify_all();
  }
}

}  // namespace convoy::trainer
