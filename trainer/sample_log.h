// OUT/samples.rank<r>.jsonl: which samples each step consumed, as the loader delivered them. One
// line per worker and step: {"step":7,"worker":1,"epochs":[0,...],"samples":[52,...]}.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "data_loader/loader.h"

namespace convoy::trainer {

class SampleLog {
 public:
  SampleLog(const std::string& out_dir, int rank);
  ~SampleLog();
  SampleLog(const SampleLog&) = delete;
  SampleLog& operator=(const SampleLog&) = delete;

  // Thread-safe. Throws Error (kIo).
  void write(const data::Batch& batch);

  // Drops what all ranks' files say of steps from `step` on: a life that died had gone further than
  // its last checkpoint. One rank calls it, before any rank opens its log.
  static void rewind(const std::string& out_dir, uint64_t step);

 private:
  std::mutex mutex_;
  std::string path_;
  int fd_;
};

}  // namespace convoy::trainer
