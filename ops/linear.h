// Fully connected: y [N,K] = x [N, C*H*W] w^T [K, C*H*W] (+ bias [K]). The features of one sample
// are counted in the order C, H, W, as torch.flatten of an NCHW tensor gives them. Weights and bias
// start uniform in +-1 / sqrt(fan_in), as torch's, unless weight_std or bias_init is given.
#pragma once

#include <optional>

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Linear {
  int64_t out_features = 0;
  bool bias = true;
  double weight_std = 0;                 // above 0: weights start normal, mean 0, with it
  std::optional<double> bias_init = {};  // the bias starts at it
};

Shape output_shape(const Linear& spec, const std::vector<Shape>& x);
std::vector<ParameterSpec> parameters(const Linear& spec, const std::vector<Shape>& x);
int64_t macs(const Linear& spec, const std::vector<Shape>& x);
inline BackwardNeeds backward_needs(const Linear&) {
  return {.inputs = 1u, .for_parameters = true};
}

// y may be fp32 while x is bf16: logits keep their precision for the loss.
std::unique_ptr<Op> make_op(CpuDevice& device, const Linear& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Linear& spec, const OpConfig& config);

}  // namespace convoy::ops
