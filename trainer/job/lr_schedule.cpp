#include "trainer/job/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace convoy::trainer {
namespace {

// E * N and step * G may exceed 64 bits.
using Wide = unsigned __int128;

uint64_t steps_for(Wide samples, const RunLength& run) {
  return static_cast<uint64_t>((samples + run.global_batch - 1) / run.global_batch);
}

}  // namespace

uint64_t total_steps(const RunLength& run) {
  return steps_to_epoch(run.epochs, run);
}

double epoch_at(uint64_t step, const RunLength& run) {
  const Wide samples = Wide{step} * run.global_batch;
  const Wide whole = samples / run.dataset_size;
  const Wide rest = samples % run.dataset_size;
  return static_cast<double>(whole) +
         static_cast<double>(rest) / static_cast<double>(run.dataset_size);
}

uint64_t steps_to_epoch(uint64_t epoch, const RunLength& run) {
  return steps_for(Wide{epoch} * run.dataset_size, run);
}

void note_evaluation(PlateauState& state, double error, const Job::Schedule& schedule) {
  if (schedule.kind != Job::Schedule::Kind::kPlateau) return;
  if (error <= state.best_error - schedule.threshold && error < state.best_error) {
    state.best_error = error;
    state.evaluations_since = 0;
  } else if (++state.evaluations_since >= schedule.patience) {
    ++state.drops;
    state.evaluations_since = 0;
  }
}

double learning_rate(uint64_t step, const RunLength& run, const Job::Optimizer& optimizer,
                     const Job::Schedule& schedule, const PlateauState& plateau) {
  using Kind = Job::Schedule::Kind;
  const double epoch = epoch_at(step, run);
  const double warmup = schedule.warmup_epochs;
  double rate = optimizer.learning_rate;
  if (optimizer.linear_scaling)
    rate *= static_cast<double>(run.global_batch) / static_cast<double>(optimizer.base_batch);
  if (epoch < warmup)
    rate *= schedule.warmup_start_factor + (1.0 - schedule.warmup_start_factor) * (epoch / warmup);

  const double decay_epochs = static_cast<double>(run.epochs) - warmup;
  const double t = decay_epochs > 0 ? std::clamp((epoch - warmup) / decay_epochs, 0.0, 1.0) : 0.0;
  const auto towards_end = [&](double share) {
    return schedule.end_factor + (1.0 - schedule.end_factor) * share;
  };
  switch (schedule.kind) {
    case Kind::kStep: {
      const auto passed = std::count_if(schedule.milestones.begin(), schedule.milestones.end(),
                                        [&](double milestone) { return milestone <= epoch; });
      return rate * std::pow(schedule.gamma, static_cast<double>(passed));
    }
    case Kind::kPlateau:
      return rate * std::pow(schedule.gamma, plateau.drops);
    case Kind::kCosine:
      return rate * towards_end(0.5 * (1.0 + std::cos(std::numbers::pi * t)));
    case Kind::kPolynomial:
      return rate * towards_end(std::pow(1.0 - t, schedule.power));
    case Kind::kOneCycle:
      return rate * towards_end(1.0 - t);
    case Kind::kConstant:
      break;
  }
  return rate;
}

}  // namespace convoy::trainer
