// A 64-bit digest of a tensor is the sum, modulo 2^64, of what each of its floats gives: the same
// in any order, on any number of threads, on the host and in CUDA kernels.
//
// For a fixed index the term is a one-to-one function of the bits, so a single float that changes
// always changes the digest; swapped, moved or several changed floats do with a probability of
// about 1 - 2^-64. Against accidents, not against adversaries.
#pragma once

#include <cstdint>

#include "ops/core/host_device.h"

namespace convoy {

inline constexpr uint64_t kDigestKey = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio: keys of indexes
inline constexpr uint32_t kDigestFactor = 0x9E3779B1u;       // odd: a product with it loses nothing

// index: of the float in its tensor. The products are of 32 bits each, which all vector units have.
// Inlined always: ops/simd.h says why no kernel may share a function.
[[gnu::always_inline]] CONVOY_HOST_DEVICE inline uint64_t digest_term(uint64_t index,
                                                                      uint32_t bits) {
  const uint64_t key = (index + 1) * kDigestKey;
  const uint64_t product =
      uint64_t{bits + static_cast<uint32_t>(key)} * (static_cast<uint32_t>(key >> 32) | 1u);
  return (product ^ (product >> 29)) * kDigestFactor;
}

// One number for several digests, where their order counts. Start with 0.
inline uint64_t digest_join(uint64_t joined, uint64_t digest) {
  uint64_t x = (joined + kDigestKey) * 0xBF58476D1CE4E5B9u ^ digest;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace convoy
