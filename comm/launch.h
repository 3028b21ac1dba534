// How this process was started, and what it was given to run on: read from the environment, before
// and without MPI.
#pragma once

#include <functional>
#include <span>
#include <string>

namespace convoy::comm {

class Communicator;

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

// Where a launcher started this process: end at once (75) when the process that started it ends, so
// that killing mpirun or a daemon of it leaves no rank behind. Call it once, early, on the main
// thread.
void leave_with_launcher(const Launch& launch);

// Called when this process is about to leave because others are lost: mpirun waits for ever for the
// daemon of a host that it can no longer reach. Where mpirun itself started this process and does
// not end within `seconds`, it is killed, by a process that is left behind for that and ends with
// it.
void end_launcher_if_it_hangs(const Launch& launch, int seconds);

// The CPUs this process may run on (sched_getaffinity).
struct CpuSet {
  int count = 1;
  std::string list;  // "0-3,8"
};

CpuSet cpu_set();

// From now on the calling thread, and what it starts, runs on those of its CPUs alone that are in
// this list, too ("0-3,8"), if these are at least `least`. Returns what it may use then.
CpuSet stay_near(const std::string& list, int least);

// One line that says why a rank that runs `threads` threads is slow on these CPUs and what to do;
// "" where they are enough.
std::string cpu_set_warning(const CpuSet& cpus, int threads);

// What a rank was given, and the threads that it computes with.
struct RankCpus {
  CpuSet cpus;
  int threads = 1;
};

// One line where the ranks of a host together compute with more threads than the CPUs that one or
// another of them may use; "" where not, and where one of them alone does (then it says so itself).
std::string host_warning(const std::string& host, std::span<const RankCpus> ranks);

// Collective: says what is to be said of both kinds, a line per rank or per host.
void warn_of_too_few_cpus(Communicator& communicator, int threads);

}  // namespace convoy::comm
