// The inner loops of data_loader/baseline_jpeg.h: Huffman decoding, inverse DCT, chroma upsampling,
// colour conversion. Every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/core/isa.h"

namespace convoy::data {

// ---- Huffman tables ----

// Codes by length, left-aligned to 16 bits: code c of length l is of symbol
// symbols[(c >> (16 - l)) + offset[l]], where l is the smallest with c < limit[l].
struct HuffmanCode {
  uint32_t limit[17];
  int32_t offset[17];
  uint8_t symbols[256];
};

constexpr int kDcPeekBits = 9;
constexpr int kAcPeekBits = 10;
constexpr int kMaxDcSize = 11, kMaxAcSize = 10;  // bits of a value in 8-bit images

// Entry: bits of code and value (6 bits) | length of the code << 6 | bits of the value << 11; 0
// where the code is longer than the index or not allowed.
struct DcTable {
  HuffmanCode code;
  uint16_t entries[1 << kDcPeekBits];
};

struct AcCoefficient {
  uint8_t advance = 64;  // in zigzag order, from where the entry begins; 64: there is none
  uint8_t before = 0;    // bits before its value
  uint8_t shift = 63;    // 64 - bits of its value
};
// What the next kAcPeekBits bits begin with: up to two coefficients and the end of the block, as
// far as their codes are known. The values are read from the bits, of which the last one may need
// more.
struct AcEntry {
  uint8_t bits = 0;             // of all codes and values
  uint8_t advance;              // in zigzag order; + kEndOfBlock; or kNotInTable
  AcCoefficient first, second;  // the first one twice where there is one
};
struct AcTable {
  HuffmanCode code;
  AcEntry entries[1 << kAcPeekBits];
  // For blocks that are passed over, of any number of coefficients: AcEntry's bits | advance << 8.
  uint16_t skips[1 << kAcPeekBits];
};
constexpr uint32_t kNotInTable = 64, kEndOfBlock = 128;

// ---- Coefficients ----

// A block holds its 64 quantised coefficients in the order in which the inverse DCT multiplies
// them: pairs of rows (0, 4), (2, 6), (1, 3), (5, 7), each as the columns 0 4 2 6 1 3 5 7 of two
// values.
constexpr int kBlock = 64;
struct BlockPlaces {
  uint8_t natural[kBlock];  // 8 v + u -> where the coefficient of row v and column u is
  // Zigzag index -> the same. Behind its end: the first place of the next block, which is not
  // decoded yet.
  uint8_t zigzag[2 * kBlock];
};
constexpr BlockPlaces make_block_places() {
  constexpr int kPair[8] = {0, 2, 1, 2, 0, 3, 1, 3}, kSecond[8] = {0, 0, 0, 1, 1, 0, 1, 1};
  constexpr int kLane[8] = {0, 4, 2, 5, 1, 6, 3, 7};
  BlockPlaces places{};
  for (int v = 0; v < 8; ++v)
    for (int u = 0; u < 8; ++u)
      places.natural[8 * v + u] = static_cast<uint8_t>(kPair[v] * 16 + kLane[u] * 2 + kSecond[v]);
  for (int k = 0, u = 0, v = 0; k < kBlock; ++k) {
    places.zigzag[k] = places.natural[8 * v + u];
    places.zigzag[kBlock + k] = kBlock;
    const bool is_rising = (u + v) % 2 == 0;  // to the upper right
    int& forwards = is_rising ? u : v;
    int& backwards = is_rising ? v : u;
    if (forwards == 7) {
      ++backwards;
    } else {
      ++forwards;
      if (backwards > 0) --backwards;
    }
  }
  return places;
}
constexpr BlockPlaces kBlockPlaces = make_block_places();
constexpr int kMaxQuantisation = 32767;

// One block of an MCU.
struct McuBlock {
  const DcTable* dc = nullptr;
  const AcTable* ac = nullptr;
  int component = 0;
  bool dc_only = false;  // the AC coefficients are not wanted
};

// Where a decoder is in entropy-coded bytes without stuffing.
struct EntropyState {
  const uint8_t* next = nullptr;  // byte to load next
  const uint8_t* end = nullptr;   // kEntropyPadding bytes follow
  uint64_t bits = 0;              // the next `count` bits, highest first
  uint32_t count = 0;
  uint32_t dc[3] = {};  // predictions
};
constexpr size_t kEntropyPadding = 4096;

// How an 8x8 inverse DCT is done: into 8x8, 4x4, 2x2 or 1x1 pixels.
struct BlockRow {
  const int16_t* coefficients = nullptr;  // first block; the next one is `step` blocks further
  const uint8_t* last = nullptr;          // zigzag index of the last coefficient that is not 0
  int step = 0;
  int count = 0;
  const uint16_t* quantisation = nullptr;  // [64] in the order of a block
  uint8_t* out = nullptr;
  int out_step = 0;  // pixels from one block to the next
  size_t stride = 0;
};

struct BaselineJpegKernels {
  // Decodes `mcus` MCUs of `n` blocks. coefficients [mcus * n + 1][64] and last [mcus * n]; without
  // coefficients, the MCUs are passed over. False for what a plain baseline file does not have.
  bool (*decode)(EntropyState& state, const McuBlock* blocks, int n, int mcus,
                 int16_t* coefficients, uint8_t* last);
  // False where a value is so large that implementations differ.
  bool (*idct)(const BlockRow& row, int size);
  // out [2 n] = triangle filter of in [n]; in[-1] and in[n] are read.
  void (*upsample_h2v1)(uint8_t* out, const uint8_t* in, int n);
  // The same of 3/4 near + 1/4 far; sums [n + 2] is working memory.
  void (*upsample_h2v2)(uint8_t* out, const uint8_t* near, const uint8_t* far, uint16_t* sums,
                        int n);
  // out [n][3]
  void (*ycc_to_rgb)(uint8_t* out, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int n);
};

CONVOY_KERNELS(BaselineJpegKernels, baseline_jpeg_kernels)

}  // namespace convoy::data
