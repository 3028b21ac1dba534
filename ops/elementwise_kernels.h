// Passes over n elements in which nothing but the element itself matters. Masks: a bit per element,
// 16 elements a word.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

template <typename T>
struct ElementwiseKernels {
  // y = max(x, 0); mask (may be null): which elements were above zero.
  void (*relu)(T* y, uint16_t* mask, const T* x, int64_t n, int threads);
  // y = mask * x * scale. y may be x.
  void (*keep)(T* y, const T* x, const uint16_t* mask, float scale, int64_t n, int threads);
  // y = a + b. y may be a or b.
  void (*add)(T* y, const T* a, const T* b, int64_t n, int threads);
  // y = a * b. y may be a or b.
  void (*multiply)(T* y, const T* a, const T* b, int64_t n, int threads);
  // y = 1 / (1 + e^-(sign * x)).
  void (*sigmoid)(T* y, const T* x, float sign, int64_t n, int threads);
  // dx = sign * dy * y * (1 - y). dx may be dy.
  void (*sigmoid_backward)(T* dx, const T* dy, const T* y, float sign, int64_t n, int threads);
  // images [n, plane] of uint8: y = (pixel - mean[i]) * inv_std[i] for each place i of the plane.
  void (*normalise)(T* y, const uint8_t* pixels, const float* mean, const float* inv_std, int64_t n,
                    int64_t plane, int threads);
  // y = share * x(pixel) + (1 - share) * x(other), each x = (pixel - mean[i]) * inv_std[i].
  void (*normalise_mixed)(T* y, const uint8_t* pixels, const uint8_t* other, const float* mean,
                          const float* inv_std, float share, int64_t n);
};

CONVOY_KERNELS(ElementwiseKernels<float>, elementwise_kernels_fp32)
CONVOY_KERNELS(ElementwiseKernels<Bfloat16>, elementwise_kernels_bf16)

template <typename T>
const ElementwiseKernels<T>& elementwise_kernels();
template <>
inline const ElementwiseKernels<float>& elementwise_kernels() {
  return elementwise_kernels_fp32();
}
template <>
inline const ElementwiseKernels<Bfloat16>& elementwise_kernels() {
  return elementwise_kernels_bf16();
}

}  // namespace convoy::ops
