// Local response normalisation on the CPU.
#include "ops/cpu_device.h"
#include "ops/local_response_norm.h"
#include "ops/local_response_norm_kernels.h"

namespace convoy::ops {
namespace {

template <typename T>
class LocalResponseNormCpu final : public Op {
 public:
  LocalResponseNormCpu(int threads, const LocalResponseNorm& spec, const OpConfig& c)
      : threads_(threads), window_(channel_window(spec, c.x[0].c)), rows_(c.x[0].rows()) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    local_response_norm_kernels<T>().forward(static_cast<T*>(m.y), static_cast<float*>(m.scratch),
                                             static_cast<const T*>(m.x[0]), window_, rows_,
                                             threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    local_response_norm_kernels<T>().backward(
        static_cast<T*>(m.dx[0]), static_cast<float*>(m.scratch), static_cast<const T*>(m.dy[0]),
        static_cast<const T*>(m.x[0]), window_, rows_, threads_);
  }
  size_t scratch_bytes() const override {
    return static_cast<size_t>(threads_ * local_response_norm_scratch(window_)) * sizeof(float);
  }

 private:
  int threads_;
  ChannelWindow window_;
  int64_t rows_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const LocalResponseNorm& spec,
                            const OpConfig& config) {
  return make_for_type<LocalResponseNormCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
