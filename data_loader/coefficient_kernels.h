// The inner loops of data_loader/coefficient_file.h. Every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "data_loader/baseline_jpeg_kernels.h"
#include "ops/core/isa.h"

namespace convoy::data {

// A row of blocks of one component, as it is stored:
//
// First, for each 8 blocks, a byte w and w bytes: 8 numbers of w bits, what is to be added to the
// first coefficient of the block before (of the first block: to 0).
//
// Then each block's other coefficients, in zigzag order, in n groups of 8 (the last of eight has a
// 0 in place of a 65th): n (4 bits), then for each group its w (4 bits), rounded up to bytes; then
// for each group w bytes, 8 numbers of w bits. Behind the n-th group all are 0.
//
// Numbers are in two's complement, the first one in the lowest bits, and w is 0 to 10 or 12: with
// such widths a number lies in two neighbouring bytes.
constexpr int kGroup = 8;
constexpr int kMaxGroups = 8;
constexpr bool is_width(int w) {
  return w >= 0 && w <= 12 && w != 11;
}

struct CoefficientRow {
  const uint8_t* begin = nullptr;
  const uint8_t* end = nullptr;  // kCoefficientPadding bytes follow
  int blocks = 0;
  // Of them, [first, last) are wanted: block first + i is out + (i / h * step + i % h) blocks
  // further.
  int first = 0, last = 0;
  int h = 1, step = 1;
  int16_t* out = nullptr;
  uint8_t* is_more = nullptr;  // a byte for each block: 0 where no coefficient but the first one is
  bool dc_only = false;        // the others are not wanted, and not written
  int16_t* first_ones = nullptr;  // working memory for `blocks` + kGroup numbers
};
// So much behind its end may be read, whatever the bytes.
constexpr size_t kCoefficientPadding = 256;

struct CoefficientKernels {
  // Where the blocks behind those that are wanted begin, which is `end` where these are the last;
  // nullptr: not such a row. All 64 places of a block are written, in BlockPlaces' order, unless
  // dc_only.
  const uint8_t* (*decode)(const CoefficientRow& row);
};

CONVOY_KERNELS(CoefficientKernels, coefficient_kernels)

}  // namespace convoy::data
