// From where a life of a run goes on: rank 0 looks for a checkpoint, all ranks learn what it found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/engine/engine.h"
#include "trainer/job/job.h"
#include "trainer/run/train_options.h"

namespace convoy::trainer {

// The same on all ranks, once find_resume() has returned.
struct Resume {
  bool found = false;
  uint64_t step = 0;
  std::string folder;
  bool evaluated = false;  // the evaluation of that step, were one due, has been made
  double top1 = 0;         // what it gave
  std::string job;         // text of the checkpoint's job
  std::string dataset_digest;
  Fingerprint fingerprint;
  PlateauState plateau;
  SkippedSteps skipped;
  std::string plans;
  // Lives in a row before this one that ended by themselves without a step, and how. Not of the
  // checkpoint: rank 0 fills them in.
  size_t idle_lives = 0;
  std::string idle;
};

// Throws Error (kUsage) where --resume never meets checkpoints.
void expect_fresh_folder(const TrainOptions& options);

// Throws Error (kUsage) that points at transfer.init_from where --out holds weights that `convoy
// import` brought in. Called before anything is written there.
void expect_no_import(const std::string& out_dir);

// Collective. Fills `resume`, all but the idle lives from the newest whole checkpoint of --out,
// else of --resume, and returns that checkpoint on rank 0. Nothing is found for a dry run. Throws
// as find_newest and load_newest.
std::optional<CheckpointState> find_resume(comm::Communicator& communicator,
                                           const TrainOptions& options, Resume& resume);

// Rank 0 logs what differs harmlessly from the checkpoint's job, and a change of machine. Throws
// Error (kBadJob) where a change changes the result and --allow-change was not given.
void expect_same_run(const Resume& resume, const Job& job, const std::string& dataset_digest,
                     const Fingerprint& fingerprint, bool allow_change, bool is_root);

// Collective: rank 0's state on all ranks.
void broadcast_state(comm::Communicator& communicator, Engine& engine);

// Collective: the state of rank 0's checkpoint, where it has one, on all ranks.
void restore_on_all(comm::Communicator& communicator, Engine& engine,
                    const std::optional<CheckpointState>& checkpoint);

}  // namespace convoy::trainer
