// 3x3 convolution with stride 1 and padding 1 as Winograd's F(2x2, 3x3) (Lavin and Gray 2015,
// arXiv:1509.09308), fp32, NHWC: each 2x2 tile of y takes 16 products per pair of channels, not 36.
//
//   U = G g G^T      weights, packed once per step
//   V = B^T d B      4x4 pixels of x around each tile, zeros outside
//   y = A^T (U V) A  the product summed over the input channels, for each of the 16 elements
//
// Channels are multiples of kWinogradChannels. Every sum runs in an order that depends on the shape
// alone, so threads and blocks change no bit, and forward gives an image the same bits in any
// batch. Infinities come out as NaN: transforms subtract.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"

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

struct WinogradKernels {
  // Floats of scratch memory of forward and of add_gradient.
  int64_t (*forward_scratch)(const WinogradShape& s, int threads);
  int64_t (*gradient_scratch)(const WinogradShape& s, int threads);
  // u [16 * c * k floats], aligned to 64 bytes, from w [k,c,3,3], for forward;
  void (*pack)(float* u, const float* w, int64_t c, int64_t k, int threads);
  // from w [c,k,3,3], for the gradient of x: forward with it takes dy [n,h,w,c] to dx [n,h,w,k].
  void (*pack_backward)(float* u, const float* w, int64_t c, int64_t k, int threads);
  // y is written whole. scratch: forward_scratch floats, aligned to 64 bytes.
  void (*forward)(float* y, const float* x, const float* u, const WinogradEnd& end,
                  const WinogradShape& s, float* scratch, int threads);
  // du [16 * c * k floats] += what these images add to the gradient of U, or = if `first`; likewise
  // db [k], the gradient of the bias, which may be null.
  // scratch: gradient_scratch floats, aligned to 64 bytes.
  void (*add_gradient)(float* du, float* db, const float* x, const float* dy,
                       const WinogradShape& s, bool first, float* scratch, int threads);
  // dw [k,c,3,3] from the sum of all images.
  void (*unpack_gradient)(float* dw, const float* du, int64_t c, int64_t k, int threads);
};

// Null functions where there is no fused multiply-add (the baseline).
CONVOY_KERNELS(WinogradKernels, winograd_kernels_fp32)

}  // namespace convoy::ops
