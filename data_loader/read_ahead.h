// Threads that ask the system for the files of coming samples while those before are decoded, so
// that a disk or a file server is kept busy by more than the loader's few threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

class ReadAhead {
 public:
  // Samples sample(0) ... sample(count - 1) will be read in about this order; at most `depth` of
  // them are asked for before they are. Both must outlive this object.
  ReadAhead(const Dataset& dataset, uint64_t count, uint64_t depth,
            std::function<uint64_t(uint64_t)> sample);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The k-th is about to be read. Any thread, any order.
  void reached(uint64_t k);

 private:
  void work(std::stop_token stop);

  const Dataset& dataset_;
  const uint64_t count_, depth_;
  const std::function<uint64_t(uint64_t)> sample_;
  std::mutex mutex_;
  std::condition_variable_any moved_;
  uint64_t next_ = 0;                  // to be asked for
  uint64_t limit_ = 0;                 // below this they may be
  std::vector<std::jthread> threads_;  // last: they stop before what they use is gone
};

}  // namespace convoy::data
