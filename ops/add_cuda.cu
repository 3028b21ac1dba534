// Add on CUDA where fusion left one alone. Backward hands dy to both inputs.
#include "ops/add.h"
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

template <typename T>
__global__ void add_kernel(T* y, const T* a, const T* b, int64_t n) {
  for_each(n, [=](int64_t i) { store(y + i, load(a + i) + load(b + i)); });
}

// n vectors of eight.
template <typename T>
__global__ void add_wide_kernel(T* y, const T* a, const T* b, int64_t n) {
  for_each(n, [=](int64_t i) {
    Floats8 sum = load8(a + kWide * i);
    const Floats8 addend = load8(b + kWide * i);
    for (int k = 0; k < kWide; ++k) sum.v[k] += addend.v[k];
    store8(y + kWide * i, sum);
  });
}

template <typename T>
void add(T* y, const T* a, const T* b, int64_t n, cudaStream_t stream) {
  if (are_wide(n, y, a, b))
    launch(&add_wide_kernel<T>, blocks_for(n / kWide), kThreads, stream, y, a, b, n / kWide);
  else
    launch(&add_kernel<T>, blocks_for(n), kThreads, stream, y, a, b, n);
}

template <typename T>
class AddCuda final : public Op {
 public:
  AddCuda(cudaStream_t stream, const OpConfig& c) : stream_(stream), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    add(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]), static_cast<const T*>(m.x[1]), n_,
        stream_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    for (void* dx : m.dx)
      if (dx && dx != m.dy[0])
        check(cudaMemcpyAsync(dx, m.dy[0], static_cast<size_t>(n_) * sizeof(T),
                              cudaMemcpyDeviceToDevice, stream_));
  }

 private:
  cudaStream_t stream_;
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Add&, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<AddCuda<T>>(device.stream(), config);
  });
}

void CudaDevice::accumulate(void* sum, const void* addend, int64_t n, DType type) {
  with_cuda_type(type, [&]<typename T>(T*) {
    add(static_cast<T*>(sum), static_cast<const T*>(sum), static_cast<const T*>(addend), n,
        stream());
  });
}

}  // namespace convoy::ops
