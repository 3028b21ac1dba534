// What convolution and linear share on the CPU: three oneDNN primitives around one weight tensor.
#pragma once

#include <algorithm>
#include <memory>

#include "ops/onednn.h"
#include "ops/op.h"

namespace convoy::ops {

class WeightedOpCpu final : public Op {
 public:
  // `parameters`: the layout in which weights and their gradients are kept (fp32).
  WeightedOpCpu(const dnnl::memory::desc& parameters, bool bias, onednn::WeightedKernel forward)
      : bias_(bias),
        forward_(std::move(forward.kernel)),
        forward_weights_(parameters, forward.weights),
        parameters_(parameters) {}

  void add_backward_data(onednn::WeightedKernel backward) {
    backward_data_ = std::move(backward.kernel);
    backward_weights_packed_ = onednn::PackedWeights(parameters_, backward.weights);
  }
  void add_backward_weights(onednn::WeightedKernel backward) {
    backward_weights_ = std::move(backward.kernel);
    if (!(backward.weights == parameters_)) {
      gradient_bytes_ = (backward.weights.get_size() + 63) / 64 * 64;
      gradient_reorder_ = onednn::make_reorder(backward.weights, parameters_);
    }
  }

  void prepare(const NodeMemory& m) override {
    forward_weights_.pack(m.parameters[0]);
    if (backward_data_) backward_weights_packed_.pack(m.parameters[0]);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (bias_)
      forward_.run({m.x[0], forward_weights_.data(), m.parameters[1], m.y}, m.scratch);
    else
      forward_.run({m.x[0], forward_weights_.data(), m.y}, m.scratch);
  }

  // Weights before data: dx may be written where x was, were it ever planned so.
  void backward(const NodeMemory& m, const StepInfo&) override {
    // Scratch: the packed gradient, then the primitive's own.
    void* packed = gradient_reorder_ ? m.scratch : m.gradients[0];
    void* scratch = static_cast<char*>(m.scratch) + gradient_bytes_;
    if (bias_)
      backward_weights_.run({packed, m.gradients[1], m.x[0], m.dy[0]}, scratch);
    else
      backward_weights_.run({packed, m.x[0], m.dy[0]}, scratch);
    if (gradient_reorder_) gradient_reorder_.run({packed, m.gradients[0]}, nullptr);
    if (backward_data_)
      backward_data_.run({m.dx[0], backward_weights_packed_.data(), m.dy[0]}, m.scratch);
  }

  size_t scratch_bytes() const override {
    return std::max({forward_.scratch_bytes(), backward_data_.scratch_bytes(),
                     gradient_bytes_ + backward_weights_.scratch_bytes()});
  }

 private:
  bool bias_;
  onednn::Kernel forward_, backward_data_, backward_weights_, gradient_reorder_;
  onednn::PackedWeights forward_weights_, backward_weights_packed_;
  dnnl::memory::desc parameters_;
  size_t gradient_bytes_ = 0;
};

template <typename Forward, typename BackwardData, typename BackwardWeights>
std::unique_ptr<Op> make_weighted_op(const dnnl::memory::desc& parameters, bool bias,
                                     const OpConfig& c, Forward forward, BackwardData backward_data,
                                     BackwardWeights backward_weights) {
  auto op = std::make_unique<WeightedOpCpu>(parameters, bias, forward());
  if (c.training) {
    if (c.wants_dx[0]) op->add_backward_data(backward_data());
    op->add_backward_weights(backward_weights());
  }
  return op;
}

}  // namespace convoy::ops
