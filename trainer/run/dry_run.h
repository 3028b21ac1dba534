// train --dry-run: what a run would do and need, without training.
#pragma once

#include "comm/communicator.h"
#include "trainer/engine/engine.h"
#include "trainer/engine/freezing.h"
#include "trainer/job/job.h"
#include "trainer/job/lr_schedule.h"

namespace convoy::trainer {

// What the loaders of this rank take.
struct LoaderPlan {
  int threads = 0;
  uint64_t training_bytes = 0, evaluation_bytes = 0;  // rings of batches
};

// Collective; prints on rank 0's standard output. Takes a few steps on black images in each phase
// of what is frozen, to estimate time, so the engine is of no use afterwards.
void print_dry_run(comm::Communicator& communicator, Engine& engine, const Job& job,
                   const RunLength& length, const ops::ImageInput& input, uint64_t val_images,
                   const TrainingPlan& training, const LoaderPlan& loader);

}  // namespace convoy::trainer
