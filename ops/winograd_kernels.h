// 3x3 convolution with stride 1 and padding 1 as Winograd's F(4x4, 3x3) and larger ones (Lavin and
// Gray 2015, arXiv:1509.09308), NHWC: a 4x4 tile of y takes 36 products per pair of channels where
// a direct convolution takes 144, one of 7x4 54 for 252, one of 7x7 81 for 441.
//
//   U = G g G^T      weights, packed once per step
//   V = B^T d B      the pixels of x around each tile, zeros outside
//   y = A^T (U V) A  the product summed over the input channels, element by element
//
// Pixels are fp32 or bf16, everything between is fp32; with pixels in bf16 weights are rounded to
// it, as a direct convolution's are. Sides of 4 interpolate at 0, +-3/4, +-3/2 and infinity, sides
// of 7 at +-1/4, +-5/8, +-9/8, +-2 and infinity: of the points whose powers are exact those that
// lose least (on the choice: Barabasz et al. 2018, arXiv:1803.10986). In fp32, y was measured
// within 1.3e-6 of the truth (L2) in 4x4 tiles, with 16 to 4096 channels. Larger tiles lose more,
// 2e-6 to 3e-6 (7x4) and some 1e-5 (7x7), and are there for bf16, which rounds y by 2e-3.
//
// Channels are multiples of kWinogradChannels. Every sum runs in an order that depends on the shape
// alone, so threads and blocks change no bit, and forward gives an image the same bits in any
// batch. Infinities come out as NaN: transforms subtract.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

constexpr int64_t kWinogradChannels = 16;

// x [n,h,w,c], y [n,h,w,k].
struct WinogradShape {
  int64_t n, h, w, c, k;
};

// What is done to the sums on their way to y.
struct WinogradEnd {
  const float* bias = nullptr;  // [k], added; may be null
  bool residual = false;        // what stood in y before is added
  bool relu = false;
};

template <typename T>
struct WinogradKernels {
  // Floats of U and of its gradient, for c channels of x and k of y.
  int64_t (*weight_floats)(int64_t c, int64_t k);
  // Floats of scratch memory of forward and of add_gradient.
  int64_t (*forward_scratch)(const WinogradShape& s, int threads);
  int64_t (*gradient_scratch)(const WinogradShape& s, int threads);
  // u [weight_floats(c, k)], aligned to 64 bytes, from w [k,c,3,3], for forward;
  void (*pack)(float* u, const float* w, int64_t c, int64_t k, int threads);
  // from w [c,k,3,3], for the gradient of x: forward with it takes dy [n,h,w,c] to dx [n,h,w,k].
  void (*pack_backward)(float* u, const float* w, int64_t c, int64_t k, int threads);
  // y is written whole. scratch: forward_scratch floats, aligned to 64 bytes.
  void (*forward)(T* y, const T* x, const float* u, const WinogradEnd& end, const WinogradShape& s,
                  float* scratch, int threads);
  // du [weight_floats(c, k)] += what these images add to the gradient of U, or = if `first`;
  // likewise db [k], the gradient of the bias, which may be null. scratch: gradient_scratch floats,
  // aligned to 64 bytes.
  void (*add_gradient)(float* du, float* db, const T* x, const T* dy, const WinogradShape& s,
                       bool first, float* scratch, int threads);
  // dw [k,c,3,3] from the sum of all images.
  void (*unpack_gradient)(float* dw, const float* du, int64_t c, int64_t k, int threads);
};

// The tile, then the type of pixels. Null functions where there is no fused multiply-add (the
// baseline); tiles of 7x7 have no gradient, which is fp32 and to be as accurate.
CONVOY_KERNELS(WinogradKernels<float>, winograd_kernels_4x4_fp32)
CONVOY_KERNELS(WinogradKernels<Bfloat16>, winograd_kernels_4x4_bf16)
CONVOY_KERNELS(WinogradKernels<Bfloat16>, winograd_kernels_7x4_bf16)
CONVOY_KERNELS(WinogradKernels<Bfloat16>, winograd_kernels_7x7_bf16)

}  // namespace convoy::ops
