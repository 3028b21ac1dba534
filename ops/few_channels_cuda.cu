// Convolutions of images with four channels in memory, by tensor cores (ops/core/tensor_cores.h).
//
// A row of a window is a row of the image's pixels, which lie side by side: eight values of two
// pixels are a row of a small matrix wherever it begins at an even pixel. So no window is ever put
// together: what a block needs of the image (its patch) is copied to shared memory, and matrices
// are read from there. With an odd stride every other window begins at an odd pixel, and there is a
// second copy of the patch, a pixel further on.
//
// Forward: a block computes tiles of output pixels, one after the other, of 64 channels, with the
// weights in shared memory; and, where a batch norm wants them, the sums of what it has stored.
// Gradient: a block adds up dy^T windows over its rows of output pixels, of 64 channels and up to
// 56 taps. Both then leave partial sums that a small kernel adds in a fixed order. How work is cut
// into blocks depends on shapes alone (law 1).
//
// Bytes moved: x and y forward, x and dy for the gradient, and partial sums (23 MB written and read
// for the gradient of ResNet's 7x7); rows of x that blocks share come from the L2 cache.
#include "ops/few_channels_cuda.h"

#include <algorithm>

#include "ops/conv2d_cuda.h"
#include "ops/core/cache_line.h"
#include "ops/core/cuda_kernel.h"
#include "ops/core/tensor_cores.h"
#include "ops/cuda_device.h"
#include "ops/image_input.h"

namespace convoy::ops {
namespace {

using namespace cuda;

constexpr int kDepth = static_cast<int>(kFourChannels);
static_assert(kDepth == 4);
constexpr int kOutputs = 64;   // channels of a block
constexpr int kTileRows = 16;  // pixels of a small matrix

// ---- Geometry.

struct Geometry {
  int n, h, w;        // of x
  int rows, columns;  // of y
  int channels;       // of y
  int kernel, stride, padding;
  int width, beside;  // columns of a tile, a multiple of 16; tiles beside each other
  int height, above;  // rows of a tile; tiles above each other
  int pixels;         // of a row of a patch, an even number
  int patch_rows;
  int patch;             // pixels of one, both copies
  int copy;              // where the second copy begins, in pixels; 0: there is none
  int taps;              // of a window's row, as products take them
  int at_once;           // rows of a window whose weights are in shared memory
  int output_blocks;     // of 64 channels
  int row_pairs, pairs;  // of taps, two beside each other: of a window's row, of it
  int pairs_of_a_warp;
  int tap_blocks;                       // of so many for each warp
  int tiles, tiles_of_a_block, groups;  // blocks are groups x output_blocks (x tap_blocks)
};

// A tile's first place.
struct Tile {
  int image, row, column;

  __device__ Tile(const Geometry& g, int tile) {
    const int line = tile / g.beside;
    column = (tile - line * g.beside) * g.width;
    image = line / g.above;
    row = (line - image * g.above) * g.height;
  }
};

struct alignas(8) Pixel {
  uint16_t v[kDepth];
};

// Enqueues copies (wait_for_copies()) of a tile's patch, zero outside the image. A warp takes whole
// rows.
template <bool kTwice>
__device__ void load_patch(Pixel* patch, const Pixel* x, const Geometry& g, const Tile& tile,
                           int warps) {
  const auto warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_row = tile.row * g.stride - g.padding;
  const int first_column = tile.column * g.stride - g.padding;
  for (int r = warp; r < g.patch_rows; r += warps) {
    const int row = first_row + r;
    const bool is_row = row >= 0 && row < g.h;
    const Pixel* in = x + (static_cast<int64_t>(tile.image) * g.h + (is_row ? row : 0)) * g.w;
    Pixel* out = patch + r * g.pixels;
    for (int i = lane; i < g.pixels; i += kWarp) {
      const int column = first_column + i;
      const bool inside = is_row && column >= 0 && column < g.w;
      const Pixel* from = in + (inside ? column : 0);
      copy_ahead<sizeof(Pixel)>(out + i, from, inside);
      if (kTwice && i > 0) copy_ahead<sizeof(Pixel)>(out + g.copy + i - 1, from, inside);
    }
  }
}

// Of a row of a patch, from which copy a matrix's row is read that begins at this pixel.
__device__ int even_place(const Geometry& g, int pixel) {
  return pixel % 2 == 0 ? pixel : g.copy + pixel - 1;
}

__device__ const uint16_t* values_of(const Pixel* pixel) {
  return reinterpret_cast<const uint16_t*>(pixel);
}

// ---- Forward.

constexpr int kForwardWarps = 7, kTilesOfAWarp = 2;  // 224 pixels: two rows of 112
constexpr int kForwardThreads = kForwardWarps * kWarp;
constexpr int kForwardTiles = kForwardWarps * kTilesOfAWarp;
constexpr int kMostPatch = 2176;                // pixels
constexpr int kMostWeights = 14 * kTileRows;    // of a channel, at once
constexpr int kWeightPitch = kMostWeights + 8;  // so that rows of matrices lie in different banks
constexpr size_t kWeightBytes = sizeof(uint16_t) * kOutputs * kWeightPitch;
constexpr int kOfAThread = 16;  // channels
// A thread adds at most so many tiles in fp32, of four pixels each.
constexpr int kMostTiles = 32;
constexpr int kFewestGroups = 132 * 4;  // where there are so many tiles: twice what an H200 runs

// Row n of the weights in shared memory is this channel of the block's: so a thread, which holds
// columns 2q and 2q + 1 of each product, has 16 channels side by side.
__device__ inline int channel_of(int n) {
  return n % 8 / 2 * kOfAThread + n / 8 * 2 + n % 2;
}

// Enqueues copies.
template <typename T>
__device__ void load_weights(uint16_t* weights, const T* packed, const Geometry& g,
                             int first_output, int first_row) {
  const int rows = g.kernel - first_row < g.at_once ? g.kernel - first_row : g.at_once;
  const int of_a_channel = rows * g.taps;
  const auto* in = reinterpret_cast<const Pixel*>(packed);
  for (int i = static_cast<int>(threadIdx.x); i < kOutputs * of_a_channel; i += kForwardThreads) {
    const int n = i / of_a_channel, tap = i - n * of_a_channel;
    const int row = tap / g.taps, column = tap - row * g.taps;
    const int channel = first_output + channel_of(n);
    const bool is_there = channel < g.channels && column < g.kernel;
    const int at = is_there ? (channel * g.kernel + first_row + row) * g.kernel + column : 0;
    copy_ahead<sizeof(Pixel)>(weights + n * kWeightPitch + kDepth * tap, in + at, is_there);
  }
}

// y = conv(x) or, where it finishes, relu(conv(x) + bias), where bias may be null; partial [groups,
// 2, channels of all blocks] = sums of y and of its squares.
template <typename T, bool kTwice, bool kSums, bool kFinishes>
__global__ void __launch_bounds__(kForwardThreads, 2)
    forward_kernel(T* y, double* partial, const Pixel* x, const T* packed, const float* bias,
                   bool relu, Geometry g) {
  auto* weights = reinterpret_cast<uint16_t*>(dynamic_shared());
  auto* patches = reinterpret_cast<Pixel*>(weights + kOutputs * kWeightPitch);  // two
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp, q = lane % 4;
  const auto block = static_cast<int>(blockIdx.x);
  const int group = block / g.output_blocks;
  const int first_output = block % g.output_blocks * kOutputs;
  const int first_channel = first_output + q * kOfAThread;  // of this thread

  // Where this lane's rows of the matrices begin.
  const int tile_columns = g.width / kTileRows;
  int windows[kTilesOfAWarp];
  for (int i = 0; i < kTilesOfAWarp; ++i) {
    const int m = warp + i * kForwardWarps, row = m / tile_columns;
    const int column = (m - row * tile_columns) * kTileRows + lane % 16;
    const bool inside = row < g.height;  // else it computes what nobody stores
    windows[i] = (inside ? row * g.stride * g.pixels : 0) +
                 even_place(g, (inside ? column * g.stride : 0) + lane / 16 * 2);
  }
  const uint16_t* of_weights =
      weights + (lane % 8 + lane / 16 * 8) * kWeightPitch + lane / 8 % 2 * 8;

  float sum[kOfAThread] = {}, squares[kOfAThread] = {};
  const int begin = group * g.tiles_of_a_block;
  const int end = begin + g.tiles_of_a_block < g.tiles ? begin + g.tiles_of_a_block : g.tiles;
  if (g.at_once >= g.kernel) load_weights(weights, packed, g, first_output, 0);
  load_patch<kTwice>(patches, x, g, Tile(g, begin), kForwardWarps);
  for (int t = begin; t < end; ++t) {
    const Tile tile(g, t);
    const Pixel* patch = patches + (t - begin) % 2 * g.patch;
    wait_for_copies();
    __syncthreads();  // this patch is there, the other has been read
    if (t + 1 < end)
      load_patch<kTwice>(patches + (t - begin + 1) % 2 * g.patch, x, g, Tile(g, t + 1),
                         kForwardWarps);
    float sums[kTilesOfAWarp][8][4] = {};
    for (int first_row = 0; first_row < g.kernel; first_row += g.at_once) {
      if (g.at_once < g.kernel) {
        if (first_row > 0) __syncthreads();
        load_weights(weights, packed, g, first_output, first_row);
        wait_for_copies();
        __syncthreads();
      }
      const int rows = g.kernel - first_row < g.at_once ? g.kernel - first_row : g.at_once;
      const uint16_t* w = of_weights;
      for (int r = 0; r < rows; ++r)
        for (int tap = 0; tap < g.taps; tap += 4, w += kTileRows) {
          uint32_t a[kTilesOfAWarp][4];
          for (int i = 0; i < kTilesOfAWarp; ++i)
            load_matrices<false>(a[i],
                                 values_of(patch + windows[i] + (first_row + r) * g.pixels + tap));
          for (int pair = 0; pair < 4; ++pair) {
            uint32_t b[4];
            load_matrices<false>(b, w + 2 * pair * 8 * kWeightPitch);
            for (int i = 0; i < kTilesOfAWarp; ++i) {
              add_product<T>(sums[i][2 * pair], a[i], b[0], b[1]);
              add_product<T>(sums[i][2 * pair + 1], a[i], b[2], b[3]);
            }
          }
        }
    }
    // Indices that are known when it is compiled keep sums in registers.
    const auto put = [&](auto of_warp, auto of_matrix) {
      constexpr int i = decltype(of_warp)::value, second = decltype(of_matrix)::value;
      const int m = warp + i * kForwardWarps, row = m / tile_columns;
      const int column = tile.column + (m - row * tile_columns) * kTileRows + lane / 4 + 8 * second;
      if (row >= g.height || tile.row + row >= g.rows || column >= g.columns) return;
      const int64_t pixel =
          (static_cast<int64_t>(tile.image) * g.rows + tile.row + row) * g.columns + column;
      T* out = y + pixel * g.channels + first_channel;
      for (int eight = 0; eight < kOfAThread; eight += kWide) {
        if (first_channel + eight >= g.channels) continue;
        Floats8 v;
        for (int k = 0; k < kWide; ++k) {
          const int at = eight + k;
          float value = sums[i][at / 2][2 * second + at % 2];
          if constexpr (kFinishes) {
            if (bias) value += bias[first_channel + at];
            value = relu && value < 0.0f ? 0.0f : value;  // NaN stays NaN
          }
          v.v[k] = value;
          if constexpr (kSums) {
            const float stored = rounded<T>(value);
            sum[at] += stored;
            squares[at] = fmaf(stored, stored, squares[at]);
          }
        }
        store8(out + eight, v);
      }
    };
    const std::integral_constant<int, 0> zero;
    const std::integral_constant<int, 1> one;
    put(zero, zero);
    put(zero, one);
    put(one, zero);
    put(one, one);
  }
  if constexpr (kSums) {
    // [2, 16, threads], where the weights were.
    static_assert(kWeightBytes >= sizeof(float) * 2 * kOfAThread * kForwardThreads);
    auto* shared = reinterpret_cast<float*>(weights);
    __syncthreads();
    for (int k = 0; k < kOfAThread; ++k) {
      shared[k * kForwardThreads + thread] = sum[k];
      shared[(kOfAThread + k) * kForwardThreads + thread] = squares[k];
    }
    __syncthreads();
    if (thread >= 2 * kOutputs) return;
    const int which = thread / kOutputs, channel = thread % kOutputs;
    const float* in = shared + (which * kOfAThread + channel % kOfAThread) * kForwardThreads +
                      channel / kOfAThread;
    double total = 0;
    for (int i = 0; i < kForwardThreads / 4; ++i) total += static_cast<double>(in[4 * i]);
    const int all = g.output_blocks * kOutputs;
    partial[(2 * group + which) * all + first_output + channel] = total;
  }
}

// ---- Sums over groups, in a fixed order: a block takes eight columns of [groups, width], 32
// groups at once.

constexpr int kSumColumns = 8, kSumLanes = kThreads / kSumColumns, kSumAhead = 8;

// put(column, sum) by one thread per column.
template <typename T, typename Put>
__device__ void sum_groups(const T* partial, int groups, int width, Put put) {
  __shared__ double shared[kSumLanes][kSumColumns];
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread / kSumColumns, k = thread % kSumColumns;
  const int column = static_cast<int>(blockIdx.x) * kSumColumns + k;
  double sum = 0;
  for (int begin = lane; begin < groups && column < width; begin += kSumLanes * kSumAhead) {
    T ahead[kSumAhead];  // on their way before one is used
    const auto has = [&](int i) { return begin + i * kSumLanes < groups; };
    for (int i = 0; i < kSumAhead; ++i)
      ahead[i] =
          has(i) ? partial[static_cast<int64_t>(begin + i * kSumLanes) * width + column] : T{0};
    for (int i = 0; i < kSumAhead; ++i) sum = has(i) ? sum + static_cast<double>(ahead[i]) : sum;
  }
  shared[lane][k] = sum;
  __syncthreads();
  if (lane > 0 || column >= width) return;
  for (int l = 1; l < kSumLanes; ++l) sum += shared[l][k];
  put(column, sum);
}

// sums [2, channels] from partial [groups, 2, padded].
__global__ void sums_kernel(float* sums, const double* partial, int groups, int channels,
                            int padded) {
  sum_groups(partial, groups, 2 * padded, [=](int column, double sum) {
    const int which = column / padded, channel = column - which * padded;
    if (channel < channels) sums[which * channels + channel] = static_cast<float>(sum);
  });
}

// ---- The gradient of the weights.

constexpr int kGradientWarps = 4, kPairsOfAWarp = 7;  // at most
constexpr int kGradientThreads = kGradientWarps * kWarp;
constexpr int kMostColumns = 128;             // of a tile
constexpr int kMostGradientPatch = 3584;      // pixels
constexpr int kGradientPitch = kOutputs + 8;  // so that rows of matrices lie in different banks
constexpr int kMostGroups = 132 * 3;          // fill an H200

// partial [groups, all channels, all pairs, 8] = dy^T windows over the tiles of a group.
template <typename T, bool kTwice>
__global__ void __launch_bounds__(kGradientThreads, 3)
    gradient_kernel(float* partial, const Pixel* x, const T* dy, Geometry g) {
  auto* gradients = reinterpret_cast<uint16_t*>(dynamic_shared());  // two, and two patches
  const int of_a_tile = g.width * kGradientPitch;
  auto* patches = reinterpret_cast<Pixel*>(gradients + 2 * of_a_tile);
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  auto block = static_cast<int>(blockIdx.x);
  const int tap_block = block % g.tap_blocks;
  block /= g.tap_blocks;
  const int first_output = block % g.output_blocks * kOutputs, group = block / g.output_blocks;
  const int first_pair = (tap_block * kGradientWarps + warp) * g.pairs_of_a_warp;
  const int own_pairs =
      g.pairs - first_pair < g.pairs_of_a_warp ? g.pairs - first_pair : g.pairs_of_a_warp;

  // Where this lane's rows of the matrices begin: of two pairs a load, of a pixel's gradients.
  int windows[(kPairsOfAWarp + 1) / 2];
  for (int i = 0; i < (kPairsOfAWarp + 1) / 2; ++i) {
    int pair = first_pair + 2 * i + lane / 16;
    if (pair >= g.pairs) pair = 0;  // it computes what nobody stores
    const int row = pair / g.row_pairs;
    windows[i] =
        row * g.pixels + (pair - row * g.row_pairs) * 2 + even_place(g, lane % 16 * g.stride);
  }
  const int of_gradients = (lane % 8 + lane / 16 * 8) * kGradientPitch + lane / 8 % 2 * 8;

  float sums[kOutputs / kTileRows][kPairsOfAWarp][4] = {};
  const int begin = group * g.tiles_of_a_block;
  const int end = begin + g.tiles_of_a_block < g.tiles ? begin + g.tiles_of_a_block : g.tiles;
  const auto load_tile = [&](int t) {
    const Tile tile(g, t);
    const int which = (t - begin) % 2;
    load_patch<kTwice>(patches + which * g.patch, x, g, tile, kGradientWarps);
    constexpr int kVectors = kOutputs / kWide;  // of a pixel
    constexpr int kBeside = kGradientThreads / kVectors;
    const int first = thread / kVectors, channel = thread % kVectors * kWide;
    const bool has_channel = first_output + channel < g.channels;
    const T* in =
        dy +
        ((static_cast<int64_t>(tile.image) * g.rows + tile.row) * g.columns + tile.column + first) *
            g.channels +
        first_output + channel;
    uint16_t* out = gradients + which * of_a_tile + first * kGradientPitch + channel;
    for (int pixel = first; pixel < g.width; pixel += kBeside) {
      const bool is_there = has_channel && tile.column + pixel < g.columns;
      copy_ahead<16>(out, is_there ? in : dy, is_there);
      in += kBeside * g.channels;
      out += kBeside * kGradientPitch;
    }
  };
  load_tile(begin);
  for (int t = begin; t < end; ++t) {
    const Pixel* patch = patches + (t - begin) % 2 * g.patch;
    const uint16_t* tile_gradients = gradients + (t - begin) % 2 * of_a_tile + of_gradients;
    wait_for_copies();
    __syncthreads();  // this tile is there, the other has been read
    if (t + 1 < end) load_tile(t + 1);
    for (int first = 0; first < g.width; first += kTileRows) {
      uint32_t a[kOutputs / kTileRows][4];
      for (int m = 0; m < kOutputs / kTileRows; ++m)
        load_matrices<true>(a[m], tile_gradients + first * kGradientPitch + m * kTileRows);
      for (int i = 0; i < (kPairsOfAWarp + 1) / 2; ++i) {
        if (2 * i >= own_pairs) continue;
        uint32_t b[4];
        load_matrices<true>(b, values_of(patch + windows[i] + first * g.stride));
        for (int m = 0; m < kOutputs / kTileRows; ++m) {
          add_product<T>(sums[m][2 * i], a[m], b[0], b[1]);
          if (2 * i + 1 < kPairsOfAWarp) add_product<T>(sums[m][2 * i + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  const int row = lane / 4, column = lane % 4 * 2;
  for (int m = 0; m < kOutputs / kTileRows; ++m)
    for (int i = 0; i < kPairsOfAWarp; ++i) {
      if (i >= own_pairs) continue;
      for (int k = 0; k < 4; ++k) {
        const int channel = first_output + m * kTileRows + row + k / 2 * 8;
        const int64_t line = static_cast<int64_t>(group) * g.output_blocks * kOutputs + channel;
        partial[(line * g.pairs + first_pair + i) * kWide + column + k % 2] = sums[m][i][k];
      }
    }
}

// The gradient in OIHW, of the image's own channels; that of later slices is added.
__global__ void gradient_sums_kernel(float* oihw, const float* partial, Geometry g, int channels,
                                     bool first) {
  const int of_an_output = g.pairs * kWide;
  sum_groups(
      partial, g.groups, g.output_blocks * kOutputs * of_an_output, [=](int column, double sum) {
        const int output = column / of_an_output, in = column - output * of_an_output;
        const int pair = in / kWide, row = pair / g.row_pairs;
        const int tap = (pair - row * g.row_pairs) * 2 + in % kWide / kDepth;
        const int channel = in % kDepth;
        if (output >= g.channels || tap >= g.kernel || channel >= channels) return;
        float* out = oihw + ((output * channels + channel) * g.kernel + row) * g.kernel + tap;
        const auto v = static_cast<float>(sum);
        *out = first ? v : *out + v;
      });
}

// ---- Geometry, on the host.

// What forward and the gradient have in common.
Geometry geometry_of(const Conv2d& spec, const Shape& x, const Shape& y) {
  Geometry g = {};
  g.n = static_cast<int>(x.n);
  g.h = static_cast<int>(x.h);
  g.w = static_cast<int>(x.w);
  g.rows = static_cast<int>(y.h);
  g.columns = static_cast<int>(y.w);
  g.channels = static_cast<int>(y.c);
  g.kernel = static_cast<int>(spec.kernel);
  g.stride = static_cast<int>(spec.stride);
  g.padding = static_cast<int>(spec.padding);
  g.taps = (g.kernel + 3) / 4 * 4;
  g.output_blocks = (g.channels + kOutputs - 1) / kOutputs;
  g.row_pairs = (g.kernel + 1) / 2;
  g.pairs = g.kernel * g.row_pairs;
  g.pairs_of_a_warp = std::min((g.pairs + kGradientWarps - 1) / kGradientWarps, kPairsOfAWarp);
  g.tap_blocks =
      (g.pairs + kGradientWarps * g.pairs_of_a_warp - 1) / (kGradientWarps * g.pairs_of_a_warp);
  g.at_once = std::min(g.kernel, kMostWeights / (kDepth * g.taps));
  return g;
}

// Cuts y into tiles whose patches take at most so many pixels, of at most so many columns and small
// matrices (0: of one row); false where there are none.
bool cut(Geometry& g, int most_columns, int most_matrices, int most_pixels) {
  for (int columns = most_columns; columns >= kTileRows; columns -= kTileRows) {
    g.beside = (g.columns + columns - 1) / columns;
    g.width = ((g.columns + g.beside - 1) / g.beside + kTileRows - 1) / kTileRows * kTileRows;
    g.pixels = ((g.width - 1) * g.stride + g.taps + 1) / 2 * 2;
    const int copies = g.stride % 2 == 0 ? 1 : 2;
    const int most_rows = most_pixels / copies / g.pixels;  // of a patch
    if (most_rows < g.kernel) continue;
    g.height = std::clamp(
        std::min(most_matrices / (g.width / kTileRows), (most_rows - g.kernel) / g.stride + 1), 1,
        g.rows);
    g.above = (g.rows + g.height - 1) / g.height;
    g.patch_rows = (g.height - 1) * g.stride + g.kernel;
    g.copy = copies == 2 ? g.patch_rows * g.pixels : 0;
    g.patch = copies * g.patch_rows * g.pixels;
    g.tiles = g.n * g.above * g.beside;
    return true;
  }
  return false;
}

bool cut_forward(Geometry& g) {
  if (g.at_once == 0 || !cut(g, kForwardTiles * kTileRows, kForwardTiles, kMostPatch)) return false;
  g.tiles_of_a_block = std::min((g.tiles + kFewestGroups - 1) / kFewestGroups, kMostTiles);
  g.groups = (g.tiles + g.tiles_of_a_block - 1) / g.tiles_of_a_block;
  return true;
}

bool cut_gradient(Geometry& g) {
  if (!cut(g, kMostColumns, 0, kMostGradientPatch)) return false;
  const int most = std::max(kMostGroups / (g.output_blocks * g.tap_blocks), 1);
  g.tiles_of_a_block = (g.tiles + most - 1) / most;
  g.groups = (g.tiles + g.tiles_of_a_block - 1) / g.tiles_of_a_block;
  return true;
}

// ---- The op.

template <typename T>
class FewChannelsCuda final : public Op {
 public:
  FewChannelsCuda(CudaDevice& device, const Conv2d& spec, const OpConfig& c)
      : device_(device),
        spec_(spec),
        channels_(static_cast<int>(c.x[0].c)),
        y_(c.y),
        forward_(geometry_of(spec, c.x[0], c.y)),
        gradient_(forward_),
        gives_sums_(c.wants_sums),
        is_trained_(c.training && c.wants_gradients),
        weights_(device, spec, c, kDepth) {
    if (!cut_forward(forward_) || !cut_gradient(gradient_) || c.wants_dx[0])
      fail(ExitCode::kFault, "node \"{}\": not a first layer of few channels", c.name);
    if (gives_sums_) reserve(sizeof(double) * static_cast<size_t>(2 * forward_.groups * padded()));
    if (!is_trained_) return;
    reserve(sizeof(float) * static_cast<size_t>(gradient_.groups * padded() * of_an_output()));
    if (spec.bias) reserve(sizeof(float) * bias_gradient_floats(y_));
  }

  void prepare(const NodeMemory& m) override { weights_.prepare(m); }

  void forward(const NodeMemory& m, const StepInfo&) override {
    const Geometry& g = forward_;
    auto* partial = static_cast<double*>(m.scratch);
    const bool relu = spec_.batch_norm && spec_.batch_norm->relu;
    const auto run = [&](auto kernel) {
      launch_sharing(kWeightBytes + 2 * sizeof(Pixel) * static_cast<size_t>(g.patch), kernel,
                     int64_t{g.groups} * g.output_blocks, kForwardThreads, device_.stream(),
                     static_cast<T*>(m.y), partial, static_cast<const Pixel*>(m.x[0]),
                     static_cast<const T*>(weights_.packed()), weights_.bias(), relu, g);
    };
    const bool sums = m.sums != nullptr, finishes = relu || weights_.bias();
    with_flag(g.copy > 0, [&](auto twice) {
      with_flag(sums, [&](auto gives_sums) {
        with_flag(finishes,
                  [&](auto finish) { run(&forward_kernel<T, twice, gives_sums, finish>); });
      });
    });
    if (!sums) return;
    launch(&sums_kernel, (2 * padded() + kSumColumns - 1) / kSumColumns, kThreads, device_.stream(),
           m.sums, partial, g.groups, g.channels, static_cast<int>(padded()));
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!is_trained_) return;
    const Geometry& g = gradient_;
    auto* partial = static_cast<float*>(m.scratch);
    const auto* dy = static_cast<const T*>(m.dy[0]);
    const size_t bytes = 2 * (sizeof(uint16_t) * kGradientPitch * static_cast<size_t>(g.width) +
                              sizeof(Pixel) * static_cast<size_t>(g.patch));
    with_flag(g.copy > 0, [&](auto twice) {
      launch_sharing(bytes, &gradient_kernel<T, twice>,
                     int64_t{g.groups} * g.output_blocks * g.tap_blocks, kGradientThreads,
                     device_.stream(), partial, static_cast<const Pixel*>(m.x[0]), dy, g);
    });
    launch(&gradient_sums_kernel, (padded() * of_an_output() + kSumColumns - 1) / kSumColumns,
           kThreads, device_.stream(), m.gradients[0], partial, g, channels_, m.slice.first);
    if (spec_.bias)
      add_bias_gradient(m.gradients[1], partial, dy, y_, m.slice.first, device_.stream());
  }

  size_t scratch_bytes() const override { return scratch_bytes_; }
  bool gives_sums() const override { return gives_sums_; }

 private:
  void reserve(size_t bytes) { scratch_bytes_ = std::max(scratch_bytes_, bytes); }
  int64_t padded() const { return int64_t{forward_.output_blocks} * kOutputs; }
  int64_t of_an_output() const { return int64_t{gradient_.pairs} * kWide; }

  CudaDevice& device_;
  Conv2d spec_;
  int channels_;  // of the image
  Shape y_;
  Geometry forward_, gradient_;
  bool gives_sums_, is_trained_;
  PackedWeights weights_;
  size_t scratch_bytes_ = 0;
};

}  // namespace

bool CudaDevice::wants_four_channels(const Conv2d& spec, const Shape& image, DType type) const {
  if (type == DType::kFloat32 || image.c > kDepth || spec.groups != 1 || spec.stride > kMostPatch ||
      spec.out_channels % kWide != 0 || (spec.batch_norm && spec.batch_norm->residual))
    return false;
  Conv2d alone = spec;
  alone.batch_norm.reset();
  Geometry forward = geometry_of(spec, image, output_shape(alone, {image})), gradient = forward;
  return cut_forward(forward) && cut_gradient(gradient);
}

std::unique_ptr<Op> make_few_channels_op(CudaDevice& device, const Conv2d& spec,
                                         const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    if constexpr (std::is_same_v<T, float>)
      fail(ExitCode::kFault, "node \"{}\": few channels in fp32", config.name);
    else
      return std::make_unique<FewChannelsCuda<T>>(device, spec, config);
  });
}

}  // namespace convoy::ops
