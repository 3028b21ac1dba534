// What a run will do, as it stands before its first step: data, workers, lanes, number of steps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "data_loader/dataset.h"
#include "data_loader/loader.h"
#include "trainer/engine/setup.h"
#include "trainer/job/lr_schedule.h"
#include "trainer/job/skipped_steps.h"
#include "trainer/run/dry_run.h"
#include "trainer/run/resume.h"
#include "trainer/run/train_options.h"

namespace convoy::trainer {

struct RunPlan {
  std::unique_ptr<data::Dataset> train, val;
  Normalisation normalisation;
  int lanes = 1, data_threads = 1;  // of this rank
  RunLength length;
  uint64_t total_steps = 0, last_step = 0;  // of the schedule; of this life
  std::string job_digest;                   // its identity
};

// Collective. Opens the data and fills in what the job leaves open. Throws Error (kBadJob) where
// the ranks do not have the same, kBadData where the data is no use.
RunPlan make_plan(comm::Communicator& communicator, comm::Watchdog& watchdog,
                  const TrainOptions& options, const Resume& resume, Job& job);

// Is `done` steps the first number of them to reach a further epoch that is evaluated?
bool evaluation_due(const RunPlan& plan, const Job& job, const SkippedSteps& skipped,
                    uint64_t done);

// For batches of these workers of steps [first, end).
data::LoaderConfig loader_config(const RunPlan& plan, const Job& job, uint64_t first, uint64_t end,
                                 const comm::WorkerRange& workers, int threads);
// Batches of these workers of steps [first, end); none where there is nothing to load.
std::unique_ptr<data::Loader> open_loader(const RunPlan& plan, const Job& job, uint64_t first,
                                          uint64_t end, const comm::WorkerRange& workers,
                                          int threads, data::PinMemory pin);

// Of this rank, which hosts these workers.
LoaderPlan loader_plan(const RunPlan& plan, const Job& job, const comm::WorkerRange& hosted);

// Before the system kills us for it.
void warn_of_too_little_memory(const comm::Communicator& communicator, const ops::Graph& graph,
                               const EngineConfig& config);

}  // namespace convoy::trainer
