// The passes over bytes of colour.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/core/isa.h"

namespace convoy::data {

constexpr int kFactorBits = 14;  // of a factor between 0 and 2, and of what is added to a level
constexpr int kGreyBits = 16;    // of a level of grey

// Everything rounded to the nearest byte and clamped. n: pixels of three bytes.
struct ColourKernels {
  void (*add)(uint8_t* rgb, size_t n, const int amounts[3]);
  // factor x + offset, for any bytes.
  void (*scale)(uint8_t* x, size_t bytes, int32_t factor, int32_t offset);
  // Sum of 0.2989 R + 0.587 G + 0.114 B.
  uint64_t (*grey_sum)(const uint8_t* rgb, size_t n);
  // factor x + (1 - factor) grey.
  void (*saturate)(uint8_t* rgb, size_t n, int32_t factor);
  // Hue of HSV plus `sixths` of a circle, from -3 to 3.
  void (*turn_hue)(uint8_t* rgb, size_t n, float sixths);
};

CONVOY_KERNELS(ColourKernels, colour_kernels)

}  // namespace convoy::data
