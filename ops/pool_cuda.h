// What the CUDA kernels of pooling share, for ops/*_cuda.cu. A block takes a row of pixels of what
// it writes, a thread some channels of one pixel.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/core/cuda_kernel.h"
#include "ops/op.h"

namespace convoy::ops::cuda_pool {

using namespace cuda;

// A window sliding over images of c channels: x [n, h, w, c] -> y [n, p, q, c].
struct Geometry {
  int n, c, h, w, p, q, kernel, stride, padding;
  bool include_pad;  // AvgPool: divide by kernel^2 always, else by the pixels inside the image
};

// The pixels [begin, end) of one side that the window of output `o` covers inside the image.
struct Span {
  int begin, end;
};
__device__ inline Span pixels_of(int o, const Geometry& g, int size) {
  const int start = o * g.stride - g.padding, end = start + g.kernel;
  return {start > 0 ? start : 0, end < size ? end : size};
}
// n / divisor, n >= 0: almost every stride is 1 or 2, and a division costs twenty instructions.
__device__ inline int quotient(int n, int divisor) {
  return divisor == 1 ? n : divisor == 2 ? n >> 1 : n / divisor;
}
// The outputs [begin, end) whose windows cover pixel `i`.
__device__ inline Span outputs_of(int i, const Geometry& g, int outputs) {
  const int from = i + g.padding - g.kernel + 1, end = quotient(i + g.padding, g.stride) + 1;
  return {from <= 0 ? 0 : quotient(from + g.stride - 1, g.stride), end < outputs ? end : outputs};
}
// Of the pixel (i, j) in the window of output (p, q), row by row.
__device__ inline int place_of(int i, int j, int p, int q, const Geometry& g) {
  return (i - (p * g.stride - g.padding)) * g.kernel + j - (q * g.stride - g.padding);
}
// kLanes elements, 8 or 1, as memory holds them; what lies behind the first is not used then.
template <int kLanes, typename T>
__device__ Bits8<T> read_lanes(const T* p) {
  if constexpr (kLanes == kWide)
    return read8(p);
  else
    return {{*p}};
}
// kLanes elements, 8 or 1; what lies behind the first is not used then.
template <int kLanes, typename T>
__device__ Floats8 load_lanes(const T* p) {
  if constexpr (kLanes == kWide)
    return load8(p);
  else
    return {{load(p)}};
}
template <int kLanes, typename T>
__device__ void store_lanes(T* p, const Floats8& v) {
  if constexpr (kLanes == kWide)
    store8(p, v);
  else
    store(p, v.v[0]);
}

// body(image, row, column, first channel) for this thread's share of row blockIdx.x of images with
// `rows` rows of `columns` pixels of c channels.
template <int kLanes, typename Body>
__device__ void for_lanes(int rows, int columns, int c, Body body) {
  const int block = static_cast<int>(blockIdx.x), image = block / rows, row = block - image * rows;
  const int vectors = c / kLanes;
  for (int t = static_cast<int>(threadIdx.x); t < columns * vectors;
       t += static_cast<int>(blockDim.x)) {
    const int column = t / vectors;
    body(static_cast<int64_t>(image), row, column, (t - column * vectors) * kLanes);
  }
}

// The largest of a window, and where it is.
struct Largest {
  Floats8 values;
  Bits8<uint8_t> places;
};
// Of the window of output (p, q): largest_of(read(i, j), place) is a Largest of that pixel alone.
// The first of equal ones wins. The pixels of a window of 3x3 are all on their way before one
// is used, of others three side by side.
template <int kLanes, typename Read, typename LargestOf>
__device__ Largest largest(int p, int q, const Geometry& g, Read read, LargestOf largest_of) {
  constexpr int kAhead = 3;
  const Span rows = pixels_of(p, g, g.h), columns = pixels_of(q, g, g.w);
  Largest out;
  for (int lane = 0; lane < kLanes; ++lane) {
    out.values.v[lane] = -INFINITY;
    // Also where nothing is above minus infinity.
    out.places.v[lane] = static_cast<uint8_t>(place_of(rows.begin, columns.begin, p, q, g));
  }
  using Read8 = decltype(read(0, 0));
  // Those of row i from column `begin`; what lies behind the end is not used.
  const auto read_row = [&](Read8(&ahead)[kAhead], int i, int begin) {
    for (int k = 0; k < kAhead; ++k)
      ahead[k] = read(i, begin + k < columns.end ? begin + k : begin);
  };
  const auto use_row = [&](const Read8(&ahead)[kAhead], int i, int begin) {
    for (int k = 0; k < kAhead; ++k) {
      const int j = begin + k;
      if (j >= columns.end) break;
      const Largest in = largest_of(ahead[k], static_cast<uint8_t>(place_of(i, j, p, q, g)));
      for (int lane = 0; lane < kLanes; ++lane) {
        // NaN wins, so that it is seen.
        const float v = in.values.v[lane];
        const bool wins = v > out.values.v[lane] || v != v;
        out.values.v[lane] = wins ? v : out.values.v[lane];
        out.places.v[lane] = wins ? in.places.v[lane] : out.places.v[lane];
      }
    }
  };
  if (g.kernel == kAhead) {
    Read8 ahead[kAhead][kAhead];
    for (int a = 0; a < kAhead; ++a)
      read_row(ahead[a], rows.begin + (rows.begin + a < rows.end ? a : 0), columns.begin);
    for (int a = 0; a < kAhead; ++a)
      if (rows.begin + a < rows.end) use_row(ahead[a], rows.begin + a, columns.begin);
    return out;
  }
  for (int i = rows.begin; i < rows.end; ++i)
    for (int begin = columns.begin; begin < columns.end; begin += kAhead) {
      Read8 ahead[kAhead];
      read_row(ahead, i, begin);
      use_row(ahead, i, begin);
    }
  return out;
}
template <int kLanes, typename T>
__device__ void store_largest(T* y, uint8_t* places, const Largest& values) {
  store_lanes<kLanes>(y, values.values);
  if (!places) return;
  if constexpr (kLanes == kWide)
    *reinterpret_cast<Bits8<uint8_t>*>(places) = values.places;
  else
    *places = values.places.v[0];
}

inline Geometry geometry(const OpConfig& c, int64_t kernel, int64_t stride, int64_t padding,
                         bool include_pad) {
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  return {.n = narrow(c.x[0].n),
          .c = narrow(c.x[0].c),
          .h = narrow(c.x[0].h),
          .w = narrow(c.x[0].w),
          .p = narrow(c.y.h),
          .q = narrow(c.y.w),
          .kernel = narrow(kernel),
          .stride = narrow(stride),
          .padding = narrow(padding),
          .include_pad = include_pad};
}

// A block for each of n * rows rows of `columns` pixels. Kernels: with 8 lanes, which `wide`
// allows, and with 1.
template <typename Kernel, typename... Arguments>
void launch_rows(bool wide, Kernel wide_kernel, Kernel kernel, const Geometry& g, int rows,
                 int columns, cudaStream_t stream, Arguments... arguments) {
  const int64_t lanes = int64_t{columns} * g.c / (wide ? kWide : 1);
  const int threads = lanes < kThreads ? static_cast<int>((lanes + 31) / 32 * 32) : kThreads;
  launch(wide ? wide_kernel : kernel, int64_t{g.n} * rows, threads, stream, arguments..., g);
}

}  // namespace convoy::ops::cuda_pool
