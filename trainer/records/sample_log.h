// OUT/samples.rank<r>.jsonl: which samples each step consumed, as the loader delivered them. One
// line per worker and step: {"step":7,"worker":1,"epochs":[0,...],"samples":[52,...]}, and with
// digests the batch's, "digest":"41ac...".
#pragma once

#include <cstdint>
#include <string>

#include "data_loader/loader.h"
#include "trainer/base/line_log.h"

namespace convoy::trainer {

// SHA-256 of what the network is fed: the pixels [B, H, W, C], then the labels as 32-bit
// little-endian integers. 64 hexadecimal digits.
std::string batch_digest(const data::Batch& batch);

class SampleLog {
 public:
  // Throws Error (kIo).
  SampleLog(const std::string& out_dir, int rank, bool digests);

  // Any thread. What cannot be written is lost, not the run (trainer/base/line_log.h).
  void write(const data::Batch& batch);

  // Drops what all ranks' files say of steps from `step` on: a life that died had gone further than
  // its last checkpoint. One rank calls it, before any rank opens its log.
  static void rewind(const std::string& out_dir, uint64_t step);

 private:
  LineLog log_;
  const bool digests_;
};

}  // namespace convoy::trainer
