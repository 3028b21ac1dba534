#include "trainer/base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {

namespace fs = std::filesystem;

namespace {

// Linux moves at most 2 GiB per call.
constexpr size_t kMaxTransfer = size_t{1} << 30;

bool is_folder(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return true;
    errno = ENOTDIR;
  }
  return false;
}

std::string free_space(int fd) {
  struct statvfs info {};
  if (fstatvfs(fd, &info) != 0) return "unknown";
  return fmt::format("{} bytes", uint64_t{info.f_bavail} * info.f_frsize);
}

// Until the descriptor is closed. On file systems without flock nobody is kept out.
void hold(const File& file, const std::string& path) {
  const bool denied = ::flock(file.descriptor(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (denied || file.removed())
    fail(ExitCode::kIo, "{}: another process is writing it; wait for its end", printable(path));
}

// What a call that was killed has left at `temporary`.
void remove_leftover(const std::string& temporary, Written kind,
                     const std::function<bool()>& is_ours) {
  struct stat info {};
  if (::lstat(temporary.c_str(), &info) != 0) return;
  const bool folder = kind == Written::kFolder;
  if (!(folder ? S_ISDIR(info.st_mode) : S_ISREG(info.st_mode)) || !is_ours())
    fail(ExitCode::kIo, "{}: is in the way, and not ours to remove; move it or choose another name",
         printable(temporary));
  const File old(temporary, folder ? O_RDONLY | O_DIRECTORY : O_RDONLY);
  hold(old, temporary);
  remove_tree(temporary);
}

}  // namespace

bool ReadError::of_the_disk() const {
  // A bad sector, sums of the file system that do not fit (two names), a device or a server that is
  // gone.
  constexpr int kOfTheDisk[] = {EIO, EUCLEAN, EBADMSG, ENODATA, EREMOTEIO, ESTALE, ETIMEDOUT};
  return std::ranges::find(kOfTheDisk, number_) != std::end(kOfTheDisk);
}

File::File(const std::string& path, int flags) : path_(path), fd_(sys::open(path, flags)) {
  if (fd_ >= 0) return;
  const int number = errno;
  if ((flags & O_ACCMODE) == O_RDONLY)
    throw ReadError(number, fmt::format("{}: cannot open: {}", printable(path), errno_text()));
  fail(ExitCode::kIo, "{}: cannot open for writing: {}", printable(path), errno_text());
}

File::~File() {
  if (fd_ >= 0) sys::close(fd_, path_);
}

uint64_t File::size() const {
  struct stat info {};
  if (fstat(fd_, &info) != 0)
    fail(ExitCode::kIo, "{}: no size: {}", printable(path_), errno_text());
  return static_cast<uint64_t>(info.st_size);
}

bool File::removed() const {
  struct stat info {};
  return fstat(fd_, &info) == 0 && info.st_nlink == 0;
}

size_t File::read(void* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = sys::read(fd_, path_, static_cast<char*>(data) + done,
                                  std::min(bytes - done, kMaxTransfer));
    if (got == 0) break;
    if (got < 0) {
      const int number = errno;
      throw ReadError(number, fmt::format("{}: read {} of {} bytes: {}", printable(path_), done,
                                          bytes, errno_text()));
    }
    done += static_cast<size_t>(got);
  }
  return done;
}

void File::write(const void* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t put = sys::write(fd_, path_, static_cast<const char*>(data) + done,
                                   std::min(bytes - done, kMaxTransfer));
    if (put < 0) {
      const std::string reason = errno_text();
      fail(ExitCode::kIo, "{}: wrote {} of {} bytes: {} (free on this file system: {})",
           printable(path_), done, bytes, reason, free_space(fd_));
    }
    done += static_cast<size_t>(put);
  }
}

void File::truncate(uint64_t bytes) {
  if (sys::truncate(fd_, path_, bytes) != 0)
    fail(ExitCode::kIo, "{}: cannot cut to {} bytes: {}", printable(path_), bytes, errno_text());
}

void File::sync() {
  if (sys::sync(fd_, path_) != 0)
    fail(ExitCode::kIo, "{}: cannot sync to disk: {} (free on this file system: {})",
         printable(path_), errno_text(), free_space(fd_));
}

void File::close() {
  const int fd = std::exchange(fd_, -1);
  if (sys::close(fd, path_) != 0)
    fail(ExitCode::kIo, "{}: the file system did not keep it: {}", printable(path_), errno_text());
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
  file.close();
}

void rewrite_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  try {
    write_text(temporary, text);
    rename_path(temporary, path);
  } catch (const Error&) {
    sys::unlink(temporary);
    throw;
  }
}

void clean_up(const std::string& path) {
  try {
    remove_tree(path);
  } catch (const Error& error) {
    log::warning("{}", error.what());
  }
}

void write_by_way_of(const std::string& temporary, const std::string& path, Written kind,
                     const std::function<void()>& write, const std::function<bool()>& is_ours) {
  remove_leftover(temporary, kind, is_ours);
  const bool folder = kind == Written::kFolder;
  if (folder && sys::mkdir(temporary) != 0)
    fail(ExitCode::kIo, "{}: cannot create the folder: {}", printable(temporary), errno_text());
  const File held(temporary, folder ? O_RDONLY | O_DIRECTORY : O_WRONLY | O_CREAT | O_EXCL);
  hold(held, temporary);
  try {
    write();
    rename_path(temporary, path);
  } catch (...) {
    clean_up(temporary);
    throw;
  }
  const fs::path parent = fs::path(path).parent_path();
  sync_folder(parent.empty() ? "." : parent.string());
}

void sync_folder(const std::string& path) {
  const File folder(path, O_RDONLY | O_DIRECTORY);
  if (sys::sync(folder.descriptor(), path) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail(ExitCode::kIo, "{}: cannot sync the folder to disk: {}", printable(path), errno_text());
}

void rename_path(const std::string& from, const std::string& to) {
  if (sys::rename(from, to) != 0)
    fail(ExitCode::kIo, "{}: cannot rename to {}: {}", printable(from), printable(to),
         errno_text());
}

void expect_folder(const std::string& path) {
  if (is_folder(path)) return;
  if (errno == ENOTDIR) fail(ExitCode::kBadData, "{}: is no folder", printable(path));
  fail(ExitCode::kIo, "{}: no such folder: {}", printable(path), errno_text());
}

void make_folder(const std::string& path, std::string_view remedy) {
  if (is_folder(path)) return;
  std::string name = path;
  while (name.size() > 1 && name.ends_with('/')) name.pop_back();
  const std::string above = fs::path(name).parent_path();
  const std::string parent = above.empty() ? std::string(".") : above;
  if (parent != name && !is_folder(parent)) {
    if (errno != ENOENT)
      fail(ExitCode::kIo, "{}: cannot create the folder: {}; {}", printable(path), errno_text(),
           remedy);
    make_folder(parent, remedy);
  }
  if (sys::mkdir(name) != 0 && !(errno == EEXIST && is_folder(name)))
    fail(ExitCode::kIo, "{}: cannot create the folder: {}; {}", printable(path), errno_text(),
         remedy);
  // A folder that we may use but not read cannot be synced.
  if (::access(parent.c_str(), R_OK) == 0) sync_folder(parent);
}

void remove_tree(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0 && errno == ENOENT) return;
  const auto refused = [](const std::string& what) {
    fail(ExitCode::kIo, "{}: cannot remove: {}", printable(what), errno_text());
  };
  if (!S_ISDIR(info.st_mode)) {
    if (sys::unlink(path) != 0 && errno != ENOENT) refused(path);
    return;
  }
  std::vector<std::string> names;
  if (DIR* folder = ::opendir(path.c_str())) {
    while (const dirent* entry = ::readdir(folder)) names.emplace_back(entry->d_name);
    ::closedir(folder);
  } else {
    refused(path);
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names)
    if (name != "." && name != "..") remove_tree(fs::path(path) / name);
  if (sys::rmdir(path) != 0 && errno != ENOENT) refused(path);
}

uint64_t free_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0)
    fail(ExitCode::kIo, "{}: its free space is unknown: {}", printable(path), errno_text());
  return uint64_t{info.f_bavail} * info.f_frsize;
}

}  // namespace convoy::trainer
