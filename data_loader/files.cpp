#include "data_loader/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <thread>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::data {
namespace {

bool may_pass(int error) {
  return error == EIO || error == ESTALE || error == EAGAIN || error == ETIMEDOUT ||
         error == EMFILE || error == ENFILE || error == ENOMEM;
}

// False with errno set when something failed that may pass.
template <typename Bytes>
bool try_read_file(const std::string& path, Bytes& out) {
  const OpenFile file = open_regular(path);
  if (file.bytes > kMaxFileBytes)
    fail(ExitCode::kBadData, "{}: has {} bytes; of such a file at most {} are read",
         printable(path), file.bytes, kMaxFileBytes);
  // One byte more than the size says shows that nothing was appended meanwhile.
  out.resize(file.bytes + 1);
  size_t filled = 0;
  while (filled < out.size()) {
    const ssize_t got = ::read(file.fd.get(), out.data() + filled, out.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && may_pass(errno)) return false;
    if (got < 0) fail(ExitCode::kIo, "{}: cannot read: {}", printable(path), errno_text());
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  if (filled != file.bytes)
    fail(ExitCode::kIo, "{}: it changed while it was read ({} bytes, then {}): try again",
         printable(path), file.bytes, filled);
  out.resize(filled);
  return true;
}

template <typename Bytes>
void read_whole(const std::string& path, Bytes& out) {
  for (int attempt = 0; !try_read_file(path, out); ++attempt) {
    if (attempt == 2)
      fail(ExitCode::kIo, "{}: cannot read, tried 3 times: {}", printable(path), errno_text());
    std::this_thread::sleep_for(std::chrono::milliseconds(attempt == 0 ? 50 : 500));
  }
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int FileDescriptor::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

OpenFile open_regular(const std::string& path) {
  FileDescriptor fd;
  for (int attempt = 0;; ++attempt) {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    const int raw = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (raw >= 0) {
      struct stat status {};
      OpenFile file{FileDescriptor(raw), 0};
      if (::fstat(raw, &status) != 0)
        fail(ExitCode::kIo, "{}: cannot stat: {}", printable(path), errno_text());
      if (!S_ISREG(status.st_mode))
        fail(ExitCode::kBadData, "{}: not a regular file", printable(path));
      file.bytes = static_cast<uint64_t>(status.st_size);
      return file;
    }
    if (errno == EINTR) continue;
    if (attempt == 2 || !may_pass(errno))
      fail(ExitCode::kIo, "{}: cannot open: {}", printable(path), errno_text());
    std::this_thread::sleep_for(std::chrono::milliseconds(attempt == 0 ? 50 : 500));
  }
}

void read_file(const std::string& path, std::vector<uint8_t>& out) {
  read_whole(path, out);
}

void read_at(int fd, const std::string& path, uint64_t at, void* out, size_t bytes) {
  int attempt = 0;
  for (size_t filled = 0; filled < bytes;) {
    const ssize_t got = ::pread(fd, static_cast<uint8_t*>(out) + filled, bytes - filled,
                                static_cast<off_t>(at + filled));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (attempt == 2 || !may_pass(errno)))
      fail(ExitCode::kIo, "{}: cannot read {} bytes at {}: {}", printable(path), bytes, at,
           errno_text());
    if (got == 0)
      fail(ExitCode::kBadData, "{}: ends at byte {}, {} bytes were expected at {}: it is cut off",
           printable(path), at + filled, bytes, at);
    if (got > 0)
      filled += static_cast<size_t>(got);
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(attempt++ == 0 ? 50 : 500));
  }
}

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool is_regular_file(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

void require_directory(const std::string& path) {
  struct stat status {};
  if (path.empty())
    fail(ExitCode::kBadData, "no dataset folder given: set data.path or --data DIR");
  if (::stat(path.c_str(), &status) != 0)
    fail(ExitCode::kIo, "dataset folder {}: {}; a job takes it from --data or data.path",
         printable(path), errno_text());
  if (!S_ISDIR(status.st_mode))
    fail(ExitCode::kBadData, "dataset folder {}: not a folder", printable(path));
}

std::string read_cache(const std::string& path) {
  std::string text;
  try {
    if (!is_regular_file(path)) return {};
    read_whole(path, text);
  } catch (const Error&) {
    return {};
  }
  constexpr size_t kDigestLine = 65;
  if (text.size() < kDigestLine) return {};
  const std::string digest = text.substr(text.size() - kDigestLine, 64);
  text.resize(text.size() - kDigestLine);
  return sha256_hex(text) == digest ? text : std::string();
}

bool write_cache(const std::string& path, std::string_view text) {
  const std::string last = sha256_hex(text) + "\n";
  // Ranks of one host may write the same cache at once: each its own file, the last rename stays.
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  FILE* file = std::fopen(temporary.c_str(), "wbe");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size() &&
              std::fwrite(last.data(), 1, last.size(), file) == last.size();
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (!good || std::rename(temporary.c_str(), path.c_str()) != 0) {
    log::warning("cache {} cannot be written ({}): it is made again next time", printable(path),
                 errno_text());
    if (file != nullptr) std::remove(temporary.c_str());
    return false;
  }
  return true;
}

bool next_line(std::string_view& text, std::string_view& line) {
  const size_t end = text.find('\n');
  if (end == std::string_view::npos) return false;
  line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return true;
}

}  // namespace convoy::data
