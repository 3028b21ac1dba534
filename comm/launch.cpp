#include "comm/launch.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
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

constexpr std::string_view kSlurm = "Slurm", kMpirun = "mpirun";

// The process that started this one, before anything could happen to it.
pid_t the_launcher = 0;

extern "C" void leave_if_launcher_is_gone(int) {
  if (getppid() == the_launcher) return;
  constexpr std::string_view kLine = "convoy: the launcher has died, this rank leaves\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kLine.data(), kLine.size());
  _exit(static_cast<int>(ExitCode::kRecoverable));
}

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

// The other way round, of a list that the kernel has written.
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
    return {std::string(kMpirun), first_number(environment, {"OMPI_COMM_WORLD_SIZE"})};
  const int slurm = first_number(environment, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  if (any({"PMIX_RANK", "PMIX_NAMESPACE"})) return {"PMIx", slurm};
  if (any({"PMI_RANK", "PMI_SIZE"})) {
    const int ranks = first_number(environment, {"PMI_SIZE"});
    return {"PMI", ranks > 0 ? ranks : slurm};
  }
  if (slurm > 0) return {std::string(kSlurm), slurm};
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

void leave_with_launcher(const Launch& launch) {
  if (launch.launcher.empty()) return;
  the_launcher = getppid();
  // Not SIGKILL: the system also sends it when only the launcher's thread that started us ends, as
  // Open MPI's do where it starts many ranks on a host; so the handler looks whose child we are. (A
  // rank that is stopped then is woken and killed by the system, its process group being orphaned.)
  struct sigaction action = {};
  action.sa_handler = leave_if_launcher_is_gone;
  action.sa_flags = SA_RESTART;
  sigaction(SIGRTMIN, &action, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGRTMIN);
  // It may have died before we asked.
  leave_if_launcher_is_gone(0);
}

void end_launcher_if_it_hangs(const Launch& launch, int seconds) {
  if (launch.launcher != kMpirun) return;
  std::string name;
  std::ifstream("/proc/" + std::to_string(getppid()) + "/comm") >> name;
  // A daemon's end is mpirun's business; anything else we do not know.
  if (name != "mpirun" && name != "orterun" && name != "mpiexec") return;
  const auto process = static_cast<int>(syscall(SYS_pidfd_open, getppid(), 0));
  if (process < 0) return;
  // From here on, in the new process, only what may be called there in a program with threads. It
  // holds no end of a pipe, because mpirun waits until those of its ranks are closed.
  if (_Fork() != 0) {
    close(process);
    return;
  }
  setsid();
  if (process > 0) close_range(0, static_cast<unsigned>(process) - 1, 0);
  close_range(static_cast<unsigned>(process) + 1, ~0U, 0);
  pollfd end{process, POLLIN, 0};
  if (poll(&end, 1, 1000 * seconds) == 0)
    syscall(SYS_pidfd_send_signal, process, SIGKILL, nullptr, 0);
  _exit(0);
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

CpuSet stay_near(const std::string& list, int least) {
  const CpuSet own = cpu_set();
  std::set<int> kept;
  std::ranges::set_intersection(cpus_of(own.list), cpus_of(list), std::inserter(kept, kept.end()));
  if (static_cast<int>(kept.size()) < std::max(1, least)) return own;
  std::vector<cpu_set_t> mask(static_cast<size_t>(*kept.rbegin()) / CPU_SETSIZE + 1);
  const size_t bytes = mask.size() * sizeof(cpu_set_t);
  for (const int cpu : kept) CPU_SET_S(static_cast<size_t>(cpu), bytes, mask.data());
  if (sched_setaffinity(0, bytes, mask.data()) != 0) return own;  // not ours to say
  return cpu_set();
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
