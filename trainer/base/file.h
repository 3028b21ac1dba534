// Files and folders as this folder needs them: whole reads and writes whose errors name path and
// numbers, and the syncs that make a rename safe. All of it goes through trainer/base/file_calls.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "ops/core/error.h"

namespace convoy::trainer {

// The system refused to open or read (kIo).
class ReadError : public Error {
 public:
  ReadError(int number, const std::string& message)
      : Error(ExitCode::kIo, message), number_(number) {}
  // The disk, or the server behind it, does not give back what it holds; not: we may not, or lack
  // memory or descriptors.
  bool of_the_disk() const;

 private:
  int number_;  // errno
};

// An open file. Every function throws Error (kIo) with the path and the system's reason; opening
// for reading and reading throw ReadError.
class File {
 public:
  // `flags` as for open(2); O_CLOEXEC is added, new files get mode 0666.
  File(const std::string& path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t size() const;
  int descriptor() const { return fd_; }
  // No name leads to it any more.
  bool removed() const;
  // Reads until `bytes` are there or the file ends; returns how many.
  size_t read(void* data, size_t bytes);
  void write(const void* data, size_t bytes);
  void truncate(uint64_t bytes);
  // fsync: data and length are on the disk. Where it fails nobody knows what is, and a second one
  // would report success all the same: what was written must be written anew, into a new file.
  void sync();
  // For what was written: some file systems report only here that they could not keep it. The
  // destructor closes without a word.
  void close();

 private:
  std::string path_;
  int fd_;
};

// The whole file; throws ReadError where it cannot be read, Error (kIo) where it has more than
// `max_bytes`.
std::string read_text(const std::string& path, size_t max_bytes);

// Writes a file anew and syncs it.
void write_text(const std::string& path, const std::string& text);

// Replaces a file by way of PATH.tmp: a crash leaves the old text or the new one.
void rewrite_file(const std::string& path, const std::string& text);

enum class Written { kFile, kFolder };
// Makes `path` of what `write` puts under the name `temporary` beside it: whole, or not at all. The
// name is fixed, so that the next call replaces what a killed one has left, and held by flock while
// it is written. Throws Error (kIo) where another process writes there, or where what has the name
// is not of this kind or, as `is_ours` says, not left by such a call: that stays as it is.
void write_by_way_of(
    const std::string& temporary, const std::string& path, Written kind,
    const std::function<void()>& write, const std::function<bool()>& is_ours = [] { return true; });

// fsync of a folder: what was created, renamed or removed in it is on the disk. Nothing on a file
// system that has no such thing.
void sync_folder(const std::string& path);

// rename(2).
void rename_path(const std::string& from, const std::string& to);

// Throws Error where there is no such folder: kIo for nothing at all, kBadData for something else.
void expect_folder(const std::string& path);

// Makes a folder and those above it that are missing; each is on the disk when this returns.
// remedy: of the error that says it cannot be made.
void make_folder(const std::string& path, std::string_view remedy = "choose another --out");

// Removes a file, a link (never what it leads to) or a folder with all that is in it; nothing where
// there is none.
void remove_tree(const std::string& path);
// The same behind an error that matters more: a failure is a warning.
void clean_up(const std::string& path);

// Bytes that this process may still write on the file system of `path`.
uint64_t free_bytes(const std::string& path);

}  // namespace convoy::trainer
