// The system calls that open, read, change and remove the files of a run, in one thin place: here a
// test or `--fault` makes the n-th of them fail, be short, or be recorded. Each function is the
// call of its name (result -1 and errno where it fails), except that an interrupted call (EINTR) is
// made again.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace convoy::trainer {

struct FileCall {
  enum class Kind : uint8_t {
    kOpen,
    kRead,
    kWrite,
    kTruncate,
    kSync,
    kClose,
    kRename,
    kMkdir,
    kUnlink,
    kRmdir
  };
  Kind kind;
  const std::string& path;
  const std::string* to = nullptr;  // rename's target
  int flags = 0;                    // of open
  const void* data = nullptr;       // of a write
  size_t bytes = 0;                 // to read or to write; the new length of a truncation
};

const char* name_of(FileCall::Kind kind);

// Sees every call. Called on the thread that makes it, so on several.
class FileHook {
 public:
  // What becomes of a call: it fails with `error`, or (read and write) moves at most `most` bytes.
  struct Verdict {
    int error = 0;
    size_t most = SIZE_MAX;
  };
  virtual ~FileHook() = default;
  virtual Verdict before(const FileCall& call) = 0;
  // After a call that was made; `result` is the system's.
  virtual void after(const FileCall& /*call*/, int64_t /*result*/) {}
};

// The hook of this process, nullptr (the default) for none: the one exception to "no global state"
// in this folder, because a fault must reach calls wherever they are made. Without one a call costs
// a branch more. The hook must outlive every call that may be under way.
void set_file_hook(FileHook* hook);

// A fault in the calls whose path contains `path_has`: the call-th from now (1 is the first) and
// the count - 1 after it fail with `error`; with error 0 they are short: half of the bytes are
// moved.
struct FileFault {
  int error = 0;
  uint64_t call = 1;
  uint64_t count = 1;  // 0: all that follow
  std::string path_has = "/checkpoints";
};

// Counts and lets fail; a test may use one of its own.
class FailingCalls : public FileHook {
 public:
  explicit FailingCalls(FileFault fault) : fault_(std::move(fault)) {}
  Verdict before(const FileCall& call) override;
  // Calls counted so far.
  uint64_t calls() const { return calls_; }

 private:
  const FileFault fault_;
  std::atomic<uint64_t> calls_ = 0;
};

// What `--fault kind=enospc|eio|short call=N` does: from now on, in this process. Replaces the one
// injected before.
void inject_file_fault(const FileFault& fault);

namespace sys {

int open(const std::string& path, int flags);  // O_CLOEXEC is added, new files get mode 0666
ssize_t read(int fd, const std::string& path, void* data, size_t bytes);
ssize_t write(int fd, const std::string& path, const void* data, size_t bytes);
int truncate(int fd, const std::string& path, uint64_t bytes);
int sync(int fd, const std::string& path);
// The descriptor is free afterwards, whatever the result.
int close(int fd, const std::string& path);
int rename(const std::string& from, const std::string& to);
int mkdir(const std::string& path);
int unlink(const std::string& path);
int rmdir(const std::string& path);

}  // namespace sys
}  // namespace convoy::trainer
