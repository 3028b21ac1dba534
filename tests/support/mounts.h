// Small disks and read-only folders for a test: mounts in a mount namespace of its own, which go
// with the process. They need root; a test skips aloud where they are refused.
#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include <stdexcept>
#include <string>

#include "ops/core/error.h"

namespace convoy::test {

// "" where this process may mount, else why not. Programs it starts see its mounts.
inline std::string why_no_mounts() {
  static const std::string reason = []() -> std::string {
    if (::unshare(CLONE_NEWNS) != 0) return "no mount namespace: " + errno_text();
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      return "no private mounts: " + errno_text();
    return "";
  }();
  return reason;
}

// A mount over a folder that is there, undone at the end.
class Mount {
 public:
  // A file system in memory of `bytes`.
  Mount(const std::string& folder, uint64_t bytes) : folder_(folder) {
    check(::mount("none", folder.c_str(), "tmpfs", 0, size(bytes).c_str()));
  }
  // The folder itself, read-only.
  explicit Mount(const std::string& folder) : folder_(folder) {
    check(::mount(folder.c_str(), folder.c_str(), nullptr, MS_BIND, nullptr));
    check(::mount(nullptr, folder.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr));
  }
  ~Mount() { ::umount2(folder_.c_str(), MNT_DETACH); }
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;

  // Of a file system in memory.
  void resize(uint64_t bytes) const {
    check(::mount("none", folder_.c_str(), "tmpfs", MS_REMOUNT, size(bytes).c_str()));
  }
  uint64_t used() const {
    struct statvfs info {};
    check(::statvfs(folder_.c_str(), &info));
    return uint64_t{info.f_blocks - info.f_bfree} * info.f_frsize;
  }

 private:
  static std::string size(uint64_t bytes) { return "size=" + std::to_string(bytes); }
  void check(int result) const {
    if (result != 0) throw std::runtime_error(folder_ + ": mount: " + errno_text());
  }

  const std::string folder_;
};

}  // namespace convoy::test
