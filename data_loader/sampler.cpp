#include "data_loader/sampler.h"

#include <algorithm>
#include <bit>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::data {

uint64_t permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i) {
  // Rounds mix the two halves of the index in turn. Halves of less than 4 bits would leave few
  // different permutations, so small n walk more.
  constexpr uint64_t kRounds = 8;
  const int bits = std::max(8, static_cast<int>(std::bit_width(n - 1)));
  const int low_bits = bits / 2;
  const uint64_t low_mask = (uint64_t{1} << low_bits) - 1;
  const uint64_t high_mask = (uint64_t{1} << (bits - low_bits)) - 1;
  uint64_t x = i;
  do {
    uint64_t low = x & low_mask, high = x >> low_bits;
    for (uint64_t round = 0; round < kRounds; round += 2) {
      high ^= random4(seed, Purpose::kShuffle, epoch, round << 32 | low)[0] & high_mask;
      low ^= random4(seed, Purpose::kShuffle, epoch, (round + 1) << 32 | high)[0] & low_mask;
    }
    x = high << low_bits | low;
  } while (x >= n);
  return x;
}

Sampler::Sampler(uint64_t seed, uint64_t samples) : seed_(seed), samples_(samples) {
  if (samples == 0) fail(ExitCode::kBadData, "the dataset has no samples");
}

}  // namespace convoy::data
