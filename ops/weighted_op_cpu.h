// What convolution and linear share on the CPU: three oneDNN primitives around one weight tensor.
#pragma once

#include <algorithm>
#include <memory>

#include "ops/core/cache_line.h"
#include "ops/elementwise_kernels.h"
#include "ops/kept_pixels.h"
#include "ops/onednn.h"
#include "ops/op.h"
#include "ops/weight_gradient_cpu.h"

namespace convoy::ops {

class WeightedOpCpu final : public Op {
 public:
  // `parameters`: the layout in which weights and their gradients are kept (fp32). `kept`: what
  // forward reads of x.
  WeightedOpCpu(int threads, const OpConfig& config, const dnnl::memory::desc& parameters,
                bool bias, onednn::WeightedKernel forward, const KeptPixels& kept = {})
      : threads_(threads),
        bias_floats_(bias ? config.y.c : 0),
        several_slices_(config.batch > config.y.n),
        kept_(kept),
        forward_(std::move(forward.kernel)),
        forward_layout_(forward.weights),
        forward_weights_(parameters, forward_layout_, threads),
        parameters_(parameters) {}

  void add_backward_data(onednn::WeightedKernel backward) {
    backward_data_ = std::move(backward.kernel);
    shares_forward_weights_ = backward.weights == forward_layout_;
    if (shares_forward_weights_) return;
    backward_weights_packed_ = onednn::PackedWeights(parameters_, backward.weights, threads_);
    // In bf16, where oneDNN packs, forward weights are packed from the backward ones: measured on
    // ResNet-50, 9 ms instead of 23 from fp32, where oneDNN reads far apart rows.
    forward_from_backward_ = backward.weights.data_type() == dnnl::memory::data_type::bf16 &&
                             !forward_weights_.packs_itself();
    if (forward_from_backward_)
      forward_weights_ = onednn::PackedWeights(backward.weights, forward_layout_, threads_);
  }
  void add_backward_weights(onednn::WeightedKernel backward) {
    backward_weights_ = std::move(backward.kernel);
    gradient_floats_ = backward.weights.get_size() / sizeof(float);
    if (backward.weights == parameters_) return;
    gradient_reorder_ = onednn::make_reorder(backward.weights, parameters_);
    if (several_slices_) packed_sum_ = AlignedBuffer(gradient_floats_ * sizeof(float));
  }

  void add_backward_weights(std::unique_ptr<WeightGradientCpu> own) {
    own_gradient_ = std::move(own);
  }

  void prepare(const NodeMemory& m) override {
    if (backward_data_ && !shares_forward_weights_) backward_weights_packed_.pack(m.parameters[0]);
    forward_weights_.pack(forward_from_backward_ ? backward_weights_packed_.data()
                                                 : m.parameters[0]);
  }

  void share_weights(const Op& other) override {
    packed_ = &dynamic_cast<const WeightedOpCpu&>(other);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    const void* weights = packed_->forward_weights_.data();
    const void* x = kept_.of(m.x[0], m.scratch);
    void* scratch = static_cast<char*>(m.scratch) + kept_.bytes();
    if (bias_floats_ > 0)
      forward_.run({x, weights, m.parameters[1], m.y}, scratch);
    else
      forward_.run({x, weights, m.y}, scratch);
  }

  // Weights before data: dx may be written where x was, were it ever planned so.
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (own_gradient_)
      own_gradient_->add(m);
    else if (backward_weights_)
      add_gradient(m);
    if (backward_data_)
      backward_data_.run({m.dx[0], packed_->backward_weights(), m.dy[0]}, m.scratch);
  }

  size_t scratch_bytes() const override {
    return std::max({kept_.bytes() + forward_.scratch_bytes(), backward_data_.scratch_bytes(),
                     gradient_scratch_floats() * sizeof(float) + backward_weights_.scratch_bytes(),
                     own_gradient_ ? own_gradient_->scratch_bytes() : 0});
  }

 private:
  const void* backward_weights() const {
    return shares_forward_weights_ ? forward_weights_.data() : backward_weights_packed_.data();
  }
  void add_gradient(const NodeMemory& m) {
    // Scratch: a gradient (packed as the primitive wants it) and its bias, then the primitive's
    // own.
    auto* scratch = static_cast<float*>(m.scratch);
    float* sum = !gradient_reorder_ ? m.gradients[0]
                 : several_slices_  ? packed_sum_.as<float>()
                                    : scratch;
    float* dw = m.slice.first ? sum : scratch;
    float* own_scratch = scratch + gradient_scratch_floats();
    if (bias_floats_ > 0) {
      float* db =
          m.slice.first ? m.gradients[1] : scratch + round_up(gradient_floats_, kCacheLineFloats);
      backward_weights_.run({dw, db, m.x[0], m.dy[0]}, own_scratch);
      if (!m.slice.first) add(m.gradients[1], db, bias_floats_);
    } else {
      backward_weights_.run({dw, m.x[0], m.dy[0]}, own_scratch);
    }
    if (!m.slice.first) add(sum, dw, static_cast<int64_t>(gradient_floats_));
    if (m.slice.last && gradient_reorder_) gradient_reorder_.run({sum, m.gradients[0]}, nullptr);
  }

  size_t gradient_scratch_floats() const {
    if (!gradient_reorder_ && !several_slices_) return 0;
    return round_up(gradient_floats_, kCacheLineFloats) +
           round_up(static_cast<size_t>(bias_floats_), kCacheLineFloats);
  }
  void add(float* sum, const float* addend, int64_t floats) const {
    elementwise_kernels<float>().add(sum, sum, addend, floats, threads_);
  }

  int threads_;
  int64_t bias_floats_;  // 0: no bias
  bool several_slices_;
  KeptPixels kept_;
  onednn::Kernel forward_, backward_data_, backward_weights_, gradient_reorder_;
  std::unique_ptr<WeightGradientCpu> own_gradient_;  // in place of backward_weights_
  dnnl::memory::desc forward_layout_;
  onednn::PackedWeights forward_weights_, backward_weights_packed_;
  bool shares_forward_weights_ = false, forward_from_backward_ = false;
  const WeightedOpCpu* packed_ = this;  // whose packed weights are used
  dnnl::memory::desc parameters_;
  size_t gradient_floats_ = 0;  // as backward_weights_ writes it
  AlignedBuffer packed_sum_;    // of several slices' gradients, where they are packed
};

}  // namespace convoy::ops
