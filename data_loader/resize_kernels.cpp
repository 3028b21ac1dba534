// Exact sums of bytes times 22-bit weights out of 16-bit products: a weight is high * 2^8 + low
// with high <= 2^14 and low < 2^8, each pair of neighbours one multiply-add (pmaddwd, vpdpwssd).
// Integers throughout, so every version has the same bits.
//
// The pass along rows filters four of them at a time, so that its tables (indices and weights, more
// bytes than the pixels) are read once for four. It finds a lane's taps
// - with AVX-512 VBMI by a byte permutation of a window of 64 source bytes, 16 lanes at once,
//   wherever the taps of 16 lanes fit (RGB shrunk by up to 2.5);
// - else with one 16-byte window and one fixed shuffle per output pixel, RGB only;
// - else, and without AVX2, one by one.
#include "data_loader/resize_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define CONVOY_INLINE [[gnu::always_inline]] static inline

// Products count bytes of a row or a block.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace convoy::data::CONVOY_ISA {
namespace {

constexpr int32_t kHalf = 1 << (kWeightBits - 1);
[[maybe_unused]] constexpr int kLowBits = 8;

CONVOY_INLINE uint32_t to_byte(int32_t sum) {
  const int32_t value = sum >> kWeightBits;
  return static_cast<uint32_t>(value > 255 ? 255 : value);
}

int find_taps(int32_t* first, int32_t* end, int count, double origin, double scale,
              int first_output, int size) {
  const double support = scale > 1.0 ? scale : 1.0;
  int most = 0;
  for (int o = 0; o < count; ++o) {
    const double center = origin + (first_output + o + 0.5) * scale;
    const int low = static_cast<int>(center - support + 0.5);
    const int high = static_cast<int>(center + support + 0.5);
    first[o] = low < 0 ? 0 : low;
    end[o] = high < size ? high : size;
    most = end[o] - first[o] > most ? end[o] - first[o] : most;
  }
  return most;
}

void make_weights(int32_t* weights, double* sums, const int32_t* first, const int32_t* end,
                  int count, int taps, double origin, double scale, int first_output) {
  const double inverse = 1.0 / (scale > 1.0 ? scale : 1.0);
  const auto exact = [=](int o, int k) {
    const double center = origin + (first_output + o + 0.5) * scale;
    const double distance = (first[o] + k - center + 0.5) * inverse;
    const double w = 1.0 - (distance < 0 ? -distance : distance);
    return w > 0 && first[o] + k < end[o] ? w : 0.0;
  };
  for (int o = 0; o < count; ++o) sums[o] = 0;
  for (int k = 0; k < taps; ++k)  // ascending: Pillow's order of each sum
    for (int o = 0; o < count; ++o) sums[o] += exact(o, k);
  for (int k = 0; k < taps; ++k)
    for (int o = 0; o < count; ++o)
      weights[o * taps + k] =
          static_cast<int32_t>(0.5 + exact(o, k) / sums[o] * (1 << kWeightBits));
}

template <int kChannels>
CONVOY_INLINE void rows_one_by_one(uint32_t* const pairs[2], const uint8_t* const rows[4],
                                   const RowFilter& filter) {
  constexpr int channels = kChannels;
  for (int r = 0; r < 4; ++r)
    for (int o = 0; o < filter.count; ++o) {
      const int32_t* weights = filter.weights + static_cast<ptrdiff_t>(o) * filter.taps;
      const uint8_t* taps = rows[r] + static_cast<ptrdiff_t>(filter.first[o]) * channels;
      uint32_t* to = pairs[r / 2] + static_cast<ptrdiff_t>(o) * channels;
      int32_t sums[3] = {kHalf, kHalf, kHalf};
      for (int k = 0; k < filter.taps; ++k, taps += channels)
        for (int c = 0; c < channels; ++c) sums[c] += taps[c] * weights[k];
      for (int c = 0; c < channels; ++c)
        to[c] = r % 2 == 0 ? to_byte(sums[c]) : to[c] | to_byte(sums[c]) << 16;
    }
}

void rows_plain(uint32_t* const pairs[2], const uint8_t* const rows[4], const RowFilter& filter) {
  if (filter.channels == 3)
    rows_one_by_one<3>(pairs, rows, filter);
  else
    rows_one_by_one<1>(pairs, rows, filter);
}

#if defined(__AVX2__)

// Two neighbours' weights as a pair of 16-bit numbers.
CONVOY_INLINE uint32_t high_pair(const int32_t* w) {
  return static_cast<uint32_t>(w[0] >> kLowBits) | static_cast<uint32_t>(w[1] >> kLowBits) << 16;
}
CONVOY_INLINE uint32_t low_pair(const int32_t* w) {
  constexpr int32_t kMask = (1 << kLowBits) - 1;
  return static_cast<uint32_t>(w[0] & kMask) | static_cast<uint32_t>(w[1] & kMask) << 16;
}

#if defined(__AVX512F__)
// maskz_...: with a mask of all lanes, as GCC 12 warns of the undefined operand that the plain ones
// have.
typedef __m512i Vector;
constexpr int kLanes = 16;
constexpr int kPixels = 4;  // one per 128 bits
CONVOY_INLINE Vector load(const void* p) {
  return _mm512_loadu_si512(p);
}
CONVOY_INLINE void store(void* p, Vector v) {
  _mm512_storeu_si512(p, v);
}
CONVOY_INLINE Vector splat(uint32_t word) {
  return _mm512_set1_epi32(static_cast<int32_t>(word));
}
CONVOY_INLINE Vector add(Vector a, Vector b) {
  return _mm512_add_epi32(a, b);
}
// sum + the products of 16-bit neighbours.
CONVOY_INLINE Vector multiply_add(Vector sum, Vector a, Vector b) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
template <int kBits>
CONVOY_INLINE Vector shift_right(Vector v) {
  return _mm512_maskz_srli_epi32(0xffff, v, kBits);
}
template <int kBits>
CONVOY_INLINE Vector shift_left(Vector v) {
  return _mm512_maskz_slli_epi32(0xffff, v, kBits);
}
CONVOY_INLINE Vector either(Vector a, Vector b) {
  return _mm512_or_si512(a, b);
}
CONVOY_INLINE Vector both(Vector a, Vector b) {
  return _mm512_and_si512(a, b);
}
CONVOY_INLINE Vector shuffle(Vector v, Vector index) {
  return _mm512_shuffle_epi8(v, index);
}
CONVOY_INLINE __m128i load16(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
CONVOY_INLINE Vector windows(const uint8_t* row, const int32_t* offsets) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(row + offsets[0])),
                                              load16(row + offsets[1]), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(row + offsets[2])),
                                               load16(row + offsets[3]), 1);
  return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1);
}
// Every fourth lane left out.
CONVOY_INLINE Vector dense(Vector v) {
  const Vector index = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
  return _mm512_maskz_permutexvar_epi32(0xffff, index, v);
}
CONVOY_INLINE Vector pack_bytes(const Vector v[4]) {
  const Vector bytes =
      _mm512_packus_epi16(_mm512_packus_epi32(v[0], v[1]), _mm512_packus_epi32(v[2], v[3]));
  const Vector order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_maskz_permutexvar_epi32(0xffff, order, bytes);
}
CONVOY_INLINE void store_part(uint8_t* p, Vector v, size_t bytes) {
  _mm512_mask_storeu_epi8(p, (uint64_t{1} << bytes) - 1, v);
}
#else
typedef __m256i Vector;
constexpr int kLanes = 8;
constexpr int kPixels = 2;
CONVOY_INLINE Vector load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
CONVOY_INLINE void store(void* p, Vector v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
CONVOY_INLINE Vector splat(uint32_t word) {
  return _mm256_set1_epi32(static_cast<int32_t>(word));
}
CONVOY_INLINE Vector add(Vector a, Vector b) {
  return _mm256_add_epi32(a, b);
}
CONVOY_INLINE Vector multiply_add(Vector sum, Vector a, Vector b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
template <int kBits>
CONVOY_INLINE Vector shift_right(Vector v) {
  return _mm256_srli_epi32(v, kBits);
}
template <int kBits>
CONVOY_INLINE Vector shift_left(Vector v) {
  return _mm256_slli_epi32(v, kBits);
}
CONVOY_INLINE Vector either(Vector a, Vector b) {
  return _mm256_or_si256(a, b);
}
CONVOY_INLINE Vector both(Vector a, Vector b) {
  return _mm256_and_si256(a, b);
}
CONVOY_INLINE Vector shuffle(Vector v, Vector index) {
  return _mm256_shuffle_epi8(v, index);
}
CONVOY_INLINE __m128i load16(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
CONVOY_INLINE Vector windows(const uint8_t* row, const int32_t* offsets) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(row + offsets[0])),
                                 load16(row + offsets[1]), 1);
}
CONVOY_INLINE Vector dense(Vector v) {
  return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7));
}
CONVOY_INLINE Vector pack_bytes(const Vector v[4]) {
  const Vector bytes =
      _mm256_packus_epi16(_mm256_packus_epi32(v[0], v[1]), _mm256_packus_epi32(v[2], v[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
CONVOY_INLINE void store_part(uint8_t* p, Vector v, size_t bytes) {
  alignas(32) uint8_t all[32];
  store(all, v);
  for (size_t i = 0; i < bytes; ++i) p[i] = all[i];
}
#endif

// A sum is low products, shifted right by 8 (their last 8 bits never matter again), plus high ones.
CONVOY_INLINE Vector joined(Vector high, Vector low) {
  return add(high, shift_right<kLowBits>(low));
}

// The bytes of two rows, from their sums.
CONVOY_INLINE Vector pair_of(Vector a, Vector b) {
  constexpr int kBits = kWeightBits - kLowBits;
  return either(shift_right<kBits>(a), both(shift_left<16 - kBits>(b), splat(0xff0000)));
}

// ---- One 16-byte window per pixel. Table: for kPixels pixels and each pair of taps their high
// weights, four times each, then their low ones.

void prepare_pixels(RowFilter& filter) {
  const int pairs = filter.taps / 2;
  uint32_t* to = filter.table;
  for (int o = 0; o < filter.count; o += kPixels)
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = o + i < filter.count ? o + i : filter.count - 1;
      filter.offsets[o + i] = filter.first[pixel] * 3;
    }
  for (int o = 0; o < filter.count; o += kPixels)
    for (int p = 0; p < pairs; ++p, to += 2 * kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int pixel = o + lane / 4 < filter.count ? o + lane / 4 : filter.count - 1;
        const int32_t* w = filter.weights + static_cast<ptrdiff_t>(pixel) * filter.taps + 2 * p;
        to[lane] = high_pair(w);
        to[kLanes + lane] = low_pair(w);
      }
}

void rows_by_pixels(uint32_t* const out[2], const uint8_t* const rows[4], const RowFilter& filter) {
  const int pairs = filter.taps / 2;
  alignas(64) static constexpr int8_t kIndex[2][16] = {
      {0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1},
      {6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1}};
#if defined(__AVX512F__)
  const Vector front = _mm512_maskz_broadcast_i32x4(
      0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(kIndex[0])));
  const Vector back = _mm512_maskz_broadcast_i32x4(
      0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(kIndex[1])));
#else
  const Vector front =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kIndex[0])));
  const Vector back =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kIndex[1])));
#endif
  const uint32_t* table = filter.table;
  for (int o = 0; o < filter.count; o += kPixels) {
    Vector high[4], low[4];
    for (int r = 0; r < 4; ++r) {
      high[r] = splat(0);
      low[r] = splat(kHalf);
    }
    for (int p = 0; p < pairs; p += 2, table += 4 * kLanes) {
      const bool two = p + 1 < pairs;
      Vector window[4];
      for (int r = 0; r < 4; ++r) {
        window[r] = windows(rows[r] + 6 * p, filter.offsets + o);
        const Vector x = shuffle(window[r], front);
        high[r] = multiply_add(high[r], x, load(table));
        low[r] = multiply_add(low[r], x, load(table + kLanes));
      }
      if (!two) {
        table -= 2 * kLanes;
        continue;
      }
      for (int r = 0; r < 4; ++r) {
        const Vector x = shuffle(window[r], back);
        high[r] = multiply_add(high[r], x, load(table + 2 * kLanes));
        low[r] = multiply_add(low[r], x, load(table + 3 * kLanes));
      }
    }
    for (int r = 0; r < 4; r += 2)
      store(out[r / 2] + 3 * o,
            dense(pair_of(joined(high[r], low[r]), joined(high[r + 1], low[r + 1]))));
  }
}

// ---- One 64-byte window per 16 lanes. Table: for 16 lanes and each pair of taps where in the
// window their bytes are, their high weights and their low ones.

#if defined(__AVX512VBMI__)
CONVOY_INLINE Vector gather(const int32_t* p, Vector index) {
  return _mm512_mask_i32gather_epi32(splat(0), 0xffff, index, p, 4);
}

bool prepare_windows(RowFilter& filter) {
  const int channels = filter.channels, lanes = filter.count * channels, pairs = filter.taps / 2;
  if (pairs > 3) return false;
  for (int begin = 0, group = 0; begin < lanes; begin += kLanes, ++group) {
    const int end = begin + kLanes < lanes ? begin + kLanes : lanes;
    const int a = filter.first[begin / channels], b = filter.first[(end - 1) / channels];
    const int low = a < b ? a : b, high = a < b ? b : a;
    if ((high + filter.taps - low) * channels > 64) return false;
    filter.offsets[group] = low * channels;
  }
  // Lane l of a group that begins with channel c belongs to its pixel (c + l) / channels.
  alignas(64) int32_t pixel[3][kLanes], byte[3][kLanes];
  for (int c = 0; c < channels; ++c)
    for (int l = 0; l < kLanes; ++l) {
      pixel[c][l] = (c + l) / channels;
      byte[c][l] = (c + l) % channels;
    }
  const Vector mask = splat((1 << kLowBits) - 1), scale = splat(static_cast<uint32_t>(channels));
  uint32_t* to = filter.table;
  for (int begin = 0, group = 0; begin < lanes; begin += kLanes, ++group) {
    const int c = begin % channels, o = begin / channels;
    // Pixels past the last one take its place; what their lanes hold has no use.
    const Vector which =
        _mm512_maskz_min_epi32(0xffff, add(load(pixel[c]), splat(static_cast<uint32_t>(o))),
                               splat(static_cast<uint32_t>(filter.count - 1)));
    const Vector first = gather(filter.first, which);
    const Vector at =
        add(_mm512_mullo_epi32(first, scale),
            _mm512_sub_epi32(load(byte[c]), splat(static_cast<uint32_t>(filter.offsets[group]))));
    const Vector weights = _mm512_mullo_epi32(which, splat(static_cast<uint32_t>(filter.taps)));
    for (int p = 0; p < pairs; ++p, to += 3 * kLanes) {
      const Vector w0 = gather(filter.weights + 2 * p, weights);
      const Vector w1 = gather(filter.weights + 2 * p + 1, weights);
      const Vector left = add(at, splat(static_cast<uint32_t>(2 * p * channels)));
      store(to, either(left, shift_left<16>(add(left, scale))));
      store(to + kLanes,
            either(shift_right<kLowBits>(w0), shift_left<16>(shift_right<kLowBits>(w1))));
      store(to + 2 * kLanes, either(both(w0, mask), shift_left<16>(both(w1, mask))));
    }
  }
  return true;
}

template <int kPairs>
CONVOY_INLINE void rows_by_windows(uint32_t* const out[2], const uint8_t* const rows[4],
                                   const RowFilter& filter) {
  const int lanes = filter.count * filter.channels;
  const __mmask64 even = 0x5555555555555555;
  const uint32_t* table = filter.table;
  for (int begin = 0; begin < lanes; begin += kLanes, table += kPairs * 3 * kLanes) {
    Vector x[kPairs][4], sum[4];
    for (int r = 0; r < 4; ++r) {
      const Vector window = load(rows[r] + filter.offsets[begin / kLanes]);
      for (int p = 0; p < kPairs; ++p)
        x[p][r] = _mm512_maskz_permutexvar_epi8(even, load(table + p * 3 * kLanes), window);
      sum[r] = splat(kHalf);
    }
    for (int p = 0; p < kPairs; ++p)
      for (int r = 0; r < 4; ++r)
        sum[r] = multiply_add(sum[r], x[p][r], load(table + (3 * p + 2) * kLanes));
    for (Vector& s : sum) s = shift_right<kLowBits>(s);
    for (int p = 0; p < kPairs; ++p)
      for (int r = 0; r < 4; ++r)
        sum[r] = multiply_add(sum[r], x[p][r], load(table + (3 * p + 1) * kLanes));
    for (int r = 0; r < 4; r += 2) store(out[r / 2] + begin, pair_of(sum[r], sum[r + 1]));
  }
}
#endif

void prepare(RowFilter& filter) {
#if defined(__AVX512VBMI__)
  filter.windows = prepare_windows(filter);
  if (filter.windows) return;
#endif
  if (filter.channels == 3) prepare_pixels(filter);
}

void filter_rows(uint32_t* const pairs[2], const uint8_t* const rows[4], const RowFilter& filter) {
#if defined(__AVX512VBMI__)
  if (filter.windows) {
    if (filter.taps == 2) return rows_by_windows<1>(pairs, rows, filter);
    if (filter.taps == 4) return rows_by_windows<2>(pairs, rows, filter);
    return rows_by_windows<3>(pairs, rows, filter);
  }
#endif
  if (filter.channels == 3)
    rows_by_pixels(pairs, rows, filter);
  else
    rows_plain(pairs, rows, filter);
}

// kPairs: 0 for any number.
template <int kPairs>
CONVOY_INLINE void columns(uint8_t* out, const uint32_t* const* pairs, const int32_t* weights,
                           int any_count, size_t lanes) {
  const int count = kPairs > 0 ? kPairs : any_count;
  for (size_t i = 0; i < lanes; i += 4 * kLanes) {
    Vector sum[4];
    for (Vector& s : sum) s = splat(kHalf);
    const auto add_products = [&](const auto& words) __attribute__((always_inline)) {
      for (int p = 0; p < count; ++p) {
        const Vector w = splat(words(weights + 2 * p));
        for (int v = 0; v < 4; ++v)
          sum[v] = multiply_add(sum[v], load(pairs[p] + i + static_cast<size_t>(v * kLanes)), w);
      }
    };
    add_products(low_pair);
    for (Vector& s : sum) s = shift_right<kLowBits>(s);
    add_products(high_pair);
    for (Vector& s : sum) s = shift_right<kWeightBits - kLowBits>(s);
    const Vector bytes = pack_bytes(sum);
    if (i + 4 * kLanes <= lanes)
      store(out + i, bytes);
    else
      store_part(out + i, bytes, lanes - i);
  }
}

void filter_columns(uint8_t* out, const uint32_t* const* pairs, const int32_t* weights, int count,
                    size_t lanes) {
  if (count == 1) return columns<1>(out, pairs, weights, count, lanes);
  if (count == 2) return columns<2>(out, pairs, weights, count, lanes);
  if (count == 3) return columns<3>(out, pairs, weights, count, lanes);
  columns<0>(out, pairs, weights, count, lanes);
}

#else

void prepare(RowFilter&) {}

void filter_rows(uint32_t* const pairs[2], const uint8_t* const rows[4], const RowFilter& filter) {
  rows_plain(pairs, rows, filter);
}

void filter_columns(uint8_t* out, const uint32_t* const* pairs, const int32_t* weights, int count,
                    size_t lanes) {
  constexpr size_t kBlock = 64;
  for (size_t begin = 0; begin < lanes; begin += kBlock) {
    int32_t sums[kBlock];
    for (int32_t& sum : sums) sum = kHalf;
    for (int p = 0; p < count; ++p) {
      const uint32_t* pair = pairs[p] + begin;
      const int32_t a = weights[2 * p], b = weights[2 * p + 1];
      for (size_t i = 0; i < kBlock; ++i)
        sums[i] +=
            static_cast<int32_t>(pair[i] & 0xffff) * a + static_cast<int32_t>(pair[i] >> 16) * b;
    }
    const size_t block = lanes - begin < kBlock ? lanes - begin : kBlock;
    for (size_t i = 0; i < block; ++i) out[begin + i] = static_cast<uint8_t>(to_byte(sums[i]));
  }
}

#endif

}  // namespace

const ResizeKernels resize_kernels = {find_taps, make_weights, prepare, filter_rows,
                                      filter_columns};

}  // namespace convoy::data::CONVOY_ISA
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
