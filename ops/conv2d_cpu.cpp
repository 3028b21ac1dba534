// Convolution: kernels of our own where they win (first layers, Winograd's, bf16 weight gradients),
// else oneDNN. Weights are packed once per step; gradients come back to OIHW in fp32.
#include <algorithm>

#include "ops/conv2d.h"
#include "ops/cpu_device.h"
#include "ops/few_channels_cpu.h"
#include "ops/folded_weights.h"
#include "ops/kept_pixels.h"
#include "ops/onednn.h"
#include "ops/weighted_op_cpu.h"
#include "ops/winograd_cpu.h"

namespace convoy::ops {
namespace {

// Convolution, batch norm, residual and ReLU in one primitive; inference only.
class FoldedConv2dCpu final : public Op {
 public:
  FoldedConv2dCpu(int threads, const Conv2d& spec, const onednn::ConvolutionShape& shape,
                  const KeptPixels& kept)
      : FoldedConv2dCpu(threads, spec, shape, make_convolution_forward(shape)) {
    kept_ = kept;
  }

  void prepare(const NodeMemory& m) override {
    folded_ = fold_batch_norm(name_, spec_, m, filter_);
    weights_.pack(folded_.weights.as<float>());
    if (weights_.data() != folded_.weights.data()) folded_.weights = {};
  }

  void share_weights(const Op& other) override {
    packed_ = &dynamic_cast<const FoldedConv2dCpu&>(other);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    forward_.run(
        {kept_.of(m.x[0], m.scratch), packed_->weights_.data(), packed_->folded_.bias.data(), m.y},
        static_cast<char*>(m.scratch) + kept_.bytes());
  }
  void backward(const NodeMemory&, const StepInfo&) override {
    fail(ExitCode::kFault, "a folded convolution has no backward pass");
  }

  size_t scratch_bytes() const override { return kept_.bytes() + forward_.scratch_bytes(); }

 private:
  FoldedConv2dCpu(int threads, const Conv2d& spec, const onednn::ConvolutionShape& shape,
                  onednn::WeightedKernel kernel)
      : name_(shape.name),
        spec_(spec),
        filter_(shape.kernel_h * shape.kernel_w * shape.x.c / shape.groups),
        forward_(std::move(kernel.kernel)),
        weights_(parameter_layout(shape), kernel.weights, threads) {}

  std::string name_;
  Conv2d spec_;
  int64_t filter_;
  KeptPixels kept_;
  onednn::Kernel forward_;
  onednn::PackedWeights weights_;
  FoldedWeights folded_;  // the bias; the weights where the primitive takes them as they are
  const FoldedConv2dCpu* packed_ = this;  // whose weights and bias are used
};

bool is_pointwise(const onednn::ConvolutionShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.padding == 0;
}

// The same convolution with all images one above the other, where no pixel sees its neighbours.
// oneDNN then cuts the pixels of small images as it likes: measured on a Zen 5 with 16 images of
// 7x7, 512 to 2048 channels take 3.1 ms in bf16, image by image 4.0.
onednn::ConvolutionShape as_one_image(onednn::ConvolutionShape s) {
  if (!is_pointwise(s) || s.stride > 1) return s;
  for (Shape* shape : {&s.x, &s.y}) *shape = {1, shape->c, shape->n * shape->h, shape->w};
  return s;
}

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Conv2d& s, const OpConfig& c) {
  if (s.compact_dx)
    fail(ExitCode::kFault, "conv2d \"{}\": a gradient that no CPU stores compact", c.name);
  if (few_channels_wins(s, c)) return make_few_channels_op(device.threads(), s, c);
  if (winograd_wins(s, c)) return make_winograd_op(device.threads(), s, c);
  const onednn::ConvolutionShape shape = {.name = c.name,
                                          .x = c.x[0],
                                          .y = c.y,
                                          .kernel_h = s.kernel,
                                          .kernel_w = s.kernel,
                                          .stride = s.stride,
                                          .padding = s.padding,
                                          .groups = s.groups,
                                          .bias = s.bias || s.batch_norm,
                                          .type = c.type,
                                          .residual = s.batch_norm && s.batch_norm->residual,
                                          .relu = s.batch_norm && s.batch_norm->relu};
  onednn::ConvolutionShape forward = as_one_image(shape);
  KeptPixels kept;
  if (is_pointwise(shape) && s.stride > 1) {
    kept = KeptPixels(c.x[0], c.y, s.stride, c.type, device.threads());
    forward.x = c.y;
    forward.x.c = c.x[0].c;
    forward.stride = 1;
    forward = as_one_image(forward);
  }
  if (s.batch_norm) return std::make_unique<FoldedConv2dCpu>(device.threads(), s, forward, kept);
  auto op = std::make_unique<WeightedOpCpu>(device.threads(), c, onednn::parameter_layout(shape),
                                            s.bias, make_convolution_forward(forward), kept);
  if (!c.training) return op;
  if (c.wants_dx[0]) op->add_backward_data(make_convolution_backward_data(as_one_image(shape)));
  if (!c.wants_gradients) return op;
  if (weight_gradient_wins(s, c))
    op->add_backward_weights(std::make_unique<WeightGradientCpu>(device.threads(), s, c));
  else
    op->add_backward_weights(make_convolution_backward_weights(shape));
  return op;
}

}  // namespace convoy::ops
