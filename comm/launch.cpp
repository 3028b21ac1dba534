#include "comm/launch.h"

#include <fmt/format.h>
#include <sched.h>

#include <charconv>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

// The value of the first variable that is set to a number; 0 where none is.
int first_number(const Environment& environment, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* text = environment(name)) {
      const std::string_view view = text;
      int value = 0;
      const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
      if (error == std::errc() && end == view.data() + view.size() && value > 0) return value;
    }
  return 0;
}

constexpr const char* kSlurm = "Slurm";

}  // namespace

Launch detect_launch() {
  return detect_launch([](const char* name) { return std::getenv(name); });
}

Launch detect_launch(const Environment& environment) {
  const auto any = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (environment(name)) return true;
    return false;
  };
  // The nearest launcher knows best: mpirun -n 1 inside an allocation of four tasks means one rank.
  if (any({"OMPI_COMM_WORLD_SIZE"}))
    return {"mpirun", first_number(environment, {"OMPI_COMM_WORLD_SIZE"})};
  const int slurm = first_number(environment, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  if (any({"PMIX_RANK", "PMIX_NAMESPACE"})) return {"PMIx", slurm};
  if (any({"PMI_RANK", "PMI_SIZE"})) {
    const int ranks = first_number(environment, {"PMI_SIZE"});
    return {"PMI", ranks > 0 ? ranks : slurm};
  }
  if (slurm > 0) return {kSlurm, slurm};
  return {};
}

std::string communicator_for(const Launch& launch) {
  if (launch.launcher.empty()) return "local";
  if (launch.launcher != kSlurm) return "mpi";
  check_world(launch, 1);  // no PMI: MPI would start every task as a world of its own
  return "local";
}

void check_world(const Launch& launch, int world_size) {
  if (world_size > 1 || launch.ranks <= 1) return;
  fail(ExitCode::kUsage,
       "{} says {} ranks, but this one is alone in its world: start with `srun --mpi=pmix` or with "
       "the "
       "mpirun of the MPI that convoy was built with",
       launch.launcher, launch.ranks);
}

CpuSet cpu_set() {
  // The kernel refuses a mask smaller than its own, so grow until it fits.
  for (int cpus = CPU_SETSIZE; cpus <= (1 << 20); cpus *= 2) {
    std::vector<cpu_set_t> mask(static_cast<size_t>(cpus) / CPU_SETSIZE);
    const size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) != 0) continue;
    CpuSet set{.count = CPU_COUNT_S(bytes, mask.data()), .list = {}};
    const auto has = [&](int cpu) {
      return cpu < cpus && CPU_ISSET_S(static_cast<size_t>(cpu), bytes, mask.data());
    };
    for (int cpu = 0; cpu < cpus; ++cpu) {
      if (!has(cpu)) continue;
      const int first = cpu;
      while (has(cpu + 1)) ++cpu;
      if (!set.list.empty()) set.list += ',';
      set.list += first == cpu ? fmt::format("{}", cpu) : fmt::format("{}-{}", first, cpu);
    }
    return set;
  }
  fail(ExitCode::kFault, "sched_getaffinity: {}", errno_text());
}

std::string cpu_set_warning(const CpuSet& cpus, int threads) {
  if (threads <= cpus.count) return "";
  return fmt::format(
      "this rank may run on {} CPU{} ({}) but wants {} threads: pass mpirun a binding such as "
      "--bind-to none or --map-by slot:PE={}, or srun --cpus-per-task={}",
      cpus.count, cpus.count == 1 ? "" : "s", cpus.list, threads, threads, threads);
}

}  // namespace convoy::comm
