// Reading files that others made, and keeping caches that may vanish at any moment.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::data {

// Closes on destruction; move only.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  int get() const { return fd_; }
  int release();

 private:
  int fd_;
};

struct OpenFile {
  FileDescriptor fd;
  uint64_t bytes = 0;
};

// Opens a regular file (a link to one counts) and never waits for a FIFO or a device. Throws Error:
// kBadData where it is something else, kIo where it cannot be opened.
OpenFile open_regular(const std::string& path);

// A file that is read whole has at most this: an image's file, a gzipped or CIFAR file, a cache.
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;

// The whole file. Troubles that pass (EIO, ESTALE, too many open files ...) are tried again twice.
// Throws Error as open_regular(), kBadData where it has more than kMaxFileBytes (no memory is taken
// then), and kIo when reading fails.
void read_file(const std::string& path, std::vector<uint8_t>& out);

// Exactly `bytes` bytes at `at` of an open file; passing troubles are tried again twice. Throws
// Error: kIo where that fails, kBadData where the file ends before.
void read_at(int fd, const std::string& path, uint64_t at, void* out, size_t bytes);

bool is_directory(const std::string& path);     // false also where it cannot be looked at
bool is_regular_file(const std::string& path);  // likewise

// Throws Error: kIo where `path` is missing, kBadData where it is no folder.
void require_directory(const std::string& path);

// The text of a cache file; empty where there is none or its last line is not the digest of the
// rest.
std::string read_cache(const std::string& path);

// Appends a digest and puts the file in place whole, or logs a warning and returns false.
bool write_cache(const std::string& path, std::string_view text);

// Takes the next line off `text`, without its newline; false at the end.
bool next_line(std::string_view& text, std::string_view& line);

}  // namespace convoy::data
