// OUT/gradients.jsonl: LayerStatistics of every n-th step and of the first (log.gradients), one
// JSON object a line:
//   {"step":100,"epoch":0.21,"weights":["conv1.weight",...],"gradient_norm":[...],
//    "gradient_rms":[...],"weight_norm":[...],"weight_rms":[...],"batch_norms":["bn1",...],
//    "response_std":[...]}
// step: optimizer steps done; gradients and responses are those of the last of them, weights and
// batch norms as they were when it computed them. A number that is none is null.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/engine/layer_statistics.h"

namespace convoy::trainer {

class LineLog;

struct GradientRecord {
  uint64_t step = 0;
  double epoch = 0;
  LayerStatistics layers;
};

class GradientLog {
 public:
  // Opens for appending; drops what the file says of steps after `step`, as MetricsWriter does.
  // Throws Error (kIo).
  GradientLog(const std::string& out_dir, uint64_t step);
  ~GradientLog();

  // What cannot be written is lost, not the run (trainer/base/line_log.h).
  void write(const GradientRecord& record);

  // True where the step after `step` steps done is logged every `every` steps (0: never).
  static bool due(uint64_t step, uint32_t every) {
    return every > 0 && (step == 0 || (step + 1) % every == 0);
  }

 private:
  std::unique_ptr<LineLog> log_;
};

std::string to_json(const GradientRecord& record);

// Of OUT/gradients.jsonl, in its order. Throws Error: kBadData where there is no such file, no
// record in it or a line that is none (for_each_line), kIo where there is no such folder.
std::vector<GradientRecord> read_gradients(const std::string& run);

}  // namespace convoy::trainer
