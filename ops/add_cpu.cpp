// Add on the CPU where fusion left one alone. Backward hands dy to both inputs.
#include <cstring>

#include "ops/add.h"
#include "ops/cpu_device.h"
#include "ops/elementwise_kernels.h"

namespace convoy::ops {
namespace {

template <typename T>
class AddCpu final : public Op {
 public:
  AddCpu(int threads, const OpConfig& c) : threads_(threads), n_(c.y.elements()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    elementwise_kernels<T>().add(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]),
                                 static_cast<const T*>(m.x[1]), n_, threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    for (void* dx : m.dx)
      if (dx && dx != m.dy[0]) std::memcpy(dx, m.dy[0], static_cast<size_t>(n_) * sizeof(T));
  }

 private:
  int threads_;
  int64_t n_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Add&, const OpConfig& config) {
  return make_for_type<AddCpu>(config.type, device.threads(), config);
}

}  // namespace convoy::ops
