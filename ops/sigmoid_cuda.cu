// The sigmoid on CUDA, element by element or in vectors of eight.
#include "ops/sigmoid.h"

#include <cmath>

#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// e^-|x| never overflows.
__device__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

__device__ float sigmoid_gradient(float dy, float y, float sign) {
  return dy * (y * (1.0f - y)) * sign;
}

// sign: of x, -1 for the complement.
template <typename T>
__global__ void sigmoid_forward_kernel(T* y, const T* x, float sign, int64_t n) {
  for_each(n, [=](int64_t i) { store(y + i, sigmoid(load(x + i) * sign)); });
}

// n vectors of eight.
template <typename T>
__global__ void sigmoid_forward_wide_kernel(T* y, const T* x, float sign, int64_t n) {
  for_each(n, [=](int64_t i) {
    Floats8 v = load8(x + kWide * i);
    for (int k = 0; k < kWide; ++k) v.v[k] = sigmoid(v.v[k] * sign);
    store8(y + kWide * i, v);
  });
}

template <typename T>
__global__ void sigmoid_backward_kernel(T* dx, const T* dy, const T* y, float sign, int64_t n) {
  for_each(n, [=](int64_t i) { store(dx + i, sigmoid_gradient(load(dy + i), load(y + i), sign)); });
}

template <typename T>
__global__ void sigmoid_backward_wide_kernel(T* dx, const T* dy, const T* y, float sign,
                                             int64_t n) {
  for_each(n, [=](int64_t i) {
    Floats8 v = load8(dy + kWide * i);
    const Floats8 out = load8(y + kWide * i);
    for (int k = 0; k < kWide; ++k) v.v[k] = sigmoid_gradient(v.v[k], out.v[k], sign);
    store8(dx + kWide * i, v);
  });
}

template <typename T>
class SigmoidCuda final : public Op {
 public:
  SigmoidCuda(cudaStream_t stream, const Sigmoid& spec, const OpConfig& c)
      : stream_(stream), sign_(spec.complement ? -1.0f : 1.0f), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    auto* y = static_cast<T*>(m.y);
    const auto* x = static_cast<const T*>(m.x[0]);
    if (are_wide(n_, y, x))
      launch(&sigmoid_forward_wide_kernel<T>, blocks_for(n_ / kWide), kThreads, stream_, y, x,
             sign_, n_ / kWide);
    else
      launch(&sigmoid_forward_kernel<T>, blocks_for(n_), kThreads, stream_, y, x, sign_, n_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    auto* dx = static_cast<T*>(m.dx[0]);
    const auto *dy = static_cast<const T*>(m.dy[0]), *y = static_cast<const T*>(m.y);
    if (are_wide(n_, dx, dy, y))
      launch(&sigmoid_backward_wide_kernel<T>, blocks_for(n_ / kWide), kThreads, stream_, dx, dy, y,
             sign_, n_ / kWide);
    else
      launch(&sigmoid_backward_kernel<T>, blocks_for(n_), kThreads, stream_, dx, dy, y, sign_, n_);
  }

 private:
  cudaStream_t stream_;
  float sign_;  // of x, and of dx
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Sigmoid& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<SigmoidCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
