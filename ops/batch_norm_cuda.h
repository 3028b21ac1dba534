// What the CUDA kernels of batch norm share, for ops/batch_norm*_cuda.cu: how a tensor is cut among
// threads, sums per channel, and the numbers of one batch norm.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "ops/batch_norm.h"
#include "ops/batch_norm_geometry.h"
#include "ops/core/cuda_kernel.h"

namespace convoy::ops::cuda_norm {

using namespace cuda;

using Geometry = BatchNormGeometry;

// Which way a kernel goes through the rows. The L2 cache holds what was touched last, the end of a
// tensor larger than it: who reads the tensor next begins there. Blocks usually start in the order
// of their numbers, and convolutions go up, so what reads their results goes down, and what reads
// that again goes up. Bits do not depend on whether it is so.
enum class Way : uint8_t { kUp, kDown };

// What one thread takes: the channels of one group in every lanes-th row of a block. Elements of
// one block are less than 2^31 apart, so the way from a thread's first row to its others is counted
// in 32 bits, which spares registers.
struct Share {
  int block;                     // of the geometry's
  int64_t row;                   // the first
  int step;                      // from row to row
  int64_t channel, at, mask_at;  // the first channel, its element in the first row, its mask's byte
  int32_t stride, mask_stride;   // from row to row
  int channels, rows;            // no rows where the thread idles

  __device__ Share(const Geometry& g, Way way) {
    const bool up = way == Way::kUp;
    block = static_cast<int>(up ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread / g.groups;
    const int64_t begin = block / g.tiles * g.rows_per_block, left = g.rows - begin;
    const auto block_rows = static_cast<int>(left < g.rows_per_block ? left : g.rows_per_block);
    const int64_t mask_pitch = (g.c + 15) / 16 * 2;
    channel = int64_t{block % g.tiles * g.groups + thread % g.groups} * kWide;
    channels = static_cast<int>(g.c - channel < kWide ? g.c - channel : kWide);
    const bool idles = channels <= 0 || lane >= g.lanes || lane >= block_rows;
    rows = idles ? 0 : (block_rows - lane + g.lanes - 1) / g.lanes;
    row = begin + lane + (up ? 0 : (rows - 1) * g.lanes);
    step = up ? g.lanes : -g.lanes;
    at = row * g.c + channel;
    mask_at = row * mask_pitch + channel / kWide;
    stride = static_cast<int32_t>(step * g.c);
    mask_stride = static_cast<int32_t>(step * mask_pitch);
  }
};

// use(r, load(r)) for the rows 0 to `rows` of a share. kAhead rows are loaded before the first is
// used, so that enough is on its way; load() must not branch and should return what memory holds.
template <int kAhead, typename Load, typename Use>
__device__ void for_rows(int rows, Load load, Use use) {
  int r = 0;
  for (; r + kAhead <= rows; r += kAhead) {
    decltype(load(r)) loaded[kAhead];
    for (int k = 0; k < kAhead; ++k) loaded[k] = load(r + k);
    for (int k = 0; k < kAhead; ++k) use(r + k, loaded[k]);
  }
  for (; r < rows; ++r) use(r, load(r));
}

// The same behind first(), which all threads of a block call: the first rows are on their way
// meanwhile.
template <int kAhead, typename Load, typename First, typename Use>
__device__ void for_rows_behind(int rows, Load load, First first, Use use) {
  decltype(load(0)) loaded[kAhead];
  const bool is_whole = rows >= kAhead;
  for (int k = 0; k < kAhead && is_whole; ++k) loaded[k] = load(k);
  first();
  for (int k = 0; k < kAhead && is_whole; ++k) use(k, loaded[k]);
  const int begin = is_whole ? kAhead : 0;
  for_rows<kAhead>(
      rows - begin, [&](int r) { return load(begin + r); },
      [&](int r, const auto& in) { use(begin + r, in); });
}

// The n values of a group; kAligned: eight of them, in whole accesses.
template <bool kAligned, typename T>
__device__ Bits8<T> load_group(const T* p, int n) {
  if constexpr (kAligned) {
    return read8(p);
  } else {
    Bits8<T> out = {};
    for (int i = 0; i < kWide; ++i)
      if (i < n) out.v[i] = p[i];
    return out;
  }
}
// The same of memory that is not read again soon: it leaves the cache to others.
template <bool kAligned, typename T>
__device__ Bits8<T> load_group_last(const T* p, int n) {
  if constexpr (kAligned)
    return load_last(p);
  else
    return load_group<false>(p, n);
}
template <bool kAligned, typename T>
__device__ void store_group(T* p, const Floats8& values, int n) {
  if constexpr (kAligned) {
    store8(p, values);
  } else {
    for (int i = 0; i < kWide; ++i)
      if (i < n) store(p + i, values.v[i]);
  }
}

// What is known per channel, c floats each.
struct Vectors {
  float *mean, *inv_std, *scale, *beta;  // from the statistics to backward
  float *a, *b, *k;                      // from backward's sums to its second pass
  double* sums;                          // [2, c] of the slices so far
};

// ---- Sums per channel.

// Two of each channel of a thread's group.
struct Sums {
  double v[2][kWide];
};
__device__ inline Sums in_double(const Floats8& sum0, const Floats8& sum1) {
  Sums out;
  for (int i = 0; i < kWide; ++i) {
    out.v[0][i] = sum0.v[i];
    out.v[1][i] = sum1.v[i];
  }
  return out;
}

// partial [chunks, 2, c] = both sums of each channel over the block's lanes, in their order. Called
// by all threads of a block, who meet before they do so again.
__device__ inline void put_sums(double* partial, const Geometry& g, int block, const Sums& sums) {
  // As long as a row of all threads, and a bit: sums of one channel group lie in different banks.
  constexpr int kPitch = Geometry::kThreads + 2;
  __shared__ double shared[2][kWide][kPitch];
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = 0; i < kWide; ++i) {
    shared[0][i][thread] = sums.v[0][i];
    shared[1][i][thread] = sums.v[1][i];
  }
  __syncthreads();
  const int64_t tile = block % g.tiles, chunk = block / g.tiles;
  const int64_t channel = tile * g.groups * kWide + thread;
  if (thread >= g.groups * kWide || channel >= g.c) return;
  double sum0 = 0, sum1 = 0;
  for (int lane = 0; lane < g.lanes; ++lane) {
    sum0 += shared[0][thread % kWide][lane * g.groups + thread / kWide];
    sum1 += shared[1][thread % kWide][lane * g.groups + thread / kWide];
  }
  partial[2 * chunk * g.c + channel] = sum0;
  partial[(2 * chunk + 1) * g.c + channel] = sum1;
}

// Of the n values of a channel: 1 / n, n / (n - 1).
struct Count {
  double inverse, unbiased;
};

// What a batch norm's numbers follow from where the convolution before has given sums [2, c].
struct Given {
  const float *sums, *gamma, *beta;
  float* statistics;
  Count count;
  double epsilon;
};

inline double values_of_a_channel(const OpConfig& c) {
  return static_cast<double>(c.x[0].h * c.x[0].w * c.batch);
}

// One batch norm on the device: its numbers per channel, and the small kernels that make them. The
// partial sums are put_sums(), of the geometry's blocks.
class Norm {
 public:
  // geometry: of one slice of x; count: values of a channel in the whole batch.
  Norm(cudaStream_t stream, double epsilon, const Geometry& geometry, double count);

  const Vectors& vectors() const { return vectors_; }
  size_t partial_bytes() const {
    return static_cast<size_t>(geometry_.chunks * 2 * geometry_.c) * sizeof(double);
  }

  // Mean and variance of the batch, as `statistics` [2, c] too: of x or, where they are not null,
  // from the sums [2, c] that the convolution before has given. parameters: weight and bias.
  template <typename T>
  void gather(float* statistics, double* partial, const T* x, const float* sums,
              const float* const* parameters, const Slice& slice) const;
  // The same, for a kernel that takes the numbers from what is given itself.
  Given given(float* statistics, const float* sums, const float* const* parameters) const {
    return {sums, parameters[0], parameters[1], statistics, count_, epsilon_};
  }
  // Of running [2, c], not of the batch.
  void take(const float* running, const float* const* parameters) const;
  // From backward's sums: the gradients of weight and bias, and what its second pass needs.
  void finish_backward(float* const* gradients, const float* gamma, const double* partial,
                       const Slice& slice) const;

 private:
  template <typename Run>
  void with_lanes(Run run) const;

  cudaStream_t stream_;
  double epsilon_;
  Geometry geometry_;
  Count count_;
  DeviceBuffer memory_;
  Vectors vectors_;
};

// With BatchNorm::pool.
std::unique_ptr<Op> make_pooled(CudaDevice& device, const BatchNorm& spec, const OpConfig& config);

}  // namespace convoy::ops::cuda_norm
