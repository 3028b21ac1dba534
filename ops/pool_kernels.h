// The passes over memory of pooling, for fp32 and bf16 activations.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

// A window sliding over images of c channels: x [n, h, w, c] -> y [n, p, q, c].
struct PoolGeometry {
  int64_t n, c, h, w, p, q, kernel, stride, padding;
};

template <typename T>
struct PoolKernels {
  // place (may be null): the winner's index in its window, row by row, as a byte.
  void (*max_forward)(T* y, uint8_t* place, const T* x, const PoolGeometry& g, int threads);
  void (*max_backward)(T* dx, const T* dy, const uint8_t* place, const PoolGeometry& g,
                       int threads);
  // include_pad: divide by kernel^2 always, else by the pixels inside the image.
  void (*avg_forward)(T* y, const T* x, const PoolGeometry& g, bool include_pad, int threads);
  void (*avg_backward)(T* dx, const T* dy, const PoolGeometry& g, bool include_pad, int threads);
  // A grid of p x q windows, as AdaptiveAvgPool says; kernel, stride and padding do not count.
  // per_row [p], per_column [q]: one over the height and the width of each window.
  void (*adaptive_forward)(T* y, const T* x, const float* per_row, const float* per_column,
                           const PoolGeometry& g, int threads);
  void (*adaptive_backward)(T* dx, const T* dy, const float* per_row, const float* per_column,
                            const PoolGeometry& g, int threads);
};

CONVOY_KERNELS(PoolKernels<float>, pool_kernels_fp32)
CONVOY_KERNELS(PoolKernels<Bfloat16>, pool_kernels_bf16)

template <typename T>
const PoolKernels<T>& pool_kernels();
template <>
inline const PoolKernels<float>& pool_kernels() {
  return pool_kernels_fp32();
}
template <>
inline const PoolKernels<Bfloat16>& pool_kernels() {
  return pool_kernels_bf16();
}

}  // namespace convoy::ops
