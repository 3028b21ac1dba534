// The threads of a rank that compute workers side by side. A lane keeps its thread for life,
// because ops belong to the thread that made them.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace convoy::trainer {

class Lanes {
 public:
  explicit Lanes(int count);
  ~Lanes();

  int count() const { return static_cast<int>(threads_.size()); }

  // Runs body(lane) on every lane and waits for all; rethrows the error of the lowest lane that
  // failed.
  void run(std::function<void(int)> body);

 private:
  void work(int lane);
  void stop();

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::function<void(int)> body_;
  uint64_t round_ = 0;
  int running_ = 0;
  bool stopping_ = false;
  std::vector<std::exception_ptr> errors_;
  std::vector<std::jthread> threads_;  // last: joined first
};

}  // namespace convoy::trainer
