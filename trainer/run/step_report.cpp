#include "trainer/run/step_report.h"

#include <algorithm>

#include "ops/core/log.h"

namespace convoy::trainer {

void Meter::add(const Engine::Result& result, double seconds) {
  ++steps_;
  smooth_seconds_.add(seconds);
  if (!result.updated) return;  // FP16 has overflowed: the loss may be no number
  loss_ += result.loss;
  top1_ += result.top1;
  ++updates_;
  smooth_loss_.add(result.loss);
  smooth_top1_.add(result.top1);
}

void StepReport::begin(const data::Loader* loader) {
  progress_.emplace();
  start_line(loader);
}

void StepReport::finish() {
  if (progress_) progress_->finish();
}

void StepReport::went_back() {
  meter_ = {};
  taken_input_ = 0;  // the next loader counts from zero
}

void StepReport::start_line(const data::Loader* loader) {
  meter_.start_line();
  line_start_ = Clock::now();
  line_input_wait_ = loader ? loader->stats().wait_seconds : 0;
  line_reduce_wait_ = engine_.reduce_wait_seconds();
}

std::optional<MetricsLine> StepReport::add(uint64_t step, double rate, const Engine::Result& result,
                                           double seconds, const data::Loader* loader) {
  meter_.add(result, seconds);
  const double epoch = epoch_at(step, plan_.length);
  const double elapsed = std::max(1e-9, seconds_since(line_start_));
  const double wait = loader ? loader->stats().wait_seconds - line_input_wait_ : 0;
  const double input_share = std::min(1.0, wait / plan_.lanes / elapsed);
  const auto batch = static_cast<double>(plan_.length.global_batch);
  progress_->update(
      {.step = step,
       .total_steps = plan_.total_steps,
       .epoch = epoch,
       .epochs = job_.epochs,
       .loss = meter_.smooth_loss(),
       .top1 = meter_.smooth_top1(),
       .images_per_second = batch / meter_.smooth_seconds(),
       .input_wait_share = input_share,
       .seconds_left = static_cast<double>(plan_.last_step - step) * meter_.smooth_seconds()});
  if (step % std::max(1u, job_.log.every_steps) != 0 && step != plan_.last_step)
    return std::nullopt;
  const MetricsLine line = {
      .step = step,
      .epoch = epoch,
      .train_loss = meter_.loss(),
      .train_top1 = meter_.top1(),
      .learning_rate = rate,
      .images_per_second = meter_.steps() * batch / elapsed,
      .input_wait_share = input_share,
      .reduce_wait_share = (engine_.reduce_wait_seconds() - line_reduce_wait_) / elapsed,
      .gradient_norm = result.gradient_norm,
      .loss_scale =
          engine_.scales_loss() ? std::optional(engine_.loss_scale().scale) : std::nullopt};
  start_line(loader);
  return line;
}

double StepReport::take_waited(const data::Loader* loader) {
  const double input = loader ? loader->stats().wait_seconds : 0;
  const double reduce = engine_.exposed_seconds();
  const double waited = (input - taken_input_) / plan_.lanes + reduce - taken_reduce_;
  taken_input_ = input;
  taken_reduce_ = reduce;
  return waited;
}

MetricsLine report_evaluation(uint64_t step, const RunPlan& plan, const Accuracy& accuracy,
                              const std::optional<Accuracy>& ema) {
  MetricsLine line = {.step = step,
                      .epoch = epoch_at(step, plan.length),
                      .top1 = accuracy.top1_share(),
                      .top5 = accuracy.top5_share(),
                      .loss = accuracy.loss,
                      .images = accuracy.images,
                      .correct = accuracy.top1};
  log::info("epoch {:.2f}: {}", epoch_at(step, plan.length), to_text(accuracy));
  if (!ema) return line;
  log::info("moving average: {}", to_text(*ema));
  line.ema_top1 = ema->top1_share();
  line.ema_top5 = ema->top5_share();
  return line;
}

}  // namespace convoy::trainer
