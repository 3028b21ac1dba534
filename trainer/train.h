// convoy train: the loop of a run. A run is a folder (--out); starting and resuming are one
// command.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "ops/core/clock.h"
#include "trainer/until.h"

namespace convoy::trainer {

struct TrainOptions {
  std::string job_file, out, device = "cpu";
  std::vector<std::string> sets, faults;
  std::string resume = "auto";  // auto, never, or a folder with a checkpoint
  int data_threads = -1;        // -1: the CPUs that computing leaves, at least one
  std::optional<Until> until;   // when to leave by itself
  Clock::time_point started = Clock::now();
  bool dry_run = false;
  bool allow_change = false;
};

// Collective. Makes the watchdog, whose life goes on to the end of the communicator. Returns 0
// (done, or stop_after_steps reached) or 75 (stopped by a signal, saved).
int train(comm::Communicator& communicator, std::unique_ptr<comm::Watchdog>& watchdog,
          const TrainOptions& options);

}  // namespace convoy::trainer
