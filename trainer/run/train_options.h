// The command line of convoy train.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ops/core/clock.h"
#include "trainer/job/command_line.h"
#include "trainer/run/until.h"

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

// Nothing where --help was asked for, which is printed. Throws Error (kUsage).
std::optional<TrainOptions> parse_train_options(const Arguments& arguments);

}  // namespace convoy::trainer
