// Convolutions in bf16 of images of few channels, a network's first layer, for processors whose
// bf16 products are AVX-512's. In NHWC a row of the window, kernel * c numbers, lies in one piece:
// sums run over pairs of these numbers, so that channels need no padding to an even number, for
// which oneDNN does a third more products at three channels.
//
// x [n,h,w,c], y [n,y_h,y_w,k] in bf16, sums in fp32, without groups, k a multiple of
// kFewChannelsOutputs. Every sum runs in an order that depends on the shape alone, so threads
// change no bit and forward gives an image the same bits in any batch. Where kernel * c is odd, an
// infinity or NaN of x makes NaN also of the pixel of y to its left; where y_w is, one to the right
// of a row's last window makes NaN of dw.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

constexpr int64_t kFewChannelsOutputs = 16;

struct FewChannelsShape {
  int64_t n, h, w, c;  // of x
  int64_t y_h, y_w, k;
  int64_t kernel, stride, padding;
};

struct FewChannelsKernels {
  size_t (*packed_bytes)(const FewChannelsShape& s);
  // Of forward and of add_gradient.
  size_t (*forward_scratch)(const FewChannelsShape& s, int threads);
  size_t (*gradient_scratch)(const FewChannelsShape& s, int threads);
  // From w [k,c,kernel,kernel]; packed: aligned to 64 bytes.
  void (*pack)(void* packed, const float* w, const FewChannelsShape& s);
  // bias [k] is added where it is not null, then ReLU. scratch: aligned to 64 bytes.
  void (*forward)(Bfloat16* y, const Bfloat16* x, const void* packed, const float* bias, bool relu,
                  const FewChannelsShape& s, void* scratch, int threads);
  // sum [kernel, kernel * c, k] += what these images add to the gradient of w, or = if `first`.
  void (*add_gradient)(float* sum, const Bfloat16* x, const Bfloat16* dy, const FewChannelsShape& s,
                       bool first, void* scratch, int threads);
  // dw [k,c,kernel,kernel] from the sum of all images.
  void (*unpack_gradient)(float* dw, const float* sum, const FewChannelsShape& s);
};

// Null functions but for Isa::kAvx512Bf16.
CONVOY_KERNELS(FewChannelsKernels, few_channels_kernels_bf16)

}  // namespace convoy::ops
