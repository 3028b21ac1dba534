// Batch norm on CUDA: two passes over memory forward, two backward, and a small kernel after each
// that sums, which adds the blocks' sums in a fixed order. Where the convolution before has given
// the sums there are no statistics to gather: normalise takes them itself, and the first block of
// some channels writes what backward needs.
//
// Bytes that each pass moves for n elements of s bytes (beside them: two doubles per channel and
// block, which stay in the L2 cache):
//   statistics      x                                   s n
//   normalise       x, y, residual or x2?, mask?        2 s n (+ s n) (+ n / 8)
//   backward_sums   x, x2?, dy, dy2?, mask?, sum?       2 s n (+ s n) (+ s n) (+ n / 8) (+ s n)
//   backward_apply  x, x2?, dy or sum, mask?, dx, dx2?  3 s n (+ 2 s n) (+ n / 8)
//   scale_gradient  dy, dy2?, mask?, dx?, sum?          2 s n (+ s n) (+ n / 8) (+ s n); frozen, in
//   place of both
// A compact dy2 (BatchNorm::dy1_stride) is s n / stride^2.
// The sum of gradients is stored where there are two, or a residual; backward_apply then reads it
// instead of dy and the mask.
//
// x2 and dx2 are a shortcut's (BatchNorm::shortcut), which takes the residual's place. With two
// gradients of y, a batch norm of its own and the residual that it gives would move 9 s n, merged
// it is 5. What would be stored between the two is rounded as if it were, so that bits are the
// same.
//
// Statistics: each thread sums x and its square in fp32 around the first value it sees, over at
// most 64 rows. That value's own distance is part of the variance, so it cannot drown it. In
// double, what the value took away is given back, and the rest is summed.
//
// The mask is a bit per element, 8 channels a byte, rows of whole 16-bit words.
#include "ops/batch_norm_cuda.h"

#include <cmath>

#include "ops/compact_cuda.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda_norm;

// ---- Statistics and sums, per channel.

constexpr size_t kVectorBytes = 7 * sizeof(float) + 2 * sizeof(double);

// A block finishes four channels, 32 bytes a read, with so many chunks at once: few threads where
// chunks are few, since it costs time to start blocks.
constexpr int kFinishChannels = 4, kFinishAhead = 16, kManyLanes = 64, kFewLanes = 16;
constexpr int64_t kFewChunks = kFewLanes * kFinishAhead;

// finish(channel, sums of partial and of the slices before), by one thread per channel after the
// last slice. Called once by all threads of a block.
template <int kLanes, typename Finish>
__device__ void finish_sums(double* carried, const double* partial, const Geometry& g, bool first,
                            bool last, Finish finish) {
  __shared__ double shared[kLanes][2][kFinishChannels];
  const auto thread = static_cast<int>(threadIdx.x);
  const int k = thread % kFinishChannels, which = thread / kFinishChannels % 2;
  const int lane = thread / (2 * kFinishChannels);
  const int64_t channel = int64_t{blockIdx.x} * kFinishChannels + k;
  double sum = 0;
  for (int64_t begin = lane; begin < g.chunks && channel < g.c; begin += kLanes * kFinishAhead) {
    double ahead[kFinishAhead];  // on their way before one is used
    const auto has = [&](int i) { return begin + i * kLanes < g.chunks; };
    for (int i = 0; i < kFinishAhead; ++i)
      ahead[i] = has(i) ? partial[(2 * (begin + i * kLanes) + which) * g.c + channel] : 0.0;
    for (int i = 0; i < kFinishAhead; ++i) sum = has(i) ? sum + ahead[i] : sum;
  }
  shared[lane][which][k] = sum;
  for (int half = kLanes / 2; half > 0; half /= 2) {
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
  Sums sums;
  for (int i = 0; i < kWide; ++i) {
    const double s = load(&shift.v[i]), d = sum.v[i], shifted = s * share.rows;
    sums.v[0][i] = d + shifted;
    sums.v[1][i] = squares.v[i] + s * (2 * d + shifted);
  }
  put_sums(partial, g, share.block, sums);
}

// What a channel is normalised with.
struct OfChannel {
  float mean, inv_std, scale, beta;
};
__device__ OfChannel of_channel(float mean, double variance, float gamma, float beta,
                                double epsilon) {
  const double inv_std = 1.0 / sqrt(variance + epsilon);
  return {mean, static_cast<float>(inv_std), static_cast<float>(gamma * inv_std), beta};
}
__device__ void set(const Vectors& v, int64_t channel, const OfChannel& of) {
  v.mean[channel] = of.mean;
  v.inv_std[channel] = of.inv_std;
  v.scale[channel] = of.scale;
  v.beta[channel] = of.beta;
}

// Of a channel's sums over the batch. statistics [2, c] = mean, unbiased variance, unless it is
// null.
__device__ OfChannel finish_statistics(float* statistics, const float* gamma, const float* beta,
                                       int64_t c, int64_t channel, double sum, double squares,
                                       const Count& count, double epsilon) {
  const double mean = sum * count.inverse;
  double variance = squares * count.inverse - mean * mean;
  if (variance < 0) variance = 0;  // rounding; NaN stays NaN
  if (statistics) {
    statistics[channel] = static_cast<float>(mean);
    statistics[c + channel] = static_cast<float>(variance * count.unbiased);
  }
  return of_channel(static_cast<float>(mean), variance, gamma[channel], beta[channel], epsilon);
}

template <int kLanes>
__global__ void statistics_finish_kernel(float* statistics, Vectors v, const double* partial,
                                         const float* gamma, const float* beta, Geometry g,
                                         Count count, double epsilon, bool first, bool last) {
  finish_sums<kLanes>(
      v.sums, partial, g, first, last, [=](double sum, double squares, int64_t channel) {
        set(v, channel,
            finish_statistics(statistics, gamma, beta, g.c, channel, sum, squares, count, epsilon));
      });
}

// From what the convolution before has given. statistics may be null.
__device__ OfChannel of_given(const Given& given, float* statistics, int64_t c, int64_t channel) {
  return finish_statistics(
      statistics, given.gamma, given.beta, c, channel, static_cast<double>(given.sums[channel]),
      static_cast<double>(given.sums[c + channel]), given.count, given.epsilon);
}
__global__ void given_statistics_kernel(Vectors v, Given given, int64_t c) {
  for_each(c, [=](int64_t k) { set(v, k, of_given(given, given.statistics, c, k)); });
}

// For inference: running [2, c] = mean, variance.
__global__ void running_statistics_kernel(Vectors v, const float* running, const float* gamma,
                                          const float* beta, int64_t c, double epsilon) {
  for_each(c, [=](int64_t k) {
    set(v, k, of_channel(running[k], running[c + k], gamma[k], beta[k], epsilon));
  });
}

template <int kLanes>
__global__ void backward_finish_kernel(float* dgamma, float* dbeta, Vectors v,
                                       const double* partial, const float* gamma, Geometry g,
                                       Count count, bool first, bool last) {
  // On their way while sums are.
  const int64_t own = int64_t{blockIdx.x} * kFinishChannels + threadIdx.x % kFinishChannels;
  const double inv_std = own < g.c ? v.inv_std[own] : 0.0f;
  const double a = own < g.c ? gamma[own] * inv_std : 0.0;
  finish_sums<kLanes>(
      v.sums, partial, g, first, last, [=](double sum, double products, int64_t channel) {
        dgamma[channel] = static_cast<float>(products * inv_std);
        dbeta[channel] = static_cast<float>(sum);
        v.a[channel] = static_cast<float>(a);
        v.b[channel] = static_cast<float>(-a * products * inv_std * inv_std * count.inverse);
        v.k[channel] = static_cast<float>(-a * sum * count.inverse);
      });
}

}  // namespace

// ---- One batch norm.

namespace cuda_norm {

Norm::Norm(cudaStream_t stream, double epsilon, const Geometry& geometry, double count)
    : stream_(stream),
      epsilon_(epsilon),
      geometry_(geometry),
      count_{1.0 / count, count / (count - 1)},
      memory_(allocate_device(kVectorBytes * static_cast<size_t>(geometry.c))) {
  const int64_t c = geometry.c;
  auto* sums = static_cast<double*>(memory_.get());
  auto* floats = reinterpret_cast<float*>(sums + 2 * c);
  vectors_ = {floats,         floats + c,     floats + 2 * c, floats + 3 * c,
              floats + 4 * c, floats + 5 * c, floats + 6 * c, sums};
}

// run(std::integral_constant of lanes, blocks, threads of each)
template <typename Run>
void Norm::with_lanes(Run run) const {
  const int64_t blocks = (geometry_.c + kFinishChannels - 1) / kFinishChannels;
  with_flag(geometry_.chunks <= kFewChunks, [&](auto few) {
    constexpr int kLanes = decltype(few)::value ? kFewLanes : kManyLanes;
    run(std::integral_constant<int, kLanes>{}, blocks, 2 * kFinishChannels * kLanes);
  });
}

template <typename T>
void Norm::gather(float* statistics, double* partial, const T* x, const float* sums,
                  const float* const* parameters, const Slice& slice) const {
  if (sums)
    return launch(&given_statistics_kernel, blocks_for(geometry_.c), cuda::kThreads, stream_,
                  vectors_, given(statistics, sums, parameters), geometry_.c);
  with_flag(are_wide(geometry_.c, x), [&](auto aligned) {
    launch(&statistics_kernel<T, aligned>, geometry_.blocks(), Geometry::kThreads, stream_, partial,
           x, geometry_);
  });
  with_lanes([&](auto lanes, int64_t blocks, int threads) {
    launch(&statistics_finish_kernel<lanes>, blocks, threads, stream_, statistics, vectors_,
           partial, parameters[0], parameters[1], geometry_, count_, epsilon_, slice.first,
           slice.last);
  });
}
template void Norm::gather(float*, double*, const float*, const float*, const float* const*,
                           const Slice&) const;
template void Norm::gather(float*, double*, const Bfloat16*, const float*, const float* const*,
                           const Slice&) const;
template void Norm::gather(float*, double*, const Float16*, const float*, const float* const*,
                           const Slice&) const;

void Norm::take(const float* running, const float* const* parameters) const {
  launch(&running_statistics_kernel, blocks_for(geometry_.c), cuda::kThreads, stream_, vectors_,
         running, parameters[0], parameters[1], geometry_.c, epsilon_);
}

void Norm::finish_backward(float* const* gradients, const float* gamma, const double* partial,
                           const Slice& slice) const {
  with_lanes([&](auto lanes, int64_t blocks, int threads) {
    launch(&backward_finish_kernel<lanes>, blocks, threads, stream_, gradients[0], gradients[1],
           vectors_, partial, gamma, geometry_, count_, slice.first, slice.last);
  });
}

}  // namespace cuda_norm

namespace {

// ---- Forward.

// What the second input of a batch norm is.
enum class Second : uint8_t { kNone, kResidual, kShortcut };

// Of the channels of a block, in shared memory.
struct alignas(16) OfBlock {
  float mean[Geometry::kMostGroups * kWide], scale[Geometry::kMostGroups * kWide],
      beta[Geometry::kMostGroups * kWide];
};
// From what is given, by all threads of a block; the first block of some channels sets `v` and the
// statistics, too.
__device__ void set_block(OfBlock& block, const Given& given, const Vectors& v, const Geometry& g,
                          const Share& share) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t channel = int64_t{share.block % g.tiles} * g.groups * kWide + thread;
  if (thread >= g.groups * kWide || channel >= g.c) return;
  const bool first = share.block < g.tiles;
  const OfChannel of = of_given(given, first ? given.statistics : nullptr, g.c, channel);
  if (first) set(v, channel, of);
  block.mean[thread] = of.mean;
  block.scale[thread] = of.scale;
  block.beta[thread] = of.beta;
}

// mask may be null; relu without a mask is inference. v2: of a shortcut. kGiven: v and v2 are not
// set yet, they follow from what is given.
template <typename T, bool kAligned, Second kSecond, bool kGiven>
__global__ void normalise_kernel(T* y, uint8_t* mask, const T* x, const T* x2, Vectors v,
                                 Vectors v2, Given given, Given given2, Geometry g, Way way,
                                 bool relu) {
  const Share share(g, way);
  __shared__ OfBlock of, of2;
  y += share.at;
  x += share.at;
  if constexpr (kSecond != Second::kNone) x2 += share.at;
  if (mask) mask += share.mask_at;
  const float least = relu ? 0.0f : -INFINITY;
  struct In {
    Bits8<T> x, x2;
  };
  Bits8<float> mean, scale, beta, mean2, scale2, beta2;
  for_rows_behind<2>(
      share.rows,
      [&](int r) {
        In in;
        in.x = load_group_last<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kSecond != Second::kNone)
          in.x2 = load_group_last<kAligned>(x2 + r * share.stride, share.channels);
        return in;
      },
      [&] {
        if constexpr (kGiven) {
          set_block(of, given, v, g, share);
          if constexpr (kSecond == Second::kShortcut) set_block(of2, given2, v2, g, share);
          __syncthreads();
        }
        if (share.rows == 0) return;
        const auto vector = [&](const float* of_all, const float* of_block) {
          const int in_block = static_cast<int>(threadIdx.x) % g.groups * kWide;
          return load_group<kAligned>(kGiven ? of_block + in_block : of_all + share.channel,
                                      share.channels);
        };
        mean = vector(v.mean, of.mean);
        scale = vector(v.scale, of.scale);
        beta = vector(v.beta, of.beta);
        if constexpr (kSecond == Second::kShortcut) {
          mean2 = vector(v2.mean, of2.mean);
          scale2 = vector(v2.scale, of2.scale);
          beta2 = vector(v2.beta, of2.beta);
        }
      },
      [&](int r, const In& in) {
        Floats8 out;
        unsigned positive = 0;
        for (int i = 0; i < kWide; ++i) {
          float value = (load(&in.x.v[i]) - mean.v[i]) * scale.v[i] + beta.v[i];
          if constexpr (kSecond == Second::kResidual) value += load(&in.x2.v[i]);
          if constexpr (kSecond == Second::kShortcut)
            value += rounded<T>((load(&in.x2.v[i]) - mean2.v[i]) * scale2.v[i] + beta2.v[i]);
          positive |= static_cast<unsigned>(value > 0.0f) << i;
          out.v[i] = value < least ? least : value;  // NaN stays NaN, so that it is seen
        }
        if (mask) mask[r * share.mask_stride] = static_cast<uint8_t>(positive);
        store_group<kAligned>(y + r * share.stride, out, share.channels);
      });
}

// ---- Backward.

// What dy1 is.
enum class Other : uint8_t { kNone, kWhole, kCompact };

// Row r of a share in a compact dy1: zero where it is not there, so that what is added is the same.
template <bool kAligned, typename T>
__device__ Bits8<T> load_compact(const T* dy1, int r, const Share& share, const Geometry& g,
                                 const CompactPixels& pixels) {
  const int row = pixels.find(static_cast<uint32_t>(share.row + r * share.step));
  Bits8<T> out = {};
  if (row >= 0) out = load_group<kAligned>(dy1 + row * g.c + share.channel, share.channels);
  return out;
}

// grad = mask * (dy0 + dy1); partial = sum grad, sum grad (x - mean) and, of a shortcut, partial2 =
// the same with x2. grad may be null (not stored) or dy0. pixels: of a compact dy1.
template <typename T, bool kAligned, bool kMask, Other kOther, bool kShortcut>
__global__ void backward_sums_kernel(double* partial, double* partial2, T* grad, const T* dy0,
                                     const T* dy1, CompactPixels pixels, const uint8_t* mask,
                                     const T* x, const T* x2, Vectors v, Vectors v2, Geometry g) {
  const Share share(g, Way::kDown);
  x += share.at;
  if constexpr (kShortcut) x2 += share.at;
  dy0 += share.at;
  if constexpr (kOther == Other::kWhole) dy1 += share.at;
  if constexpr (kMask) mask += share.mask_at;
  if (grad) grad += share.at;
  Bits8<float> mean = {}, mean2 = {};
  Floats8 sum = {}, products = {}, sum2 = {}, products2 = {};
  if (share.rows > 0) mean = load_group<kAligned>(v.mean + share.channel, share.channels);
  if (kShortcut && share.rows > 0)
    mean2 = load_group<kAligned>(v2.mean + share.channel, share.channels);
  struct In {
    Bits8<T> dy0, dy1, x, x2;
    unsigned positive;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.dy0 = load_group<kAligned>(dy0 + r * share.stride, share.channels);
        if constexpr (kOther == Other::kWhole)
          in.dy1 = load_group<kAligned>(dy1 + r * share.stride, share.channels);
        if constexpr (kOther == Other::kCompact)
          in.dy1 = load_compact<kAligned>(dy1, r, share, g, pixels);
        in.x = load_group<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kShortcut)
          in.x2 = load_group<kAligned>(x2 + r * share.stride, share.channels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 dy;
        for (int i = 0; i < kWide; ++i) {
          dy.v[i] = load(&in.dy0.v[i]);
          if constexpr (kOther != Other::kNone) dy.v[i] += load(&in.dy1.v[i]);
          if constexpr (kMask) dy.v[i] = in.positive >> i & 1 ? dy.v[i] : 0.0f;
          sum.v[i] += dy.v[i];
          products.v[i] += dy.v[i] * (load(&in.x.v[i]) - mean.v[i]);
          if constexpr (kShortcut) {
            const float stored = rounded<T>(dy.v[i]);
            sum2.v[i] += stored;
            products2.v[i] += stored * (load(&in.x2.v[i]) - mean2.v[i]);
          }
        }
        if (grad) store_group<kAligned>(grad + r * share.stride, dy, share.channels);
      });
  put_sums(partial, g, share.block, in_double(sum, products));
  if constexpr (kShortcut) {
    __syncthreads();
    put_sums(partial2, g, share.block, in_double(sum2, products2));
  }
}

// dx = a * (mask * grad) + b * (x - mean) + k, and dx2 with what a shortcut has. Either may be
// null; dx2 may be grad.
template <typename T, bool kAligned, bool kMask, bool kShortcut>
__global__ void backward_apply_kernel(T* dx, T* dx2, const T* grad, const uint8_t* mask, const T* x,
                                      const T* x2, Vectors v, Vectors v2, Geometry g) {
  const Share share(g, Way::kUp);
  if (share.rows == 0) return;
  grad += share.at;
  x += share.at;
  if (dx) dx += share.at;
  if constexpr (kShortcut) x2 += share.at;
  if (kShortcut && dx2) dx2 += share.at;
  if constexpr (kMask) mask += share.mask_at;
  const auto vector = [&](const float* p) {
    return load_group<kAligned>(p + share.channel, share.channels);
  };
  struct Factors {
    Bits8<float> mean, a, b, k;
  };
  const auto factors_of = [&](const Vectors& from) -> Factors {
    return {vector(from.mean), vector(from.a), vector(from.b), vector(from.k)};
  };
  const Factors f = factors_of(v);
  Factors f2;
  if constexpr (kShortcut) f2 = factors_of(v2);
  struct In {
    Bits8<T> grad, x, x2;
    unsigned positive;
  };
  for_rows<2>(
      share.rows,
      [&](int r) {
        In in;
        in.grad = load_group_last<kAligned>(grad + r * share.stride, share.channels);
        in.x = load_group_last<kAligned>(x + r * share.stride, share.channels);
        if constexpr (kShortcut)
          in.x2 = load_group_last<kAligned>(x2 + r * share.stride, share.channels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 out, out2;
        for (int i = 0; i < kWide; ++i) {
          float value = load(&in.grad.v[i]);
          if constexpr (kMask) value = in.positive >> i & 1 ? value : 0.0f;
          out.v[i] = (load(&in.x.v[i]) - f.mean.v[i]) * f.b.v[i] + f.k.v[i] + value * f.a.v[i];
          if constexpr (kShortcut)
            out2.v[i] =
                (load(&in.x2.v[i]) - f2.mean.v[i]) * f2.b.v[i] + f2.k.v[i] + value * f2.a.v[i];
        }
        if (dx) store_group<kAligned>(dx + r * share.stride, out, share.channels);
        if (kShortcut && dx2) store_group<kAligned>(dx2 + r * share.stride, out2, share.channels);
      });
}

// Frozen: grad = mask * (dy0 + dy1) and dx = scale * grad. One of dx and grad may be null; grad may
// be dy0.
template <typename T, bool kAligned, bool kMask, Other kOther>
__global__ void scale_gradient_kernel(T* dx, T* grad, const T* dy0, const T* dy1,
                                      CompactPixels pixels, const uint8_t* mask, Vectors v,
                                      Geometry g) {
  const Share share(g, Way::kDown);
  if (share.rows == 0) return;
  dy0 += share.at;
  if constexpr (kOther == Other::kWhole) dy1 += share.at;
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
        if constexpr (kOther == Other::kWhole)
          in.dy1 = load_group_last<kAligned>(dy1 + r * share.stride, share.channels);
        if constexpr (kOther == Other::kCompact)
          in.dy1 = load_compact<kAligned>(dy1, r, share, g, pixels);
        if constexpr (kMask) in.positive = mask[r * share.mask_stride];
        return in;
      },
      [&](int r, const In& in) {
        Floats8 dy, out;
        for (int i = 0; i < kWide; ++i) {
          dy.v[i] = load(&in.dy0.v[i]);
          if constexpr (kOther != Other::kNone) dy.v[i] += load(&in.dy1.v[i]);
          if constexpr (kMask) dy.v[i] = in.positive >> i & 1 ? dy.v[i] : 0.0f;
          out.v[i] = dy.v[i] * scale.v[i];
        }
        if (grad) store_group<kAligned>(grad + r * share.stride, dy, share.channels);
        if (dx) store_group<kAligned>(dx + r * share.stride, out, share.channels);
      });
}

// ---- The op.

template <typename T>
class BatchNormCuda final : public Op {
 public:
  BatchNormCuda(cudaStream_t stream, const BatchNorm& spec, const OpConfig& config)
      : stream_(stream),
        spec_(spec),
        geometry_(batch_norm_geometry(config.y.rows(), config.y.c)),
        training_(config.training),
        gathers_(config.training && !spec.frozen),
        saved_(training_ ? ops::saved_bytes(spec, config.y) : 0),
        norm_(stream, spec.epsilon, geometry_, values_of_a_channel(config)) {
    if (gathers_) expect_variance(config);
    if (spec.dy1_stride > 1) pixels_ = CompactPixels(config.y, spec.dy1_stride);
    if (spec.shortcut)
      shortcut_.emplace(stream, spec.shortcut->epsilon, geometry_, values_of_a_channel(config));
  }

  void gather_forward(const NodeMemory& m) override {
    if (is_given(m)) return;
    auto* partial = static_cast<double*>(m.scratch);
    if (shortcut_)  // its convolution is the last one, as a rule
      shortcut_->gather(m.shortcut_statistics, partial, static_cast<const T*>(m.x[1]),
                        m.shortcut_sums, m.parameters.data() + kBatchNormParameters, m.slice);
    norm_.gather(m.statistics, partial, static_cast<const T*>(m.x[0]), m.sums, m.parameters.data(),
                 m.slice);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (!gathers_ && m.slice.first) norm_.take(m.running, m.parameters.data());
    auto* y = static_cast<T*>(m.y);
    auto* mask = saved_ ? static_cast<uint8_t*>(m.saved) : nullptr;
    const auto* x = static_cast<const T*>(m.x[0]);
    const auto* x2 = spec_.residual ? static_cast<const T*>(m.x[1]) : nullptr;
    const Way way = gathers_ && !m.sums ? Way::kUp : Way::kDown;
    Given given = {}, given2 = {};
    if (is_given(m)) given = norm_.given(m.statistics, m.sums, m.parameters.data());
    if (is_given(m) && shortcut_)
      given2 = shortcut_->given(m.shortcut_statistics, m.shortcut_sums,
                                m.parameters.data() + kBatchNormParameters);
    with_flag(are_wide(geometry_.c, x, y, x2), [&](auto aligned) {
      const auto run = [&](auto second) {
        with_flag(is_given(m), [&](auto from_given) {
          launch(&normalise_kernel<T, aligned, second, from_given>, geometry_.blocks(),
                 Geometry::kThreads, stream_, y, mask, x, x2, norm_.vectors(), shortcut_vectors(),
                 given, given2, geometry_, way, spec_.relu);
        });
      };
      if (shortcut_)
        run(std::integral_constant<Second, Second::kShortcut>{});
      else if (x2)
        run(std::integral_constant<Second, Second::kResidual>{});
      else
        run(std::integral_constant<Second, Second::kNone>{});
    });
  }

  void gather_backward(const NodeMemory& m) override {
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    const auto *x = static_cast<const T*>(m.x[0]), *x2 = shortcut_input(m);
    auto* partial = static_cast<double*>(m.scratch);
    double* const partial2 = partial + norm_.partial_bytes() / sizeof(double);
    const uint8_t* mask = spec_.relu ? static_cast<const uint8_t*>(m.saved) : nullptr;
    with_flag(are_wide(geometry_.c, x, x2, dy0, dy1), [&](auto aligned) {
      with_flag(mask, [&](auto masked) {
        with_other(dy1, [&](auto other) {
          with_flag(x2, [&](auto shortcut) {
            launch(&backward_sums_kernel<T, aligned, masked, other, shortcut>, geometry_.blocks(),
                   Geometry::kThreads, stream_, partial, partial2, stores_sum(m) ? dy0 : nullptr,
                   dy0, dy1, pixels_, mask, x, x2, norm_.vectors(), shortcut_vectors(), geometry_);
          });
        });
      });
    });
    norm_.finish_backward(m.gradients.data(), m.parameters[0], partial, m.slice);
    if (shortcut_)
      shortcut_->finish_backward(m.gradients.data() + kBatchNormParameters,
                                 m.parameters[kBatchNormParameters], partial2, m.slice);
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    if (spec_.frozen) return backward_frozen(m);
    auto* dx = static_cast<T*>(m.dx[0]);
    auto* dx2 = shortcut_ ? static_cast<T*>(m.dx[1]) : nullptr;
    if (!dx && !dx2) return;  // nothing is trained before it
    const auto* grad = static_cast<const T*>(m.dy[0]);
    const auto *x = static_cast<const T*>(m.x[0]), *x2 = shortcut_input(m);
    const uint8_t* mask =
        spec_.relu && !stores_sum(m) ? static_cast<const uint8_t*>(m.saved) : nullptr;
    with_flag(are_wide(geometry_.c, dx, dx2, grad, x, x2), [&](auto aligned) {
      with_flag(mask, [&](auto masked) {
        with_flag(x2, [&](auto shortcut) {
          launch(&backward_apply_kernel<T, aligned, masked, shortcut>, geometry_.blocks(),
                 Geometry::kThreads, stream_, dx, dx2, grad, mask, x, x2, norm_.vectors(),
                 shortcut_vectors(), geometry_);
        });
      });
    });
  }

  size_t saved_bytes() const override { return saved_; }
  size_t scratch_bytes() const override {
    return gathers_ ? norm_.partial_bytes() * (shortcut_ ? 2 : 1) : 0;
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
        with_other(dy1, [&](auto other) {
          launch(&scale_gradient_kernel<T, aligned, masked, other>, geometry_.blocks(),
                 Geometry::kThreads, stream_, dx, residual, dy0, dy1, pixels_, mask,
                 norm_.vectors(), geometry_);
        });
      });
    });
  }

  // body(std::integral_constant) of what dy1 is.
  template <typename Body>
  void with_other(const T* dy1, Body body) const {
    if (!dy1)
      body(std::integral_constant<Other, Other::kNone>{});
    else if (spec_.dy1_stride == 1)
      body(std::integral_constant<Other, Other::kWhole>{});
    else
      body(std::integral_constant<Other, Other::kCompact>{});
  }

  // Nothing is left to gather: forward() takes it from what convolutions have given.
  bool is_given(const NodeMemory& m) const {
    return gathers_ && m.sums && (!shortcut_ || m.shortcut_sums);
  }
  const T* shortcut_input(const NodeMemory& m) const {
    return shortcut_ ? static_cast<const T*>(m.x[1]) : nullptr;
  }
  Vectors shortcut_vectors() const { return shortcut_ ? shortcut_->vectors() : Vectors{}; }
  // The masked sum of gradients is stored where somebody needs it: the residual, or backward().
  bool stores_sum(const NodeMemory& m) const {
    return (spec_.residual && !shortcut_) || m.dy.size() > 1;
  }

  cudaStream_t stream_;
  BatchNorm spec_;
  Geometry geometry_;  // of one slice
  bool training_;
  bool gathers_;  // takes its statistics from the batch
  size_t saved_;
  Norm norm_;
  std::optional<Norm> shortcut_;
  CompactPixels pixels_;  // of a compact dy[1]
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const BatchNorm& spec, const OpConfig& config) {
  const bool pools =
      spec.pool && !spec.residual && can_follow_batch_norm(*spec.pool) && spec.dy1_stride == 1;
  if ((spec.shortcut || spec.pool) && (!config.training || spec.frozen || (spec.pool && !pools)))
    fail(ExitCode::kFault, "batch_norm \"{}\": {} is not what merge_batch_norms() makes",
         config.name, kind_of(spec));
  if (spec.pool) return make_pooled(device, spec, config);
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<BatchNormCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
