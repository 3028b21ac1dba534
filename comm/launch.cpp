#include "comm/launch.h"

#include <fmt/format.h>
#include <sched.h>

#include <charconv>
#include <cstdlib>
#include <set>
#include <sstream>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

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

// {0, 1, 2, 3, 8} -> "0-3,8".
std::string list_of(const std::set<int>& cpus) {
  std::string list;
  for (auto at = cpus.begin(); at != cpus.end();) {
    const int first = *at;
    int last = first;
    while (++at != cpus.end() && *at == last + 1) ++last;
    if (!list.empty()) list += ',';
    list += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
  }
  return list;
}

// The other way round.
std::set<int> cpus_of(const std::string& list) {
  std::set<int> cpus;
  std::istringstream pieces(list);
  for (std::string piece; std::getline(pieces, piece, ',');) {
    const size_t dash = piece.find('-');
    const int first = std::stoi(piece);
    const int last = dash == std::string::npos ? first : std::stoi(piece.substr(dash + 1));
    for (int cpu = first; cpu <= last; ++cpu) cpus.insert(cpu);
  }
  return cpus;
}

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
    std::set<int> members;
    for (int cpu = 0; cpu < cpus; ++cpu)
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, mask.data())) members.insert(cpu);
    set.list = list_of(members);
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

std::string host_warning(const std::string& host, std::span<const RankCpus> ranks) {
  std::set<int> cpus;
  int threads = 0;
  for (const RankCpus& rank : ranks) {
    if (rank.threads > rank.cpus.count) return "";
    threads += rank.threads;
    cpus.merge(cpus_of(rank.cpus.list));
  }
  if (threads <= static_cast<int>(cpus.size())) return "";
  return fmt::format(
      "{} ranks on {} compute with {} threads in all on {} CPU{} ({}) and slow each other down: "
      "start fewer ranks there, or give each CPUs of its own (cluster/mpirun.sh does while there "
      "are enough)",
      ranks.size(), host, threads, cpus.size(), cpus.size() == 1 ? "" : "s", list_of(cpus));
}

void warn_of_too_few_cpus(Communicator& communicator, int threads) {
  const CpuSet own = cpu_set();
  const std::string warning = cpu_set_warning(own, threads);
  if (!warning.empty()) log::warning("{}", warning);
  const std::vector<std::string> all =
      communicator.all_gather(fmt::format("{} {} {}", threads, own.count, own.list));
  if (communicator.local_rank() != 0) return;
  std::vector<RankCpus> here;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (communicator.hosts()[rank] != communicator.host()) continue;
    RankCpus cpus;
    std::istringstream(all[rank]) >> cpus.threads >> cpus.cpus.count >> cpus.cpus.list;
    here.push_back(std::move(cpus));
  }
  const std::string of_host = host_warning(communicator.host(), here);
  if (!of_host.empty()) log::warning("{}", of_host);
}

}  // namespace convoy::comm
