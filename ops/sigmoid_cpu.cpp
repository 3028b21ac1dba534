// The sigmoid on the CPU.
#include "ops/cpu_device.h"
#include "ops/elementwise_kernels.h"
#include "ops/sigmoid.h"

namespace convoy::ops {
namespace {

template <typename T>
class SigmoidCpu final : public Op {
 public:
  SigmoidCpu(int threads, const Sigmoid& spec, const OpConfig& c)
      : threads_(threads), sign_(spec.complement ? -1.0f : 1.0f), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    elementwise_kernels<T>().sigmoid(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]), sign_, n_,
                                     threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    elementwise_kernels<T>().sigmoid_backward(static_cast<T*>(m.dx[0]),
                                              static_cast<const T*>(m.dy[0]),
                                              static_cast<const T*>(m.y), sign_, n_, threads_);
  }

 private:
  int threads_;
  float sign_;  // of x, and of dx
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Sigmoid& spec, const OpConfig& config) {
  return make_for_type<SigmoidCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
