// A piece of memory that all ranks of one host see.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/communicator.h"

namespace convoy::comm {

class SharedMemory {
 public:
  // Collective, with the same size everywhere; zeroed. Null on all ranks where they are on several
  // hosts, where there is one rank only, and where the system does not let them share (containers
  // of their own).
  static std::unique_ptr<SharedMemory> open(Communicator& communicator, size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* data() const { return data_; }  // aligned to a page
  size_t size() const { return bytes_; }

 private:
  SharedMemory(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_;
  size_t bytes_;
};

}  // namespace convoy::comm
