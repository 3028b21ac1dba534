// Products on CUDA, element by element or in vectors of eight.
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/multiply.h"

namespace convoy::ops {
namespace {

using namespace cuda;

template <typename T>
__global__ void multiply_kernel(T* y, const T* a, const T* b, int64_t n) {
  for_each(n, [=](int64_t i) { store(y + i, load(a + i) * load(b + i)); });
}

// n vectors of eight.
template <typename T>
__global__ void multiply_wide_kernel(T* y, const T* a, const T* b, int64_t n) {
  for_each(n, [=](int64_t i) {
    Floats8 product = load8(a + kWide * i);
    const Floats8 factor = load8(b + kWide * i);
    for (int k = 0; k < kWide; ++k) product.v[k] *= factor.v[k];
    store8(y + kWide * i, product);
  });
}

template <typename T>
class MultiplyCuda final : public Op {
 public:
  MultiplyCuda(cudaStream_t stream, const OpConfig& c) : stream_(stream), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    multiply(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]), static_cast<const T*>(m.x[1]));
  }
  // dx[0] may lie where dy is: last.
  void backward(const NodeMemory& m, const StepInfo&) override {
    for (const size_t k : {size_t{1}, size_t{0}})
      if (m.dx[k])
        multiply(static_cast<T*>(m.dx[k]), static_cast<const T*>(m.dy[0]),
                 static_cast<const T*>(m.x[1 - k]));
  }

 private:
  void multiply(T* y, const T* a, const T* b) {
    if (are_wide(n_, y, a, b))
      launch(&multiply_wide_kernel<T>, blocks_for(n_ / kWide), kThreads, stream_, y, a, b,
             n_ / kWide);
    else
      launch(&multiply_kernel<T>, blocks_for(n_), kThreads, stream_, y, a, b, n_);
  }

  cudaStream_t stream_;
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Multiply&, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<MultiplyCuda<T>>(device.stream(), config);
  });
}

}  // namespace convoy::ops
