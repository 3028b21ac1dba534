// Batch norm with its ReLU and the max pooling behind it on CUDA (BatchNorm::pool): what lies
// between the two is never stored. Bits are those of one after the other (batch_norm_cuda.cu,
// pool_cuda.cu): what would be stored is rounded as if it were.
//
// Bytes for n elements of s bytes of x and m of y:
//   statistics      x                  s n
//   normalise_pool  x, y, places       s n + (s + 1) m
//   backward_sums   x, dy, places      s n + (s + 1) m
//   backward_apply  x, dy, places, dx  2 s n + (s + 1) m
// By themselves they would move 4 s n and (s + 1) m more, with m = n / 4.
//
// places [y] has what max pooling saves, the winner's place in its window, or kNowhere where the
// ReLU lets no gradient through.
#include <cmath>

#include "ops/batch_norm_cuda.h"
#include "ops/cuda_device.h"
#include "ops/pool_cuda.h"

namespace convoy::ops {
namespace {

using namespace cuda_norm;

using Windows = cuda_pool::Geometry;
using cuda_pool::Span;

constexpr uint8_t kNowhere = 255;  // places are below 15^2

template <int kLanes, typename T>
__global__ void normalise_pool_kernel(T* y, uint8_t* places, const T* x, Vectors v, bool relu,
                                      Windows w) {
  cuda_pool::for_lanes<kLanes>(w.p, w.q, w.c, [=](int64_t image, int p, int q, int k) {
    const Span rows = cuda_pool::pixels_of(p, w, w.h), columns = cuda_pool::pixels_of(q, w, w.w);
    const Floats8 mean = cuda_pool::load_lanes<kLanes>(v.mean + k),
                  scale = cuda_pool::load_lanes<kLanes>(v.scale + k),
                  beta = cuda_pool::load_lanes<kLanes>(v.beta + k);
    const float least = relu ? 0.0f : -INFINITY;
    Floats8 best;
    Bits8<uint8_t> where;
    for (int lane = 0; lane < kLanes; ++lane) {
      best.v[lane] = -INFINITY;
      // Also where nothing is above minus infinity, as without a ReLU.
      where.v[lane] = static_cast<uint8_t>(cuda_pool::place_of(rows.begin, columns.begin, p, q, w));
    }
    for (int i = rows.begin; i < rows.end; ++i)
      for (int j = columns.begin; j < columns.end; ++j) {
        const Floats8 in =
            cuda_pool::load_lanes<kLanes>(x + ((image * w.h + i) * w.w + j) * w.c + k);
        const auto here = static_cast<uint8_t>(cuda_pool::place_of(i, j, p, q, w));
        for (int lane = 0; lane < kLanes; ++lane) {
          const float value = (in.v[lane] - mean.v[lane]) * scale.v[lane] + beta.v[lane];
          const float out = rounded<T>(value < least ? least : value);  // NaN stays NaN
          const bool wins = out > best.v[lane] || out != out;           // and wins
          best.v[lane] = wins ? out : best.v[lane];
          where.v[lane] = !wins ? where.v[lane] : !relu || value > 0.0f ? here : kNowhere;
        }
      }
    const int64_t out = ((image * w.p + p) * w.q + q) * w.c + k;
    cuda_pool::store_lanes<kLanes>(y + out, best);
    if constexpr (kLanes == kWide)
      *reinterpret_cast<Bits8<uint8_t>*>(places + out) = where;
    else
      places[out] = where.v[0];
  });
}

// A pixel of x, where a thread's share has come to.
class Pixel {
 public:
  __device__ Pixel(const Share& share, const Windows& w)
      : step_(share.step < 0 ? -share.step : share.step), down_(share.step < 0) {
    const auto row = static_cast<unsigned>(share.row), width = static_cast<unsigned>(w.w),
               height = static_cast<unsigned>(w.h);
    const unsigned line = row / width;
    j = static_cast<int>(row - line * width);
    image = static_cast<int>(line / height);
    i = static_cast<int>(line) - image * w.h;
    lines_ = step_ / w.w;
    step_ -= lines_ * w.w;
  }
  // To the share's next row.
  __device__ void go_on(const Windows& w) {
    if (down_) {
      j -= step_;
      i -= lines_ + (j < 0);
      j += j < 0 ? w.w : 0;
      for (; i < 0; i += w.h) --image;
    } else {
      j += step_;
      i += lines_ + (j >= w.w);
      j -= j >= w.w ? w.w : 0;
      for (; i >= w.h; i -= w.h) ++image;
    }
  }

  int image, i, j;

 private:
  int step_, lines_;  // from row to row: columns, and whole lines
  bool down_;
};

// The outputs [begin, end), one or two, whose windows cover pixel `i`: as windows are merged
// (merge_batch_norms), with strides of two and kernels of up to four.
__device__ Span covering(int i, const Windows& w, int outputs) {
  const int from = i + w.padding - w.kernel + 1, end = ((i + w.padding) >> 1) + 1;
  return {from <= 0 ? 0 : (from + 1) >> 1, end < outputs ? end : outputs};
}

// The gradient of a pixel's group of channels behind the ReLU, as max pooling would store it. Of
// two columns of windows both are always read, so that their reads do not wait for each other. Two
// lines of windows are there for a half of the lines of pixels, so mostly for a whole warp or for
// none of it. dy and places begin with the group's first channel.
template <bool kAligned, typename T>
__device__ Floats8 gradient_of(const Pixel& pixel, const T* dy, const uint8_t* places, int channels,
                               const Windows& w) {
  constexpr int kColumns = 2;
  const Span rows = covering(pixel.i, w, w.p), columns = covering(pixel.j, w, w.q);
  const int64_t image = int64_t{pixel.image} * w.p * w.q * w.c;
  Floats8 sum = {};
  for (int p = rows.begin; p < rows.end; ++p) {
    Bits8<T> values[kColumns];
    Bits8<uint8_t> where[kColumns];
    int place[kColumns];
    for (int n = 0; n < kColumns; ++n) {
      const int q = columns.begin + n;
      const bool covers = q < columns.end;
      const int64_t at = image + int64_t{p * w.q + (covers ? q : 0)} * w.c;
      values[n] = load_group<kAligned>(dy + at, channels);
      where[n] = load_group<kAligned>(places + at, channels);
      place[n] = covers ? cuda_pool::place_of(pixel.i, pixel.j, p, q, w) : -1;
    }
    for (int n = 0; n < kColumns; ++n)
      for (int k = 0; k < kWide; ++k)
        sum.v[k] += where[n].v[k] == place[n] ? load(&values[n].v[k]) : 0.0f;
  }
  for (int k = 0; k < kWide; ++k) sum.v[k] = rounded<T>(sum.v[k]);
  return sum;
}

// use(r, x's row, its gradient) for the rows of a share. The next row of x is on its way while one
// is used.
template <bool kAligned, typename T, typename Use>
__device__ void for_pooled_rows(const Share& share, const T* x, const T* dy, const uint8_t* places,
                                const Windows& w, Use use) {
  if (share.rows == 0) return;
  Pixel pixel(share, w);
  Bits8<T> next = load_group<kAligned>(x, share.channels);
  for (int r = 0; r < share.rows; ++r) {
    const Bits8<T> in = next;
    if (r + 1 < share.rows) next = load_group<kAligned>(x + (r + 1) * share.stride, share.channels);
    use(r, in, gradient_of<kAligned>(pixel, dy, places, share.channels, w));
    pixel.go_on(w);
  }
}

// partial = sum of gradients, sum of gradients (x - mean).
template <typename T, bool kAligned>
__global__ void pooled_sums_kernel(double* partial, const T* dy, const uint8_t* places, const T* x,
                                   Vectors v, Geometry g, Windows w) {
  const Share share(g, Way::kDown);
  Bits8<float> mean = {};
  Floats8 sum = {}, products = {};
  if (share.rows > 0) mean = load_group<kAligned>(v.mean + share.channel, share.channels);
  for_pooled_rows<kAligned>(share, x + share.at, dy + share.channel, places + share.channel, w,
                            [&](int, const Bits8<T>& in, const Floats8& grad) {
                              for (int i = 0; i < kWide; ++i) {
                                sum.v[i] += grad.v[i];
                                products.v[i] += grad.v[i] * (load(&in.v[i]) - mean.v[i]);
                              }
                            });
  put_sums(partial, g, share.block, in_double(sum, products));
}

// dx = a * gradient + b * (x - mean) + k.
template <typename T, bool kAligned>
__global__ void pooled_apply_kernel(T* dx, const T* dy, const uint8_t* places, const T* x,
                                    Vectors v, Geometry g, Windows w) {
  const Share share(g, Way::kUp);
  if (share.rows == 0) return;
  dx += share.at;
  const auto vector = [&](const float* p) {
    return load_group<kAligned>(p + share.channel, share.channels);
  };
  const Bits8<float> mean = vector(v.mean), a = vector(v.a), b = vector(v.b), k = vector(v.k);
  for_pooled_rows<kAligned>(share, x + share.at, dy + share.channel, places + share.channel, w,
                            [&](int r, const Bits8<T>& in, const Floats8& grad) {
                              Floats8 out;
                              for (int i = 0; i < kWide; ++i)
                                out.v[i] = (load(&in.v[i]) - mean.v[i]) * b.v[i] + k.v[i] +
                                           grad.v[i] * a.v[i];
                              store_group<kAligned>(dx + r * share.stride, out, share.channels);
                            });
}

template <typename T>
class BatchNormPoolCuda final : public Op {
 public:
  BatchNormPoolCuda(cudaStream_t stream, const BatchNorm& spec, const OpConfig& config)
      : stream_(stream),
        relu_(spec.relu),
        geometry_(batch_norm_geometry(config.x[0].rows(), config.x[0].c)),
        windows_(cuda_pool::geometry(config, spec.pool->kernel, spec.pool->stride,
                                     spec.pool->padding, false)),
        saved_(ops::saved_bytes(spec, config.y)),
        norm_(stream, spec.epsilon, geometry_, values_of_a_channel(config)) {
    expect_variance(config);
  }

  void gather_forward(const NodeMemory& m) override {
    norm_.gather(static_cast<const T*>(m.x[0]), m.sums, m.statistics, m.parameters.data(),
                 static_cast<double*>(m.scratch), m.slice);
  }
  void forward(const NodeMemory& m, const StepInfo&) override {
    auto* y = static_cast<T*>(m.y);
    auto* places = static_cast<uint8_t*>(m.saved);
    const auto* x = static_cast<const T*>(m.x[0]);
    cuda_pool::launch_rows(are_wide(windows_.c, y, places, x), &normalise_pool_kernel<kWide, T>,
                           &normalise_pool_kernel<1, T>, windows_, windows_.p, windows_.q, stream_,
                           y, places, x, norm_.vectors(), relu_);
  }
  void gather_backward(const NodeMemory& m) override {
    const auto *x = static_cast<const T*>(m.x[0]), *dy = static_cast<const T*>(m.dy[0]);
    const auto* places = static_cast<const uint8_t*>(m.saved);
    auto* partial = static_cast<double*>(m.scratch);
    with_flag(are_wide(geometry_.c, x, dy, places), [&](auto aligned) {
      launch(&pooled_sums_kernel<T, aligned>, geometry_.blocks(), Geometry::kThreads, stream_,
             partial, dy, places, x, norm_.vectors(), geometry_, windows_);
    });
    norm_.finish_backward(m.gradients.data(), m.parameters[0], partial, m.slice);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // nothing is trained before it
    auto* dx = static_cast<T*>(m.dx[0]);
    const auto *x = static_cast<const T*>(m.x[0]), *dy = static_cast<const T*>(m.dy[0]);
    const auto* places = static_cast<const uint8_t*>(m.saved);
    with_flag(are_wide(geometry_.c, dx, x, dy, places), [&](auto aligned) {
      launch(&pooled_apply_kernel<T, aligned>, geometry_.blocks(), Geometry::kThreads, stream_, dx,
             dy, places, x, norm_.vectors(), geometry_, windows_);
    });
  }

  size_t saved_bytes() const override { return saved_; }
  size_t scratch_bytes() const override { return norm_.partial_bytes(); }

 private:
  cudaStream_t stream_;
  bool relu_;
  Geometry geometry_;  // of one slice of x
  Windows windows_;
  size_t saved_;
  Norm norm_;
};

}  // namespace

std::unique_ptr<Op> cuda_norm::make_pooled(CudaDevice& device, const BatchNorm& spec,
                                           const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<BatchNormPoolCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
