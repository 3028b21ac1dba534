// The tar format: the members of an archive one by one, and headers for new ones. Reads ustar, old
// tar, GNU's long names and base-256 numbers, and pax (POSIX.1-2001, "pax Interchange Format"). No
// name is ever used as a path.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace convoy::data {

constexpr uint64_t kTarBlock = 512;  // headers and data begin at multiples of it

// A regular file in an archive. Names have no "./" before them.
struct TarMember {
  std::string name;
  uint64_t header = 0;  // where its own headers begin
  uint64_t offset = 0;  // of its data
  uint64_t bytes = 0;
};

struct TarListing {
  uint64_t skipped = 0;  // folders, links, devices and other members that hold no file
};

// The first `bytes` of a member, for small ones.
using ReadMember = std::function<std::string(size_t bytes)>;

// Visits each regular member of the archive open as `fd`, which has `bytes` bytes; `path` is for
// messages. Throws Error: kIo where it cannot be read, kBadData with the place where it is no tar,
// is cut off, or has a name that leads outside, a sparse file or a size beyond its end.
TarListing list_tar(int fd, uint64_t bytes, const std::string& path,
                    const std::function<void(const TarMember&, const ReadMember&)>& visit);

// The blocks before a regular member's data: owner 0, mode 0644, time 0, so that they depend on
// name and size alone. A name that does not fit a ustar header gets a pax header.
std::string tar_header(std::string_view name, uint64_t bytes);

// Zero bytes that fill up the last block of data.
inline uint64_t tar_padding(uint64_t bytes) {
  return (kTarBlock - bytes % kTarBlock) % kTarBlock;
}

// What an archive ends in: two blocks of zeros.
constexpr uint64_t kTarEnd = 2 * kTarBlock;

}  // namespace convoy::data
