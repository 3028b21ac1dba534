#include "ops/digest_kernels.h"

#include "ops/core/digest_term.h"
#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

CONVOY_INLINE uint64_t one_by_one(const float* x, uint64_t index, int64_t begin, int64_t end) {
  uint64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    sum += digest_term(index + static_cast<uint64_t>(i), bits);
  }
  return sum;
}

#if defined(__AVX2__)

typedef uint64_t Longs __attribute__((vector_size(4 * kLanes)));
constexpr int64_t kLongs = kLanes / 2;

// Of the lower halves.
CONVOY_INLINE Longs product(Longs a, Longs b) {
#if defined(__AVX512F__)
  // With a mask of all lanes: GCC 12 warns of the undefined third operand that the plain one has.
  return reinterpret_cast<Longs>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#else
  return reinterpret_cast<Longs>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#endif
}

// digest_term() of the lower halves of `bits`.
CONVOY_INLINE Longs terms(Longs bits, Longs key) {
  const Longs sum = reinterpret_cast<Longs>(reinterpret_cast<Words>(bits) +  // upper halves: no use
                                            reinterpret_cast<Words>(key));
  Longs t = product(sum, (key >> 32) | 1);
  t ^= t >> 29;
  const Longs factor = Longs{} + uint64_t{kDigestFactor};
  return product(t, factor) + (product(t >> 32, factor) << 32);
}

uint64_t digest(const float* x, uint64_t index, int64_t n) {
  Longs even{}, odd{};  // keys
  for (int64_t lane = 0; lane < kLongs; ++lane) {
    even[lane] = (index + static_cast<uint64_t>(2 * lane) + 1) * kDigestKey;
    odd[lane] = even[lane] + kDigestKey;
  }
  const Longs stride = Longs{} + static_cast<uint64_t>(kLanes) * kDigestKey;
  Longs sums[2] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Longs bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    sums[0] += terms(bits, even);
    sums[1] += terms(bits >> 32, odd);
    even += stride;
    odd += stride;
  }
  uint64_t total = one_by_one(x, index, i, n);
  for (int64_t lane = 0; lane < kLongs; ++lane) total += sums[0][lane] + sums[1][lane];
  return total;
}

#else

uint64_t digest(const float* x, uint64_t index, int64_t n) {
  return one_by_one(x, index, 0, n);
}

#endif

}  // namespace

const DigestKernels digest_kernels = {digest};

}  // namespace convoy::ops::CONVOY_ISA
