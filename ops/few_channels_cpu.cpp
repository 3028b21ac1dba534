#include "ops/few_channels_cpu.h"

#include <algorithm>

#include "ops/few_channels_kernels.h"
#include "ops/folded_weights.h"
#include "ops/onednn.h"

namespace convoy::ops {
namespace {

class FewChannelsOpCpu final : public Op {
 public:
  FewChannelsOpCpu(int threads, const Conv2d& spec, const OpConfig& config)
      : kernels_(few_channels_kernels_bf16()),
        threads_(threads),
        name_(config.name),
        spec_(spec),
        shape_({.n = config.x[0].n,
                .h = config.x[0].h,
                .w = config.x[0].w,
                .c = config.x[0].c,
                .y_h = config.y.h,
                .y_w = config.y.w,
                .k = config.y.c,
                .kernel = spec.kernel,
                .stride = spec.stride,
                .padding = spec.padding}) {
    if (config.training && config.wants_gradients)
      gradient_sum_ = AlignedBuffer(static_cast<size_t>(shape_.k * filter()) * sizeof(float));
  }

  // Memory is taken by the first call: a lane that uses another's weights takes none.
  void prepare(const NodeMemory& m) override {
    if (weights_.size() == 0) weights_ = AlignedBuffer(kernels_.packed_bytes(shape_));
    const float* w = m.parameters[0];
    if (spec_.batch_norm) {
      folded_ = fold_batch_norm(name_, spec_, m, filter());
      w = folded_.weights.as<float>();
    }
    kernels_.pack(weights_.data(), w, shape_);
    folded_.weights = {};
  }

  void share_weights(const Op& other) override {
    packed_ = &dynamic_cast<const FewChannelsOpCpu&>(other);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    const float* bias = spec_.batch_norm ? packed_->folded_.bias.data()
                        : spec_.bias     ? m.parameters[1]
                                         : nullptr;
    kernels_.forward(static_cast<Bfloat16*>(m.y), static_cast<const Bfloat16*>(m.x[0]),
                     packed_->weights_.data(), bias, spec_.batch_norm && spec_.batch_norm->relu,
                     shape_, m.scratch, threads_);
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    if (gradient_sum_.size() == 0) return;
    auto* sum = gradient_sum_.as<float>();
    kernels_.add_gradient(sum, static_cast<const Bfloat16*>(m.x[0]),
                          static_cast<const Bfloat16*>(m.dy[0]), shape_, m.slice.first, m.scratch,
                          threads_);
    if (m.slice.last) kernels_.unpack_gradient(m.gradients[0], sum, shape_);
  }

  size_t scratch_bytes() const override {
    const size_t forward = kernels_.forward_scratch(shape_, threads_);
    return gradient_sum_.size() == 0
               ? forward
               : std::max(forward, kernels_.gradient_scratch(shape_, threads_));
  }

 private:
  int64_t filter() const { return shape_.c * shape_.kernel * shape_.kernel; }

  const FewChannelsKernels& kernels_;
  int threads_;
  std::string name_;
  Conv2d spec_;
  FewChannelsShape shape_;
  AlignedBuffer weights_;
  FoldedWeights folded_;                   // of a batch norm: the bias
  const FewChannelsOpCpu* packed_ = this;  // whose weights and bias are used
  AlignedBuffer gradient_sum_;
};

}  // namespace

bool few_channels_wins(const Conv2d& s, const OpConfig& c) {
  const Shape& x = c.x[0];
  // By name, not "at least": where there is AMX, oneDNN uses it.
  const bool computes = cpu_isa() == Isa::kAvx512Bf16 &&
                        onednn::instruction_set() == "avx512_core_bf16" &&
                        c.type == DType::kBfloat16 && c.y_type == c.type && s.groups == 1 &&
                        c.y.c % kFewChannelsOutputs == 0 && !(c.training && c.wants_dx[0]) &&
                        !(c.training && s.bias) && !(s.batch_norm && s.batch_norm->residual);
  // Measured on a Zen 5: ResNet's 7x7 of three channels takes 0.82 of oneDNN's time forward, 0.82
  // for the gradient; CIFAR's 3x3 0.8 and 0.95. Four channels need no padding.
  return computes && x.c <= 3;
}

std::unique_ptr<Op> make_few_channels_op(int threads, const Conv2d& spec, const OpConfig& config) {
  return std::make_unique<FewChannelsOpCpu>(threads, spec, config);
}

}  // namespace convoy::ops
