// Random numbers as a pure function of (seed, purpose, counter): no state, so no result can depend
// on which thread, rank or life asks first.
//
// Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Host and device compile the same code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "ops/core/host_device.h"

namespace convoy {

// Who draws. A purpose is part of the key, so two draws never share numbers. The values are part of
// every run's identity: add at the end, never renumber.
enum class Purpose : uint32_t {
  kShuffle = 1,         // counter: (epoch, round)
  kCrop = 2,            // counter: (epoch, sample)
  kFlip = 3,            // counter: (epoch, sample)
  kInitialise = 4,      // counter: (parameter, element)
  kDropout = 5,         // counter: (step, worker), key part: node
  kSubstitute = 6,      // counter: (epoch, sample)
  kSyntheticData = 7,   // benchmarks and tests
  kBatchMix = 8,        // counter: (step, worker, draw, attempt)
  kColour = 9,          // counter: (epoch, sample)
  kShuffleShards = 20,  // counter: (epoch, round)
  kShuffleWindow = 21,  // counter: (epoch and window, round)
  kSubset = 22,         // counter: (class, place in it)
};

// Four words. Not a std::array, whose operator[] is the host's alone.
struct Random4 {
  uint32_t words[4];

  CONVOY_HOST_DEVICE uint32_t operator[](size_t i) const { return words[i]; }
  bool operator==(const Random4&) const = default;
};

CONVOY_HOST_DEVICE inline Random4 philox4x32(Random4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Four random words for (seed, purpose, a, b). The seed's two halves and the purpose make the key;
// a and b the counter.
CONVOY_HOST_DEVICE inline Random4 random4(uint64_t seed, Purpose purpose, uint64_t a, uint64_t b) {
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32) ^ (static_cast<uint32_t>(purpose) << 24);
  return philox4x32({static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32),
                     static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32)},
                    key0, key1);
}

// [0, 1) with 24 bits: exact in fp32.
CONVOY_HOST_DEVICE inline float uniform_float(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}

// [0, 1) with 53 bits, from two words.
CONVOY_HOST_DEVICE inline double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>((uint64_t{high} << 21) ^ (low >> 11)) * 0x1p-53;
}

// An integer in [0, n), n < 2^32: multiply-shift; its bias is below n / 2^32.
CONVOY_HOST_DEVICE inline uint32_t uniform_below(uint32_t word, uint32_t n) {
  return static_cast<uint32_t>((uint64_t{word} * n) >> 32);
}

// Two independent standard normal numbers from four words (Box-Muller in double). Host only: its
// bits belong to the host's libm, and only initialisation and PCA jitter use it.
std::array<double, 2> normal2(const Random4& words);

}  // namespace convoy
