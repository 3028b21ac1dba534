// What a run says of its training steps and evaluations: the progress line and lines of metrics,
// from averages over the steps since the last one.
#pragma once

#include <optional>

#include "data_loader/loader.h"
#include "ops/core/clock.h"
#include "trainer/engine/engine.h"
#include "trainer/evaluation/accuracy.h"
#include "trainer/job/job.h"
#include "trainer/records/metrics.h"
#include "trainer/run/run_plan.h"

namespace convoy::trainer {

// A running mean that forgets: 5 % of each new value.
class Smoothed {
 public:
  void add(double value) { value_ = value_ ? 0.95 * *value_ + 0.05 * value : value; }
  std::optional<double> value() const { return value_; }

 private:
  std::optional<double> value_;
};

// Averages since the last line of metrics, and the smoothed values of the progress line.
class Meter {
 public:
  void add(const Engine::Result& result, double seconds);
  void start_line() { loss_ = top1_ = steps_ = updates_ = 0; }

  double loss() const { return loss_ / updates_; }
  double top1() const { return top1_ / updates_; }
  double steps() const { return steps_; }
  // None before the first update.
  std::optional<double> smooth_loss() const { return smooth_loss_.value(); }
  std::optional<double> smooth_top1() const { return smooth_top1_.value(); }
  double smooth_seconds() const { return smooth_seconds_.value().value_or(0); }

 private:
  double loss_ = 0, top1_ = 0, steps_ = 0, updates_ = 0;
  Smoothed smooth_loss_, smooth_top1_, smooth_seconds_;
};

// Of the rank that shows it; the loader may be null everywhere.
class StepReport {
 public:
  // All of it must outlive this.
  StepReport(const RunPlan& plan, const Job& job, const Engine& engine)
      : plan_(plan), job_(job), engine_(engine) {}

  // Steps come next: begins a progress line and a line of metrics.
  void begin(const data::Loader* loader);
  // Ends the progress line.
  void finish();
  // The run has gone back, and gets another loader.
  void went_back();

  // A step is done, `step` of them in all. Returns its line of metrics where one is due.
  std::optional<MetricsLine> add(uint64_t step, double rate, const Engine::Result& result,
                                 double seconds, const data::Loader* loader);
  // Seconds that steps since the last call waited for input and for other ranks.
  double take_waited(const data::Loader* loader);

 private:
  void start_line(const data::Loader* loader);

  const RunPlan& plan_;
  const Job& job_;
  const Engine& engine_;
  Meter meter_;
  std::optional<Progress> progress_;
  Clock::time_point line_start_;
  double line_input_wait_ = 0, line_reduce_wait_ = 0;
  double taken_input_ = 0, taken_reduce_ = 0;
};

// Logs an evaluation after `step` steps, and that of the moving average where there is one. Returns
// the line of metrics.
MetricsLine report_evaluation(uint64_t step, const RunPlan& plan, const Accuracy& accuracy,
                              const std::optional<Accuracy>& ema);

}  // namespace convoy::trainer
