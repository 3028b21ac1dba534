// The passes over memory of local response normalisation, for fp32 and bf16 activations: a row of
// channels at a time, whose squares and sums stay in the first cache.
#pragma once

#include <cstdint>

#include "ops/channel_window.h"
#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

// A row's channels with room for whole vectors, and what a thread of a call needs of scratch: the
// squares and the products of a row between zeros, and one value more for each channel. In floats.
[[gnu::always_inline]] constexpr int64_t padded_channels(int64_t c) {
  return (c + 15) / 16 * 16;
}
[[gnu::always_inline]] constexpr int64_t local_response_norm_scratch(const ChannelWindow& w) {
  return 3 * padded_channels(w.c) + 2 * padded_channels(w.before + w.behind);
}

template <typename T>
struct LocalResponseNormKernels {
  // scratch: local_response_norm_scratch() floats per thread, of any content.
  void (*forward)(T* y, float* scratch, const T* x, const ChannelWindow& w, int64_t rows,
                  int threads);
  // dx may be dy.
  void (*backward)(T* dx, float* scratch, const T* dy, const T* x, const ChannelWindow& w,
                   int64_t rows, int threads);
};

CONVOY_KERNELS(LocalResponseNormKernels<float>, local_response_norm_kernels_fp32)
CONVOY_KERNELS(LocalResponseNormKernels<Bfloat16>, local_response_norm_kernels_bf16)

template <typename T>
const LocalResponseNormKernels<T>& local_response_norm_kernels();
template <>
inline const LocalResponseNormKernels<float>& local_response_norm_kernels() {
  return local_response_norm_kernels_fp32();
}
template <>
inline const LocalResponseNormKernels<Bfloat16>& local_response_norm_kernels() {
  return local_response_norm_kernels_bf16();
}

}  // namespace convoy::ops
