#include "ops/winograd_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__FMA__)
namespace {

// What fits the registers: kMaxRows x 2 sums, the two vectors they are multiplied with, one more.
#if defined(__AVX512F__)
constexpr int64_t kMaxRows = 14;
#else
constexpr int64_t kMaxRows = 6;
#endif
// U, M and dU are cut into panels of kPanel output channels (the last may be narrower):
// U [panel][16][c][width].
constexpr int64_t kPanel = 2 * kLanes;
// Between planes, so that the 16 elements of a tile do not fall into the same set of the cache.
constexpr int64_t kGap = 16;

CONVOY_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
CONVOY_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Tiles in order of image, row, column.
struct Tiles {
  int64_t rows, columns, count;
};
CONVOY_INLINE Tiles tiles_of(const WinogradShape& s) {
  const int64_t rows = ceil_div(s.h, 2), columns = ceil_div(s.w, 2);
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

// kLanes channels of one row of pixels; a row outside the image reads zeros.
struct PixelRow {
  const float* p;
  int64_t step;
};
alignas(64) const float kZeros[kLanes] = {};
CONVOY_INLINE PixelRow pixel_row(const float* image, int64_t i, int64_t h, int64_t w, int64_t c) {
  return i >= 0 && i < h ? PixelRow{image + i * w * c, c} : PixelRow{kZeros, 0};
}

// Row kRow of V for a run of tiles: four planes, [channels / kLanes][tiles][kLanes] each.
// `image` points to the first of kLanes channels, v to their elements of the run's first tile.
template <int64_t kRow>
CONVOY_INLINE void input_row(float* v, int64_t plane, const float* image, const WinogradShape& s,
                             int64_t i, int64_t j, int64_t length) {
  constexpr int64_t kFirst[] = {0, 1, 2, 1}, kSecond[] = {2, 2, 1, 3};
  const PixelRow a = pixel_row(image, 2 * i - 1 + kFirst[kRow], s.h, s.w, s.c);
  const PixelRow b = pixel_row(image, 2 * i - 1 + kSecond[kRow], s.h, s.w, s.c);
  const auto column = [&](int64_t q) __attribute__((always_inline)) {
    if (q < 0 || q >= s.w) return Floats{};
    const Floats va = load(a.p + q * a.step), vb = load(b.p + q * b.step);
    return kRow == 1 ? va + vb : va - vb;
  };
  Floats d0 = column(2 * j - 1), d1 = column(2 * j);
  for (int64_t t = 0; t < length; ++t) {
    const Floats d2 = column(2 * (j + t) + 1), d3 = column(2 * (j + t) + 2);
    store(v, d0 - d2);
    store(v + plane, d1 + d2);
    store(v + 2 * plane, d2 - d1);
    store(v + 3 * plane, d1 - d3);
    v += kLanes;
    d0 = d2;
    d1 = d3;
  }
}

// Row kRow of A dy A^T likewise, but for the signs of its last row and column, which
// unpack_gradient knows.
template <int64_t kRow>
CONVOY_INLINE void gradient_row(float* z, int64_t plane, const float* image, const WinogradShape& s,
                                int64_t i, int64_t j, int64_t length) {
  const PixelRow a = pixel_row(image, 2 * i, s.h, s.w, s.k);
  const PixelRow b = pixel_row(image, 2 * i + 1, s.h, s.w, s.k);
  const auto column = [&](int64_t q) __attribute__((always_inline)) {
    if (q >= s.w) return Floats{};
    if (kRow == 0) return load(a.p + q * a.step);
    if (kRow == 3) return load(b.p + q * b.step);
    const Floats va = load(a.p + q * a.step), vb = load(b.p + q * b.step);
    return kRow == 1 ? va + vb : va - vb;
  };
  for (int64_t t = 0; t < length; ++t) {
    const Floats d0 = column(2 * (j + t)), d1 = column(2 * (j + t) + 1);
    store(z, d0);
    store(z + plane, d0 + d1);
    store(z + 2 * plane, d0 - d1);
    store(z + 3 * plane, d1);
    z += kLanes;
  }
}

// m [kRows][kWidth * kLanes] = the products of kRows tiles of one plane of V with one of U, summed
// over c channels in their order. block: floats from one kLanes of channels to the next in v.
template <int64_t kRows, int64_t kWidth>
void multiply(float* m, const float* v, int64_t block, const float* u, int64_t c) {
  Floats sums[kRows][kWidth] = {};
  for (int64_t k = 0; k < c; k += kLanes, v += block)
    for (int64_t lane = 0; lane < kLanes; ++lane, u += kWidth * kLanes) {
      Floats weights[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) weights[i] = load(u + i * kLanes);
#pragma GCC unroll 16
      for (int64_t row = 0; row < kRows; ++row) {
        const Floats value = splat(v[row * kLanes + lane]);
#pragma GCC unroll 2
        for (int64_t i = 0; i < kWidth; ++i) sums[row][i] = fma(value, weights[i], sums[row][i]);
      }
    }
#pragma GCC unroll 16
  for (int64_t row = 0; row < kRows; ++row)
#pragma GCC unroll 2
    for (int64_t i = 0; i < kWidth; ++i) store(m + (row * kWidth + i) * kLanes, sums[row][i]);
}

using Multiply = void (*)(float*, const float*, int64_t, const float*, int64_t);
template <int64_t kWidth>
constexpr Multiply kMultiply[] = {
    multiply<1, kWidth>,  multiply<2, kWidth>,  multiply<3, kWidth>,  multiply<4, kWidth>,
    multiply<5, kWidth>,  multiply<6, kWidth>,
#if defined(__AVX512F__)
    multiply<7, kWidth>,  multiply<8, kWidth>,  multiply<9, kWidth>,  multiply<10, kWidth>,
    multiply<11, kWidth>, multiply<12, kWidth>, multiply<13, kWidth>, multiply<14, kWidth>,
#endif
};

// The tiles of a run from M [16][tiles][width] to y; image and the bias point to the first of the
// channels. What is added to element (1, 1) is added to all four pixels.
CONVOY_INLINE void output_run(float* image, const float* m, const WinogradEnd& end, int64_t plane,
                              int64_t width, const WinogradShape& s, int64_t i, int64_t j,
                              int64_t length) {
  const auto put = [&](float* to, Floats v) __attribute__((always_inline)) {
    if (end.residual) v += load(to);
    if (end.relu) v = v < 0.0f ? Floats{} : v;  // NaN stays NaN, so that it is seen
    store(to, v);
  };
  for (int64_t t = 0; t < length; ++t)
    for (int64_t k = 0; k < width; k += kLanes, m += kLanes) {
      Floats above[4], below[4];
      for (int64_t q = 0; q < 4; ++q) {
        const Floats m0 = load(m + q * plane);
        Floats m1 = load(m + (4 + q) * plane);
        if (q == 1 && end.bias) m1 += load(end.bias + k);
        const Floats m2 = load(m + (8 + q) * plane), m3 = load(m + (12 + q) * plane);
        above[q] = m0 + m1 + m2;
        below[q] = m1 - m2 - m3;
      }
      float* y = image + (2 * i * s.w + 2 * (j + t)) * s.k + k;
      const bool has_right = 2 * (j + t) + 1 < s.w;
      put(y, above[0] + above[1] + above[2]);
      if (has_right) put(y + s.k, above[1] - above[2] - above[3]);
      if (2 * i + 1 >= s.h) continue;
      y += s.w * s.k;
      put(y, below[0] + below[1] + below[2]);
      if (has_right) put(y + s.k, below[1] - below[2] - below[3]);
    }
}

// Asks for share `part` of `parts` of what the next stage will read.
CONVOY_INLINE void prefetch(const float* p, int64_t floats, int64_t part, int64_t parts) {
  const int64_t lines = floats / 16;
  for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i)
    __builtin_prefetch(p + i * 16, 0, 2);
}

// The first pixel of a tile, counted over all images; of one behind the last: the end.
CONVOY_INLINE int64_t pixel_of(const Tiles& tiles, const WinogradShape& s, int64_t tile) {
  const int64_t row = tile / tiles.columns, j = tile % tiles.columns;
  return (row / tiles.rows * s.h + row % tiles.rows * 2) * s.w + 2 * j;
}

// Few enough that V and M stay in the second-level cache, or nearly so; many enough that U, which
// does not where there are many channels, comes from the third-level cache seldom.
constexpr int64_t kForwardBlock = 56 / kMaxRows * kMaxRows;
constexpr int64_t kGradientBlock = 64;

// Smaller where a thread would have nothing to do.
int64_t forward_block(const WinogradShape& s, int threads) {
  const int64_t share = ceil_div(tiles_of(s).count, threads);
  return least(kForwardBlock, ceil_div(share, kMaxRows) * kMaxRows);
}

int64_t forward_scratch(const WinogradShape& s, int threads) {
  const int64_t block = forward_block(s, threads);
  return 16 * (block * s.c + kGap + block * kPanel + kGap) * threads;
}

// y of the tiles [first, end); v and m: 16 planes each.
void forward_tiles(float* y, const float* x, const float* u, const WinogradEnd& at_end,
                   const WinogradShape& s, int64_t first, int64_t end, float* v, int64_t v_plane,
                   float* m, int64_t m_plane) {
  const Tiles tiles = tiles_of(s);
  const int64_t count = end - first;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = 0; c < s.c; c += kLanes) {
              const float* image = x + n * s.h * s.w * s.c + c;
              float* to = v + c * count + t * kLanes;
              input_row<0>(to, v_plane, image, s, i, j, length);
              input_row<1>(to + 4 * v_plane, v_plane, image, s, i, j, length);
              input_row<2>(to + 8 * v_plane, v_plane, image, s, i, j, length);
              input_row<3>(to + 12 * v_plane, v_plane, image, s, i, j, length);
            }
          });
  // While they are multiplied, the pixels of the next block and those of y come near.
  const int64_t here = pixel_of(tiles, s, first), next = pixel_of(tiles, s, end);
  const int64_t after = pixel_of(tiles, s, least(end + count, tiles.count));
  const int64_t rows = ceil_div(count, ceil_div(count, kMaxRows)), panels = ceil_div(s.k, kPanel);
  for (int64_t k = 0; k < s.k; k += kPanel) {
    const int64_t width = least(kPanel, s.k - k);
    WinogradEnd panel_end = at_end;
    if (at_end.bias) panel_end.bias += k;
    const auto* multiply_rows = width == kPanel ? kMultiply<2> : kMultiply<1>;
    for (int64_t e = 0; e < 16; ++e) {
      prefetch(x + next * s.c, (after - next) * s.c, k / kPanel * 16 + e, 16 * panels);
      for (int64_t p = here + (next - here) * e / 16; p < here + (next - here) * (e + 1) / 16; ++p)
        prefetch(y + p * s.k + k, width, 0, 1);
      for (int64_t t = 0; t < count; t += rows)
        multiply_rows[least(rows, count - t) - 1](m + e * m_plane + t * width,
                                                  v + e * v_plane + t * kLanes, count * kLanes,
                                                  u + (k * 16 + e * width) * s.c, s.c);
    }
    for_runs(
        tiles, first, count,
        [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
            __attribute__((always_inline)) {
              output_run(y + n * s.h * s.w * s.k + k, m + t * width, panel_end, m_plane, width, s,
                         i, j, length);
            });
  }
}

void forward(float* y, const float* x, const float* u, const WinogradEnd& end,
             const WinogradShape& s, float* scratch, int threads) {
  const int64_t tiles = tiles_of(s).count;
  const int64_t block = forward_block(s, threads), blocks = ceil_div(tiles, block);
  const int64_t v_plane = block * s.c + kGap, m_plane = block * kPanel + kGap;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    float* v = scratch + slot * 16 * (v_plane + m_plane);
    for (int64_t b = blocks * slot / threads; b < blocks * (slot + 1) / threads; ++b)
      forward_tiles(y, x, u, end, s, b * block, least((b + 1) * block, tiles), v, v_plane,
                    v + 16 * v_plane, m_plane);
  }
}

// du [kLanes / 2][kWidth * kLanes] (+)= sum over `count` tiles of V (kLanes / 2 channels) times Z
// (kWidth vectors, z_block floats apart).
template <int64_t kWidth>
void multiply_add(float* du, const float* v, const float* z, int64_t z_block, int64_t count,
                  bool first) {
  constexpr int64_t kRows = kLanes / 2;
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

int64_t gradient_scratch(const WinogradShape& s, int threads) {
  return 4 * (kGradientBlock * (s.c + s.k) + 2 * kGap) * threads;
}

// db [k_begin, k_end) (+)= the sums over `count` tiles of element (1, 1) of Z, the sum of a tile's
// four pixels.
CONVOY_INLINE void add_bias_gradient(float* db, const float* z, int64_t count, int64_t k_begin,
                                     int64_t k_end, bool first) {
  for (int64_t k = k_begin; k < k_end; k += kLanes) {
    Floats sum = {};
    for (int64_t t = 0; t < count; ++t) sum += load(z + k * count + t * kLanes);
    store(db + k, first ? sum : load(db + k) + sum);
  }
}

// What one thread adds to dU in one go: row `row` of its 4x4 elements, for the output channels
// [k_begin, k_end).
struct GradientTask {
  int64_t row, k_begin, k_end;
};

// The task's part of V and Z for a block of tiles, and their products into dU.
template <int64_t kRow>
void add_block(float* du, float* db, const float* x, const float* dy, const WinogradShape& s,
               const GradientTask& task, int64_t first, bool fresh, bool once, float* v, float* z) {
  const Tiles tiles = tiles_of(s);
  const int64_t end = least(first + kGradientBlock, tiles.count), count = end - first;
  const int64_t v_plane = count * s.c + kGap, z_plane = count * s.k + kGap;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = 0; c < s.c; c += kLanes)
              input_row<kRow>(v + c * count + t * kLanes, v_plane, x + n * s.h * s.w * s.c + c, s,
                              i, j, length);
            for (int64_t k = task.k_begin; k < task.k_end; k += kLanes)
              gradient_row<kRow>(z + k * count + t * kLanes, z_plane, dy + n * s.h * s.w * s.k + k,
                                 s, i, j, length);
          });
  if (kRow == 1 && db) add_bias_gradient(db, z + z_plane, count, task.k_begin, task.k_end, fresh);
  // Meanwhile the pixels of the next block come near.
  const int64_t next = pixel_of(tiles, s, end);
  const int64_t pixels = pixel_of(tiles, s, least(end + kGradientBlock, tiles.count)) - next;
  const int64_t panels = ceil_div(task.k_end - task.k_begin, kPanel);
  const int64_t parts = (once ? 16 : 4) * panels;
  int64_t part = once ? 4 * kRow * panels : 0;
  for (int64_t q = 0; q < 4; ++q)
    for (int64_t k = task.k_begin; k < task.k_end; k += kPanel, ++part) {
      prefetch(x + next * s.c, pixels * s.c, part, parts);
      prefetch(dy + next * s.k, pixels * s.k, part, parts);
      const int64_t width = least(kPanel, s.k - k);
      const auto add_products = width == kPanel ? multiply_add<2> : multiply_add<1>;
      float* to = du + (k * 16 + (4 * kRow + q) * width) * s.c;
      for (int64_t c = 0; c < s.c; c += kLanes / 2)
        add_products(to + c * width, v + q * v_plane + c / kLanes * kLanes * count + c % kLanes,
                     z + q * z_plane + k * count, count * kLanes, count, fresh);
    }
}

void add_gradient(float* du, float* db, const float* x, const float* dy, const WinogradShape& s,
                  bool first, float* scratch, int threads) {
  const int64_t tiles = tiles_of(s).count;
  // Tasks are the four rows of the elements and, with more than four threads, ranges of panels.
  const int64_t panels = ceil_div(s.k, kPanel), ranges = least(ceil_div(threads, 4), panels);
  const int64_t tasks = 4 * ranges;
  // Where all of dU stays in the cache, x and dy are read once, otherwise once per task.
  const bool once = s.c * s.k <= int64_t{64} * 64;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    float* v = scratch + slot * 4 * (kGradientBlock * (s.c + s.k) + 2 * kGap);
    float* z = v + 4 * (kGradientBlock * s.c + kGap);
    const auto add = [=, &s](int64_t index, int64_t block) {
      const int64_t range = index / 4;
      const GradientTask task = {index % 4, panels * range / ranges * kPanel,
                                 least(panels * (range + 1) / ranges * kPanel, s.k)};
      constexpr decltype(&add_block<0>) kAdd[] = {add_block<0>, add_block<1>, add_block<2>,
                                                  add_block<3>};
      kAdd[task.row](du, db, x, dy, s, task, block, first && block == 0, once, v, z);
    };
    const int64_t begin = tasks * slot / threads, end = tasks * (slot + 1) / threads;
    if (once) {
      for (int64_t block = 0; block < tiles; block += kGradientBlock)
        for (int64_t index = begin; index < end; ++index) add(index, block);
    } else {
      for (int64_t index = begin; index < end; ++index)
        for (int64_t block = 0; block < tiles; block += kGradientBlock) add(index, block);
    }
  }
}

// The 16 elements of G g G^T, kLanes output channels each, to one input channel of a panel of U.
CONVOY_INLINE void pack_vector(float* u, int64_t plane, const float* g) {
  Floats rows[4][3];
  for (int64_t q = 0; q < 3; ++q) {
    const Floats g0 = load(g + q * kLanes), g1 = load(g + (3 + q) * kLanes);
    const Floats g2 = load(g + (6 + q) * kLanes), sum = g0 + g2;
    rows[0][q] = g0;
    rows[1][q] = (sum + g1) * 0.5f;
    rows[2][q] = (sum - g1) * 0.5f;
    rows[3][q] = g2;
  }
  for (int64_t r = 0; r < 4; ++r) {
    const Floats sum = rows[r][0] + rows[r][2];
    store(u + 4 * r * plane, rows[r][0]);
    store(u + (4 * r + 1) * plane, (sum + rows[r][1]) * 0.5f);
    store(u + (4 * r + 2) * plane, (sum - rows[r][1]) * 0.5f);
    store(u + (4 * r + 3) * plane, rows[r][2]);
  }
}

// Where the elements of input channel c and output channels k .. k + kLanes lie in U or dU.
CONVOY_INLINE float* vector_of(float* u, int64_t c, int64_t k, int64_t channels, int64_t width) {
  return u + k / kPanel * kPanel * 16 * channels + c * width + k % kPanel;
}

void pack(float* u, const float* w, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes) {
    const int64_t width = least(kPanel, k - b / kPanel * kPanel);
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane)
        for (int64_t i = 0; i < kLanes * 9; ++i) g[i][lane] = w[((b + lane) * c + a) * 9 + i];
      for (int64_t i = 0; i < kLanes; ++i)
        pack_vector(vector_of(u, a + i, b, c, width), c * width, g[i * 9]);
    }
  }
}

void pack_backward(float* u, const float* w, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes) {
    const int64_t width = least(kPanel, k - b / kPanel * kPanel);
    for (int64_t a = 0; a < c; ++a) {
      alignas(64) float g[9][kLanes];  // turned by 180 degrees
      for (int64_t lane = 0; lane < kLanes; ++lane)
        for (int64_t i = 0; i < 9; ++i) g[8 - i][lane] = w[(a * k + b + lane) * 9 + i];
      pack_vector(vector_of(u, a, b, c, width), c * width, g[0]);
    }
  }
}

// dw = G^T dU G.
CONVOY_INLINE void unpack_vector(float* g, const float* du, int64_t plane) {
  Floats rows[3][4];
  for (int64_t q = 0; q < 4; ++q) {
    const Floats u0 = load(du + q * plane), u1 = load(du + (4 + q) * plane);
    const Floats u2 = load(du + (8 + q) * plane), u3 = load(du + (12 + q) * plane);
    const Floats half_sum = (u1 + u2) * 0.5f;
    rows[0][q] = u0 + half_sum;
    rows[1][q] = (u1 - u2) * 0.5f;
    rows[2][q] = half_sum - u3;
  }
  for (int64_t r = 0; r < 3; ++r) {
    const Floats half_sum = (rows[r][1] + rows[r][2]) * 0.5f;
    store(g + 3 * r * kLanes, rows[r][0] + half_sum);
    store(g + (3 * r + 1) * kLanes, (rows[r][1] - rows[r][2]) * 0.5f);
    store(g + (3 * r + 2) * kLanes, half_sum - rows[r][3]);
  }
}

void unpack_gradient(float* dw, const float* du, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes) {
    const int64_t width = least(kPanel, k - b / kPanel * kPanel);
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        unpack_vector(g[i * 9], vector_of(const_cast<float*>(du), a + i, b, c, width), c * width);
      for (int64_t lane = 0; lane < kLanes; ++lane)
        for (int64_t i = 0; i < kLanes * 9; ++i) dw[((b + lane) * c + a) * 9 + i] = g[i][lane];
    }
  }
}

}  // namespace

const WinogradKernels winograd_kernels_fp32 = {
    forward_scratch, gradient_scratch, pack, pack_backward, forward, add_gradient, unpack_gradient};
#else
const WinogradKernels winograd_kernels_fp32 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
