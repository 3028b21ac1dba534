// Products on the CPU.
#include "ops/cpu_device.h"
#include "ops/elementwise_kernels.h"
#include "ops/multiply.h"

namespace convoy::ops {
namespace {

template <typename T>
class MultiplyCpu final : public Op {
 public:
  MultiplyCpu(int threads, const OpConfig& c) : threads_(threads), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override { multiply(m.y, m.x[0], m.x[1]); }
  // dx[0] may lie where dy is: last.
  void backward(const NodeMemory& m, const StepInfo&) override {
    for (const size_t k : {size_t{1}, size_t{0}})
      if (m.dx[k]) multiply(m.dx[k], m.dy[0], m.x[1 - k]);
  }

 private:
  void multiply(void* y, const void* a, const void* b) {
    elementwise_kernels<T>().multiply(static_cast<T*>(y), static_cast<const T*>(a),
                                      static_cast<const T*>(b), n_, threads_);
  }

  int threads_;
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Multiply&, const OpConfig& config) {
  return make_for_type<MultiplyCpu>(config.type, device.threads(), config);
}

}  // namespace convoy::ops
