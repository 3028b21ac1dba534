// 64-bit digests of tensors where they lie (ops/core/digest_term.h): replicas are compared by them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace convoy::ops {

// Floats on the digester's device.
struct DigestRange {
  const float* data = nullptr;
  size_t floats = 0;
};

// Digests of tensors that stay where they are; made by Device::make_digester. On the CPU a pass
// over memory, on a GPU two small kernels: nothing but the digests is copied to the host.
class Digester {
 public:
  virtual ~Digester() = default;
  // Of ranges [first, last), as their memory is in the order of the device's work.
  virtual void run(size_t first, size_t last) = 0;
  // Of all ranges, each as the last run() found it; waits.
  virtual std::vector<uint64_t> result() = 0;

  std::vector<uint64_t> digests() {
    run(0, count());
    return result();
  }
  size_t count() const { return count_; }

 protected:
  explicit Digester(size_t count) : count_(count) {}

 private:
  size_t count_;
};

// Floats that are digested as one piece.
inline constexpr size_t kDigestBlock = size_t{1} << 14;

// The pieces of all ranges.
struct DigestBlock {
  const float* data;
  uint64_t index;  // of the first float in its range
  int64_t floats;
  size_t range;
};
std::vector<DigestBlock> cut_digest_blocks(const std::vector<DigestRange>& ranges);
// first_blocks(blocks, n)[r] is the first block of range r, of n; [n] is how many there are.
std::vector<size_t> first_blocks(const std::vector<DigestBlock>& blocks, size_t ranges);

}  // namespace convoy::ops
