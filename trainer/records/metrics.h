// What a run reports: OUT/metrics.jsonl for programs, the progress line for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "ops/core/clock.h"
#include "ops/core/log.h"

namespace convoy::trainer {

class LineLog;

// One line of metrics.jsonl; units as in proto/metrics.proto. What is not set is left out.
struct MetricsLine {
  std::optional<double> time;  // seconds since 1970; the writer fills it in when it is not set
  std::optional<uint64_t> step;
  std::optional<double> epoch;
  std::optional<double> train_loss, train_top1, learning_rate, images_per_second;
  std::optional<double> input_wait_share, reduce_wait_share, gradient_norm, loss_scale;
  std::optional<double> top1, top5, loss;
  std::optional<uint64_t> images, correct;
  std::optional<double> ema_top1, ema_top5;
  std::optional<std::string> event, detail;
};

// The line as one JSON object, without a newline, fields in the order of the proto. A number that
// is not finite becomes null: JSON has no word for it.
std::string to_json(const MetricsLine& line);

// Appends lines as trainer/base/line_log.h does: a reader never sees half a line of a run that goes
// on, and a line that cannot be written is lost, not the run. Any thread.
class MetricsWriter {
 public:
  // Opens OUT/metrics.jsonl (`out_dir` must exist) for a run that goes on after `step` steps: lines
  // of later steps and a torn last line, left by a life that died, are dropped (the file is
  // rewritten under another name and renamed). Throws Error (kIo).
  MetricsWriter(const std::string& out_dir, uint64_t step);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  void write(MetricsLine line);

 private:
  std::unique_ptr<LineLog> log_;
};

struct ProgressState {
  uint64_t step = 0, total_steps = 0;  // total of this run's schedule
  double epoch = 0;
  uint64_t epochs = 0;
  std::optional<double> loss, top1;    // of training; top1 0 to 1
  double images_per_second = 0;        // 0: not known yet
  double input_wait_share = 0;         // 0 to 1: time spent waiting for data
  std::optional<double> seconds_left;  // ETA
};

// "verify train [=====>    ] 12345/27000 images | 810/s | ETA 0:18" and `more` behind it.
std::string to_line(const std::string& what, uint64_t done, uint64_t total, double seconds,
                    const std::string& more);

// "step 120/938 | epoch 0.13/1 | loss 1.234 | top-1 56.7 % | 890 images/s | data wait 1 % | ETA
// 0:52"
std::string to_line(const ProgressState& state);

// Calls visit(object) for each line of a file of JSON objects; half a line at its end, which a run
// was writing when it was killed, is passed over. Throws Error: kBadData naming file and line where
// one is no object or visit throws json::exception, kIo.
void for_each_line(const std::string& path,
                   const std::function<void(const nlohmann::json& line)>& visit);

// Drops the lines of a file of JSON objects that say nothing of the first `step` steps, or are no
// such objects: a life that died had gone further than its last checkpoint. Nothing where there is
// no such file. Throws Error (kIo).
void keep_lines_until(const std::string& path, uint64_t step);

// The progress line. On a terminal: one live line, rewritten in place at most ten times a second,
// cut to the terminal's width; while it lives, log lines go through it and are printed whole above
// it. Elsewhere: a plain line at the first update and then every `interval`. Writing never throws:
// a closed output is ignored. At most one object at a time in a process; made on one rank only.
class Progress {
 public:
  explicit Progress(std::chrono::milliseconds interval = std::chrono::seconds(5),
                    int fd = 2 /* standard error */);
  // As finish().
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Any thread; cheap when nothing is to be printed.
  void update(const ProgressState& state);
  // The same with the line itself, for other work than training.
  void update(std::string line);
  // Prints the last state once more where it has not been, ends the live line, and gives the log
  // its own way back.
  void finish();

 private:
  static void print_log_line(log::Level level, const std::string& line);
  void print(const std::string& bytes) const;
  std::string live_line() const;

  const std::chrono::milliseconds interval_;
  const int fd_;
  const bool terminal_;
  std::mutex mutex_;
  std::optional<std::string> last_;
  std::optional<Clock::time_point> printed_at_;
  bool last_is_printed_ = false;
  bool finished_ = false;
};

}  // namespace convoy::trainer
