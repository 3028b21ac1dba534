// ReLU on CUDA where fusion left one alone. The mask is one bit per element, in words of 16.
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/relu.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// One thread takes a word of the mask: 16 elements, fewer at the end.
template <typename T>
__global__ void relu_forward_kernel(T* y, uint16_t* mask, const T* x, int64_t n) {
  for_each((n + 15) / 16, [=](int64_t word) {
    uint16_t bits = 0;
    for (int64_t i = 16 * word; i < 16 * word + 16 && i < n; ++i) {
      const float v = load(x + i);
      bits |= static_cast<uint16_t>((v > 0.0f) << i % 16);
      store(y + i, v < 0.0f ? 0.0f : v);  // NaN stays NaN, so that it is seen
    }
    if (mask) mask[word] = bits;
  });
}

template <typename T>
__global__ void relu_backward_kernel(T* dx, const T* dy, const uint16_t* mask, int64_t n) {
  for_each(n, [=](int64_t i) { store(dx + i, mask[i / 16] >> i % 16 & 1 ? load(dy + i) : 0.0f); });
}

template <typename T>
class ReluCuda final : public Op {
 public:
  ReluCuda(cudaStream_t stream, const Relu& spec, const OpConfig& c)
      : stream_(stream), n_(c.y.elements()), saved_(c.training ? ops::saved_bytes(spec, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    launch(&relu_forward_kernel<T>, blocks_for((n_ + 15) / 16), kThreads, stream_,
           static_cast<T*>(m.y), saved_ ? static_cast<uint16_t*>(m.saved) : nullptr,
           static_cast<const T*>(m.x[0]), n_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    launch(&relu_backward_kernel<T>, blocks_for(n_), kThreads, stream_, static_cast<T*>(m.dx[0]),
           static_cast<const T*>(m.dy[0]), static_cast<const uint16_t*>(m.saved), n_);
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  cudaStream_t stream_;
  int64_t n_;
  size_t saved_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Relu& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<ReluCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
