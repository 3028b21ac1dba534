// Training: each element is set to zero with probability `rate`, the others are divided by 1 - rate
// (Srivastava et al. 2014). Which ones is a function of (seed, step, worker, node, element).
// Inference: y = x.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Dropout {
  double rate = 0.5;
};

Shape output_shape(const Dropout& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Dropout&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Dropout&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Dropout&) {
  return {.dx_in_place = 0};
}
size_t saved_bytes(const Dropout& spec, const Shape& y);

std::unique_ptr<Op> make_op(CpuDevice& device, const Dropout& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Dropout& spec, const OpConfig& config);

}  // namespace convoy::ops
