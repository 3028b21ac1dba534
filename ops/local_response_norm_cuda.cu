// Local response normalisation on CUDA: a thread takes an element and reads its window from the
// cache. Backward goes through pieces of whole pixels, so small that what the first kernel writes
// for the second is still in the second cache.
#include "ops/local_response_norm.h"

#include <algorithm>
#include <cmath>

#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// The numbers from channel c - before to c + behind of the pixel that begins at `pixel`, cut at its
// first and last channel, each through `term`, summed in this order.
template <typename Term>
__device__ float window_sum(int64_t c, int64_t before, int64_t behind, int64_t channels,
                            Term term) {
  const int64_t first = c > before ? c - before : 0;
  const int64_t end = c + behind + 1 < channels ? c + behind + 1 : channels;
  float sum = 0;
  for (int64_t j = first; j < end; ++j) sum += term(j);
  return sum;
}

template <typename T>
__device__ float norm(const T* pixel, int64_t c, const ChannelWindow& w) {
  return w.k + w.scale * window_sum(c, w.before, w.behind, w.c, [=](int64_t j) {
                 const float v = load(pixel + j);
                 return v * v;
               });
}

// n: elements, as in all kernels here.
template <typename T>
__global__ void lrn_forward_kernel(T* y, const T* x, ChannelWindow w, int64_t n) {
  for_each(n, [=](int64_t i) {
    const int64_t c = i % w.c;
    store(y + i, load(x + i) * powf(norm(x + (i - c), c, w), -w.beta));
  });
}

// products = dy x s^(-beta - 1)
template <typename T>
__global__ void lrn_products_kernel(float* products, const T* dy, const T* x, ChannelWindow w,
                                    int64_t n) {
  for_each(n, [=](int64_t i) {
    const int64_t c = i % w.c;
    const float s = norm(x + (i - c), c, w);
    products[i] = load(dy + i) * powf(s, -w.beta) * load(x + i) / s;
  });
}

// dx may be dy.
template <typename T>
__global__ void lrn_backward_kernel(T* dx, const float* products, const T* dy, const T* x,
                                    ChannelWindow w, int64_t n) {
  for_each(n, [=](int64_t i) {
    const int64_t c = i % w.c;
    const float* pixel = products + (i - c);
    const float sum = window_sum(c, w.behind, w.before, w.c, [=](int64_t j) { return pixel[j]; });
    const float own = load(dy + i) * powf(norm(x + (i - c), c, w), -w.beta);
    store(dx + i, own - load(x + i) * (2.0f * w.scale * w.beta * sum));
  });
}

template <typename T>
class LocalResponseNormCuda final : public Op {
 public:
  LocalResponseNormCuda(cudaStream_t stream, const LocalResponseNorm& spec, const OpConfig& c)
      : stream_(stream),
        window_(channel_window(spec, c.x[0].c)),
        n_(c.y.elements()),
        piece_(std::min(n_, std::max<int64_t>(1, kPiece / window_.c) * window_.c)),
        training_(c.training) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    launch(&lrn_forward_kernel<T>, blocks_for(n_), kThreads, stream_, static_cast<T*>(m.y),
           static_cast<const T*>(m.x[0]), window_, n_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    auto* products = static_cast<float*>(m.scratch);
    for (int64_t begin = 0; begin < n_; begin += piece_) {
      const int64_t n = std::min(piece_, n_ - begin);
      auto* dx = static_cast<T*>(m.dx[0]) + begin;
      const auto* dy = static_cast<const T*>(m.dy[0]) + begin;
      const auto* x = static_cast<const T*>(m.x[0]) + begin;
      launch(&lrn_products_kernel<T>, blocks_for(n), kThreads, stream_, products, dy, x, window_,
             n);
      launch(&lrn_backward_kernel<T>, blocks_for(n), kThreads, stream_, dx,
             static_cast<const float*>(products), dy, x, window_, n);
    }
  }
  size_t scratch_bytes() const override {
    return training_ ? static_cast<size_t>(piece_) * sizeof(float) : 0;
  }

 private:
  static constexpr int64_t kPiece = int64_t{4} << 20;  // elements: 16 MiB of 50

  cudaStream_t stream_;
  ChannelWindow window_;
  int64_t n_;
  int64_t piece_;  // whole pixels
  bool training_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const LocalResponseNorm& spec,
                            const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<LocalResponseNormCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
