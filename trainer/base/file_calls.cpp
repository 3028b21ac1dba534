#include "trainer/base/file_calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

namespace convoy::trainer {
namespace {

std::atomic<FileHook*> hook = nullptr;

// `make(most)` makes the call, moving at most that many bytes.
template <typename Make>
int64_t made(const FileCall& call, const Make& make) {
  for (;;) {
    int64_t result = 0;
    if (FileHook* const seen = hook.load(std::memory_order_acquire)) {
      const FileHook::Verdict verdict = seen->before(call);
      if (verdict.error != 0) {
        errno = verdict.error;
        result = -1;
      } else {
        result = make(std::min(call.bytes, verdict.most));
        const int error = errno;
        seen->after(call, result);
        errno = error;
      }
    } else {
      result = make(call.bytes);
    }
    if (result >= 0 || errno != EINTR) return result;
  }
}

}  // namespace

const char* name_of(FileCall::Kind kind) {
  constexpr const char* kNames[] = {"open",  "read",   "write", "truncate", "sync",
                                    "close", "rename", "mkdir", "unlink",   "rmdir"};
  return kNames[static_cast<size_t>(kind)];
}

void set_file_hook(FileHook* new_hook) {
  hook.store(new_hook, std::memory_order_release);
}

FileHook::Verdict FailingCalls::before(const FileCall& call) {
  const bool counted = call.path.find(fault_.path_has) != std::string::npos ||
                       (call.to && call.to->find(fault_.path_has) != std::string::npos);
  if (!counted) return {};
  const uint64_t n = ++calls_;
  if (n < fault_.call || (fault_.count > 0 && n - fault_.call >= fault_.count)) return {};
  if (fault_.error != 0) return {.error = fault_.error};
  return {.most = std::max<size_t>(call.bytes / 2, std::min<size_t>(call.bytes, 1))};
}

void inject_file_fault(const FileFault& fault) {
  // Never deleted: a call on another thread may still look at the one before.
  static std::mutex mutex;
  static std::vector<std::unique_ptr<FailingCalls>> injected;
  const std::lock_guard lock(mutex);
  injected.push_back(std::make_unique<FailingCalls>(fault));
  set_file_hook(injected.back().get());
}

namespace sys {

using Kind = FileCall::Kind;

int open(const std::string& path, int flags) {
  return static_cast<int>(made({.kind = Kind::kOpen, .path = path, .flags = flags}, [&](size_t) {
    return ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  }));
}

ssize_t read(int fd, const std::string& path, void* data, size_t bytes) {
  return made({.kind = Kind::kRead, .path = path, .bytes = bytes},
              [&](size_t most) { return ::read(fd, data, most); });
}

ssize_t write(int fd, const std::string& path, const void* data, size_t bytes) {
  return made({.kind = Kind::kWrite, .path = path, .data = data, .bytes = bytes},
              [&](size_t most) { return ::write(fd, data, most); });
}

int truncate(int fd, const std::string& path, uint64_t bytes) {
  return static_cast<int>(made({.kind = Kind::kTruncate, .path = path, .bytes = bytes},
                               [&](size_t) { return ::ftruncate(fd, static_cast<off_t>(bytes)); }));
}

int sync(int fd, const std::string& path) {
  return static_cast<int>(
      made({.kind = Kind::kSync, .path = path}, [&](size_t) { return ::fsync(fd); }));
}

int close(int fd, const std::string& path) {
  // Linux frees the descriptor even where it reports an error, EINTR included: not made again.
  bool closed = false;
  const auto result = made({.kind = Kind::kClose, .path = path}, [&](size_t) {
    closed = true;
    return ::close(fd) == 0 || errno == EINTR ? 0 : -1;
  });
  if (!closed) {
    const int error = errno;
    ::close(fd);
    errno = error;
  }
  return static_cast<int>(result);
}

int rename(const std::string& from, const std::string& to) {
  return static_cast<int>(made({.kind = Kind::kRename, .path = from, .to = &to},
                               [&](size_t) { return std::rename(from.c_str(), to.c_str()); }));
}

int mkdir(const std::string& path) {
  return static_cast<int>(made({.kind = Kind::kMkdir, .path = path},
                               [&](size_t) { return ::mkdir(path.c_str(), 0777); }));
}

int unlink(const std::string& path) {
  return static_cast<int>(
      made({.kind = Kind::kUnlink, .path = path}, [&](size_t) { return ::unlink(path.c_str()); }));
}

int rmdir(const std::string& path) {
  return static_cast<int>(
      made({.kind = Kind::kRmdir, .path = path}, [&](size_t) { return ::rmdir(path.c_str()); }));
}

}  // namespace sys
}  // namespace convoy::trainer
