// The system's limits on this process: asked for before they are met, named where they are.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

#include "ops/core/error.h"

namespace convoy::trainer {

// Raises the limit of open files as far as may be. Throws Error (kIo) where open files, stack or
// address space are too few for a rank among `ranks`: the limit, its value, what is needed.
void expect_limits(int ranks);

struct MemoryLimit {
  uint64_t bytes = 0;
  std::string what;  // "this machine has", "the control group (cgroup) allows"
};
// The machine's memory, or what this process's cgroup (v1 or v2) leaves of it.
MemoryLimit memory_limit();

// CPUs that one group of processes may use at once, from "200000 100000" (microseconds of CPU time
// in microseconds of time: cgroup v2's cpu.max); nullopt where there is no bound ("max 100000").
std::optional<double> parse_cpu_quota(const std::string& text);
// CPUs that this process can use at once: those of its set (sched_getaffinity), no more than the
// quota of its cgroup (v1 or v2) lets run, at least one. Containers get a quota where batch systems
// bind.
int usable_cpus();
// Of the CPUs that a rank can use those that it may fill: no more than its part of the host's,
// which counts where nobody bound the host's ranks apart.
int cpu_share(int cpus, int local_ranks);

// "" where `bytes` on each of the `ranks` of this host fit; else one line with the numbers and the
// remedy.
std::string memory_warning(uint64_t bytes, int ranks, const MemoryLimit& limit,
                           std::string_view remedy);
// Throws Error (kBadJob) where that is hopeless, more than four times what there is; else the
// warning, "" where they fit. `who`: wants them.
std::string expect_memory(const std::string& who, uint64_t bytes, int ranks,
                          const MemoryLimit& limit, std::string_view remedy);

// What stopped the program as an Error: one of ours as it is; memory or threads that the system
// refused with the numbers (kIo); anything else as a fault.
Error as_error(const std::exception& exception);

}  // namespace convoy::trainer
