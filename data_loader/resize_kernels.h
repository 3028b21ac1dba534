// The two passes of resize.h over the bytes of an image, and the tables that they read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/core/isa.h"

namespace convoy::data {

// Weights are Pillow's: units of 2^-22, never negative.
constexpr int kWeightBits = 32 - 8 - 2;

// Output lane i of a row is channel i % channels of pixel i / channels; it filters the bytes of its
// channel in the source pixels [first, first + taps), counted from the row's start.
struct RowFilter {
  int count = 0;                     // output pixels
  int channels = 0;                  // 1 or 3
  int taps = 0;                      // even; the same for all pixels, filled up with zero weights
  const int32_t* first = nullptr;    // [count]
  const int32_t* weights = nullptr;  // [count, taps]
  // What prepare() makes of it; memory of row_table_words(), 64-byte aligned.
  uint32_t* table = nullptr;
  int32_t* offsets = nullptr;  // [count * channels + 16]
  bool windows = false;        // 64 source bytes hold all that 16 lanes filter
};

constexpr size_t row_table_words(size_t count, size_t channels, size_t taps) {
  return (count * channels + 32) * taps / 2 * 3;
}

// Bytes behind a row that filter_rows() may read; their values do not matter.
constexpr size_t row_slack_bytes(size_t taps, size_t channels) {
  return taps * channels + 64;
}

// After the first pass, two rows are one: lane i holds their bytes i in its lower and upper half.
// A pass writes up to 16 lanes behind the last.
struct ResizeKernels {
  // One axis, Pillow's arithmetic: output pixel o has its centre at origin + (first_output + o +
  // 0.5) * scale of `size` source pixels and filters [first, end) of them [count]. Returns the
  // largest number of taps.
  int (*find_taps)(int32_t* first, int32_t* end, int count, double origin, double scale,
                   int first_output, int size);
  // weights [count, taps], zero from `end` on; sums [count] is working memory.
  void (*make_weights)(int32_t* weights, double* sums, const int32_t* first, const int32_t* end,
                       int count, int taps, double origin, double scale, int first_output);
  void (*prepare)(RowFilter& filter);
  // Filters four rows into two pairs: (rows[0], rows[1]) and (rows[2], rows[3]).
  void (*filter_rows)(uint32_t* const pairs[2], const uint8_t* const rows[4],
                      const RowFilter& filter);
  // out [lanes]: the weighted sum of `count` pairs, with two weights each.
  void (*filter_columns)(uint8_t* out, const uint32_t* const* pairs, const int32_t* weights,
                         int count, size_t lanes);
};

CONVOY_KERNELS(ResizeKernels, resize_kernels)

}  // namespace convoy::data
