// y = x0 + x1, same shapes.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Add {};

Shape output_shape(const Add& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Add&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Add&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Add&) {
  return {.dx_in_place = 0};
}
inline size_t saved_bytes(const Add&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Add& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Add& spec, const OpConfig& config);

}  // namespace convoy::ops
