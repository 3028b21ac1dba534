// y = 1 / (1 + e^-x), the logistic function; with `complement` 1 - that, computed as 1 / (1 + e^x),
// so that small gates keep their digits: the carry gate of highway networks (Srivastava et al.
// 2015, arXiv:1505.00387, equation 3). dx = dy y (1 - y), with complement its negative. Any shape;
// NaN stays NaN.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Sigmoid {
  bool complement = false;
};

Shape output_shape(const Sigmoid& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Sigmoid&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Sigmoid&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Sigmoid&) {
  return {.output = true, .dx_in_place = 0};
}
inline size_t saved_bytes(const Sigmoid&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Sigmoid& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Sigmoid& spec, const OpConfig& config);

}  // namespace convoy::ops
