// How this process was started, and what it was given to run on: read from the environment, before
// and without MPI.
#pragma once

#include <functional>
#include <string>

namespace convoy::comm {

// What the launcher's variables say.
struct Launch {
  // "" where there is no launcher; else its name for messages: "mpirun", "PMIx", "PMI", "Slurm".
  std::string launcher;
  // Ranks that were started; 0 where the variables do not say.
  int ranks = 0;
};

using Environment = std::function<const char*(const char*)>;

// The process's environment, or a made-up one in tests.
Launch detect_launch();
Launch detect_launch(const Environment& environment);

// "local" or "mpi". Throws Error (kUsage) where Slurm started several tasks without an interface by
// which MPI could connect them.
std::string communicator_for(const Launch& launch);

// Throws Error (kUsage) where several ranks were started and each is alone in its world.
void check_world(const Launch& launch, int world_size);

// The CPUs this process may run on (sched_getaffinity).
struct CpuSet {
  int count = 1;
  std::string list;  // "0-3,8"
};

CpuSet cpu_set();

// One line that says why a rank that runs `threads` threads is slow on these CPUs and what to do;
// "" where they are enough.
std::string cpu_set_warning(const CpuSet& cpus, int threads);

}  // namespace convoy::comm
