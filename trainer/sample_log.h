// OUT/samples.rank<r>.jsonl: which samples each step consumed, as the loader delivered them. One
// line per worker and step: {"step":7,"worker":1,"epochs":[0,...],"samples":[52,...]}.
#pragma once

#include <cstdint>
#include <string>

#include "data_loader/loader.h"
#include "trainer/line_log.h"

namespace convoy::trainer {

class SampleLog {
 public:
  // Throws Error (kIo).
  SampleLog(const std::string& out_dir, int rank);

  // Any thread. What cannot be written is lost, not the run (trainer/line_log.h).
  void write(const data::Batch& batch);

  // Drops what all ranks' files say of steps from `step` on: a life that died had gone further than
  // its last checkpoint. One rank calls it, before any rank opens its log.
  static void rewind(const std::string& out_dir, uint64_t step);

 private:
  LineLog log_;
};

}  // namespace convoy::trainer
