#include "data_loader/baseline_jpeg_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define CONVOY_INLINE [[gnu::always_inline]] static inline

namespace convoy::data::CONVOY_ISA {
namespace {

// ---- Huffman decoding ----

// Nothing to gain from AVX-512 here, and GCC 12 would do some of these integers in mask registers.
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("no-avx512f")
#endif

CONVOY_INLINE uint64_t load_big_endian(const uint8_t* p) {
  uint64_t x;
  __builtin_memcpy(&x, p, sizeof x);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  x = __builtin_bswap64(x);
#endif
  return x;
}

struct Bits {
  const uint8_t* next;
  uint64_t bits;
  uint32_t count;
};

// 56 bits or more.
CONVOY_INLINE void refill(Bits& in) {
  in.bits |= load_big_endian(in.next) >> in.count;
  in.next += (63 - in.count) >> 3;
  in.count |= 56;
}

CONVOY_INLINE void drop(Bits& in, uint64_t n) {  // of n, the lowest 6 bits
  in.bits <<= n & 63;
  in.count -= static_cast<uint32_t>(n & 63);
}

// The value in the highest `64 - shift` bits, at least one: JPEG's numbers with the sign in the
// first bit (ITU-T T.81, F.2.2.1).
CONVOY_INLINE int32_t value_of(uint64_t bits, uint64_t shift) {
  const uint64_t positive = static_cast<uint64_t>(static_cast<int64_t>(bits) >> 63);
  const uint64_t value = bits >> (shift & 63);
  return static_cast<int32_t>(value - (~positive & (~uint64_t{0} >> (shift & 63))));
}

struct Symbol {
  int length = 0;  // 0: no code begins so
  uint8_t value = 0;
};
CONVOY_INLINE Symbol slow_symbol(const HuffmanCode& code, uint64_t bits) {
  const uint32_t next = static_cast<uint32_t>(bits >> 48);
  for (int length = 1; length <= 16; ++length)
    if (next < code.limit[length])
      return {length,
              code.symbols[static_cast<int32_t>(next >> (16 - length)) + code.offset[length]]};
  return {};
}

// Adds the difference to `prediction`; takes at most 27 bits.
CONVOY_INLINE bool decode_dc(Bits& in, const DcTable& table, uint32_t& prediction) {
  const uint32_t entry = table.entries[in.bits >> (64 - kDcPeekBits)];
  uint32_t length = entry >> 6 & 31, size = entry >> 11;
  if (__builtin_expect(entry == 0, 0)) {
    const Symbol symbol = slow_symbol(table.code, in.bits);
    if (symbol.length == 0 || symbol.value > kMaxDcSize) return false;
    length = static_cast<uint32_t>(symbol.length);
    size = symbol.value;
  }
  const uint64_t bits = in.bits << length;
  const uint64_t positive = static_cast<uint64_t>(static_cast<int64_t>(bits) >> 63);
  const uint64_t value = bits >> 1 >> (63 - size);
  prediction += static_cast<uint32_t>(value - (~positive & ((uint64_t{1} << size) - 1)));
  drop(in, length + size);
  return true;
}

CONVOY_INLINE void put(int16_t* block, uint64_t k, const AcCoefficient& at, uint64_t bits) {
  block[kBlockPlaces.zigzag[k + at.advance]] =
      static_cast<int16_t>(value_of(bits << (at.before & 63), at.shift));
}

CONVOY_INLINE void clear(int16_t* block) {
  typedef int64_t Half __attribute__((vector_size(16)));
  for (int i = 0; i < kBlock; i += 8) {
    const Half zeros = {};
    __builtin_memcpy(block + i, &zeros, sizeof zeros);
  }
}

enum class Step { kOn, kEnd, kBad };

struct Outcome {
  Bits in;
  uint64_t k;
  Step step;
};

// One symbol, by its code. Takes at most 26 bits. By value, so that the caller's are in registers.
template <bool kStore>
[[gnu::noinline]] Outcome slow_step(Bits in, const AcTable& table, int16_t* block, uint64_t k) {
  const Symbol symbol = slow_symbol(table.code, in.bits);
  if (symbol.length == 0) return {in, k, Step::kBad};
  const uint32_t run = symbol.value >> 4, size = symbol.value & 15;
  if (size == 0) {
    drop(in, static_cast<uint64_t>(symbol.length));
    if (run == 0) return {in, k, Step::kEnd};
    k += 16;
    return {in, k, run == 15 && k < 63 ? Step::kOn : Step::kBad};
  }
  k += run + 1;
  if (k > 63 || size > kMaxAcSize) return {in, k, Step::kBad};
  if constexpr (kStore)
    block[kBlockPlaces.zigzag[k]] =
        static_cast<int16_t>(value_of(in.bits << symbol.length, 64 - size));
  drop(in, static_cast<uint64_t>(symbol.length) + size);
  return {in, k, k == 63 ? Step::kEnd : Step::kOn};
}

// What the table knows of the next bits; k is the zigzag index of the last coefficient, below 63.
// Takes at most 26 bits.
template <bool kStore>
CONVOY_INLINE Step step(Bits& in, const AcTable& table, int16_t* block, uint64_t& k) {
  const uint64_t index = in.bits >> (64 - kAcPeekBits);
  const AcEntry& entry = table.entries[index];
  const uint32_t skip = table.skips[index];
  const uint64_t next = k + (kStore ? entry.advance : skip >> 8);
  const bool is_last = __builtin_expect(next >= 63, 0);
  if (is_last) {
    // An entry with coefficients behind the 63rd has taken the next block's bits for this one's.
    const bool ends = next >= kEndOfBlock ? next < kEndOfBlock + 63 : next == 63;
    if (__builtin_expect(!ends, 0)) {
      const Outcome outcome = slow_step<kStore>(in, table, block, k);
      in = outcome.in;
      k = outcome.k;
      return outcome.step;
    }
  }
  if constexpr (kStore) {
    put(block, k, entry.first, in.bits);
    put(block, k, entry.second, in.bits);
  }
  drop(in, kStore ? entry.bits : skip);
  k = next & 127;
  return is_last ? Step::kEnd : Step::kOn;
}

// Takes at most 26 bits before the first refill. k: as step().
template <bool kStore>
CONVOY_INLINE bool decode_ac(Bits& in, const AcTable& table, int16_t* block, uint64_t& k) {
  Step what = step<kStore>(in, table, block, k);
  while (what == Step::kOn) {
    refill(in);
    what = step<kStore>(in, table, block, k);
    if (what != Step::kOn) break;
    what = step<kStore>(in, table, block, k);
  }
  return what == Step::kEnd;
}

bool decode(EntropyState& state, const McuBlock* blocks, int n, int mcus, int16_t* coefficients,
            uint8_t* last) {
  Bits in{state.next, state.bits, state.count};
  for (int mcu = 0; mcu < mcus; ++mcu) {
    if (in.next > state.end + 8) return false;
    for (int i = 0; i < n; ++i) {
      const McuBlock& what = blocks[i];
      refill(in);
      uint32_t& dc = state.dc[what.component];
      if (!decode_dc(in, *what.dc, dc)) return false;
      uint64_t k = 0;
      if (coefficients == nullptr) {
        if (!decode_ac<false>(in, *what.ac, nullptr, k)) return false;
        continue;
      }
      const int16_t value = static_cast<int16_t>(dc);
      if (value != static_cast<int32_t>(dc)) return false;
      if (what.dc_only) {
        if (!decode_ac<false>(in, *what.ac, nullptr, k)) return false;
        k = 0;
      } else {
        clear(coefficients);
        if (!decode_ac<true>(in, *what.ac, coefficients, k)) return false;
      }
      coefficients[0] = value;
      *last++ = static_cast<uint8_t>(k);
      coefficients += kBlock;
    }
  }
  state.next = in.next;
  state.bits = in.bits;
  state.count = in.count;
  return true;
}

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC pop_options
#endif

// ---- Inverse DCT ----
// Loeffler, Ligtenberg, Moschytz 1989 as in libjpeg: constants of 13 bits, columns first, results
// of the first pass with 2 more bits. Between the roundings all is exact, so that only the sums
// below matter, not their order.

constexpr int kConstBits = 13, kPass1Bits = 2;
constexpr int fix(double x) {
  return static_cast<int>(x * (1 << kConstBits) + (x < 0 ? -0.5 : 0.5));
}

// The outputs are: out[k] = even[k] + odd[k], out[7 - k] = even[k] - odd[k].
// even: in[0] +- in[4] and kA, kB of (in[2], in[6]); odd: of (in[1], in[3], in[5], in[7]).
constexpr int kA2 = fix(0.541196100) + fix(0.765366865), kA6 = fix(0.541196100);
constexpr int kB2 = fix(0.541196100), kB6 = fix(0.541196100) - fix(1.847759065);
constexpr int kOdd[4][4] = {
    {fix(1.501321110) - fix(0.899976223) - fix(0.390180644) + fix(1.175875602), fix(1.175875602),
     fix(1.175875602) - fix(0.390180644), fix(1.175875602) - fix(0.899976223)},
    {fix(1.175875602), fix(3.072711026) - fix(2.562915447) - fix(1.961570560) + fix(1.175875602),
     fix(1.175875602) - fix(2.562915447), fix(1.175875602) - fix(1.961570560)},
    {fix(1.175875602) - fix(0.390180644), fix(1.175875602) - fix(2.562915447),
     fix(2.053119869) - fix(2.562915447) - fix(0.390180644) + fix(1.175875602), fix(1.175875602)},
    {fix(1.175875602) - fix(0.899976223), fix(1.175875602) - fix(1.961570560), fix(1.175875602),
     fix(0.298631336) - fix(0.899976223) - fix(1.961570560) + fix(1.175875602)}};

// Half and quarter size (libjpeg's jidctred.c), of in[1], in[3], in[5], in[7]; in[4] is not used.
constexpr int kHalf2 = fix(1.847759065), kHalf6 = -fix(0.765366865);
constexpr int kHalfOdd[2][4] = {
    {fix(2.562915447), fix(0.899976223), -fix(0.601344887), -fix(0.509795579)},
    {fix(1.061594337), -fix(2.172734803), fix(1.451774981), -fix(0.211164243)}};
constexpr int kQuarterOdd[4] = {fix(3.624509785), -fix(1.272758580), fix(0.850430095),
                                -fix(0.720959822)};

// Beyond this, the 16-bit arithmetic of libjpeg's vector code may overflow where its plain code
// does not; real images stay far below.
constexpr int kMaxMagnitude = 8191;

CONVOY_INLINE int clamp(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}
CONVOY_INLINE uint8_t to_pixel(int x) {
  return static_cast<uint8_t>(clamp(x + 128, 0, 255));
}
[[maybe_unused]] CONVOY_INLINE int descale(int x, int bits) {
  return (x + (1 << (bits - 1))) >> bits;
}

CONVOY_INLINE bool fits(int x) {
  return -kMaxMagnitude - 1 <= x && x <= kMaxMagnitude;
}

// False where one is too large.
CONVOY_INLINE bool dc_pixels(const int16_t* block, const BlockRow& row, uint8_t* out, int size) {
  const int dc = block[0] * row.quantisation[0];
  if (!fits(dc)) return false;
  int pixel = (dc + 4) >> 3;
  // libjpeg looks 1x1 up in a table by the lowest 10 bits.
  if (size == 1) pixel = ((pixel + 512) & 1023) - 512;
  const uint8_t value = to_pixel(pixel);
  for (int y = 0; y < size; ++y)
    __builtin_memset(out + static_cast<size_t>(y) * row.stride, value, static_cast<size_t>(size));
  return true;
}

// One pass over one line of 8 values `in[u]`, into kSize values before rounding.
template <int kSize>
CONVOY_INLINE void transform(int* out, const int* in) {
  if constexpr (kSize == 8) {
    const int a = in[2] * kA2 + in[6] * kA6, b = in[2] * kB2 + in[6] * kB6;
    const int sum = (in[0] + in[4]) * (1 << kConstBits),
              difference = (in[0] - in[4]) * (1 << kConstBits);
    const int even[4] = {sum + a, difference + b, difference - b, sum - a};
    for (int k = 0; k < 4; ++k) {
      const int odd =
          in[1] * kOdd[k][0] + in[3] * kOdd[k][1] + in[5] * kOdd[k][2] + in[7] * kOdd[k][3];
      out[k] = even[k] + odd;
      out[7 - k] = even[k] - odd;
    }
  } else if constexpr (kSize == 4) {
    const int a = in[2] * kHalf2 + in[6] * kHalf6, sum = in[0] * (2 << kConstBits);
    const int even[2] = {sum + a, sum - a};
    for (int k = 0; k < 2; ++k) {
      const int odd = in[1] * kHalfOdd[k][0] + in[3] * kHalfOdd[k][1] + in[5] * kHalfOdd[k][2] +
                      in[7] * kHalfOdd[k][3];
      out[k] = even[k] + odd;
      out[3 - k] = even[k] - odd;
    }
  } else {
    const int odd = in[1] * kQuarterOdd[0] + in[3] * kQuarterOdd[1] + in[5] * kQuarterOdd[2] +
                    in[7] * kQuarterOdd[3];
    out[0] = in[0] * (4 << kConstBits) + odd;
    out[1] = in[0] * (4 << kConstBits) - odd;
  }
}

// One block with plain arithmetic; false where a value is too large.
template <int kSize>
CONVOY_INLINE bool plain_block(const int16_t* block, const BlockRow& row, uint8_t* out) {
  constexpr int kExtra = kSize == 8 ? 0 : kSize == 4 ? 1 : 2;
  int work[kSize][8];
  bool good = true;
  // Columns without a share in the pixels are looked at, too: every instruction set declines alike.
  for (int u = 0; u < 8; ++u) {
    int column[8], sums[kSize];
    for (int v = 0; v < 8; ++v) {
      const int at = kBlockPlaces.natural[8 * v + u];
      column[v] = block[at] * row.quantisation[at];
      good &= fits(column[v]);
    }
    if (!good) return false;
    transform<kSize>(sums, column);
    for (int y = 0; y < kSize; ++y) {
      work[y][u] = descale(sums[y], kConstBits - kPass1Bits + kExtra);
      good &= fits(work[y][u]);
    }
  }
  if (!good) return false;
  for (int y = 0; y < kSize; ++y) {
    if (kSize == 4) work[y][4] = 0;
    if (kSize == 2) work[y][2] = work[y][4] = work[y][6] = 0;
    int sums[kSize];
    transform<kSize>(sums, work[y]);
    for (int x = 0; x < kSize; ++x)
      out[static_cast<size_t>(y) * row.stride + static_cast<size_t>(x)] =
          to_pixel(descale(sums[x], kConstBits + kPass1Bits + 3 + kExtra));
  }
  return true;
}

template <int kSize>
bool plain_idct(const BlockRow& row) {
  bool good = true;
  for (int i = 0; i < row.count; ++i) {
    const int16_t* block = row.coefficients + static_cast<ptrdiff_t>(i) * row.step * kBlock;
    uint8_t* out = row.out + static_cast<ptrdiff_t>(i) * row.out_step;
    if (kSize == 1 || row.last[static_cast<ptrdiff_t>(i) * row.step] == 0)
      good &= dc_pixels(block, row, out, kSize);
    else if constexpr (kSize > 1)
      good &= plain_block<kSize>(block, row, out);
  }
  return good;
}

#if defined(__AVX2__)

// One block in registers: 8 lanes are columns, then rows.
struct Pairs {
  __m256i p04, p26, p13, p57;
};

CONVOY_INLINE __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
// Multiplies pairs: (a, b) gives even * a + odd * b.
CONVOY_INLINE __m256i by(__m256i pairs, int a, int b) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi32(b * 65536 + (a & 0xffff)));
}

// Gathers what must be 0 where all values are within kMaxMagnitude.
struct Excess {
  __m256i product = _mm256_setzero_si256(), sum = _mm256_setzero_si256();

  [[gnu::always_inline]] void note_product(__m256i low, __m256i high) {
    product = _mm256_or_si256(product, _mm256_xor_si256(high, _mm256_srai_epi16(low, 15)));
    note(low);
  }
  // The three highest bits differ.
  [[gnu::always_inline]] void note(__m256i x) {
    sum = _mm256_or_si256(sum, _mm256_or_si256(_mm256_xor_si256(x, _mm256_slli_epi16(x, 1)),
                                               _mm256_xor_si256(x, _mm256_slli_epi16(x, 2))));
  }
  [[gnu::always_inline]] bool none() const {
    return _mm256_testz_si256(product, product) != 0 &&
           _mm256_testz_si256(sum, _mm256_set1_epi16(INT16_MIN)) != 0;
  }
};

CONVOY_INLINE __m256i dequantise(const int16_t* c, const uint16_t* q, Excess& excess) {
  const __m256i a = load(c), b = load(q), low = _mm256_mullo_epi16(a, b);
  excess.note_product(low, _mm256_mulhi_epi16(a, b));
  return low;
}
CONVOY_INLINE Pairs dequantise_block(const int16_t* c, const uint16_t* q, Excess& excess) {
  return {dequantise(c, q, excess), dequantise(c + 16, q + 16, excess),
          dequantise(c + 32, q + 32, excess), dequantise(c + 48, q + 48, excess)};
}

// out[k]: as transform(), rounded and shifted.
template <int kSize, int kShift>
CONVOY_INLINE void transform_pairs(__m256i* out, const Pairs& in) {
  const __m256i half = _mm256_set1_epi32(1 << (kShift - 1));
  __m256i even[4], odd[4];
  if constexpr (kSize == 8) {
    const __m256i a = by(in.p26, kA2, kA6), b = by(in.p26, kB2, kB6);
    const __m256i sum = _mm256_add_epi32(by(in.p04, 1 << kConstBits, 1 << kConstBits), half);
    const __m256i difference =
        _mm256_add_epi32(by(in.p04, 1 << kConstBits, -(1 << kConstBits)), half);
    even[0] = _mm256_add_epi32(sum, a);
    even[1] = _mm256_add_epi32(difference, b);
    even[2] = _mm256_sub_epi32(difference, b);
    even[3] = _mm256_sub_epi32(sum, a);
    for (int k = 0; k < 4; ++k)
      odd[k] =
          _mm256_add_epi32(by(in.p13, kOdd[k][0], kOdd[k][1]), by(in.p57, kOdd[k][2], kOdd[k][3]));
  } else if constexpr (kSize == 4) {
    const __m256i a = by(in.p26, kHalf2, kHalf6);
    const __m256i sum = _mm256_add_epi32(by(in.p04, 2 << kConstBits, 0), half);
    even[0] = _mm256_add_epi32(sum, a);
    even[1] = _mm256_sub_epi32(sum, a);
    for (int k = 0; k < 2; ++k)
      odd[k] = _mm256_add_epi32(by(in.p13, kHalfOdd[k][0], kHalfOdd[k][1]),
                                by(in.p57, kHalfOdd[k][2], kHalfOdd[k][3]));
  } else {
    even[0] = _mm256_add_epi32(_mm256_slli_epi32(by(in.p04, 2 << kConstBits, 0), 1), half);
    odd[0] = _mm256_add_epi32(by(in.p13, kQuarterOdd[0], kQuarterOdd[1]),
                              by(in.p57, kQuarterOdd[2], kQuarterOdd[3]));
  }
  for (int k = 0; k < kSize / 2; ++k) {
    out[k] = _mm256_srai_epi32(_mm256_add_epi32(even[k], odd[k]), kShift);
    out[kSize - 1 - k] = _mm256_srai_epi32(_mm256_sub_epi32(even[k], odd[k]), kShift);
  }
}

template <int kWhich>
CONVOY_INLINE __m256i shuffle_words(__m256i a, __m256i b) {
  return _mm256_castps_si256(
      _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), kWhich));
}

// From lanes of columns to lanes of rows: `rows` hold two rows each, of which a 128-bit half has
// the pairs of columns (0, 4), (2, 6), the other one (1, 3), (5, 7).
CONVOY_INLINE Pairs turn(__m256i rows01, __m256i rows23, __m256i rows45, __m256i rows67) {
  constexpr int kEven = 0x88, kUneven = 0xdd;
  const __m256i a03 = shuffle_words<kEven>(rows01, rows23);
  const __m256i a47 = shuffle_words<kEven>(rows45, rows67);
  const __m256i b03 = shuffle_words<kUneven>(rows01, rows23);
  const __m256i b47 = shuffle_words<kUneven>(rows45, rows67);
  return {_mm256_permute2x128_si256(a03, a47, 0x20), _mm256_permute2x128_si256(b03, b47, 0x20),
          _mm256_permute2x128_si256(a03, a47, 0x31), _mm256_permute2x128_si256(b03, b47, 0x31)};
}

CONVOY_INLINE void put8(uint8_t* out, __m128i x) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), x);
}

CONVOY_INLINE void store_8x8(uint8_t* out, size_t stride, const __m256i* columns) {
  // Bytes of columns 0-3 and 4-7; a 128-bit half has rows 0-3 or 4-7.
  __m256i bytes[2];
  for (ptrdiff_t i = 0; i < 2; ++i)
    bytes[i] = _mm256_packs_epi16(_mm256_packs_epi32(columns[4 * i], columns[4 * i + 1]),
                                  _mm256_packs_epi32(columns[4 * i + 2], columns[4 * i + 3]));
  const __m256i turned = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0,
                                          4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (__m256i& half : bytes)
    half = _mm256_shuffle_epi8(_mm256_xor_si256(half, _mm256_set1_epi8(INT8_MIN)), turned);
  const __m256i rows0145 = _mm256_unpacklo_epi32(bytes[0], bytes[1]);
  const __m256i rows2367 = _mm256_unpackhi_epi32(bytes[0], bytes[1]);
  const auto put = [out, stride](int y, __m128i x) {
    uint8_t* const row = out + static_cast<size_t>(y) * stride;
    put8(row, x);
    put8(row + stride, _mm_unpackhi_epi64(x, x));
  };
  put(0, _mm256_castsi256_si128(rows0145));
  put(2, _mm256_castsi256_si128(rows2367));
  put(4, _mm256_extracti128_si256(rows0145, 1));
  put(6, _mm256_extracti128_si256(rows2367, 1));
}

// Pixels of kSize columns, whose lanes are rows: for the small sizes, whose pixels are few.
template <int kSize>
CONVOY_INLINE void store_small(uint8_t* out, size_t stride, const __m256i* columns) {
  alignas(32) int32_t pixels[kSize][8];
  for (int x = 0; x < kSize; ++x)
    _mm256_store_si256(reinterpret_cast<__m256i*>(pixels[x]), columns[x]);
  for (int y = 0; y < kSize; ++y)
    for (int x = 0; x < kSize; ++x)
      out[static_cast<size_t>(y) * stride + static_cast<size_t>(x)] = to_pixel(pixels[x][y]);
}

template <int kSize>
CONVOY_INLINE void vector_block(const int16_t* block, const BlockRow& row, uint8_t* out,
                                Excess& excess) {
  constexpr int kExtra = kSize == 8 ? 0 : kSize == 4 ? 1 : 2;
  __m256i lines[8], packed[4];
  transform_pairs<kSize, kConstBits - kPass1Bits + kExtra>(
      lines, dequantise_block(block, row.quantisation, excess));
  for (ptrdiff_t i = 0; i < 4; ++i) {
    packed[i] =
        2 * i < kSize ? _mm256_packs_epi32(lines[2 * i], lines[2 * i + 1]) : _mm256_setzero_si256();
    excess.note(packed[i]);
  }
  transform_pairs<kSize, kConstBits + kPass1Bits + 3 + kExtra>(
      lines, turn(packed[0], packed[1], packed[2], packed[3]));
  if constexpr (kSize == 8)
    store_8x8(out, row.stride, lines);
  else
    store_small<kSize>(out, row.stride, lines);
}

template <int kSize>
bool vector_idct(const BlockRow& row) {
  Excess excess;
  bool good = true;
  for (int i = 0; i < row.count; ++i) {
    const int16_t* block = row.coefficients + static_cast<ptrdiff_t>(i) * row.step * kBlock;
    uint8_t* out = row.out + static_cast<ptrdiff_t>(i) * row.out_step;
    if (row.last[static_cast<ptrdiff_t>(i) * row.step] == 0)
      good &= dc_pixels(block, row, out, kSize);
    else
      vector_block<kSize>(block, row, out, excess);
  }
  return good && excess.none();
}

#else

template <int kSize>
bool vector_idct(const BlockRow& row) {
  return plain_idct<kSize>(row);
}

#endif

bool idct(const BlockRow& row, int size) {
  switch (size) {
    case 8:
      return vector_idct<8>(row);
    case 4:
      return vector_idct<4>(row);
    case 2:
      return vector_idct<2>(row);
    default:
      return plain_idct<1>(row);
  }
}

// ---- Upsampling and colour ----

void upsample_h2v1(uint8_t* out, const uint8_t* in, int n) {
  for (ptrdiff_t i = 0; i < n; ++i) {
    out[2 * i] = static_cast<uint8_t>((3 * in[i] + in[i - 1] + 1) >> 2);
    out[2 * i + 1] = static_cast<uint8_t>((3 * in[i] + in[i + 1] + 2) >> 2);
  }
}

void upsample_h2v2(uint8_t* __restrict__ out, const uint8_t* near, const uint8_t* far,
                   uint16_t* __restrict__ sums, int n) {
  for (int i = -1; i <= n; ++i) sums[i + 1] = static_cast<uint16_t>(3 * near[i] + far[i]);
  const uint16_t* const sum = sums + 1;
  for (ptrdiff_t i = 0; i < n; ++i) {
    out[2 * i] = static_cast<uint8_t>(static_cast<uint16_t>(3 * sum[i] + sum[i - 1] + 8) >> 4);
    out[2 * i + 1] = static_cast<uint8_t>(static_cast<uint16_t>(3 * sum[i] + sum[i + 1] + 7) >> 4);
  }
}

// Of ITU-R BT.601 with 16 bits (JFIF 1.02): 1.402, 0.34414, 0.71414, 1.772.
constexpr int kRed = 91881, kGreenBlue = 22554, kGreenRed = 46802, kBlue = 116130;

CONVOY_INLINE void plain_ycc_to_rgb(uint8_t* out, const uint8_t* y, const uint8_t* cb,
                                    const uint8_t* cr, ptrdiff_t begin, ptrdiff_t end) {
  for (ptrdiff_t i = begin; i < end; ++i) {
    const int luma = y[i], blue = cb[i] - 128, red = cr[i] - 128;
    out[3 * i] = static_cast<uint8_t>(clamp(luma + ((kRed * red + 32768) >> 16), 0, 255));
    out[3 * i + 1] = static_cast<uint8_t>(
        clamp(luma + ((-kGreenBlue * blue - kGreenRed * red + 32768) >> 16), 0, 255));
    out[3 * i + 2] = static_cast<uint8_t>(clamp(luma + ((kBlue * blue + 32768) >> 16), 0, 255));
  }
}

#if defined(__AVX2__)

CONVOY_INLINE __m256i widen(const uint8_t* p) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
CONVOY_INLINE __m128i narrow(__m256i x) {
  return _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
// (factor * x + 32768) >> 16 for |factor| < 32768 and small x.
CONVOY_INLINE __m256i scaled(__m256i x, int factor) {
  const __m256i product =
      _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(static_cast<int16_t>(factor)));
  return _mm256_srai_epi16(_mm256_add_epi16(product, _mm256_set1_epi16(1)), 1);
}

// Byte i of 48 is channel i % 3 of pixel i / 3.
struct Interleaving {
  int8_t pixel[3][48];  // by channel; -1 where the byte is another's
};
constexpr Interleaving make_interleaving() {
  Interleaving out{};
  for (int channel = 0; channel < 3; ++channel)
    for (int i = 0; i < 48; ++i)
      out.pixel[channel][i] = static_cast<int8_t>(i % 3 == channel ? i / 3 : -1);
  return out;
}
constexpr Interleaving kInterleaving = make_interleaving();

CONVOY_INLINE __m128i spread(__m128i x, int channel, int first) {
  return _mm_shuffle_epi8(
      x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(kInterleaving.pixel[channel] + first)));
}
// 16 pixels.
CONVOY_INLINE void store_rgb(uint8_t* out, __m128i r, __m128i g, __m128i b) {
  for (int i = 0; i < 48; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_or_si128(_mm_or_si128(spread(r, 0, i), spread(g, 1, i)), spread(b, 2, i)));
}

void ycc_to_rgb(uint8_t* out, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int n) {
  const __m256i middle = _mm256_set1_epi16(128), half = _mm256_set1_epi32(32768);
  // -kGreenRed = 65536 - kGreenRed, less one whole.
  const __m256i green = _mm256_set1_epi32((65536 - kGreenRed) * 65536 + (-kGreenBlue & 0xffff));
  ptrdiff_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i luma = widen(y + i), blue = _mm256_sub_epi16(widen(cb + i), middle),
                  red = _mm256_sub_epi16(widen(cr + i), middle);
    const __m256i r = _mm256_add_epi16(_mm256_add_epi16(luma, red), scaled(red, kRed - 65536));
    const __m256i b = _mm256_add_epi16(_mm256_add_epi16(luma, _mm256_add_epi16(blue, blue)),
                                       scaled(blue, kBlue - 2 * 65536));
    const auto greens = [&](__m256i pairs) {
      return _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(pairs, green), half), 16);
    };
    const __m256i g = _mm256_sub_epi16(
        _mm256_add_epi16(luma, _mm256_packs_epi32(greens(_mm256_unpacklo_epi16(blue, red)),
                                                  greens(_mm256_unpackhi_epi16(blue, red)))),
        red);
    store_rgb(out + 3 * i, narrow(r), narrow(g), narrow(b));
  }
  plain_ycc_to_rgb(out, y, cb, cr, i, n);
}

#else

void ycc_to_rgb(uint8_t* out, const uint8_t* y, const uint8_t* cb, const uint8_t* cr, int n) {
  plain_ycc_to_rgb(out, y, cb, cr, 0, n);
}

#endif

}  // namespace

const BaselineJpegKernels baseline_jpeg_kernels = {decode, idct, upsample_h2v1, upsample_h2v2,
                                                   ycc_to_rgb};

}  // namespace convoy::data::CONVOY_ISA
