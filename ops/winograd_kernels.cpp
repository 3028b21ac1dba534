#include "ops/winograd_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__FMA__)
namespace {

// What fits the registers: kMaxRows x 2 sums (or twice as many x 1), the two vectors they are
// multiplied with, one more.
#if defined(__AVX512F__)
constexpr int64_t kMaxRows = 14;
#else
constexpr int64_t kMaxRows = 6;
#endif
// U, M and dU are cut into panels of kPanel output channels (the last may be narrower):
// U [panel][kElements][c][width].
constexpr int64_t kPanel = 2 * kLanes;
// Between planes, so that the elements of a tile do not fall into the same set of the cache.
constexpr int64_t kGap = 16;

constexpr int64_t kElements = kWinogradElements;
constexpr int64_t kTile = 4, kPatch = 6;  // pixels a side of a tile of y, of what it reads of x

CONVOY_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- The transforms in one dimension, for the points 0, a, -a, b, -b and infinity. All factors
// but G's divisors, 1 / (a^2 b^2), 1 / (2 a^2 (a^2 - b^2)) and 1 / (2 b^2 (b^2 - a^2)), are exact.

constexpr float kA = 0.75f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr float kG0 = 64.0f / 81.0f, kGa = -128.0f / 243.0f, kGb = 32.0f / 243.0f;

CONVOY_INLINE Floats axpy(float a, Floats x, Floats y) {
  return fma(splat(a), x, y);
}

// B^T d.
CONVOY_INLINE void input_transform(Floats (&v)[kPatch], const Floats (&d)[kPatch]) {
  const Floats even_a = axpy(-kB2, d[2], d[4]), odd_a = axpy(-kB2, d[1], d[3]);
  const Floats even_b = axpy(-kA2, d[2], d[4]), odd_b = axpy(-kA2, d[1], d[3]);
  v[0] = axpy(kA2 * kB2, d[0], axpy(-(kA2 + kB2), d[2], d[4]));
  v[1] = axpy(kA, odd_a, even_a);
  v[2] = axpy(-kA, odd_a, even_a);
  v[3] = axpy(kB, odd_b, even_b);
  v[4] = axpy(-kB, odd_b, even_b);
  v[5] = axpy(kA2 * kB2, d[1], axpy(-(kA2 + kB2), d[3], d[5]));
}

// A^T m.
CONVOY_INLINE void output_transform(Floats (&y)[kTile], const Floats (&m)[kPatch]) {
  const Floats even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Floats even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = axpy(kA, odd_a, kB * odd_b);
  y[2] = axpy(kA2, even_a, kB2 * even_b);
  y[3] = axpy(kA2 * kA, odd_a, axpy(kB2 * kB, odd_b, m[5]));
}

// A dy.
CONVOY_INLINE void gradient_transform(Floats (&z)[kPatch], const Floats (&dy)[kTile]) {
  const Floats even_a = axpy(kA2, dy[2], dy[0]), odd_a = axpy(kA2, dy[3], dy[1]);
  const Floats even_b = axpy(kB2, dy[2], dy[0]), odd_b = axpy(kB2, dy[3], dy[1]);
  z[0] = dy[0];
  z[1] = axpy(kA, odd_a, even_a);
  z[2] = axpy(-kA, odd_a, even_a);
  z[3] = axpy(kB, odd_b, even_b);
  z[4] = axpy(-kB, odd_b, even_b);
  z[5] = dy[3];
}

// G g.
CONVOY_INLINE void weight_transform(Floats (&u)[kPatch], const Floats (&g)[3]) {
  const Floats even_a = axpy(kA2, g[2], g[0]), even_b = axpy(kB2, g[2], g[0]);
  u[0] = kG0 * g[0];
  u[1] = kGa * axpy(kA, g[1], even_a);
  u[2] = kGa * axpy(-kA, g[1], even_a);
  u[3] = kGb * axpy(kB, g[1], even_b);
  u[4] = kGb * axpy(-kB, g[1], even_b);
  u[5] = g[2];
}

// G^T du.
CONVOY_INLINE void weight_gradient_transform(Floats (&g)[3], const Floats (&du)[kPatch]) {
  const Floats even_a = kGa * (du[1] + du[2]), odd_a = kGa * (du[1] - du[2]);
  const Floats even_b = kGb * (du[3] + du[4]), odd_b = kGb * (du[3] - du[4]);
  g[0] = axpy(kG0, du[0], even_a + even_b);
  g[1] = axpy(kA, odd_a, kB * odd_b);
  g[2] = axpy(kA2, even_a, axpy(kB2, even_b, du[5]));
}

// ---- Tiles and pixels.

// In order of image, row, column.
struct Tiles {
  int64_t rows, columns, count;
};
CONVOY_INLINE Tiles tiles_of(const WinogradShape& s) {
  const int64_t rows = ceil_div(s.h, kTile), columns = ceil_div(s.w, kTile);
  return {rows, columns, s.n * rows * columns};
}

// body(t, length, image, i, j) for each run of tiles within one row of an image: tile (i, j) and
// its right neighbours are the tiles t, t + 1, ... of a block that starts with tile `first`.
template <typename Body>
CONVOY_INLINE void for_runs(const Tiles& tiles, int64_t first, int64_t count, Body body) {
  for (int64_t t = 0; t < count;) {
    const int64_t row = (first + t) / tiles.columns, j = (first + t) % tiles.columns;
    const int64_t length = least(tiles.columns - j, count - t);
    body(t, length, row / tiles.rows, row % tiles.rows, j);
    t += length;
  }
}

// The first pixel of a tile, counted over all images; of one behind the last: the end.
CONVOY_INLINE int64_t pixel_of(const Tiles& tiles, const WinogradShape& s, int64_t tile) {
  const int64_t row = tile / tiles.columns, j = tile % tiles.columns;
  return (row / tiles.rows * s.h + row % tiles.rows * kTile) * s.w + kTile * j;
}

template <typename T>
alignas(64) constexpr T kZeros[kLanes] = {};

// kLanes channels of kRows rows of pixels from pixel (i, j) on, column after column; rows outside
// the image are zeros.
template <typename T, int64_t kRows>
struct Pixels {
  CONVOY_INLINE_MEMBER Pixels(const T* image, int64_t i, int64_t j, int64_t height, int64_t width,
                              int64_t channels) {
    for (int64_t r = 0; r < kRows; ++r) {
      const bool inside = i + r >= 0 && i + r < height;
      rows[r] = inside ? image + ((i + r) * width + j) * channels : kZeros<T>;
      steps[r] = inside ? channels : 0;
    }
  }
  CONVOY_INLINE_MEMBER void next(Floats (&column)[kRows]) {
    for (int64_t r = 0; r < kRows; ++r) {
      column[r] = load(rows[r]);
      rows[r] += steps[r];
    }
  }
  const T* rows[kRows];
  int64_t steps[kRows];
};

// V for a run of tiles: planes of [channels / kLanes][tiles][kLanes]. `image` points to the first
// of kLanes channels, v to their elements of the run's first tile.
template <typename T>
CONVOY_INLINE void input_run(float* v, int64_t plane, const T* image, const WinogradShape& s,
                             int64_t i, int64_t j, int64_t length) {
  constexpr int64_t kTiles = 8;                                  // in one go
  alignas(64) float buffer[kPatch][kTile * kTiles + 2][kLanes];  // columns, transformed downwards
  for (int64_t end = j + length; j < end; j += kTiles) {
    const int64_t tiles = least(kTiles, end - j), columns = kTile * tiles + 2;
    const int64_t left = kTile * j - 1, first = left < 0 ? 0 : left;
    const int64_t last = least(left + columns, s.w);
    for (auto& row : buffer) {
      if (left < 0) store(row[0], Floats{});
      for (int64_t q = last - left; q < columns; ++q) store(row[q], Floats{});
    }
    Pixels<T, kPatch> pixels(image, kTile * i - 1, first, s.h, s.w, s.c);
    for (int64_t q = first - left; q < last - left; ++q) {
      Floats d[kPatch], out[kPatch];
      pixels.next(d);
      input_transform(out, d);
      for (int64_t r = 0; r < kPatch; ++r) store(buffer[r][q], out[r]);
    }
    for (int64_t t = 0; t < tiles; ++t, v += kLanes)
      for (int64_t r = 0; r < kPatch; ++r) {
        Floats d[kPatch], out[kPatch];
        for (int64_t q = 0; q < kPatch; ++q) d[q] = load(buffer[r][kTile * t + q]);
        input_transform(out, d);
        for (int64_t q = 0; q < kPatch; ++q) store(v + (r * kPatch + q) * plane, out[q]);
      }
  }
}

// Z = A dy A^T likewise.
template <typename T>
CONVOY_INLINE void gradient_run(float* z, int64_t plane, const T* image, const WinogradShape& s,
                                int64_t i, int64_t j, int64_t length) {
  Pixels<T, kTile> pixels(image, kTile * i, kTile * j, s.h, s.w, s.k);
  for (int64_t t = 0; t < length; ++t, z += kLanes) {
    const int64_t inside = s.w - kTile * (j + t);
    Floats columns[kTile][kPatch];
#pragma GCC unroll 4
    for (int64_t q = 0; q < kTile; ++q) {
      Floats dy[kTile] = {};
      if (q < inside) pixels.next(dy);
      gradient_transform(columns[q], dy);
    }
#pragma GCC unroll 6
    for (int64_t r = 0; r < kPatch; ++r) {
      Floats dy[kTile], out[kPatch];
      for (int64_t q = 0; q < kTile; ++q) dy[q] = columns[q][r];
      gradient_transform(out, dy);
      for (int64_t q = 0; q < kPatch; ++q) store(z + (r * kPatch + q) * plane, out[q]);
    }
  }
}

// The tiles of a run from M [kElements][tiles][width] to y; image and the bias point to the first
// of the channels. kPlain: nothing is done to the sums.
template <bool kPlain, typename T>
void output_run(T* image, const float* m, const WinogradEnd& end, int64_t plane, int64_t width,
                const WinogradShape& s, int64_t i, int64_t j, int64_t length) {
  const int64_t rows = least(kTile, s.h - kTile * i);
  for (int64_t t = 0; t < length; ++t)
    for (int64_t k = 0; k < width; k += kLanes, m += kLanes) {
      Floats columns[kPatch][kTile];
#pragma GCC unroll 6
      for (int64_t q = 0; q < kPatch; ++q) {
        Floats elements[kPatch];
        for (int64_t r = 0; r < kPatch; ++r) elements[r] = load(m + (r * kPatch + q) * plane);
        output_transform(columns[q], elements);
      }
      const Floats bias = !kPlain && end.bias ? load(end.bias + k) : Floats{};
      T* y = image + (kTile * i * s.w + kTile * (j + t)) * s.k + k;
      const int64_t inside = least(kTile, s.w - kTile * (j + t));
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTile; ++r, y += s.w * s.k) {
        if (r >= rows) break;
        Floats elements[kPatch], out[kTile];
        for (int64_t q = 0; q < kPatch; ++q) elements[q] = columns[q][r];
        output_transform(out, elements);
#pragma GCC unroll 4
        for (int64_t q = 0; q < kTile; ++q) {
          if (q >= inside) break;
          T* to = y + q * s.k;
          Floats value = out[q];
          if (!kPlain && end.bias) value += bias;
          if (!kPlain && end.residual) value += load(to);
          if (!kPlain && end.relu) value = value < 0.0f ? Floats{} : value;  // NaN stays NaN
          store(to, value);
        }
      }
    }
}

// Channels that are summed in one go: sums of these parts round less than one long sum.
constexpr int64_t kSum = 128;

// m [kRows][kWidth * kLanes] += (or = if `first`) the products of kRows tiles of one plane of V
// with one of U, summed over c channels in their order. block: floats from one kLanes of channels
// to the next in v.
template <int64_t kRows, int64_t kWidth>
void multiply(float* m, const float* v, int64_t block, const float* u, int64_t c, bool first) {
  Floats sums[kRows][kWidth] = {};
  for (int64_t k = 0; k < c; k += kLanes, v += block)
    for (int64_t lane = 0; lane < kLanes; ++lane, u += kWidth * kLanes) {
      Floats weights[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) weights[i] = load(u + i * kLanes);
#pragma GCC unroll 28
      for (int64_t row = 0; row < kRows; ++row) {
        const Floats value = splat(v[row * kLanes + lane]);
#pragma GCC unroll 2
        for (int64_t i = 0; i < kWidth; ++i) sums[row][i] = fma(value, weights[i], sums[row][i]);
      }
    }
#pragma GCC unroll 28
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int64_t i = 0; i < kWidth; ++i) {
      float* to = m + (row * kWidth + i) * kLanes;
      store(to, first ? sums[row][i] : load(to) + sums[row][i]);
    }
}

using Multiply = void (*)(float*, const float*, int64_t, const float*, int64_t, bool);
template <int64_t kWidth>
constexpr Multiply kMultiply[] = {
    multiply<1, kWidth>,  multiply<2, kWidth>,  multiply<3, kWidth>,  multiply<4, kWidth>,
    multiply<5, kWidth>,  multiply<6, kWidth>,
#if defined(__AVX512F__)
    multiply<7, kWidth>,  multiply<8, kWidth>,  multiply<9, kWidth>,  multiply<10, kWidth>,
    multiply<11, kWidth>, multiply<12, kWidth>, multiply<13, kWidth>, multiply<14, kWidth>,
#endif
};

// Asks for share `part` of `parts` of what the next stage will read.
template <typename T>
CONVOY_INLINE void prefetch(const T* p, int64_t n, int64_t part, int64_t parts) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t lines = ceil_div(n, kLine);
  for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i)
    __builtin_prefetch(p + i * kLine, 0, 2);
}

// Tiles of a block. Few enough that V and M stay in the second-level cache, or nearly so, while
// there are not many channels; enough that U, which does not where there are, comes from the
// third-level cache seldom.
constexpr int64_t kForwardBlock = 56 / kMaxRows * kMaxRows;

// Smaller where a thread would have nothing to do.
int64_t forward_block(const WinogradShape& s, int threads) {
  const int64_t share = ceil_div(tiles_of(s).count, threads);
  return least(kForwardBlock, ceil_div(share, kMaxRows) * kMaxRows);
}

int64_t forward_scratch(const WinogradShape& s, int threads) {
  const int64_t block = forward_block(s, threads);
  return kElements * (block * s.c + kGap + block * kPanel + kGap) * threads;
}

// y of the tiles [first, end); v and m: kElements planes each.
template <typename T>
void forward_tiles(T* y, const T* x, const float* u, const WinogradEnd& at_end,
                   const WinogradShape& s, int64_t first, int64_t end, float* v, int64_t v_plane,
                   float* m, int64_t m_plane) {
  const Tiles tiles = tiles_of(s);
  const int64_t count = end - first;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = 0; c < s.c; c += kLanes)
              input_run(v + c * count + t * kLanes, v_plane, x + n * s.h * s.w * s.c + c, s, i, j,
                        length);
          });
  // While they are multiplied, the pixels of the next block and those of y come near.
  const int64_t here = pixel_of(tiles, s, first), next = pixel_of(tiles, s, end);
  const int64_t after = pixel_of(tiles, s, least(end + count, tiles.count));
  const int64_t rows = ceil_div(count, ceil_div(count, kMaxRows)), panels = ceil_div(s.k, kPanel);
  const bool plain = !at_end.bias && !at_end.residual && !at_end.relu;
  const auto put_run = plain ? output_run<true, T> : output_run<false, T>;
  for (int64_t k = 0; k < s.k; k += kPanel) {
    const int64_t width = least(kPanel, s.k - k);
    WinogradEnd panel_end = at_end;
    if (at_end.bias) panel_end.bias += k;
    for (int64_t e = 0; e < kElements; ++e) {
      prefetch(x + next * s.c, (after - next) * s.c, k / kPanel * kElements + e,
               kElements * panels);
      for (int64_t p = here + (next - here) * e / kElements;
           p < here + (next - here) * (e + 1) / kElements; ++p)
        prefetch(y + p * s.k + k, width, 0, 1);
      for (int64_t c = 0; c < s.c; c += kSum)
        for (int64_t t = 0, step; t < count; t += step) {
          const int64_t left = count - t;
          const bool twice = width < kPanel && left >= 2 * kMaxRows;
          step = twice ? 2 * kMaxRows : least(rows, left);
          const auto multiply_rows = twice             ? multiply<2 * kMaxRows, 1>
                                     : width == kPanel ? kMultiply<2>[step - 1]
                                                       : kMultiply<1>[step - 1];
          multiply_rows(m + e * m_plane + t * width, v + e * v_plane + c * count + t * kLanes,
                        count * kLanes, u + (k * kElements + e * width) * s.c + c * width,
                        least(kSum, s.c - c), c == 0);
        }
    }
    for_runs(
        tiles, first, count,
        [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
            __attribute__((always_inline)) {
              put_run(y + n * s.h * s.w * s.k + k, m + t * width, panel_end, m_plane, width, s, i,
                      j, length);
            });
  }
}

template <typename T>
void forward(T* y, const T* x, const float* u, const WinogradEnd& end, const WinogradShape& s,
             float* scratch, int threads) {
  const int64_t tiles = tiles_of(s).count;
  const int64_t block = forward_block(s, threads), blocks = ceil_div(tiles, block);
  const int64_t v_plane = block * s.c + kGap, m_plane = block * kPanel + kGap;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    float* v = scratch + slot * kElements * (v_plane + m_plane);
    for (int64_t b = blocks * slot / threads; b < blocks * (slot + 1) / threads; ++b)
      forward_tiles(y, x, u, end, s, b * block, least((b + 1) * block, tiles), v, v_plane,
                    v + kElements * v_plane, m_plane);
  }
}

// du [kRows][kWidth * kLanes] (+)= sum over `count` tiles of V (kRows channels) times Z (kWidth
// vectors, z_block floats apart).
template <int64_t kWidth>
constexpr int64_t kGradientRows = kLanes / kWidth;
template <int64_t kWidth>
void multiply_add(float* du, const float* v, const float* z, int64_t z_block, int64_t count,
                  bool first) {
  constexpr int64_t kRows = kGradientRows<kWidth>;
#pragma GCC unroll 16
  for (int64_t row = 0; row < kRows; ++row) __builtin_prefetch(du + row * kWidth * kLanes, 1);
  Floats sums[kRows][kWidth] = {};
  for (int64_t t = 0; t < count; ++t, v += kLanes, z += kLanes) {
    Floats right[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) right[i] = load(z + i * z_block);
#pragma GCC unroll 16
    for (int64_t row = 0; row < kRows; ++row) {
      const Floats left = splat(v[row]);
#pragma GCC unroll 2
      for (int64_t i = 0; i < kWidth; ++i) sums[row][i] = fma(left, right[i], sums[row][i]);
    }
  }
#pragma GCC unroll 16
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int64_t i = 0; i < kWidth; ++i) {
      float* to = du + (row * kWidth + i) * kLanes;
      store(to, first ? sums[row][i] : load(to) + sums[row][i]);
    }
}

// Tiles of a block: a sum of products ends with it. Channels of x and of y whose part of dU all
// tiles go into before the next part's turn. Measured on a Zen 5: fewer channels are slower, as x
// and dy are transformed once per part.
constexpr int64_t kGradientBlock = 64, kGradientChannels = 256;
static_assert(kGradientChannels % kPanel == 0);

CONVOY_INLINE int64_t gradient_planes(const WinogradShape& s) {
  const int64_t channels = least(kGradientChannels, s.c) + least(kGradientChannels, s.k);
  return kElements * (kGradientBlock * channels + 2 * kGap);
}

int64_t gradient_scratch(const WinogradShape& s, int threads) {
  return gradient_planes(s) * threads;
}

// What one thread adds to dU in one go.
struct GradientTask {
  int64_t c_begin, c_end, k_begin, k_end, e_begin, e_end;
};

// The task's part of V and Z for a block of tiles, and their products into dU.
template <typename T>
void add_block(float* du, const T* x, const T* dy, const WinogradShape& s, const GradientTask& task,
               int64_t first, bool fresh, float* v) {
  const Tiles tiles = tiles_of(s);
  const int64_t end = least(first + kGradientBlock, tiles.count), count = end - first;
  const int64_t v_plane = count * (task.c_end - task.c_begin) + kGap;
  const int64_t z_plane = count * (task.k_end - task.k_begin) + kGap;
  float* z = v + kElements * v_plane;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = task.c_begin; c < task.c_end; c += kLanes)
              input_run(v + (c - task.c_begin) * count + t * kLanes, v_plane,
                        x + n * s.h * s.w * s.c + c, s, i, j, length);
            for (int64_t k = task.k_begin; k < task.k_end; k += kLanes)
              gradient_run(z + (k - task.k_begin) * count + t * kLanes, z_plane,
                           dy + n * s.h * s.w * s.k + k, s, i, j, length);
          });
  // Meanwhile the pixels of the next block come near.
  const int64_t next = pixel_of(tiles, s, end);
  const int64_t pixels = pixel_of(tiles, s, least(end + kGradientBlock, tiles.count)) - next;
  for (int64_t e = task.e_begin; e < task.e_end; ++e) {
    prefetch(x + next * s.c, pixels * s.c, e, kElements);
    prefetch(dy + next * s.k, pixels * s.k, e, kElements);
    for (int64_t k = task.k_begin; k < task.k_end; k += kPanel) {
      const int64_t width = least(kPanel, s.k - k);
      const auto add_products = width == kPanel ? multiply_add<2> : multiply_add<1>;
      float* to = du + (k * kElements + e * width) * s.c;
      const float* right = z + e * z_plane + (k - task.k_begin) * count;
      const int64_t step = width == kPanel ? kGradientRows<2> : kGradientRows<1>;
      for (int64_t c = task.c_begin; c < task.c_end; c += step) {
        const int64_t from = c - task.c_begin;
        add_products(to + c * width,
                     v + e * v_plane + from / kLanes * kLanes * count + from % kLanes, right,
                     count * kLanes, count, fresh);
      }
    }
  }
}

// db [k] (+)= the sums over all pixels, row by row.
template <typename T>
void add_bias_gradient(float* db, const T* dy, const WinogradShape& s, bool first, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < s.k; k += kLanes) {
    Floats sum = first ? Floats{} : load(db + k);
    for (int64_t row = 0; row < s.n * s.h; ++row) {
      Floats of_row = {};
      for (int64_t q = 0; q < s.w; ++q) of_row += load(dy + (row * s.w + q) * s.k + k);
      sum += of_row;
    }
    store(db + k, sum);
  }
}

template <typename T>
void add_gradient(float* du, float* db, const T* x, const T* dy, const WinogradShape& s, bool first,
                  float* scratch, int threads) {
  if (db) add_bias_gradient(db, dy, s, first, threads);
  const int64_t tiles = tiles_of(s).count;
  const int64_t c_ranges = ceil_div(s.c, kGradientChannels);
  const int64_t ranges = c_ranges * ceil_div(s.k, kGradientChannels);
  // With more threads, each multiplies some of the elements.
  const int64_t parts = least(ceil_div(threads, ranges), kPatch), tasks = ranges * parts;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot)
    for (int64_t index = tasks * slot / threads; index < tasks * (slot + 1) / threads; ++index) {
      const int64_t range = index / parts, part = index % parts;
      const int64_t c = range % c_ranges * kGradientChannels;
      const int64_t k = range / c_ranges * kGradientChannels;
      const GradientTask task = {c,
                                 least(c + kGradientChannels, s.c),
                                 k,
                                 least(k + kGradientChannels, s.k),
                                 kElements * part / parts,
                                 kElements * (part + 1) / parts};
      for (int64_t tile = 0; tile < tiles; tile += kGradientBlock)
        add_block(du, x, dy, s, task, tile, first && tile == 0,
                  scratch + slot * gradient_planes(s));
    }
}

// ---- Weights.

// As the pixels' type has it.
template <typename T>
CONVOY_INLINE Floats rounded(Floats w) {
  T values[kLanes];
  store(values, w);
  return load(values);
}

// The elements of G g G^T, g [9][kLanes], kLanes output channels each, `plane` floats apart.
CONVOY_INLINE void pack_vector(float* u, int64_t plane, const float* g) {
  Floats columns[3][kPatch];
  for (int64_t q = 0; q < 3; ++q) {
    const Floats column[3] = {load(g + q * kLanes), load(g + (3 + q) * kLanes),
                              load(g + (6 + q) * kLanes)};
    weight_transform(columns[q], column);
  }
  for (int64_t r = 0; r < kPatch; ++r) {
    const Floats row[3] = {columns[0][r], columns[1][r], columns[2][r]};
    Floats out[kPatch];
    weight_transform(out, row);
    for (int64_t q = 0; q < kPatch; ++q) store(u + (r * kPatch + q) * plane, out[q]);
  }
}

// Stores that go to memory: for what leaves the cache before it is read.
CONVOY_INLINE void store_past_cache(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#else
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#endif
}

// U of kLanes input channels from `a` on and kLanes output channels from `b` on; g [kLanes * 9]
// [kLanes]. Element by element, as U lies: stored channel by channel, its lines would fall into few
// sets of the cache.
CONVOY_INLINE void pack_block(float* u, const float* g, int64_t a, int64_t b, int64_t c,
                              int64_t k) {
  alignas(64) float elements[kElements][kLanes][kLanes];
  for (int64_t i = 0; i < kLanes; ++i)
    pack_vector(elements[0][i], kLanes * kLanes, g + i * 9 * kLanes);
  constexpr int64_t kCached = 500000;  // floats: of a second-level cache
  const int64_t panel = b / kPanel * kPanel, width = least(kPanel, k - panel);
  float* to = u + panel * kElements * c + a * width + b % kPanel;
  for (int64_t e = 0; e < kElements; ++e)
    for (int64_t i = 0; i < kLanes; ++i) {
      const Floats element = load(elements[e][i]);
      float* p = to + (e * c + i) * width;
      if (kElements * c * k > kCached)
        store_past_cache(p, element);
      else
        store(p, element);
    }
  _mm_sfence();
}

template <typename T>
void pack(float* u, const float* w, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes)
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];
      for (int64_t i = 0; i < kLanes * 9; i += kLanes) {
        Floats rows[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane)
          rows[lane] = rounded<T>(load(w + ((b + lane) * c + a) * 9 + i));
        transpose(rows);
        for (int64_t lane = 0; lane < kLanes; ++lane) store(g[i + lane], rows[lane]);
      }
      pack_block(u, g[0], a, b, c, k);
    }
}

template <typename T>
void pack_backward(float* u, const float* w, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes)
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];  // each turned by 180 degrees
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* filters = w + ((a + i) * k + b) * 9;
        Floats rows[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const bool inside = lane * 9 + kLanes <= kLanes * 9;
          rows[lane] = inside ? load(filters + lane * 9) : load_part(filters + lane * 9, 9);
        }
        transpose(rows);
        for (int64_t q = 0; q < 8; ++q) store(g[i * 9 + 8 - q], rounded<T>(rows[q]));
        for (int64_t lane = 0; lane < kLanes; ++lane) rows[0][lane] = filters[lane * 9 + 8];
        store(g[i * 9], rounded<T>(rows[0]));
      }
      pack_block(u, g[0], a, b, c, k);
    }
}

// dw = G^T dU G.
CONVOY_INLINE void unpack_vector(float* g, const float* du, int64_t plane) {
  Floats columns[kPatch][3];
  for (int64_t q = 0; q < kPatch; ++q) {
    Floats elements[kPatch];
    for (int64_t r = 0; r < kPatch; ++r) elements[r] = load(du + (r * kPatch + q) * plane);
    weight_gradient_transform(columns[q], elements);
  }
  for (int64_t r = 0; r < 3; ++r) {
    Floats elements[kPatch], out[3];
    for (int64_t q = 0; q < kPatch; ++q) elements[q] = columns[q][r];
    weight_gradient_transform(out, elements);
    for (int64_t q = 0; q < 3; ++q) store(g + (3 * r + q) * kLanes, out[q]);
  }
}

void unpack_gradient(float* dw, const float* du, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes) {
    const int64_t panel = b / kPanel * kPanel, width = least(kPanel, k - panel);
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        unpack_vector(g[i * 9], du + panel * kElements * c + (a + i) * width + b % kPanel,
                      c * width);
      for (int64_t i = 0; i < kLanes * 9; i += kLanes) {
        Floats rows[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) rows[lane] = load(g[i + lane]);
        transpose(rows);
        for (int64_t lane = 0; lane < kLanes; ++lane)
          store(dw + ((b + lane) * c + a) * 9 + i, rows[lane]);
      }
    }
  }
}

}  // namespace

template <typename T>
constexpr WinogradKernels<T> kTable = {forward_scratch,  gradient_scratch, pack<T>,
                                       pack_backward<T>, forward<T>,       add_gradient<T>,
                                       unpack_gradient};
const WinogradKernels<float> winograd_kernels_fp32 = kTable<float>;
const WinogradKernels<Bfloat16> winograd_kernels_bf16 = kTable<Bfloat16>;
#else
const WinogradKernels<float> winograd_kernels_fp32 = {};
const WinogradKernels<Bfloat16> winograd_kernels_bf16 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
