// A fresh folder for a test's files, removed with all that is in it when the test ends.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "ops/core/error.h"

namespace convoy::test {

// All bytes of a file; none where there is no such file.
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) throw std::runtime_error("cannot write " + path);
}

class TempFolder {
 public:
  TempFolder() : TempFolder(std::filesystem::temp_directory_path()) {}
  explicit TempFolder(const std::filesystem::path& parent) {
    std::string name = (parent / "convoy-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp: " + errno_text());
    root_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  // In memory where the system offers that: for tests that write very often.
  static std::filesystem::path memory() {
    return ::access("/dev/shm", W_OK) == 0 ? std::filesystem::path("/dev/shm")
                                           : std::filesystem::temp_directory_path();
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path(std::string_view inside = "") const {
    return inside.empty() ? root_.string() : (root_ / inside).string();
  }
  // Writes a file, making the folders above it; returns its path.
  std::string write(std::string_view inside, std::string_view bytes) const {
    const std::filesystem::path file = root_ / inside;
    std::filesystem::create_directories(file.parent_path());
    write_file(file.string(), bytes);
    return file.string();
  }

 private:
  std::filesystem::path root_;
};

}  // namespace convoy::test
