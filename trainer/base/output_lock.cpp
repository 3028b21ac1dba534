#include "trainer/base/output_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"

namespace convoy::trainer {
namespace {

using std::chrono::milliseconds;

constexpr size_t kFileBytes = 512;
constexpr const char* kUnknown = "-";
constexpr milliseconds kLongestLease = std::chrono::hours(1);

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string host_name() {
  char host[256] = "unknown";
  ::gethostname(host, sizeof host - 1);
  return host;
}

std::string boot_id() {
  const std::string line = first_line("/proc/sys/kernel/random/boot_id");
  return line.empty() ? kUnknown : line;
}

// Two processes whose pids mean the same have the same one.
std::string pid_space() {
  char target[64] = "";
  const ssize_t length = ::readlink("/proc/self/ns/pid", target, sizeof target - 1);
  const std::string text(target, length > 0 ? static_cast<size_t>(length) : 0);
  const size_t digits = text.find('[');
  return digits == std::string::npos ? kUnknown : text.substr(digits + 1, text.size() - digits - 2);
}

// When the process began, in the system's ticks. A pid is used again.
std::string start_of(const std::string& pid) {
  const std::string line = first_line(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return kUnknown;
  std::istringstream rest(line.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) rest >> field;
  return field;
}

// "" where there is no such file.
std::string text_of(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) return "";
  return read_text(path, 8 * kFileBytes);
}

// Whether another host may have the file system too. What is not known counts as one.
bool other_hosts_may_see(int fd) {
  // ext2 to 4, XFS, Btrfs, tmpfs, overlay, F2FS, ZFS, ramfs, bcachefs, FAT (magic numbers of
  // statfs(2)).
  constexpr std::array<uint32_t, 10> kLocal = {0xEF53,     0x58465342, 0x9123683E, 0x01021994,
                                               0x794C7630, 0xF2F52010, 0x2FC12FC1, 0x858458F6,
                                               0xCA451A4E, 0x4D44};
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return true;
  return std::find(kLocal.begin(), kLocal.end(), static_cast<uint32_t>(info.f_type)) ==
         kLocal.end();
}

[[noreturn]] void refuse(const std::string& out_dir, const std::string& holder) {
  fail(ExitCode::kIo, "{}: in use by {}; wait for it, stop it, or choose another --out",
       printable(out_dir), holder);
}

}  // namespace

// What a lock file says.
struct OutputLock::Holder {
  bool free = true;
  std::string pid, host, boot, space, start, nonce;
  uint64_t life = 0;
  milliseconds lease{0};

  std::string name() const {
    if (pid.empty()) return "an unknown job";
    return fmt::format("pid {} on host {} (life {})", printable(pid), printable(host), life);
  }
  // Is it a process of this machine, as it runs since it was last started?
  bool on_this_machine() const {
    return boot.empty() || boot == kUnknown ? host == host_name() : boot == boot_id();
  }
  // nullopt where there is nothing to be read: a file that has just been made.
  static std::optional<Holder> parse(const std::string& text);
};

std::optional<OutputLock::Holder> OutputLock::Holder::parse(const std::string& text) {
  std::istringstream words(text);
  Holder holder;
  const auto number = [&](auto& value) {
    std::string word;
    words >> word;
    std::from_chars(word.data(), word.data() + word.size(), value);
  };
  bool any = false;
  for (std::string word; words >> word; any = true) {
    if (!any) holder.free = word == "free";
    if (word == "pid") {
      words >> holder.pid;
    } else if (word == "host") {
      words >> holder.host;
    } else if (word == "boot") {
      words >> holder.boot;
    } else if (word == "space") {
      words >> holder.space;
    } else if (word == "start") {
      words >> holder.start;
    } else if (word == "nonce") {
      words >> holder.nonce;
    } else if (word == "life") {
      number(holder.life);
    } else if (word == "lease") {
      int64_t lease = 0;
      number(lease);
      holder.lease = std::clamp(milliseconds(lease), milliseconds(0), kLongestLease);
    }
  }
  if (!any) return std::nullopt;
  return holder;
}

OutputLock::OutputLock(const std::string& out_dir, const LeaseOptions& options)
    : out_dir_(out_dir),
      path_(out_dir + "/lock"),
      lease_(std::min(options.lease, kLongestLease)),
      nonce_(fmt::format("{:08x}{:08x}", std::random_device()(), std::random_device()())) {
  take(options);
  renewer_ = std::jthread([this](const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any changed;
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, stop, lease_ / 6, [&] { return stop.stop_requested(); }))
      renew();
  });
}

OutputLock::~OutputLock() {
  renewer_.request_stop();
  renewer_.join();
  if (lost_) return;
  try {
    const std::optional<Holder> seen = Holder::parse(text_of(path_));
    if (seen && seen->nonce == nonce_) write_line(fmt::format("free life {}", life_));
  } catch (const std::exception& e) {
    log::warning("{}; the next job in this folder may have to wait", e.what());
  }
}

void OutputLock::take(const LeaseOptions& options) {
  make_folder(out_dir_);
  enum class Flock { kOurs, kDenied, kUnknownHere } flocked;
  do {
    file_ = std::make_unique<File>(path_, O_RDWR | O_CREAT);
    flocked = ::flock(file_->descriptor(), LOCK_EX | LOCK_NB) == 0 ? Flock::kOurs
              : errno == EWOULDBLOCK                               ? Flock::kDenied
                                                                   : Flock::kUnknownHere;
  } while (flocked == Flock::kOurs && file_->removed());
  network_ = other_hosts_may_see(file_->descriptor());

  const std::string text = text_of(path_);
  const std::optional<Holder> holder = Holder::parse(text);
  bool contested = network_;
  if (holder && !holder->free) {
    const bool here = holder->on_this_machine();
    const bool same_pids = holder->space.empty() || holder->space == pid_space();
    if (here && flocked == Flock::kDenied) refuse(out_dir_, holder->name());
    if (here && flocked == Flock::kUnknownHere && same_pids && !holder->start.empty() &&
        holder->start == start_of(holder->pid))
      refuse(out_dir_, holder->name());
    if (!here || (flocked == Flock::kUnknownHere && !same_pids)) {
      watch(text, *holder, options);
      contested = true;
    }
    log::info("{}: {} had it and has ended; this is life {}", printable(out_dir_), holder->name(),
              holder->life + 1);
  } else if (flocked == Flock::kDenied) {
    refuse(out_dir_, "another job that is just starting");
  }
  life_ = holder ? holder->life + 1 : 1;
  write_line(line());
  if (!contested) return;
  std::this_thread::sleep_for(options.settle);
  const std::optional<Holder> now = Holder::parse(text_of(path_));
  if (now && now->nonce != nonce_) refuse(out_dir_, now->name());
}

void OutputLock::watch(const std::string& seen, const Holder& holder,
                       const LeaseOptions& options) const {
  const milliseconds lease = std::max(lease_, holder.lease);
  log::warning(
      "{}: last used by {}, another machine; waiting {:.0f} s to see whether it still runs",
      printable(out_dir_), holder.name(), std::chrono::duration<double>(lease).count());
  for (const auto start = Clock::now(); Clock::now() - start < lease;) {
    if (options.give_up())
      fail(ExitCode::kRecoverable, "{}: stopped while waiting for {}", printable(out_dir_),
           holder.name());
    std::this_thread::sleep_for(std::min(lease / 10, milliseconds(200)));
    const std::string text = text_of(path_);
    if (text == seen) continue;
    const std::optional<Holder> now = Holder::parse(text);
    if (!now || now->free) return;
    refuse(out_dir_, now->name());
  }
}

std::string OutputLock::line() const {
  return fmt::format(
      "pid {} on host {} life {} lease {} ms boot {} space {} start {} nonce {} renewed {}",
      ::getpid(), host_name(), life_, lease_.count(), boot_id(), pid_space(),
      start_of(std::to_string(::getpid())), nonce_, renewed_);
}

// In place and of one length: a reader sees the old line or the new one.
void OutputLock::write_line(std::string text) const {
  text.resize(kFileBytes - 1, ' ');
  text += '\n';
  File file(path_, O_WRONLY);
  file.write(text.data(), text.size());
  if (network_) file.sync();  // to the server; on this machine all see it already
  file.close();
}

bool OutputLock::find_successor() {
  const std::optional<Holder> seen = Holder::parse(text_of(path_));
  if (seen && !seen->free && seen->nonce != nonce_ && !lost_.exchange(true))
    log::error("{}: this job was not seen for {:.0f} s and {} has taken the folder over",
               printable(out_dir_), std::chrono::duration<double>(lease_).count(), seen->name());
  return lost_;
}

void OutputLock::expect_held() {
  try {
    if (!find_successor()) return;
  } catch (const Error&) {  // the renewing thread says so
    return;
  }
  fail(ExitCode::kIo, "{}: another job has taken this folder over; nothing more is written",
       printable(out_dir_));
}

void OutputLock::renew() {
  try {
    if (find_successor()) return;
    if (file_->removed()) {
      file_ = std::make_unique<File>(path_, O_RDWR | O_CREAT | O_EXCL);
      ::flock(file_->descriptor(), LOCK_EX | LOCK_NB);
      log::warning("{}: the lock was removed; made again", printable(path_));
    }
    ++renewed_;
    write_line(line());
    warned_ = false;
  } catch (const Error& e) {
    if (!warned_) log::warning("{}; another job could take this folder over", e.what());
    warned_ = true;
  }
}

}  // namespace convoy::trainer
