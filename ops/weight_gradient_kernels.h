// The gradient of a convolution's weights in bf16 as a matrix product, for processors whose bf16
// products are AVX-512's: dw [K, C] of each position in the window is the sum over all output
// pixels of dy [K] x [C], two pixels an instruction.
//
// x and dy NHWC in bf16, sums in fp32, without groups, channels in multiples of
// kWeightGradientChannels. Every sum runs in an order that depends on the shape alone, so threads
// change no bit.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

constexpr int64_t kWeightGradientChannels = 16;

struct WeightGradientShape {
  int64_t pixels;        // of y, all images
  int64_t image_pixels;  // of y, one image
  int64_t image_x;       // elements of x of one image
  int64_t c, k, window;  // channels of x and y, positions in the window
  // Per position and pixel of an image: the element of x's image under it; -1: in the padding.
  const int32_t* offsets;
};

struct WeightGradientKernels {
  size_t (*scratch_bytes)(const WeightGradientShape& s, int threads);
  // sum [k, window, c] += what these images add, or = if `first`. scratch: aligned to 64 bytes.
  void (*add)(float* sum, const Bfloat16* x, const Bfloat16* dy, const WeightGradientShape& s,
              bool first, void* scratch, int threads);
  // dw [k, c, window] from the sum of all images.
  void (*unpack)(float* dw, const float* sum, const WeightGradientShape& s, int threads);
};

// Null functions but for Isa::kAvx512Bf16.
CONVOY_KERNELS(WeightGradientKernels, weight_gradient_kernels_bf16)

}  // namespace convoy::ops
