// ReLU on the CPU where fusion left one alone.
#include "ops/cpu_device.h"
#include "ops/elementwise_kernels.h"
#include "ops/relu.h"

namespace convoy::ops {
namespace {

template <typename T>
class ReluCpu final : public Op {
 public:
  ReluCpu(int threads, const Relu& spec, const OpConfig& c)
      : threads_(threads),
        n_(c.y.elements()),
        saved_(c.training ? ops::saved_bytes(spec, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    elementwise_kernels<T>().relu(static_cast<T*>(m.y),
                                  saved_ ? static_cast<uint16_t*>(m.saved) : nullptr,
                                  static_cast<const T*>(m.x[0]), n_, threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    elementwise_kernels<T>().keep(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                                  static_cast<const uint16_t*>(m.saved), 1.0f, n_, threads_);
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  int threads_;
  int64_t n_;
  size_t saved_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Relu& spec, const OpConfig& config) {
  return make_for_type<ReluCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
