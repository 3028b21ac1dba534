// Which sample stands at position p of the endless training stream: a pure function, O(1).
#pragma once

#include <cstdint>

namespace convoy::data {

// permute(seed, epoch, n, ·) is a permutation of 0 ... n - 1 (n >= 1, i < n): a Feistel network
// keyed by Philox over the next power of two, walked until it lands below n (Black and Rogaway,
// "Ciphers with arbitrary finite domains", CT-RSA 2002).
uint64_t permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i);

struct StreamPoint {
  uint64_t epoch = 0;
  uint64_t sample = 0;
};

class Sampler {
 public:
  // `samples` >= 1, else Error (kBadData).
  Sampler(uint64_t seed, uint64_t samples);
  StreamPoint at(uint64_t position) const {
    const uint64_t epoch = position / samples_;
    return {epoch, permute(seed_, epoch, samples_, position % samples_)};
  }
  uint64_t samples() const { return samples_; }

 private:
  uint64_t seed_, samples_;
};

}  // namespace convoy::data
