#include "trainer/job/limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <new>
#include <optional>
#include <sstream>
#include <system_error>

#include "comm/launch.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
// Threads take their stacks from this limit; oneDNN's kernels are compiled on them.
constexpr uint64_t kStackBytes = kMiB;
// oneDNN 2.6 crashes where it cannot map memory for a kernel, so the room must be there before.
constexpr uint64_t kAddressBytes = 1024 * kMiB;
// Files, pipes and sockets of MPI and of ours for each rank, the dataset's files apart.
constexpr uint64_t kFilesOfProcess = 64, kFilesPerRank = 4;

uint64_t soft_limit(int resource) {
  struct rlimit limit {};
  return getrlimit(resource, &limit) == 0 ? limit.rlim_cur : RLIM_INFINITY;
}

// A number in a file of the kernel; nothing where there is none ("max").
std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

// Calls visit(folder, whether it is cgroup v2) for this process's cgroup and all above it.
template <typename Visit>
void for_each_cgroup(const std::string& controller, Visit visit) {
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:memory:/path", or "0::/path" (v2)
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string name = line.substr(first + 1, second - first - 1);
    if (!name.empty() && ("," + name + ",").find("," + controller + ",") == std::string::npos)
      continue;
    const std::string mount = name.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + name;
    for (std::string path = line.substr(second + 1);;) {
      visit(mount + path + "/", name.empty());
      const size_t slash = path.rfind('/');
      if (path.size() <= 1 || slash == std::string::npos) break;
      path.resize(std::max<size_t>(slash, 1));
    }
  }
}

// The lowest number that the named files hold between this process's cgroup and the root.
std::optional<uint64_t> cgroup_number(const std::string& controller, const char* v1_file,
                                      const char* v2_file) {
  std::optional<uint64_t> lowest;
  for_each_cgroup(controller, [&](const std::string& folder, bool v2) {
    const auto number = number_in(folder + (v2 ? v2_file : v1_file));
    if (number) lowest = std::min(lowest.value_or(*number), *number);
  });
  return lowest;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The least of the quotas between this process's cgroup and the root, in CPUs.
std::optional<double> cgroup_cpu_quota() {
  std::optional<double> least;
  for_each_cgroup("cpu", [&](const std::string& folder, bool v2) {
    const auto quota = parse_cpu_quota(v2 ? first_line(folder + "cpu.max")
                                          : first_line(folder + "cpu.cfs_quota_us") + " " +
                                                first_line(folder + "cpu.cfs_period_us"));
    if (quota) least = std::min(least.value_or(*quota), *quota);
  });
  return least;
}

std::string used_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:"))
      return mebibytes(1024 *
                       std::strtod(line.c_str() + line.find_first_of("0123456789"), nullptr));
  return "?";
}

std::string text_of_limit(uint64_t value) {
  return value == RLIM_INFINITY ? "unlimited" : fmt::format("{}", value);
}

}  // namespace

void expect_limits(int ranks) {
  struct rlimit files {};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const uint64_t needed = kFilesOfProcess + kFilesPerRank * static_cast<uint64_t>(ranks);
    if (soft_limit(RLIMIT_NOFILE) < needed)
      fail(ExitCode::kIo,
           "this process may open {} files, one of {} rank(s) needs {}; raise `ulimit -n` (in a "
           "job script, or in limits.conf)",
           soft_limit(RLIMIT_NOFILE), ranks, needed);
  }
  if (soft_limit(RLIMIT_STACK) < kStackBytes)
    fail(ExitCode::kIo, "stacks may have {} bytes, convoy needs {}; raise `ulimit -s` to {} (KiB)",
         soft_limit(RLIMIT_STACK), kStackBytes, 8192);
  if (soft_limit(RLIMIT_AS) < kAddressBytes)
    fail(ExitCode::kIo,
         "this process may address {} bytes, convoy needs {} and its network's memory; raise "
         "`ulimit -v`",
         soft_limit(RLIMIT_AS), kAddressBytes);
}

MemoryLimit memory_limit() {
  MemoryLimit least{
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)),
      "this machine has"};
  const auto consider = [&](uint64_t bytes, const char* what) {
    if (bytes < least.bytes) least = {bytes, what};
  };
  if (const auto group = cgroup_number("memory", "memory.limit_in_bytes", "memory.max"))
    consider(*group, "the control group (cgroup) allows");
  return least;
}

std::optional<double> parse_cpu_quota(const std::string& text) {
  std::istringstream words(text);
  double quota = 0, period = 0;
  if (!(words >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

int usable_cpus() {
  const int set = comm::cpu_set().count;
  const std::optional<double> quota = cgroup_cpu_quota();
  return quota ? std::clamp(static_cast<int>(std::min(*quota, 1e6)), 1, set) : set;
}

int cpu_share(int cpus, int local_ranks) {
  return std::clamp(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)) / local_ranks, 1, cpus);
}

std::string memory_warning(uint64_t bytes, int ranks, const MemoryLimit& limit,
                           std::string_view remedy) {
  const uint64_t all = bytes * static_cast<uint64_t>(ranks);
  if (all <= limit.bytes) return "";
  return fmt::format("{} rank(s) here want {} each, {} in all, but {} {}: expect to be killed; {}",
                     ranks, mebibytes(static_cast<double>(bytes)),
                     mebibytes(static_cast<double>(all)), limit.what,
                     mebibytes(static_cast<double>(limit.bytes)), remedy);
}

std::string expect_memory(const std::string& who, uint64_t bytes, int ranks,
                          const MemoryLimit& limit, std::string_view remedy) {
  const std::string warning = memory_warning(bytes, ranks, limit, remedy);
  // What is only a little too large may be swapped out, or shrink.
  constexpr uint64_t kHopeless = 4;
  if (bytes / kHopeless > limit.bytes) fail(ExitCode::kBadJob, "{}: {}", who, warning);
  return warning.empty() ? "" : fmt::format("{}: {}", who, warning);
}

Error as_error(const std::exception& exception) {
  if (const auto* ours = dynamic_cast<const Error*>(&exception)) return *ours;
  if (dynamic_cast<const std::bad_alloc*>(&exception)) {
    const MemoryLimit limit = memory_limit();
    return {ExitCode::kIo,
            fmt::format("out of memory: this rank uses {}, {} {}, `ulimit -v` is {}; lower "
                        "batch_per_worker, start fewer ranks here or run fewer workers at once",
                        used_memory(), limit.what, mebibytes(static_cast<double>(limit.bytes)),
                        text_of_limit(soft_limit(RLIMIT_AS)))};
  }
  const auto* refused = dynamic_cast<const std::system_error*>(&exception);
  if (refused && refused->code() == std::errc::resource_unavailable_try_again) {
    const auto group = cgroup_number("pids", "pids.max", "pids.max");
    return {ExitCode::kIo,
            fmt::format("the system refuses another thread: `ulimit -u` is {}, the control group "
                        "allows {}, `ulimit -v` is {}; raise them or lower --data-threads",
                        text_of_limit(soft_limit(RLIMIT_NPROC)),
                        group ? fmt::format("{}", *group) : "any number",
                        text_of_limit(soft_limit(RLIMIT_AS)))};
  }
  return {ExitCode::kFault, exception.what()};
}

}  // namespace convoy::trainer
