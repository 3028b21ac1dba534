// Weights of 1x1 convolutions and of linear layers, [k, c] in fp32, packed as oneDNN's AVX-512
// primitives want them, several times as fast as by oneDNN's own reorders. c and block are
// multiples of kPackingChannels; k, too, for backward.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

constexpr int64_t kPackingChannels = 16;

template <typename T>
struct PackingKernels {
  // [k / block][c][block], in bf16 [k / block][c / 2][block][2]; zeros fill the last block.
  void (*forward)(T* packed, const float* w, int64_t k, int64_t c, int64_t block, int threads);
  // [c / 16][k / 16][16 of k][16 of c], in bf16 [c / 16][k / 16][8 of k][16 of c][2 of k].
  void (*backward)(T* packed, const float* w, int64_t k, int64_t c, int threads);
};

// Null functions without AVX-512.
CONVOY_KERNELS(PackingKernels<float>, packing_kernels_fp32)
CONVOY_KERNELS(PackingKernels<Bfloat16>, packing_kernels_bf16)

}  // namespace convoy::ops
