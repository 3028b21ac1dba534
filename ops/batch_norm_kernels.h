// The passes over memory of batch norm, for fp32 and bf16 activations. A tensor is `rows` rows of c
// channels. Masks: a bit per element, 16 channels a word, (c + 15) / 16 words a row.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

// Rows whose sums are kept in fp32; the caller adds the blocks in double.
constexpr int64_t kBatchNormRowBlock = 256;

template <typename T>
struct BatchNormKernels {
  // partial [blocks, 2, c] = sum (x - shift), sum (x - shift)^2 of each block of rows.
  void (*statistics)(float* partial, const T* x, const float* shift, int64_t rows, int64_t c,
                     int threads);
  // y = (x - mean) * scale + beta (+ residual); with a mask: ReLU, and which elements it kept.
  // residual and mask may be null; relu without a mask is inference.
  void (*normalise)(T* y, uint16_t* mask, const T* x, const T* residual, const float* mean,
                    const float* scale, const float* beta, int64_t rows, int64_t c, bool relu,
                    int threads);
  // g = mask * (dy0 + dy1); partial [blocks, 2, c] = sum g, sum g (x - mean). mask and dy1 may be
  // null; g may be null (not stored) or dy0.
  void (*backward_sums)(float* partial, T* g, const T* dy0, const T* dy1, const uint16_t* mask,
                        const T* x, const float* mean, int64_t rows, int64_t c, int threads);
  // dx = a * (mask * g) + b * (x - mean) + k, per channel. mask may be null; dx may be g.
  void (*backward_apply)(T* dx, const T* g, const uint16_t* mask, const T* x, const float* mean,
                         const float* a, const float* b, const float* k, int64_t rows, int64_t c,
                         int threads);
  // Frozen: g = mask * (dy0 + dy1) and dx = scale * g, per channel. mask, dy1, and one of dx and g
  // may be null; g may be dy0.
  void (*scale_gradient)(T* dx, T* g, const T* dy0, const T* dy1, const uint16_t* mask,
                         const float* scale, int64_t rows, int64_t c, int threads);
};

CONVOY_KERNELS(BatchNormKernels<float>, batch_norm_kernels_fp32)
CONVOY_KERNELS(BatchNormKernels<Bfloat16>, batch_norm_kernels_bf16)

template <typename T>
const BatchNormKernels<T>& batch_norm_kernels();
template <>
inline const BatchNormKernels<float>& batch_norm_kernels() {
  return batch_norm_kernels_fp32();
}
template <>
inline const BatchNormKernels<Bfloat16>& batch_norm_kernels() {
  return batch_norm_kernels_bf16();
}

}  // namespace convoy::ops
