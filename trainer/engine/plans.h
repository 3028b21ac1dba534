// Which of their engines the libraries of a GPU use in a run (ops/decisions.h): rank 0 decides, and
// all ranks do as it does, so that the result depends on no other rank's GPU.
//
// Texts of plans are kept in files with a digest, which are whole or as if they were not there:
// beside a run, and in the user's cache folder for other runs.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "ops/device.h"

namespace convoy::trainer {

struct PlanConfig {
  // Rank 0's: what the run has used so far; none: it begins.
  std::optional<std::string> stored;
  Refused refused = Refused::kStop;  // where a library does not do what is stored
  bool tune = false;                 // of a run that begins: whether rank 0 measures (Device::tune)
  // Of decisions with which other runs began on such a machine, and of compiled kernels; "": none.
  std::string cache_folder;
};

// Collective. Makes `device` decide as rank 0's does, and keep its kernels. decide(): lets it
// decide for all that the run computes (ops::decide); called on rank 0. Throws PlanRefused.
void agree_on_plans(comm::Communicator& communicator, ops::Device& device, const PlanConfig& config,
                    const std::function<void()>& decide);

// What plans are made for, as one line.
std::string plan_target(const std::string& instruction_set, const std::string& libraries);

// The plans in a file that were made for this; none where there is none or it cannot be read.
std::optional<std::string> read_plans(const std::string& path, const std::string& target);
// A file that cannot be written is a warning.
void write_plans(const std::string& path, const std::string& target, const std::string& plans);

// Kernels in files of their own, for this alone. One that cannot be written is a warning, once.
KernelStore kernel_store(const std::string& folder, const std::string& target);

// "NAME: OLD -> NEW" of each decision that both have and that differs.
std::vector<std::string> changed_plans(const std::string& before, const std::string& after);

}  // namespace convoy::trainer
