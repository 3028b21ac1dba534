#include "ops/winograd_kernels.h"

#include "ops/simd.h"
#include "ops/winograd_transform.h"

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
// U [panel][kElements] planes of [c][width].
constexpr int64_t kPanel = 2 * kLanes;
// Between planes, so that the elements of a tile, or of the weights of some channels, do not fall
// into the same sets of the cache.
constexpr int64_t kGap = 16, kWeightsGap = 64;

// Floats of a plane of U, with the gap behind it.
CONVOY_INLINE int64_t weights_plane(int64_t c, int64_t width) {
  return c * width + kWeightsGap;
}
// U of the panel that begins with output channel k.
CONVOY_INLINE int64_t panel_at(int64_t elements, int64_t c, int64_t k) {
  return elements * (c * k + k / kPanel * kWeightsGap);
}

template <typename Down, typename Across>
struct TileOf {
  using Rows = Transform<Down>;
  using Columns = Transform<Across>;
  static constexpr int64_t kElements = Rows::kPatch * Columns::kPatch;
};

template <typename Tile>
int64_t weight_floats(int64_t c, int64_t k) {
  return Tile::kElements * (c * k + ceil_div(k, kPanel) * kWeightsGap);
}

// ---- Tiles and pixels.

// In order of image, row, column.
struct Tiles {
  int64_t rows, columns, count;
};
template <typename Tile>
CONVOY_INLINE Tiles tiles_of(const WinogradShape& s) {
  const int64_t rows = ceil_div(s.h, Tile::Rows::kTile);
  const int64_t columns = ceil_div(s.w, Tile::Columns::kTile);
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
template <typename Tile>
CONVOY_INLINE int64_t pixel_of(const Tiles& tiles, const WinogradShape& s, int64_t tile) {
  const int64_t row = tile / tiles.columns, j = tile % tiles.columns;
  return (row / tiles.rows * s.h + row % tiles.rows * Tile::Rows::kTile) * s.w +
         Tile::Columns::kTile * j;
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
template <typename Tile, typename T>
CONVOY_INLINE void input_run(float* v, int64_t plane, const T* image, const WinogradShape& s,
                             int64_t i, int64_t j, int64_t length) {
  using Rows = typename Tile::Rows;
  using Columns = typename Tile::Columns;
  constexpr int64_t kTile = Columns::kTile, kTiles = 32 / kTile;  // in one go
  // Columns, transformed downwards.
  alignas(64) float buffer[Rows::kPatch][kTile * kTiles + 2][kLanes];
  for (int64_t end = j + length; j < end; j += kTiles) {
    const int64_t tiles = least(kTiles, end - j), columns = kTile * tiles + 2;
    const int64_t left = kTile * j - 1, first = left < 0 ? 0 : left;
    const int64_t last = least(left + columns, s.w);
    for (auto& row : buffer) {
      if (left < 0) store(row[0], Floats{});
      for (int64_t q = last - left; q < columns; ++q) store(row[q], Floats{});
    }
    Pixels<T, Rows::kPatch> pixels(image, Rows::kTile * i - 1, first, s.h, s.w, s.c);
    for (int64_t q = first - left; q < last - left; ++q) {
      Floats d[Rows::kPatch], out[Rows::kPatch];
      pixels.next(d);
      Rows::of_input(out, d);
#pragma GCC unroll 9
      for (int64_t r = 0; r < Rows::kPatch; ++r) store(buffer[r][q], out[r]);
    }
    for (int64_t t = 0; t < tiles; ++t, v += kLanes)
      for (int64_t r = 0; r < Rows::kPatch; ++r) {
        Floats d[Columns::kPatch], out[Columns::kPatch];
#pragma GCC unroll 9
        for (int64_t q = 0; q < Columns::kPatch; ++q) d[q] = load(buffer[r][kTile * t + q]);
        Columns::of_input(out, d);
#pragma GCC unroll 9
        for (int64_t q = 0; q < Columns::kPatch; ++q)
          store(v + (r * Columns::kPatch + q) * plane, out[q]);
      }
  }
}

// Z = A dy A^T likewise.
template <typename Tile, typename T>
CONVOY_INLINE void gradient_run(float* z, int64_t plane, const T* image, const WinogradShape& s,
                                int64_t i, int64_t j, int64_t length) {
  using Rows = typename Tile::Rows;
  using Columns = typename Tile::Columns;
  constexpr int64_t kTile = Columns::kTile;
  Pixels<T, Rows::kTile> pixels(image, Rows::kTile * i, kTile * j, s.h, s.w, s.k);
  for (int64_t t = 0; t < length; ++t, z += kLanes) {
    const int64_t inside = s.w - kTile * (j + t);
    Floats columns[kTile][Rows::kPatch];
#pragma GCC unroll 7
    for (int64_t q = 0; q < kTile; ++q) {
      Floats dy[Rows::kTile] = {};
      if (q < inside) pixels.next(dy);
      Rows::of_gradient(columns[q], dy);
    }
#pragma GCC unroll 9
    for (int64_t r = 0; r < Rows::kPatch; ++r) {
      Floats dy[kTile], out[Columns::kPatch];
#pragma GCC unroll 7
      for (int64_t q = 0; q < kTile; ++q) dy[q] = columns[q][r];
      Columns::of_gradient(out, dy);
#pragma GCC unroll 9
      for (int64_t q = 0; q < Columns::kPatch; ++q)
        store(z + (r * Columns::kPatch + q) * plane, out[q]);
    }
  }
}

// The tiles of a run from M [kElements][tiles][width] to y; image and the bias point to the first
// of the channels. kPlain: nothing is done to the sums.
template <typename Tile, bool kPlain, typename T>
void output_run(T* image, const float* m, const WinogradEnd& end, int64_t plane, int64_t width,
                const WinogradShape& s, int64_t i, int64_t j, int64_t length) {
  using Rows = typename Tile::Rows;
  using Columns = typename Tile::Columns;
  constexpr int64_t kTile = Columns::kTile;
  const int64_t rows = least(Rows::kTile, s.h - Rows::kTile * i);
  for (int64_t t = 0; t < length; ++t)
    for (int64_t k = 0; k < width; k += kLanes, m += kLanes) {
      Floats columns[Columns::kPatch][Rows::kTile];
#pragma GCC unroll 9
      for (int64_t q = 0; q < Columns::kPatch; ++q) {
        Floats elements[Rows::kPatch];
#pragma GCC unroll 9
        for (int64_t r = 0; r < Rows::kPatch; ++r)
          elements[r] = load(m + (r * Columns::kPatch + q) * plane);
        Rows::of_output(columns[q], elements);
      }
      const Floats bias = !kPlain && end.bias ? load(end.bias + k) : Floats{};
      T* y = image + (Rows::kTile * i * s.w + kTile * (j + t)) * s.k + k;
      const int64_t inside = least(kTile, s.w - kTile * (j + t));
#pragma GCC unroll 7
      for (int64_t r = 0; r < Rows::kTile; ++r, y += s.w * s.k) {
        if (r >= rows) break;
        Floats elements[Columns::kPatch], out[kTile];
#pragma GCC unroll 9
        for (int64_t q = 0; q < Columns::kPatch; ++q) elements[q] = columns[q][r];
        Columns::of_output(out, elements);
#pragma GCC unroll 7
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
// to the next in v. ahead: a line for each channel, to be fetched for a later call.
template <int64_t kRows, int64_t kWidth>
void multiply(float* m, const float* v, int64_t block, const float* u, int64_t c, bool first,
              const char* ahead) {
  Floats sums[kRows][kWidth] = {};
  for (int64_t k = 0; k < c; k += kLanes, v += block)
    for (int64_t lane = 0; lane < kLanes; ++lane, u += kWidth * kLanes) {
      fetch(ahead);
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

using Multiply = void (*)(float*, const float*, int64_t, const float*, int64_t, bool, const char*);
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
  constexpr int64_t kPerLine = Ahead::kLine / sizeof(T);
  const int64_t lines = ceil_div(n, kPerLine);
  for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i)
    __builtin_prefetch(p + i * kPerLine, 0, 2);
}

// Tiles of a block, at most: few enough that V and M stay in the second-level cache, or nearly so.
// U comes from the third-level cache for every block; measured on a Zen 5, that costs less than
// larger blocks do, as multiply() asks for it ahead.
constexpr int64_t kForwardBlock = 28;

// Blocks of one size, of whole rows of tiles, which share pixels, if no thread has more to do then.
template <typename Tile>
int64_t forward_block(const WinogradShape& s, int threads) {
  const Tiles tiles = tiles_of<Tile>(s);
  const int64_t share = ceil_div(tiles.count, threads);
  const int64_t block = ceil_div(share, ceil_div(share, kForwardBlock));
  const int64_t whole = ceil_div(block, tiles.columns) * tiles.columns;
  const auto largest_share = [&](int64_t size) {  // tiles of one thread
    return ceil_div(ceil_div(tiles.count, size), threads) * size;
  };
  return whole <= kForwardBlock && largest_share(whole) <= largest_share(block) ? whole : block;
}

template <typename Tile>
int64_t forward_scratch(const WinogradShape& s, int threads) {
  const int64_t block = forward_block<Tile>(s, threads);
  return Tile::kElements * (block * s.c + kGap + block * kPanel + kGap) * threads;
}

// y of the tiles [first, end); v and m: kElements planes each.
template <typename Tile, typename T>
void forward_tiles(T* y, const T* x, const float* u, const WinogradEnd& at_end,
                   const WinogradShape& s, int64_t first, int64_t end, float* v, int64_t v_plane,
                   float* m, int64_t m_plane) {
  constexpr int64_t kElements = Tile::kElements;
  const Tiles tiles = tiles_of<Tile>(s);
  const int64_t count = end - first;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = 0; c < s.c; c += kLanes)
              input_run<Tile>(v + c * count + t * kLanes, v_plane, x + n * s.h * s.w * s.c + c, s,
                              i, j, length);
          });
  // While they are multiplied, the pixels of the next block and those of y come near.
  const int64_t here = pixel_of<Tile>(tiles, s, first), next = pixel_of<Tile>(tiles, s, end);
  const int64_t after = pixel_of<Tile>(tiles, s, least(end + count, tiles.count));
  const int64_t rows = ceil_div(count, ceil_div(count, kMaxRows)), panels = ceil_div(s.k, kPanel);
  const bool plain = !at_end.bias && !at_end.residual && !at_end.relu;
  const auto put_run = plain ? output_run<Tile, true, T> : output_run<Tile, false, T>;
  for (int64_t k = 0; k < s.k; k += kPanel) {
    const int64_t width = least(kPanel, s.k - k);
    WinogradEnd panel_end = at_end;
    if (at_end.bias) panel_end.bias += k;
    const float* plane = u + panel_at(kElements, s.c, k);
    for (int64_t e = 0; e < kElements; ++e, plane += weights_plane(s.c, width)) {
      prefetch(x + next * s.c, (after - next) * s.c, k / kPanel * kElements + e,
               kElements * panels);
      for (int64_t p = here + (next - here) * e / kElements;
           p < here + (next - here) * (e + 1) / kElements; ++p)
        prefetch(y + p * s.k + k, width, 0, 1);
      for (int64_t c = 0; c < s.c; c += kSum) {
        const int64_t channels = least(kSum, s.c - c);
        const float* weights = plane + c * width;
        // Meanwhile the same channels of the next plane come near.
        const float* following = weights + weights_plane(s.c, width);
        Ahead ahead(following, following + channels * width);
        for (int64_t t = 0, step; t < count; t += step) {
          const int64_t left = count - t;
          const bool twice = width < kPanel && left >= 2 * kMaxRows;
          step = twice ? 2 * kMaxRows : least(rows, left);
          const auto multiply_rows = twice             ? multiply<2 * kMaxRows, 1>
                                     : width == kPanel ? kMultiply<2>[step - 1]
                                                       : kMultiply<1>[step - 1];
          multiply_rows(m + e * m_plane + t * width, v + e * v_plane + c * count + t * kLanes,
                        count * kLanes, weights, channels, c == 0, ahead.take(channels, weights));
        }
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

template <typename Tile, typename T>
void forward(T* y, const T* x, const float* u, const WinogradEnd& end, const WinogradShape& s,
             float* scratch, int threads) {
  constexpr int64_t kElements = Tile::kElements;
  const int64_t tiles = tiles_of<Tile>(s).count;
  const int64_t block = forward_block<Tile>(s, threads), blocks = ceil_div(tiles, block);
  const int64_t v_plane = block * s.c + kGap, m_plane = block * kPanel + kGap;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t slot = 0; slot < threads; ++slot) {
    float* v = scratch + slot * kElements * (v_plane + m_plane);
    for (int64_t b = blocks * slot / threads; b < blocks * (slot + 1) / threads; ++b)
      forward_tiles<Tile>(y, x, u, end, s, b * block, least((b + 1) * block, tiles), v, v_plane,
                          v + kElements * v_plane, m_plane);
  }
}

// du [kRows][kWidth * kLanes] (+)= sum over `count` tiles of V (kRows channels) times Z (kWidth
// vectors, z_block floats apart).
template <int64_t kWidth>
constexpr int64_t kGradientRows = kLanes / kWidth;
template <int64_t kWidth>
void multiply_add(float* du, const float* v, const float* z, int64_t z_block, int64_t count,
                  bool first, const char* ahead) {
  constexpr int64_t kRows = kGradientRows<kWidth>;
  // The next call's part of du comes near.
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) __builtin_prefetch(du + (kLanes + i) * kLanes, 1);
  Floats sums[kRows][kWidth] = {};
  for (int64_t t = 0; t < count; ++t, v += kLanes, z += kLanes) {
    fetch(ahead);
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

template <typename Tile>
CONVOY_INLINE int64_t gradient_planes(const WinogradShape& s) {
  const int64_t channels = least(kGradientChannels, s.c) + least(kGradientChannels, s.k);
  return Tile::kElements * (kGradientBlock * channels + 2 * kGap);
}

template <typename Tile>
int64_t gradient_scratch(const WinogradShape& s, int threads) {
  return gradient_planes<Tile>(s) * threads;
}

// What one thread adds to dU in one go.
struct GradientTask {
  int64_t c_begin, c_end, k_begin, k_end, e_begin, e_end;
};

// The task's part of V and Z for a block of tiles, and their products into dU.
template <typename Tile, typename T>
void add_block(float* du, const T* x, const T* dy, const WinogradShape& s, const GradientTask& task,
               int64_t first, bool fresh, float* v) {
  constexpr int64_t kElements = Tile::kElements;
  const Tiles tiles = tiles_of<Tile>(s);
  const int64_t end = least(first + kGradientBlock, tiles.count), count = end - first;
  const int64_t v_plane = count * (task.c_end - task.c_begin) + kGap;
  const int64_t z_plane = count * (task.k_end - task.k_begin) + kGap;
  float* z = v + kElements * v_plane;
  for_runs(
      tiles, first, count,
      [&](int64_t t, int64_t length, int64_t n, int64_t i, int64_t j)
          __attribute__((always_inline)) {
            for (int64_t c = task.c_begin; c < task.c_end; c += kLanes)
              input_run<Tile>(v + (c - task.c_begin) * count + t * kLanes, v_plane,
                              x + n * s.h * s.w * s.c + c, s, i, j, length);
            for (int64_t k = task.k_begin; k < task.k_end; k += kLanes)
              gradient_run<Tile>(z + (k - task.k_begin) * count + t * kLanes, z_plane,
                                 dy + n * s.h * s.w * s.k + k, s, i, j, length);
          });
  // Meanwhile the pixels of the next block come near.
  const int64_t next = pixel_of<Tile>(tiles, s, end);
  const int64_t pixels = pixel_of<Tile>(tiles, s, least(end + kGradientBlock, tiles.count)) - next;
  Ahead ahead_x(x + next * s.c, x + (next + pixels) * s.c);
  Ahead ahead_dy(dy + next * s.k, dy + (next + pixels) * s.k);
  for (int64_t e = task.e_begin; e < task.e_end; ++e)
    for (int64_t k = task.k_begin; k < task.k_end; k += kPanel) {
      const int64_t width = least(kPanel, s.k - k);
      const auto add_products = width == kPanel ? multiply_add<2> : multiply_add<1>;
      float* to = du + panel_at(kElements, s.c, k) + e * weights_plane(s.c, width);
      const float* right = z + e * z_plane + (k - task.k_begin) * count;
      const int64_t step = width == kPanel ? kGradientRows<2> : kGradientRows<1>;
      for (int64_t c = task.c_begin; c < task.c_end; c += step) {
        const int64_t from = c - task.c_begin;
        add_products(to + c * width,
                     v + e * v_plane + from / kLanes * kLanes * count + from % kLanes, right,
                     count * kLanes, count, fresh,
                     (ahead_x.at < ahead_x.end ? ahead_x : ahead_dy).take(count, right));
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

template <typename Tile, typename T>
void add_gradient(float* du, float* db, const T* x, const T* dy, const WinogradShape& s, bool first,
                  float* scratch, int threads) {
  if (db) add_bias_gradient(db, dy, s, first, threads);
  constexpr int64_t kElements = Tile::kElements;
  const int64_t tiles = tiles_of<Tile>(s).count;
  const int64_t c_ranges = ceil_div(s.c, kGradientChannels);
  const int64_t ranges = c_ranges * ceil_div(s.k, kGradientChannels);
  // With more threads, each multiplies some of the elements.
  const int64_t parts = least(ceil_div(threads, ranges), Tile::Rows::kPatch),
                tasks = ranges * parts;
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
        add_block<Tile>(du, x, dy, s, task, tile, first && tile == 0,
                        scratch + slot * gradient_planes<Tile>(s));
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

// Stores that go to memory: for what leaves the cache before it is read.
CONVOY_INLINE void store_past_cache(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#else
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#endif
}

// The elements of G g G^T, g [9][kLanes], kLanes output channels each, `plane` floats apart.
template <typename Tile, bool kPastCache>
void pack_vector(float* u, int64_t plane, const float* g) {
  using Rows = typename Tile::Rows;
  using Columns = typename Tile::Columns;
  Floats columns[3][Rows::kPatch];
#pragma GCC unroll 3
  for (int64_t q = 0; q < 3; ++q) {
    const Floats column[3] = {load(g + q * kLanes), load(g + (3 + q) * kLanes),
                              load(g + (6 + q) * kLanes)};
    Rows::of_weights(columns[q], column);
  }
#pragma GCC unroll 9
  for (int64_t r = 0; r < Rows::kPatch; ++r) {
    const Floats row[3] = {columns[0][r], columns[1][r], columns[2][r]};
    Floats out[Columns::kPatch];
    Columns::of_weights(out, row);
#pragma GCC unroll 9
    for (int64_t q = 0; q < Columns::kPatch; ++q) {
      float* const to = u + (r * Columns::kPatch + q) * plane;
      if (kPastCache)
        store_past_cache(to, out[q]);
      else
        store(to, out[q]);
    }
  }
}

// U of kLanes input channels from `a` on and kLanes output channels from `b` on; g [kLanes * 9]
// [kLanes].
template <typename Tile>
CONVOY_INLINE void pack_block(float* u, const float* g, int64_t a, int64_t b, int64_t c,
                              int64_t k) {
  constexpr int64_t kCached = 500000;  // floats; what is larger leaves the cache before it is read
  const bool past_cache = weight_floats<Tile>(c, k) > kCached;
  const auto pack_one = past_cache ? pack_vector<Tile, true> : pack_vector<Tile, false>;
  const int64_t panel = b / kPanel * kPanel, width = least(kPanel, k - panel);
  float* to = u + panel_at(Tile::kElements, c, panel) + a * width + b % kPanel;
  for (int64_t i = 0; i < kLanes; ++i)
    pack_one(to + i * width, weights_plane(c, width), g + i * 9 * kLanes);
  if (past_cache) _mm_sfence();
}

template <typename Tile, typename T>
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
      pack_block<Tile>(u, g[0], a, b, c, k);
    }
}

template <typename Tile, typename T>
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
      pack_block<Tile>(u, g[0], a, b, c, k);
    }
}

// dw = G^T dU G.
template <typename Tile>
CONVOY_INLINE void unpack_vector(float* g, const float* du, int64_t plane) {
  using Rows = typename Tile::Rows;
  using Columns = typename Tile::Columns;
  Floats columns[Columns::kPatch][3];
#pragma GCC unroll 9
  for (int64_t q = 0; q < Columns::kPatch; ++q) {
    Floats elements[Rows::kPatch];
#pragma GCC unroll 9
    for (int64_t r = 0; r < Rows::kPatch; ++r)
      elements[r] = load(du + (r * Columns::kPatch + q) * plane);
    Rows::of_weight_gradient(columns[q], elements);
  }
#pragma GCC unroll 3
  for (int64_t r = 0; r < 3; ++r) {
    Floats elements[Columns::kPatch], out[3];
#pragma GCC unroll 9
    for (int64_t q = 0; q < Columns::kPatch; ++q) elements[q] = columns[q][r];
    Columns::of_weight_gradient(out, elements);
    for (int64_t q = 0; q < 3; ++q) store(g + (3 * r + q) * kLanes, out[q]);
  }
}

template <typename Tile>
void unpack_gradient(float* dw, const float* du, int64_t c, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < k; b += kLanes) {
    const int64_t panel = b / kPanel * kPanel, width = least(kPanel, k - panel);
    for (int64_t a = 0; a < c; a += kLanes) {
      alignas(64) float g[kLanes * 9][kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = du + panel_at(Tile::kElements, c, panel) + (a + i) * width + b % kPanel;
        // The next kLanes channels come near.
        const float* ahead = from + kLanes * width;
        for (int64_t e = 0; e < Tile::kElements; ++e, ahead += weights_plane(c, width))
          __builtin_prefetch(ahead, 0, 2);
        unpack_vector<Tile>(g[i * 9], from, weights_plane(c, width));
      }
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

template <typename Tile, typename T>
constexpr WinogradKernels<T> kForwardTable = {.weight_floats = weight_floats<Tile>,
                                              .forward_scratch = forward_scratch<Tile>,
                                              .pack = pack<Tile, T>,
                                              .pack_backward = pack_backward<Tile, T>,
                                              .forward = forward<Tile, T>};
template <typename Tile, typename T>
constexpr WinogradKernels<T> table() {
  WinogradKernels<T> all = kForwardTable<Tile, T>;
  all.gradient_scratch = gradient_scratch<Tile>;
  all.add_gradient = add_gradient<Tile, T>;
  all.unpack_gradient = unpack_gradient<Tile>;
  return all;
}

}  // namespace

const WinogradKernels<float> winograd_kernels_4x4_fp32 = table<TileOf<Four, Four>, float>();
const WinogradKernels<Bfloat16> winograd_kernels_4x4_bf16 = table<TileOf<Four, Four>, Bfloat16>();
const WinogradKernels<Bfloat16> winograd_kernels_7x4_bf16 = table<TileOf<Seven, Four>, Bfloat16>();
const WinogradKernels<Bfloat16> winograd_kernels_7x7_bf16 =
    kForwardTable<TileOf<Seven, Seven>, Bfloat16>;
#else
const WinogradKernels<float> winograd_kernels_4x4_fp32 = {};
const WinogradKernels<Bfloat16> winograd_kernels_4x4_bf16 = {};
const WinogradKernels<Bfloat16> winograd_kernels_7x4_bf16 = {};
const WinogradKernels<Bfloat16> winograd_kernels_7x7_bf16 = {};
#endif

}  // namespace convoy::ops::CONVOY_ISA
