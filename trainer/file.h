// Files as this folder needs them: whole reads and writes whose errors name path and numbers, and
// the syncs that make a rename safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace convoy::trainer {

// An open file. Every function throws Error (kIo) with the path and the system's reason.
class File {
 public:
  // `flags` as for open(2); O_CLOEXEC is added, new files get mode 0666.
  File(const std::string& path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t size() const;
  // Reads until `bytes` are there or the file ends; returns how many.
  size_t read(void* data, size_t bytes);
  void write(const void* data, size_t bytes);
  void sync();  // fsync: data and length are on the disk

 private:
  std::string path_;
  int fd_;
};

// The whole file; throws Error (kIo) where it cannot be read or has more than `max_bytes`.
std::string read_text(const std::string& path, size_t max_bytes);

// Writes a file anew and syncs it.
void write_text(const std::string& path, const std::string& text);

// fsync of a folder: what was created or renamed in it is on the disk.
void sync_folder(const std::string& path);

// rename(2).
void rename_path(const std::string& from, const std::string& to);

}  // namespace convoy::trainer
