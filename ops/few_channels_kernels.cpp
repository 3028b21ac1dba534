#include "ops/few_channels_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__AVX512BF16__)
namespace {

// Output channels of a block: vectors of sums side by side; the last block may be narrower.
constexpr int64_t kVectors = 4, kBlock = kVectors * kLanes;

// ---- The image with zeros around, as far as windows reach.

struct Padded {
  int64_t rows, row;  // row: numbers, the last one of them zero
};
CONVOY_INLINE Padded padded(const FewChannelsShape& s) {
  const int64_t width = (s.y_w - 1) * s.stride + s.kernel;
  // One number more: the second of an odd pair.
  return {(s.y_h - 1) * s.stride + s.kernel, ceil_div(width * s.c + 1, kLanes) * kLanes};
}

CONVOY_INLINE void pad_row(Bfloat16* to, const Bfloat16* image, int64_t i,
                           const FewChannelsShape& s) {
  const int64_t row = padded(s).row, at = i - s.padding;
  const int64_t left = at < 0 || at >= s.h ? row : least(s.padding * s.c, row);
  const int64_t inside = least(s.w * s.c, row - left);
  __builtin_memset(to, 0, static_cast<size_t>(left) * sizeof(Bfloat16));
  if (inside > 0)
    __builtin_memcpy(to + left, image + at * s.w * s.c,
                     static_cast<size_t>(inside) * sizeof(Bfloat16));
  __builtin_memset(to + left + inside, 0,
                   static_cast<size_t>(row - left - inside) * sizeof(Bfloat16));
}

// A thread's part of the scratch memory begins on a line.
CONVOY_INLINE int64_t whole_lines(int64_t bytes) {
  return ceil_div(bytes, 64) * 64;
}

// ---- Forward.

// Weights: [block of k][row of the window][pair][vector][kLanes][2].
CONVOY_INLINE int64_t pairs_of(const FewChannelsShape& s) {
  return ceil_div(s.kernel * s.c, 2);
}
size_t packed_bytes(const FewChannelsShape& s) {
  return static_cast<size_t>(s.kernel * pairs_of(s) * 2 * s.k) * sizeof(Bfloat16);
}

void pack(void* packed, const float* w, const FewChannelsShape& s) {
  auto* to = static_cast<Bfloat16*>(packed);
  for (int64_t block = 0; block < s.k; block += kBlock)
    for (int64_t r = 0; r < s.kernel; ++r)
      for (int64_t pair = 0; pair < pairs_of(s); ++pair)
        for (int64_t k = block; k < least(block + kBlock, s.k); ++k)
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t q = (2 * pair + half) / s.c, c = (2 * pair + half) % s.c;
            put(to++, q < s.kernel ? w[((k * s.c + c) * s.kernel + r) * s.kernel + q] : 0.0f);
          }
}

// Of a thread: an image.
CONVOY_INLINE int64_t forward_bytes(const FewChannelsShape& s) {
  return whole_lines(padded(s).rows * padded(s).row * 2);
}
size_t forward_scratch(const FewChannelsShape& s, int threads) {
  return static_cast<size_t>(forward_bytes(s) * threads);
}

struct ForwardEnd {
  const float* bias;
  bool relu;
};

// kPixels next to each other and kWidth vectors of channels. x: the first one's window, whose rows
// are `row` elements apart; step: from one pixel's to the next.
template <int64_t kPixels, int64_t kWidth>
void forward_pixels(Bfloat16* y, const Bfloat16* x, const Bfloat16* weights, const ForwardEnd& end,
                    const FewChannelsShape& s, int64_t row) {
  const int64_t pairs = pairs_of(s), step = s.stride * s.c;
  __m512 sums[kPixels][kWidth] = {};
  for (int64_t r = 0; r < s.kernel; ++r, x += row)
    for (int64_t pair = 0; pair < pairs; ++pair, weights += 2 * kWidth * kLanes) {
      __m512bh ws[kWidth];
#pragma GCC unroll 4
      for (int64_t j = 0; j < kWidth; ++j)
        ws[j] = reinterpret_cast<__m512bh>(_mm512_load_si512(weights + j * 2 * kLanes));
#pragma GCC unroll 16
      for (int64_t i = 0; i < kPixels; ++i) {
        int both;
        __builtin_memcpy(&both, x + i * step + 2 * pair, sizeof both);
        const auto xs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
        for (int64_t j = 0; j < kWidth; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], ws[j], xs);
      }
    }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kPixels; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kWidth; ++j) {
      auto value = reinterpret_cast<Floats>(sums[i][j]);
      if (end.bias) value += load(end.bias + j * kLanes);
      if (end.relu) value = value < 0.0f ? Floats{} : value;  // NaN stays NaN
      store(y + i * s.k + j * kLanes, value);
    }
}

using Forward = void (*)(Bfloat16*, const Bfloat16*, const Bfloat16*, const ForwardEnd&,
                         const FewChannelsShape&, int64_t);
// By width: enough sums that none waits for its last product, few enough for the registers. One
// pixel at a time where a row has fewer.
constexpr int64_t kSideBySide[] = {0, 14, 12, 8, 6};
constexpr Forward kForward[] = {nullptr, forward_pixels<14, 1>, forward_pixels<12, 2>,
                                forward_pixels<8, 3>, forward_pixels<6, 4>};
constexpr Forward kForwardOne[] = {nullptr, forward_pixels<1, 1>, forward_pixels<1, 2>,
                                   forward_pixels<1, 3>, forward_pixels<1, 4>};

void forward(Bfloat16* y, const Bfloat16* x, const void* packed, const float* bias, bool relu,
             const FewChannelsShape& s, void* scratch, int threads) {
  const Padded pad = padded(s);
  const int64_t rows = s.n * s.y_h;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    auto* image =
        reinterpret_cast<Bfloat16*>(static_cast<char*>(scratch) + forward_bytes(s) * slot);
    int64_t done = 0;  // rows of the padded image that are there
    for (int64_t i = rows * slot / threads; i < rows * (slot + 1) / threads; ++i) {
      const int64_t n = i / s.y_h, top = i % s.y_h * s.stride;
      if (i == rows * slot / threads || i % s.y_h == 0) done = top;
      for (done = done > top ? done : top; done < top + s.kernel; ++done)
        pad_row(image + done * pad.row, x + n * s.h * s.w * s.c, done, s);
      const auto* weights = static_cast<const Bfloat16*>(packed);
      for (int64_t k = 0; k < s.k; k += kBlock) {
        const int64_t width = least(kBlock, s.k - k) / kLanes;
        const ForwardEnd end = {bias ? bias + k : nullptr, relu};
        const bool many = kSideBySide[width] <= s.y_w;
        const int64_t step = many ? kSideBySide[width] : 1;
        const Forward put_pixels = (many ? kForward : kForwardOne)[width];
        for (int64_t at = 0; at < s.y_w; at += step) {
          const int64_t j = least(at, s.y_w - step);  // the last ones of a row again, if need be
          put_pixels(y + (i * s.y_w + j) * s.k + k, image + top * pad.row + j * s.stride * s.c,
                     weights, end, s, pad.row);
        }
        weights += 2 * s.kernel * pairs_of(s) * width * kLanes;
      }
    }
  }
}

// ---- The gradient of the weights. Sums run over pairs of pixels of y in a row.

// Of a thread: an image and a row of dy in pairs, a row of the image.
CONVOY_INLINE int64_t dy_pairs_of(const FewChannelsShape& s) {
  return ceil_div(s.y_w, 2) * s.k;
}
CONVOY_INLINE int64_t gradient_bytes(const FewChannelsShape& s) {
  const Padded pad = padded(s);
  return whole_lines((pad.rows * pad.row + dy_pairs_of(s)) * 4 + pad.row * 2);
}
size_t gradient_scratch(const FewChannelsShape& s, int threads) {
  return static_cast<size_t>(gradient_bytes(s) * threads);
}

// A row of the padded image: each number beside that of the next pixel of y, or beside zero where
// the row ends before.
CONVOY_INLINE void pair_x(uint32_t* to, const Bfloat16* row, const FewChannelsShape& s) {
  const int64_t count = padded(s).row, step = s.stride * s.c;
  int64_t i = 0;
  for (; i + step + kLanes <= count; i += kLanes) {
    Halves a, b;
    __builtin_memcpy(&a, row + i, sizeof a);
    __builtin_memcpy(&b, row + i + step, sizeof b);
    const Words both = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
    __builtin_memcpy(to + i, &both, sizeof both);
  }
  for (; i < count; ++i)
    to[i] = row[i].bits | (i + step < count ? uint32_t{row[i + step].bits} << 16 : 0u);
}

// A row of dy: channels of two pixels side by side; behind an odd number of pixels zeros.
CONVOY_INLINE void pair_dy(uint32_t* to, const Bfloat16* row, const FewChannelsShape& s) {
  for (int64_t j = 0; j < s.y_w; j += 2)
    for (int64_t k = 0; k < s.k; k += kLanes, to += kLanes) {
      Halves a, b = {};
      __builtin_memcpy(&a, row + j * s.k + k, sizeof a);
      if (j + 1 < s.y_w) __builtin_memcpy(&b, row + (j + 1) * s.k + k, sizeof b);
      const Words both = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words)
                                                                 << 16;
      __builtin_memcpy(to, &both, sizeof both);
    }
}

// sum [kNumbers][k], kWidth vectors of it += or = a row of dy times kNumbers of a window's row.
template <int64_t kNumbers, int64_t kWidth>
void gradient_numbers(float* sum, const uint32_t* x, const uint32_t* dy, const FewChannelsShape& s,
                      bool first) {
  const int64_t step = 2 * s.stride * s.c;
  __m512 sums[kNumbers][kWidth];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kNumbers; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kWidth; ++j)
      sums[i][j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sum + i * s.k + j * kLanes);
  for (int64_t pixel = 0; pixel < s.y_w; pixel += 2, x += step, dy += s.k) {
    __m512bh dys[kWidth];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kWidth; ++j)
      dys[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(dy + j * kLanes));
#pragma GCC unroll 16
    for (int64_t i = 0; i < kNumbers; ++i) {
      const auto xs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(x[i])));
#pragma GCC unroll 4
      for (int64_t j = 0; j < kWidth; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], dys[j], xs);
    }
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kNumbers; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kWidth; ++j) _mm512_storeu_ps(sum + i * s.k + j * kLanes, sums[i][j]);
}

using Gradient = void (*)(float*, const uint32_t*, const uint32_t*, const FewChannelsShape&, bool);
// By width, as above.
constexpr int64_t kMostNumbers[] = {0, 12, 12, 8, 6};
template <int64_t kNumbers, int64_t kWidth>
constexpr Gradient gradient_of() {
  if constexpr (kNumbers <= kMostNumbers[kWidth])
    return gradient_numbers<kNumbers, kWidth>;
  else
    return nullptr;
}
template <int64_t kWidth>
constexpr Gradient kGradientOf[] = {
    nullptr,
    gradient_of<1, kWidth>(),
    gradient_of<2, kWidth>(),
    gradient_of<3, kWidth>(),
    gradient_of<4, kWidth>(),
    gradient_of<5, kWidth>(),
    gradient_of<6, kWidth>(),
    gradient_of<7, kWidth>(),
    gradient_of<8, kWidth>(),
    gradient_of<9, kWidth>(),
    gradient_of<10, kWidth>(),
    gradient_of<11, kWidth>(),
    gradient_of<12, kWidth>(),
};
constexpr const Gradient* kGradient[] = {nullptr, kGradientOf<1>, kGradientOf<2>, kGradientOf<3>,
                                         kGradientOf<4>};

void add_gradient(float* sum, const Bfloat16* x, const Bfloat16* dy, const FewChannelsShape& s,
                  bool first, void* scratch, int threads) {
  const Padded pad = padded(s);
  const int64_t numbers = s.kernel * s.c;
  const int64_t at_once = kMostNumbers[least(kBlock, s.k) / kLanes];
  const int64_t parts =
      least(numbers, most(ceil_div(numbers, at_once), ceil_div(threads, s.kernel)));
  const int64_t tasks = s.kernel * parts;
  // Each thread takes some numbers of some rows of the window, for which it pads and pairs by
  // itself.
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    const int64_t begin = tasks * slot / threads, end = tasks * (slot + 1) / threads;
    if (begin == end) continue;
    const int64_t first_row = begin / parts, end_row = ceil_div(end, parts);
    auto* const pairs =
        reinterpret_cast<uint32_t*>(static_cast<char*>(scratch) + gradient_bytes(s) * slot);
    uint32_t* const dy_pairs = pairs + pad.rows * pad.row;
    auto* const row = reinterpret_cast<Bfloat16*>(dy_pairs + dy_pairs_of(s));
    for (int64_t i = 0, done = 0; i < s.n * s.y_h; ++i) {
      const int64_t n = i / s.y_h, top = i % s.y_h * s.stride;
      if (top == 0) done = 0;
      for (done = done > top + first_row ? done : top + first_row; done < top + end_row; ++done) {
        pad_row(row, x + n * s.h * s.w * s.c, done, s);
        pair_x(pairs + done * pad.row, row, s);
      }
      pair_dy(dy_pairs, dy + i * s.y_w * s.k, s);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t r = task / parts, part = task % parts;
        const int64_t from = numbers * part / parts, to = numbers * (part + 1) / parts;
        for (int64_t k = 0; k < s.k; k += kBlock)
          kGradient[least(kBlock, s.k - k) / kLanes][to - from](
              sum + (r * numbers + from) * s.k + k, pairs + (top + r) * pad.row + from,
              dy_pairs + k, s, first && i == 0);
      }
    }
  }
}

void unpack_gradient(float* dw, const float* sum, const FewChannelsShape& s) {
  for (int64_t k = 0; k < s.k; ++k)
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t r = 0; r < s.kernel; ++r)
        for (int64_t q = 0; q < s.kernel; ++q)
          *dw++ = sum[((r * s.kernel + q) * s.c + c) * s.k + k];
}

}  // namespace

const FewChannelsKernels few_channels_kernels_bf16 = {
    packed_bytes, forward_scratch, gradient_scratch, pack, forward, add_gradient, unpack_gradient};
#else
const FewChannelsKernels few_channels_kernels_bf16 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
