// Batch norm with its ReLU and the max pooling behind it on CUDA (BatchNorm::pool): what lies
// between the two is never stored. Bits are those of one after the other (batch_norm_cuda.cu,
// pool_cuda.cu): what would be stored is rounded as if it were.
//
// Bytes for n elements of s bytes of x and m of y:
//   statistics      x                  s n
//   normalise_pool  x, y, places       s n + (s + 1) m
//   backward_sums   x, dy, places      s n + (s + 1) m
//   backward_apply  x, dy, places, dx  2 s n + (s + 1) m
// Apart they would move 5 s n + 3 n / 8 more and (s + 1) m less, with m = n / 4 in a first layer.
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

// Goes up, as Way has it: who gathered the statistics went down. (Behind a convolution that has
// given them, as a ResNet's first layer does, down would find more in the cache: not tried.)
template <int kLanes, typename T>
__global__ void normalise_pool_kernel(T* y, uint8_t* places, const T* x, Vectors v, bool relu,
                                      Windows w) {
  cuda_pool::for_lanes<kLanes>(w.p, w.q, w.c, [=](int64_t image, int p, int q, int k) {
    const Floats8 mean = cuda_pool::load_lanes<kLanes>(v.mean + k),
                  scale = cuda_pool::load_lanes<kLanes>(v.scale + k),
                  beta = cuda_pool::load_lanes<kLanes>(v.beta + k);
    const auto read = [&](int i, int j) {
      return cuda_pool::read_lanes<kLanes>(x + ((image * w.h + i) * w.w + j) * w.c + k);
    };
    const auto normalised = [&](const Bits8<T>& in, int lane) {
      return (load(&in.v[lane]) - mean.v[lane]) * scale.v[lane] + beta.v[lane];
    };
    const auto largest_of = [&](const Bits8<T>& in, uint8_t place) {
      cuda_pool::Largest pixel;
      for (int lane = 0; lane < kLanes; ++lane) {
        pixel.values.v[lane] = rounded<T>(normalised(in, lane));
        pixel.places.v[lane] = place;
      }
      return pixel;
    };
    cuda_pool::Largest out = cuda_pool::largest<kLanes>(p, q, w, read, largest_of);
    if (relu) {
      // Where one is above zero, the ReLU changes none that counts; else all are zero behind it, of
      // which the first wins, and it lets a gradient through where it was above zero until rounded.
      const int i = cuda_pool::pixels_of(p, w, w.h).begin,
                j = cuda_pool::pixels_of(q, w, w.w).begin;
      const Bits8<T> in = read(i, j);
      const auto first = static_cast<uint8_t>(cuda_pool::place_of(i, j, p, q, w));
      for (int lane = 0; lane < kLanes; ++lane) {
        const float largest = out.values.v[lane], value = normalised(in, lane);
        const bool above = largest > 0.0f, below = largest <= 0.0f;  // NaN is neither
        const uint8_t passes = below && value > 0.0f ? first : kNowhere;
        out.places.v[lane] = above ? out.places.v[lane] : passes;
        out.values.v[lane] = below ? rounded<T>(value < 0.0f ? 0.0f : value) : largest;
      }
    }
    const int64_t at = ((image * w.p + p) * w.q + q) * w.c + k;
    cuda_pool::store_largest<kLanes>(y + at, places + at, out);
  });
}

// A pixel of x, where a thread's share has come to.
struct Pixel {
  int image, i, j;
  int step, lines;  // from row to row: columns, and whole lines
  bool down;

  __device__ Pixel(const Share& share, const Windows& w)
      : step(share.step < 0 ? -share.step : share.step), down(share.step < 0) {
    const auto row = static_cast<unsigned>(share.row), width = static_cast<unsigned>(w.w),
               height = static_cast<unsigned>(w.h);
    const unsigned line = row / width;
    j = static_cast<int>(row - line * width);
    image = static_cast<int>(line / height);
    i = static_cast<int>(line) - image * w.h;
    lines = step / w.w;
    step -= lines * w.w;
  }
  // To the share's next row.
  __device__ void go_on(const Windows& w) {
    if (down) {
      j -= step;
      i -= lines + (j < 0);
      j += j < 0 ? w.w : 0;
      for (; i < 0; i += w.h) --image;
    } else {
      j += step;
      i += lines + (j >= w.w);
      j -= j >= w.w ? w.w : 0;
      for (; i >= w.h; i -= w.h) ++image;
    }
  }
};

// What a pixel's windows hand back to a group of channels: on each side it is in two windows at
// most (can_follow_batch_norm). Of two columns of windows both are always read; of two lines, which
// a half of the lines of pixels is in, and so mostly a whole warp or none of it, the second where
// there is one. All are on their way before one is used.
template <typename T>
struct Covering {
  static constexpr int kSide = 2;
  int lines;
  Bits8<T> dy[kSide][kSide];
  Bits8<uint8_t> places[kSide][kSide];
  int place[kSide][kSide];  // the pixel's in the window; -1: it is not in it
};

// dy and places begin with the group's first channel.
template <bool kAligned, typename T>
__device__ Covering<T> covering(const Pixel& pixel, const T* dy, const uint8_t* places,
                                int channels, Windows w) {
  w.stride = 2;  // for the compiler
  const Span rows = cuda_pool::outputs_of(pixel.i, w, w.p),
             columns = cuda_pool::outputs_of(pixel.j, w, w.q);
  const int64_t image = int64_t{pixel.image} * w.p * w.q * w.c;
  Covering<T> out;
  out.lines = rows.end - rows.begin;
  const auto read = [&](int a) {
    for (int b = 0; b < Covering<T>::kSide; ++b) {
      const int p = rows.begin + a, q = columns.begin + b;
      const bool covers = q < columns.end;
      const int64_t at = image + int64_t{p * w.q + (covers ? q : 0)} * w.c;
      out.dy[a][b] = load_group<kAligned>(dy + at, channels);
      out.places[a][b] = load_group<kAligned>(places + at, channels);
      out.place[a][b] = covers ? cuda_pool::place_of(pixel.i, pixel.j, p, q, w) : -1;
    }
  };
  if (out.lines > 0) read(0);
  if (out.lines > 1) read(1);
  return out;
}

// The gradient of a pixel's values behind the ReLU, as max pooling would store it.
template <typename T>
__device__ Floats8 gradient_of(const Covering<T>& windows) {
  Floats8 sum = {};
  const auto add = [&](int a) {
    for (int b = 0; b < Covering<T>::kSide; ++b)
      for (int k = 0; k < kWide; ++k)
        sum.v[k] +=
            windows.places[a][b].v[k] == windows.place[a][b] ? load(&windows.dy[a][b].v[k]) : 0.0f;
  };
  if (windows.lines > 0) add(0);
  if (windows.lines > 1) add(1);
  for (int k = 0; k < kWide; ++k) sum.v[k] = rounded<T>(sum.v[k]);
  return sum;
}

// use(r, load_row(r), its gradient) for the rows of a share. The next row is on its way while one
// is used.
template <bool kAligned, typename T, typename Load, typename Use>
__device__ void for_pooled_rows(const Share& share, const T* dy, const uint8_t* places,
                                const Windows& w, Load load_row, Use use) {
  if (share.rows == 0) return;
  Pixel pixel(share, w);
  Bits8<T> next = load_row(0);
  for (int r = 0; r < share.rows; ++r) {
    const Bits8<T> in = next;
    const Covering<T> windows = covering<kAligned>(pixel, dy, places, share.channels, w);
    if (r + 1 < share.rows) next = load_row(r + 1);
    pixel.go_on(w);
    use(r, in, gradient_of(windows));
  }
}

// partial = sum of gradients, sum of gradients (x - mean).
template <typename T, bool kAligned>
__global__ void pooled_sums_kernel(double* partial, const T* dy, const uint8_t* places, const T* x,
                                   Vectors v, Geometry g, Windows w) {
  const Share share(g, Way::kDown);
  x += share.at;
  Bits8<float> mean = {};
  Floats8 sum = {}, products = {};
  if (share.rows > 0) mean = load_group<kAligned>(v.mean + share.channel, share.channels);
  for_pooled_rows<kAligned>(
      share, dy + share.channel, places + share.channel, w,
      [&](int r) { return load_group<kAligned>(x + r * share.stride, share.channels); },
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
  x += share.at;
  const auto vector = [&](const float* p) {
    return load_group<kAligned>(p + share.channel, share.channels);
  };
  const Bits8<float> mean = vector(v.mean), a = vector(v.a), b = vector(v.b), k = vector(v.k);
  for_pooled_rows<kAligned>(
      share, dy + share.channel, places + share.channel, w,
      [&](int r) { return load_group_last<kAligned>(x + r * share.stride, share.channels); },
      [&](int r, const Bits8<T>& in, const Floats8& grad) {
        Floats8 out;
        for (int i = 0; i < kWide; ++i)
          out.v[i] = (load(&in.v[i]) - mean.v[i]) * b.v[i] + k.v[i] + grad.v[i] * a.v[i];
        store_group<kAligned>(dx + r * share.stride, out, share.channels);
      });
}

// The same for windows of 3x3, two apart, that begin one pixel before the image, as a first layer
// has them; c a multiple of eight. A thread takes some channels of squares of 2x2 pixels, so that a
// window is read by one thread in four of those that would read it for each pixel.
constexpr int kSquares = 8;  // of a thread
constexpr std::integral_constant<int, 0> kFirst;
constexpr std::integral_constant<int, 1> kSecond;

int64_t squares_of(const Windows& w) {
  return int64_t{w.n} * ((w.h + 1) / 2) * ((w.w + 1) / 2);
}
bool has_squares(const Windows& w) {
  return w.kernel == 3 && w.stride == 2 && w.padding == 1 && w.c <= kThreads * kWide &&
         squares_of(w) < int64_t{1} << 31;
}

template <typename T>
__global__ void pooled_apply_squares_kernel(T* dx, const T* dy, const uint8_t* places, const T* x,
                                            Vectors v, Windows w) {
  const int groups = w.c / kWide, lanes = kThreads / groups;
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread / groups, channel = (thread - lane * groups) * kWide;
  if (lane >= lanes) return;
  const auto vector = [&](const float* p) { return load_group<true>(p + channel, kWide); };
  const Bits8<float> mean = vector(v.mean), a = vector(v.a), b = vector(v.b), k = vector(v.k);
  const auto rows = static_cast<unsigned>(w.h + 1) / 2,
             columns = static_cast<unsigned>(w.w + 1) / 2;
  const unsigned all = static_cast<unsigned>(w.n) * rows * columns;
  const unsigned begin = blockIdx.x * static_cast<unsigned>(lanes * kSquares);
  for (int s = 0; s < kSquares; ++s) {
    const unsigned square = begin + static_cast<unsigned>(lane + s * lanes);
    if (square >= all) return;
    const unsigned line = square / columns;
    const auto image = static_cast<int>(line / rows);
    const int p = static_cast<int>(line) - image * static_cast<int>(rows),
              q = static_cast<int>(square - line * columns);
    // All is on its way before any of it is used.
    Bits8<T> in[2][2], gradients[2][2];
    Bits8<uint8_t> winners[2][2];
    const auto pixel = [&](int i, int j) {
      return (static_cast<int64_t>(image * w.h + 2 * p + i) * w.w + 2 * q + j) * w.c + channel;
    };
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const bool there = 2 * p + i < w.h && 2 * q + j < w.w;
        in[i][j] = load_group_last<true>(x + (there ? pixel(i, j) : pixel(0, 0)), kWide);
      }
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const bool there = p + i < w.p && q + j < w.q;
        const int64_t at =
            (static_cast<int64_t>(image * w.p + (there ? p + i : 0)) * w.q + (there ? q + j : 0)) *
                w.c +
            channel;
        gradients[i][j] = load_group<true>(dy + at, kWide);
        winners[i][j] = load_group<true>(places + at, kWide);
        for (int l = 0; l < kWide && !there; ++l) winners[i][j].v[l] = kNowhere;
      }
    const auto finish = [&](auto of_row, auto of_column) {
      constexpr int i = decltype(of_row)::value, j = decltype(of_column)::value;
      if (2 * p + i >= w.h || 2 * q + j >= w.w) return;
      Floats8 out;
      for (int l = 0; l < kWide; ++l) {
        // Of the windows that cover the pixel, in their order.
        const auto given = [&](auto row, auto column) {
          constexpr int m = decltype(row)::value, n = decltype(column)::value;
          constexpr int place = (1 + i - 2 * m) * 3 + 1 + j - 2 * n;
          return winners[m][n].v[l] == place ? load(&gradients[m][n].v[l]) : 0.0f;
        };
        float sum = 0.0f + given(kFirst, kFirst);
        if constexpr (j == 1) sum += given(kFirst, kSecond);
        if constexpr (i == 1) sum += given(kSecond, kFirst);
        if constexpr (i == 1 && j == 1) sum += given(kSecond, kSecond);
        out.v[l] = (load(&in[i][j].v[l]) - mean.v[l]) * b.v[l] + k.v[l] + rounded<T>(sum) * a.v[l];
      }
      store8(dx + pixel(i, j), out);
    };
    finish(kFirst, kFirst);
    finish(kFirst, kSecond);
    finish(kSecond, kFirst);
    finish(kSecond, kSecond);
  }
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
    norm_.gather(m.statistics, static_cast<double*>(m.scratch), static_cast<const T*>(m.x[0]),
                 m.sums, m.parameters.data(), m.slice);
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
    const bool wide = are_wide(geometry_.c, dx, x, dy, places);
    if (wide && has_squares(windows_)) {
      const int64_t of_a_block = kThreads / (windows_.c / kWide) * kSquares;
      launch(&pooled_apply_squares_kernel<T>, (squares_of(windows_) + of_a_block - 1) / of_a_block,
             kThreads, stream_, dx, dy, places, x, norm_.vectors(), windows_);
      return;
    }
    with_flag(wide, [&](auto aligned) {
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
