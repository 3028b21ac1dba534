#include "ops/packing_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__AVX512F__)
namespace {

static_assert(kLanes == kPackingChannels);

// 16 rows of 16 weights each, the first `count` from memory, the others zero.
CONVOY_INLINE void load_tile(Floats (&rows)[kLanes], const float* w, int64_t c, int64_t count) {
  for (int64_t i = 0; i < kLanes; ++i) rows[i] = i < count ? load(w + i * c) : Floats{};
}

// Two rows of a tile: in fp32 the second `step` elements behind the first, in bf16 in turns.
CONVOY_INLINE void store_rows(float* p, int64_t step, Floats first, Floats second) {
  store(p, first);
  store(p + step, second);
}
CONVOY_INLINE void store_rows(Bfloat16* p, int64_t, Floats first, Floats second) {
  Halves halves[2];
  store(reinterpret_cast<Bfloat16*>(&halves[0]), first);
  store(reinterpret_cast<Bfloat16*>(&halves[1]), second);
  const Words both =
      __builtin_convertvector(halves[0], Words) | __builtin_convertvector(halves[1], Words) << 16;
  __builtin_memcpy(p, &both, sizeof both);
}

template <typename T>
void forward(T* packed, const float* w, int64_t k, int64_t c, int64_t block, int threads) {
  const int64_t blocks = (k + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < blocks * block; first += kLanes)
    for (int64_t channel = 0; channel < c; channel += kLanes) {
      Floats rows[kLanes];
      load_tile(rows, w + first * c + channel, c, k - first);
      transpose(rows);
      constexpr int64_t kPair = sizeof(T) == sizeof(float) ? 1 : 2;
      T* to = packed + first / block * block * c + channel * block + first % block * kPair;
      for (int64_t i = 0; i < kLanes; i += 2)
        store_rows(to + i * block, block, rows[i], rows[i + 1]);
    }
}

template <typename T>
void backward(T* packed, const float* w, int64_t k, int64_t c, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t channel = 0; channel < c; channel += kLanes)
    for (int64_t first = 0; first < k; first += kLanes) {
      Floats rows[kLanes];
      load_tile(rows, w + first * c + channel, c, kLanes);
      T* to = packed + (channel / kLanes * k + first) * kLanes;
      for (int64_t i = 0; i < kLanes; i += 2)
        store_rows(to + i * kLanes, kLanes, rows[i], rows[i + 1]);
    }
}

}  // namespace

const PackingKernels<float> packing_kernels_fp32 = {forward<float>, backward<float>};
const PackingKernels<Bfloat16> packing_kernels_bf16 = {forward<Bfloat16>, backward<Bfloat16>};
#else
const PackingKernels<float> packing_kernels_fp32 = {};
const PackingKernels<Bfloat16> packing_kernels_bf16 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
