#include "trainer/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "ops/core/error.h"

namespace convoy::trainer {
namespace {

// Linux moves at most 2 GiB per call.
constexpr size_t kMaxTransfer = size_t{1} << 30;

std::string free_space(int fd) {
  struct statvfs info {};
  if (fstatvfs(fd, &info) != 0) return "unknown";
  return fmt::format("{} bytes", uint64_t{info.f_bavail} * info.f_frsize);
}

}  // namespace

File::File(const std::string& path, int flags)
    : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
  if (fd_ < 0)
    fail(ExitCode::kIo, "{}: cannot {}: {}", printable(path),
         (flags & O_ACCMODE) == O_RDONLY ? "open" : "open for writing", errno_text());
}

File::~File() {
  ::close(fd_);
}

uint64_t File::size() const {
  struct stat info {};
  if (fstat(fd_, &info) != 0)
    fail(ExitCode::kIo, "{}: no size: {}", printable(path_), errno_text());
  return static_cast<uint64_t>(info.st_size);
}

size_t File::read(void* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got =
        ::read(fd_, static_cast<char*>(data) + done, std::min(bytes - done, kMaxTransfer));
    if (got == 0) break;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      fail(ExitCode::kIo, "{}: read {} of {} bytes: {}", printable(path_), done, bytes,
           errno_text());
    done += static_cast<size_t>(got);
  }
  return done;
}

void File::write(const void* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t put =
        ::write(fd_, static_cast<const char*>(data) + done, std::min(bytes - done, kMaxTransfer));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      const std::string reason = errno_text();
      fail(ExitCode::kIo, "{}: wrote {} of {} bytes: {} (free on this file system: {})",
           printable(path_), done, bytes, reason, free_space(fd_));
    }
    done += static_cast<size_t>(put);
  }
}

void File::sync() {
  if (::fsync(fd_) != 0)
    fail(ExitCode::kIo, "{}: cannot sync to disk: {} (free on this file system: {})",
         printable(path_), errno_text(), free_space(fd_));
}

std::string read_text(const std::string& path, size_t max_bytes) {
  File file(path, O_RDONLY);
  std::string text;
  for (size_t done = 0;;) {  // piece by piece: a pipe does not tell its size
    text.resize(done + (size_t{64} << 10));
    const size_t got = file.read(text.data() + done, text.size() - done);
    done += got;
    if (done == text.size() && done <= max_bytes) continue;
    text.resize(done);
    break;
  }
  if (text.size() > max_bytes)
    fail(ExitCode::kIo, "{}: has more than {} bytes, the most that is read here", printable(path),
         max_bytes);
  return text;
}

void write_text(const std::string& path, const std::string& text) {
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  file.write(text.data(), text.size());
  file.sync();
}

void sync_folder(const std::string& path) {
  File(path, O_RDONLY | O_DIRECTORY).sync();
}

void rename_path(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    fail(ExitCode::kIo, "{}: cannot rename to {}: {}", printable(from), printable(to),
         errno_text());
}

}  // namespace convoy::trainer
