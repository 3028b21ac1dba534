// The learning rate as a function of the step alone: nothing to save but the step (and, for
// PLATEAU, three numbers of the manifest).
#pragma once

#include <cstdint>
#include <limits>

#include "trainer/job/job.h"

namespace convoy::trainer {

// What turns steps into epochs; all at least 1.
struct RunLength {
  uint64_t dataset_size = 1;  // N, samples in the training set
  uint64_t global_batch = 1;  // G, samples of one step
  uint64_t epochs = 1;        // E
};

// ceil(E * N / G).
uint64_t total_steps(const RunLength& run);

// step * G / N: epochs consumed before `step` (0 is the first), from integers: exact whenever it is
// a whole number.
double epoch_at(uint64_t step, const RunLength& run);

// Steps after which `epoch` epochs are consumed: the smallest s with s * G >= epoch * N.
uint64_t steps_to_epoch(uint64_t epoch, const RunLength& run);

// State of the PLATEAU schedule (He et al. 2015, arXiv:1512.03385, section 3.4: "divided by 10 when
// the error plateaus").
struct PlateauState {
  uint32_t drops = 0;  // times the learning rate was multiplied by gamma
  double best_error = std::numeric_limits<double>::infinity();
  uint32_t evaluations_since = 0;  // without an improvement of at least schedule.threshold

  bool operator==(const PlateauState&) const = default;
};

// Tells the schedule the error (1 - top-1) of an evaluation; a NaN is no improvement. After
// schedule.patience evaluations without an improvement: one drop, and the count starts anew.
// For other kinds of schedule it does nothing.
void note_evaluation(PlateauState& state, double error, const Job::Schedule& schedule);

// The learning rate of update `step` (0 is the first). Let e = epoch_at(step), w = warmup_epochs
// and t = (e - w) / (E - w) in [0, 1]. It is the product of
//   optimizer.learning_rate, times G / base_batch with linear_scaling;
//   while e < w: warmup_start_factor + (1 - warmup_start_factor) * e / w;
//   STEP: gamma^(milestones <= e)     PLATEAU: gamma^drops     CONSTANT: 1
//   with f = end_factor:  COSINE: f + (1 - f) * (1 + cos(pi t)) / 2
//   POLYNOMIAL: f + (1 - f) * (1 - t)^power     ONE_CYCLE: f + (1 - f) * (1 - t)
double learning_rate(uint64_t step, const RunLength& run, const Job::Optimizer& optimizer,
                     const Job::Schedule& schedule, const PlateauState& plateau);

}  // namespace convoy::trainer
