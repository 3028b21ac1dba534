#include "ops/weight_gradient_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__AVX512BF16__)
namespace {

constexpr int64_t kChannels = kWeightGradientChannels;  // of one panel
// Pixels packed at once and, of dy, channels: two panels of x stay in the first-level cache while
// all of dy's, in the second, are multiplied with them.
constexpr int64_t kPixels = 392, kGroup = 512;
// A panel: per pair of pixels the values of both, channel by channel. The gap keeps the panels that
// are filled together out of the same set of the cache.
constexpr int64_t kPair = 2 * kChannels;
constexpr int64_t kPanel = kPixels / 2 * kPair + 32;

alignas(64) const Bfloat16 kZeros[2 * kChannels] = {};

// kChannels of two pixels next to each other.
CONVOY_INLINE void interleave(Bfloat16* pair, const Bfloat16* a, const Bfloat16* b) {
  typedef uint16_t Row __attribute__((vector_size(2 * kChannels)));
  Row first, second;
  __builtin_memcpy(&first, a, sizeof first);
  __builtin_memcpy(&second, b, sizeof second);
  const auto both =
      __builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __builtin_memcpy(pair, &both, sizeof both);
}
// Twice as many, to two panels: whole lines of memory.
CONVOY_INLINE void interleave_two(Bfloat16* pair, const Bfloat16* a, const Bfloat16* b) {
  typedef uint16_t Row __attribute__((vector_size(4 * kChannels)));
  Row first, second;
  __builtin_memcpy(&first, a, sizeof first);
  __builtin_memcpy(&second, b, sizeof second);
  const auto low =
      __builtin_shufflevector(first, second, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                              8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
  const auto high = __builtin_shufflevector(first, second, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52,
                                            21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59,
                                            28, 60, 29, 61, 30, 62, 31, 63);
  __builtin_memcpy(pair, &low, sizeof low);
  __builtin_memcpy(pair + kPanel, &high, sizeof high);
}

// Panels of `count` pixels of dy, `channels` of its k; two rows at a time.
CONVOY_INLINE void pack_dy(Bfloat16* panels, const Bfloat16* dy, int64_t k, int64_t channels,
                           int64_t pair, int64_t count) {
  const Bfloat16 *a = dy + 2 * pair * k, *b = a + k;
  const bool alone = 2 * pair + 1 == count;
  int64_t i = 0;
  Bfloat16* to = panels + pair * kPair;
  for (; i + 2 * kChannels <= channels; i += 2 * kChannels, to += 2 * kPanel)
    interleave_two(to, a + i, alone ? kZeros : b + i);
  if (i < channels) interleave(to, a + i, alone ? kZeros : b + i);
}

// One or two panels of the pixels of x that lie under a position of the window, from pixel `first`
// of y.
template <int64_t kWidth>
CONVOY_INLINE void pack_x(Bfloat16* panel, const Bfloat16* x, const int32_t* offsets,
                          const WeightGradientShape& s, int64_t first, int64_t count) {
  const Bfloat16* image = x + first / s.image_pixels * s.image_x;
  int64_t pixel = first % s.image_pixels;
  const auto next = [&]() __attribute__((always_inline)) {
    const Bfloat16* at = offsets[pixel] < 0 ? kZeros : image + offsets[pixel];
    if (++pixel == s.image_pixels) {
      pixel = 0;
      image += s.image_x;
    }
    return at;
  };
  for (int64_t i = 0; i < count; i += 2, panel += kPair) {
    const Bfloat16* a = next();
    const Bfloat16* b = i + 1 < count ? next() : kZeros;
    if (kWidth == 2)
      interleave_two(panel, a, b);
    else
      interleave(panel, a, b);
  }
}

// sum [kRows of dy's channels, kWidth * kChannels of x's] += or = a part of a panel of dy times
// kWidth panels of x. ahead: a line for each pair of pixels, to be fetched.
template <int64_t kWidth>
constexpr int64_t kRows = kChannels / kWidth;
template <int64_t kWidth>
void multiply(float* sum, int64_t row, const Bfloat16* x, const Bfloat16* dy, int64_t pairs,
              bool first, const char* ahead) {
  __m512 sums[kRows<kWidth>][kWidth] = {};
  for (int64_t i = 0; i < pairs; ++i, x += kPair, dy += kPair) {
    fetch(ahead);
    __m512bh xs[kWidth];
    for (int64_t j = 0; j < kWidth; ++j)
      xs[j] = reinterpret_cast<__m512bh>(_mm512_load_si512(x + j * kPanel));
#pragma GCC unroll 16
    for (int64_t k = 0; k < kRows<kWidth>; ++k) {
      int both;
      __builtin_memcpy(&both, dy + 2 * k, sizeof both);
      const auto dys = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 2
      for (int64_t j = 0; j < kWidth; ++j) sums[k][j] = _mm512_dpbf16_ps(sums[k][j], xs[j], dys);
    }
  }
#pragma GCC unroll 16
  for (int64_t k = 0; k < kRows<kWidth>; ++k)
#pragma GCC unroll 2
    for (int64_t j = 0; j < kWidth; ++j) {
      float* out = sum + k * row + j * kChannels;
      _mm512_storeu_ps(out, first ? sums[k][j] : _mm512_add_ps(_mm512_loadu_ps(out), sums[k][j]));
    }
}

size_t scratch_bytes(const WeightGradientShape& s, int threads) {
  const int64_t panels = least(s.k, kGroup) / kChannels + int64_t{2} * threads;
  return static_cast<size_t>(panels * kPanel) * sizeof(Bfloat16);
}

void add(float* sum, const Bfloat16* x, const Bfloat16* dy, const WeightGradientShape& s,
         bool first, void* scratch, int threads) {
  auto* dy_panels = static_cast<Bfloat16*>(scratch);
  Bfloat16* x_panels = dy_panels + least(s.k, kGroup) / kChannels * kPanel;
  // A task: two panels of x, or the last one alone.
  const int64_t blocks = ceil_div(s.c, 2 * kChannels), tasks = s.window * blocks;
  // 1x1 windows at a stride leave out most of x, a group of channels the others of dy.
  const bool whole = s.window > 1 || s.image_x == s.image_pixels * s.c;
  const int64_t x_size = whole ? s.pixels / s.image_pixels * s.image_x : 0;
  for (int64_t group = 0; group < s.k; group += kGroup)
    for (int64_t pixel = 0; pixel < s.pixels; pixel += kPixels) {
      const int64_t channels = least(kGroup, s.k - group), count = least(kPixels, s.pixels - pixel);
      const int64_t pairs = (count + 1) / 2;
      const int64_t next = pixel + count, after = least(next + kPixels, s.pixels);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
      for (int64_t pair = 0; pair < pairs; ++pair)
        pack_dy(dy_panels, dy + pixel * s.k + group, s.k, channels, pair, count);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
      for (int64_t slot = 0; slot < threads; ++slot) {
        Bfloat16* panels = x_panels + slot * 2 * kPanel;
        // What the next pixels are read from comes near meanwhile, for each thread a share: packing
        // waits for memory otherwise, in 1x1 layers of few channels for a third of the time.
        const auto share = [&](const Bfloat16* p, int64_t begin, int64_t size)
            __attribute__((always_inline)) {
          return Ahead(p + begin + size * slot / threads, p + begin + size * (slot + 1) / threads);
        };
        Ahead ahead_dy = share(dy, next * s.k, s.k <= kGroup ? (after - next) * s.k : 0);
        Ahead ahead_x = share(x, x_size * next / s.pixels, x_size * (after - next) / s.pixels);
        for (int64_t t = tasks * slot / threads; t < tasks * (slot + 1) / threads; ++t) {
          const int64_t position = t / blocks, c = t % blocks * 2 * kChannels;
          const bool two = c + kChannels < s.c;
          const int32_t* offsets = s.offsets + position * s.image_pixels;
          if (two)
            pack_x<2>(panels, x + c, offsets, s, pixel, count);
          else
            pack_x<1>(panels, x + c, offsets, s, pixel, count);
          const auto add_products = two ? multiply<2> : multiply<1>;
          const int64_t rows = two ? kRows<2> : kRows<1>;
          for (int64_t k = 0; k < channels; k += rows) {
            const char* ahead =
                (ahead_dy.at < ahead_dy.end ? ahead_dy : ahead_x).take(pairs, panels);
            add_products(sum + ((group + k) * s.window + position) * s.c + c, s.window * s.c,
                         panels, dy_panels + k / kChannels * kPanel + k % kChannels * 2, pairs,
                         first && pixel == 0, ahead);
          }
        }
      }
    }
}

void unpack(float* dw, const float* sum, const WeightGradientShape& s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < s.k; ++k)
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t i = 0; i < s.window; ++i)
        dw[(k * s.c + c) * s.window + i] = sum[(k * s.window + i) * s.c + c];
}

}  // namespace

const WeightGradientKernels weight_gradient_kernels_bf16 = {scratch_bytes, add, unpack};
#else
const WeightGradientKernels weight_gradient_kernels_bf16 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
