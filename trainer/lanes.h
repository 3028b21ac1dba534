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
  ~Lanes();  // waits for what is running

  int count() const { return static_cast<int>(threads_.size()); }

  // Starts body(lane) on every lane and returns; one body at a time.
  void start(std::function<void(int)> body);
  // Waits for all lanes; rethrows the error of the first lane that failed.
  void finish();
  void run(std::function<void(int)> body) {
    start(std::move(body));
    finish();
  }

 private:
  void work(int lane);

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
