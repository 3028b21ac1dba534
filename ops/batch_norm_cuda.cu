// Batch norm on CUDA: two passes over memory forward, two backward, and a small kernel after each
// that sums, which adds the blocks' sums in a fixed order.
//
// Bytes that each pass moves for n elements of s bytes (beside them: two doubles per channel and
// block, which stay in the L2 cache):
//   statistics      x                          s n
//   normalise       x, y, residual?, mask?     2 s n (+ s n) (+ n / 8)
//   backward_sums   x, dy, dy2?, mask?, sum?   2 s n (+ s n) (+ n / 8) (+ s n)
//   backward_apply  x, dy or sum, mask?, dx    3 s n (+ n / 8)
//   scale_gradient  dy, dy2?, mask?, dx?, sum? 2 s n (+ s n) (+ n / 8) (+ s n); frozen, in place of
//   both
// The sum of gradients is stored where there are two, or a residual; backward_apply then reads it
// instead of dy and the mask.
//
// Statistics: each thread sums x and its square in fp32 around the first value it sees, over at
// most 64 rows. That value's own distance is part of the variance, so it cannot drown it. In
// double, what the value took away is given back, and the rest is summed.
//
// The mask is a bit per element, 8 channels a byte, rows of whole 16-bit words.
#include <cmath>

#include "ops/batch_norm.h"
#include "ops/batch_norm_geometry.h"
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

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
    const int64_t first = begin + lane + (up ? 0 : (rows - 1) * g.lanes);
    const int step = up ? g.lanes : -g.lanes;
    at = first * g.c + channel;
    mask_at = first * mask_pitch + channel / kWide;
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

// The n values of a group; kAligned: eight of them, in whole accesses.
template <bool kAligned, typename T>
__device__ Bits8<T> load_group(const T* p, int n) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Bits8<T>*>(p);
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
constexpr size_t kVectorBytes = 7 * sizeof(float) + 2 * sizeof(double);  // per channel

// ---- Sums per channel.

// partial [chunks, 2, c] = both sums of each channel over the block's lanes, in their order. Called
// once by all threads of a block.
__device__ void put_sums(double* partial, const Geometry& g, int block,
                         const double (&sums)[2][kWide]) {
  // As long as a row of all threads, and a bit: sums of one channel group lie in different banks.
  constexpr int kPitch = Geometry::kThreads + 2;
  __shared__ double shared[2][kWide][kPitch];
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = 0; i < kWide; ++i) {
    shared[0][i][thread] = sums[0][i];
    shared[1][i][thread] = sums[1][i];
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

// A block of this many threads finishes four channels: 32 bytes a read, 64 chunks at once.
constexpr int kFinishChannels = 4, kFinishLanes = 64;
constexpr int kFinishThreads = 2 * kFinishChannels * kFinishLanes;

// finish(channel, sums of partial and of the slices before), by one thread per channel after the
// last slice. Called once by all threads of a block.
template <typename Finish>
__device__ void finish_sums(double* carried, const double* partial, const Geometry& g, bool first,
                            bool last, Finish finish) {
  __shared__ double shared[kFinishLanes][2][kFinishChannels];
  const auto thread = static_cast<int>(threadIdx.x);
  const int k = thread % kFinishChannels, which = thread / kFinishChannels % 2;
  const int lane = thread / (2 * kFinishChannels);
  const int64_t channel = int64_t{blockIdx.x} * kFinishChannels + k;
  double sum = 0;
  if (channel < g.c)
    for (int64_t chunk = lane; chunk < g.chunks; chunk += kFinishLanes)
      sum += partial[(2 * chunk + which) * g.c + channel];
  shared[lane][which][k] = sum;
  for (int half = kFinishLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) shared[lane][which][k] += shared[lane + half][which][k];
  }
  __syncthreads();
  if (thread >= kFinishChannels || channel >= g.c) return;
  double sum0 = shared[0][0][k], sum1 = shared[0][1][k];
  if (!first) {
    sum0 += carried[channel];
    sum1 += carried[g.c + channel];
  }
  if (!last) {
    carried[channel] = sum0;
    carried[g.c + channel] = sum1;
    return;
  }
  finish(sum0, sum1, channel);
}

// ---- Forward.

// partial = sum x, sum x^2.
template <typename T, bool kAligned>
__global__ void statistics_kernel(double* partial, const T* x, Geometry g) {
  const Share share(g, Way::kDown);
  x += share.at;
  Bits8<T> shift = {};
  Floats8 sum = {}, squares = {};
  if (share.rows > 0) shift = load_group<kAligned>(x, share.channels);
  for_rows<4>(
      share.rows, [&](int r) { return load_group<kAligned>(x + r * share.stride, share.channels); },
      [&](int, const Bits8<T>& in) {
        for (int i = 0; i < kWide; ++i) {
          const float d = load(&in.v[i]) - load(&shift.v[i]);
          sum.v[i] += d;
          squares.v[i] += d * d;
        }
      });
  double sums[2][kWide];
  for (int i = 0; i < kWide; ++i) {
    const double s = load(&shift.v[i]), d = sum.v[i], shifted = s * share.rows;
    sums[0][i] = d + shifted;
    sums[1][i] = squares.v[i] + s * (2 * d + shifted);
  }
  put_sums(partial, g, share.block, sums);
}

__device__ void set_statistics(const Vectors& v, int64_t channel, float mean, double variance,
                               float gamma, float beta, double epsilon) {
  const double inv_std = 1.0 / sqrt(variance + epsilon);
  v.mean[channel] = mean;
  v.inv_std[channel] = static_cast<float>(inv_std);
  v.scale[channel] = static_cast<float>(gamma * inv_std);
  v.beta[channel] = beta;
}

// statistics [2, c] = mean, unbiased variance, of a channel's sums over the batch.
__device__ void finish_statistics(float* statistics, const Vectors& v, const float* gamma,
                                  const float* beta, int64_t c, int64_t channel, double sum,
                                  double squares, double count, double epsilon) {
  const double mean = sum / count;
  double variance = squares / count - mean * mean;
  if (variance < 0) variance = 0;  // rounding; NaN stays NaN
  statistics[channel] = static_cast<float>(mean);
  statistics[c + channel] = static_cast<float>(variance * count / (count - 1));
  set_statistics(v, channel, static_cast<float>(mean), variance, gamma[channel], beta[channel],
                 epsilon);
}

__global__ void statistics_finish_kernel(float* statistics, Vectors v, const double* partial,
                                         const float* gamma, const float* beta, Geometry g,
                                         double count, double epsilon, bool first, bool last) {
  finish_sums(v.sums, partial, g, first, last, [=](double sum, double squares, int64_t channel) {
    finish_statistics(statistics, v, gamma, beta, g.c, channel, sum, squares, count, epsilon);
  });
}

// sums [2, c], which the convolution before has given.
__global__ void given_statistics_kernel(float* statistics, Vectors v, const float* sums,
                                        const float* gamma, const float* beta, int64_t c,
                                        double count, double epsilon) {
  for_each(c, [=](int64_t k) {
    finish_statistics(statistics, v, gamma, beta, c, k, static_cast<double>(sums[k]),
                      static_cast<double>(sums[c + k]), count, epsilon);
  });
}

// For inference: running [2, c] = mean, variance.
__global__ void running_statistics_kernel(Vectors v, const float* running, const float* gamma,
                                          const float* beta, int64_t c, double epsilon) {
  for_each(c, [=](int64_t k) {
    set_statistics(v, k, running[k], running[c + k], gamma[k], beta[k], epsilon);
  });
}

// mask may be null; relu without a mask is inference.
template <typename T, bool kAligned, bool kResidual>
__global__ void normalise_kernel(T* y, uint8_t* mask, const T* x, const T* residual, Vectors v,
                                 Geometry g, Way way, bool relu) {
  const Share share(g, way);
  if (share.rows == 0) return;
  y += share.at;
  x += share.at;
  if constexpr (kResidual) residual += share.at;
  if (mask) mask += share.mask_at;
  const auto vector = [&](const float* p) {
    return load_group<kAligned>(p + share.channel, share.channels);
  };
  const Bits8<float> mean = vector(v.mean), scale = vector(v.scale), beta = vector(v.beta);
  const float least = relu ? 0.0f : -INFINITY;
  struct In {
    Bits8<T> x, residual;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.x = load_group_last<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kResidual)
          in.residual = load_group_last<kAligned>(residual + r * share.stride, share.channels);
        return in;
      },
      [&](int r, const In& in) {
        Floats8 out;
        unsigned positive = 0;
        for (int i = 0; i < kWide; ++i) {
          float value = (load(&in.x.v[i]) - mean.v[i]) * scale.v[i] + beta.v[i];
          if constexpr (kResidual) value += load(&in.residual.v[i]);
          positive |= static_cast<unsigned>(value > 0.0f) << i;
          out.v[i] = value < least ? least : value;  // NaN stays NaN, so that it is seen
        }
        if (mask) mask[r * share.mask_stride] = static_cast<uint8_t>(positive);
        store_group<kAligned>(y + r * share.stride, out, share.channels);
      });
}

// ---- Backward.

// grad = mask * (dy0 + dy1); partial = sum grad, sum grad (x - mean). grad may be null (not
// stored) or dy0.
template <typename T, bool kAligned, bool kMask, bool kTwo>
__global__ void backward_sums_kernel(double* partial, T* grad, const T* dy0, const T* dy1,
                                     const uint8_t* mask, const T* x, Vectors v, Geometry g) {
  const Share share(g, Way::kDown);
  x += share.at;
  dy0 += share.at;
  if constexpr (kTwo) dy1 += share.at;
  if constexpr (kMask) mask += share.mask_at;
  if (grad) grad += share.at;
  Bits8<float> mean = {};
  Floats8 sum = {}, products = {};
  if (share.rows > 0) mean = load_group<kAligned>(v.mean + share.channel, share.channels);
  struct In {
    Bits8<T> dy0, dy1, x;
    unsigned positive;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.dy0 = load_group<kAligned>(dy0 + r * share.stride, share.channels);
        if constexpr (kTwo) in.dy1 = load_group<kAligned>(dy1 + r * share.stride, share.channels);
        in.x = load_group<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 dy;
        for (int i = 0; i < kWide; ++i) {
          dy.v[i] = load(&in.dy0.v[i]);
          if constexpr (kTwo) dy.v[i] += load(&in.dy1.v[i]);
          if constexpr (kMask) dy.v[i] = in.positive >> i & 1 ? dy.v[i] : 0.0f;
          sum.v[i] += dy.v[i];
          products.v[i] += dy.v[i] * (load(&in.x.v[i]) - mean.v[i]);
        }
        if (grad) store_group<kAligned>(grad + r * share.stride, dy, share.channels);
      });
  double sums[2][kWide];
  for (int i = 0; i < kWide; ++i) {
    sums[0][i] = sum.v[i];
    sums[1][i] = products.v[i];
  }
  put_sums(partial, g, share.block, sums);
}

__global__ void backward_finish_kernel(float* dgamma, float* dbeta, Vectors v,
                                       const double* partial, const float* gamma, Geometry g,
                                       double count, bool first, bool last) {
  finish_sums(v.sums, partial, g, first, last, [=](double sum, double products, int64_t channel) {
    const double inv_std = v.inv_std[channel], a = gamma[channel] * inv_std;
    dgamma[channel] = static_cast<float>(products * inv_std);
    dbeta[channel] = static_cast<float>(sum);
    v.a[channel] = static_cast<float>(a);
    v.b[channel] = static_cast<float>(-a * products * inv_std * inv_std / count);
    v.k[channel] = static_cast<float>(-a * sum / count);
  });
}

// dx = a * (mask * grad) + b * (x - mean) + k.
template <typename T, bool kAligned, bool kMask>
__global__ void backward_apply_kernel(T* dx, const T* grad, const uint8_t* mask, const T* x,
                                      Vectors v, Geometry g) {
  const Share share(g, Way::kUp);
  if (share.rows == 0) return;
  dx += share.at;
  grad += share.at;
  x += share.at;
  if constexpr (kMask) mask += share.mask_at;
  const auto vector = [&](const float* p) {
    return load_group<kAligned>(p + share.channel, share.channels);
  };
  const Bits8<float> mean = vector(v.mean), a = vector(v.a), b = vector(v.b), k = vector(v.k);
  struct In {
    Bits8<T> grad, x;
    unsigned positive;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.grad = load_group_last<kAligned>(grad + r * share.stride, share.channels);
        in.x = load_group_last<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 out;
        for (int i = 0; i < kWide; ++i) {
          float value = load(&in.grad.v[i]);
          if constexpr (kMask) value = in.positive >> i & 1 ? value : 0.0f;
          out.v[i] = (load(&in.x.v[i]) - mean.v[i]) * b.v[i] + k.v[i] + value * a.v[i];
        }
        store_group<kAligned>(dx + r * share.stride, out, share.channels);
      });
}

// Frozen: grad = mask * (dy0 + dy1) and dx = scale * grad. One of dx and grad may be null; grad may
// be dy0.
template <typename T, bool kAligned, bool kMask, bool kTwo>
__global__ void scale_gradient_kernel(T* dx, T* grad, const T* dy0, const T* dy1,
                                      const uint8_t* mask, Vectors v, Geometry g) {
  const Share share(g, Way::kDown);
  if (share.rows == 0) return;
  dy0 += share.at;
  if constexpr (kTwo) dy1 += share.at;
  if constexpr (kMask) mask += share.mask_at;
  if (dx) dx += share.at;
  if (grad) grad += share.at;
  const Bits8<float> scale = load_group<kAligned>(v.scale + share.channel, share.channels);
  struct In {
    Bits8<T> dy0, dy1;
    unsigned positive;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.dy0 = load_group_last<kAligned>(dy0 + r * share.stride, share.channels);
        if constexpr (kTwo)
          in.dy1 = load_group_last<kAligned>(dy1 + r * share.stride, share.channels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 dy, out;
        for (int i = 0; i < kWide; ++i) {
          dy.v[i] = load(&in.dy0.v[i]);
          if constexpr (kTwo) dy.v[i] += load(&in.dy1.v[i]);
          if constexpr (kMask) dy.v[i] = in.positive >> i & 1 ? dy.v[i] : 0.0f;
          out.v[i] = dy.v[i] * scale.v[i];
        }
        if (grad) store_group<kAligned>(grad + r * share.stride, dy, share.channels);
        if (dx) store_group<kAligned>(dx + r * share.stride, out, share.channels);
      });
}

// ---- The op.

// body(std::bool_constant) of a flag that a kernel knows when it is compiled.
template <typename Body>
void with_flag(bool flag, Body body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

template <typename T>
class BatchNormCuda final : public Op {
 public:
  BatchNormCuda(cudaStream_t stream, const BatchNorm& spec, const OpConfig& config)
      : stream_(stream),
        spec_(spec),
        geometry_(batch_norm_geometry(config.y.rows(), config.y.c)),
        count_(static_cast<double>(config.y.h * config.y.w * config.batch)),
        training_(config.training),
        gathers_(config.training && !spec.frozen),
        saved_(training_ ? ops::saved_bytes(spec, config.y) : 0),
        memory_(allocate_device(kVectorBytes * static_cast<size_t>(config.y.c))) {
    if (gathers_) expect_variance(config);
    const int64_t c = config.y.c;
    auto* sums = static_cast<double*>(memory_.get());
    auto* floats = reinterpret_cast<float*>(sums + 2 * c);
    vectors_ = {floats,         floats + c,     floats + 2 * c, floats + 3 * c,
                floats + 4 * c, floats + 5 * c, floats + 6 * c, sums};
  }

  void gather_forward(const NodeMemory& m) override {
    if (m.sums)
      return launch(&given_statistics_kernel, blocks_for(geometry_.c), cuda::kThreads, stream_,
                    m.statistics, vectors_, static_cast<const float*>(m.sums), m.parameters[0],
                    m.parameters[1], geometry_.c, count_, spec_.epsilon);
    const auto* x = static_cast<const T*>(m.x[0]);
    auto* partial = static_cast<double*>(m.scratch);
    with_flag(are_wide(geometry_.c, x), [&](auto aligned) {
      launch(&statistics_kernel<T, aligned>, geometry_.blocks(), Geometry::kThreads, stream_,
             partial, x, geometry_);
    });
    launch(&statistics_finish_kernel, finish_blocks(), kFinishThreads, stream_, m.statistics,
           vectors_, partial, m.parameters[0], m.parameters[1], geometry_, count_, spec_.epsilon,
           m.slice.first, m.slice.last);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (!gathers_ && m.slice.first)
      launch(&running_statistics_kernel, blocks_for(geometry_.c), cuda::kThreads, stream_, vectors_,
             m.running, m.parameters[0], m.parameters[1], geometry_.c, spec_.epsilon);
    auto* y = static_cast<T*>(m.y);
    auto* mask = saved_ ? static_cast<uint8_t*>(m.saved) : nullptr;
    const auto* x = static_cast<const T*>(m.x[0]);
    const auto* residual = spec_.residual ? static_cast<const T*>(m.x[1]) : nullptr;
    const Way way = gathers_ && !m.sums ? Way::kUp : Way::kDown;
    with_flag(are_wide(geometry_.c, x, y, residual), [&](auto aligned) {
      with_flag(residual, [&](auto has_residual) {
        launch(&normalise_kernel<T, aligned, has_residual>, geometry_.blocks(), Geometry::kThreads,
               stream_, y, mask, x, residual, vectors_, geometry_, way, spec_.relu);
      });
    });
  }

  void gather_backward(const NodeMemory& m) override {
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    const auto* x = static_cast<const T*>(m.x[0]);
    auto* partial = static_cast<double*>(m.scratch);
    const uint8_t* mask = spec_.relu ? static_cast<const uint8_t*>(m.saved) : nullptr;
    with_flag(are_wide(geometry_.c, x, dy0, dy1), [&](auto aligned) {
      with_flag(mask, [&](auto masked) {
        with_flag(dy1, [&](auto two) {
          launch(&backward_sums_kernel<T, aligned, masked, two>, geometry_.blocks(),
                 Geometry::kThreads, stream_, partial, stores_sum(m) ? dy0 : nullptr, dy0, dy1,
                 mask, x, vectors_, geometry_);
        });
      });
    });
    launch(&backward_finish_kernel, finish_blocks(), kFinishThreads, stream_, m.gradients[0],
           m.gradients[1], vectors_, partial, m.parameters[0], geometry_, count_, m.slice.first,
           m.slice.last);
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    if (spec_.frozen) return backward_frozen(m);
    if (!m.dx[0]) return;  // nothing is trained before it
    auto* dx = static_cast<T*>(m.dx[0]);
    const auto* grad = static_cast<const T*>(m.dy[0]);
    const auto* x = static_cast<const T*>(m.x[0]);
    const uint8_t* mask =
        spec_.relu && !stores_sum(m) ? static_cast<const uint8_t*>(m.saved) : nullptr;
    with_flag(are_wide(geometry_.c, dx, grad, x), [&](auto aligned) {
      with_flag(mask, [&](auto masked) {
        launch(&backward_apply_kernel<T, aligned, masked>, geometry_.blocks(), Geometry::kThreads,
               stream_, dx, grad, mask, x, vectors_, geometry_);
      });
    });
  }

  size_t saved_bytes() const override { return saved_; }
  size_t scratch_bytes() const override {
    return gathers_ ? static_cast<size_t>(geometry_.chunks * 2 * geometry_.c) * sizeof(double) : 0;
  }

 private:
  void backward_frozen(const NodeMemory& m) const {
    auto* dx = static_cast<T*>(m.dx[0]);
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    T* residual = spec_.residual && m.dx[1] ? dy0 : nullptr;
    const uint8_t* mask = spec_.relu ? static_cast<const uint8_t*>(m.saved) : nullptr;
    with_flag(are_wide(geometry_.c, dx, dy0, dy1), [&](auto aligned) {
      with_flag(mask, [&](auto masked) {
        with_flag(dy1, [&](auto two) {
          launch(&scale_gradient_kernel<T, aligned, masked, two>, geometry_.blocks(),
                 Geometry::kThreads, stream_, dx, residual, dy0, dy1, mask, vectors_, geometry_);
        });
      });
    });
  }

  int64_t finish_blocks() const { return (geometry_.c + kFinishChannels - 1) / kFinishChannels; }
  // The masked sum of gradients is stored where somebody needs it: the residual, or backward().
  bool stores_sum(const NodeMemory& m) const { return spec_.residual || m.dy.size() > 1; }

  cudaStream_t stream_;
  BatchNorm spec_;
  Geometry geometry_;  // of one slice
  double count_;       // values of a channel in the whole batch
  bool training_;
  bool gathers_;  // takes its statistics from the batch
  size_t saved_;
  DeviceBuffer memory_;
  Vectors vectors_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const BatchNorm& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<BatchNormCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
