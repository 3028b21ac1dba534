// Sub-sampling on CUDA: every element of y, or of dx, is a copy or zero, and is written once.
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/subsample.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// Channels in units: elements, or vectors of eight.
struct Geometry {
  Shape x, y;
  int64_t stride, front;  // new channels before those of x
};

template <typename Unit>
__global__ void subsample_forward_kernel(Unit* y, const Unit* x, Geometry g) {
  for_each(g.y.n * g.y.h * g.y.w * g.y.c, [=](int64_t i) {
    const int64_t pixel = i / g.y.c, c = i - pixel * g.y.c - g.front;
    const int64_t row = pixel / g.y.w, q = pixel - row * g.y.w;
    const int64_t n = row / g.y.h, p = row - n * g.y.h;
    y[i] = c >= 0 && c < g.x.c ? x[((n * g.x.h + p * g.stride) * g.x.w + q * g.stride) * g.x.c + c]
                               : Unit{};
  });
}

template <typename Unit>
__global__ void subsample_backward_kernel(Unit* dx, const Unit* dy, Geometry g) {
  for_each(g.x.n * g.x.h * g.x.w * g.x.c, [=](int64_t i) {
    const int64_t pixel = i / g.x.c, c = i - pixel * g.x.c;
    const int64_t row = pixel / g.x.w, w = pixel - row * g.x.w;
    const int64_t n = row / g.x.h, h = row - n * g.x.h;
    const int64_t p = h / g.stride, q = w / g.stride;
    dx[i] = p * g.stride == h && q * g.stride == w
                ? dy[((n * g.y.h + p) * g.y.w + q) * g.y.c + g.front + c]
                : Unit{};
  });
}

template <typename T>
class SubsampleCuda final : public Op {
 public:
  SubsampleCuda(cudaStream_t stream, const Subsample& s, const OpConfig& c)
      : stream_(stream),
        geometry_{.x = c.x[0], .y = c.y, .stride = s.stride, .front = (c.y.c - c.x[0].c) / 2} {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    run(&subsample_forward_kernel<Bits8<T>>, &subsample_forward_kernel<T>, m.y, m.x[0],
        geometry_.y.elements());
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    run(&subsample_backward_kernel<Bits8<T>>, &subsample_backward_kernel<T>, m.dx[0], m.dy[0],
        geometry_.x.elements());
  }

 private:
  template <typename Unit>
  using Kernel = void (*)(Unit* to, const Unit* from, Geometry g);

  void run(Kernel<Bits8<T>> wide_kernel, Kernel<T> kernel, void* to, const void* from, int64_t n) {
    const Geometry& g = geometry_;
    if (!are_wide(g.x.c | g.y.c | g.front, to, from))
      return launch(kernel, blocks_for(n), kThreads, stream_, static_cast<T*>(to),
                    static_cast<const T*>(from), g);
    Geometry wide = g;
    for (int64_t* channels : {&wide.x.c, &wide.y.c, &wide.front}) *channels /= kWide;
    launch(wide_kernel, blocks_for(n / kWide), kThreads, stream_, static_cast<Bits8<T>*>(to),
           static_cast<const Bits8<T>*>(from), wide);
  }

  cudaStream_t stream_;
  Geometry geometry_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Subsample& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<SubsampleCuda<T>>(device.stream(), spec, config);
  });
}

}  // namespace convoy::ops
