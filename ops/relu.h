// y = max(x, 0). NaN stays NaN. Any shape.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Relu {};

Shape output_shape(const Relu& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Relu&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Relu&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Relu&) {
  return {.dx_in_place = 0};
}
// The mask: a bit per element.
size_t saved_bytes(const Relu& spec, const Shape& y);

std::unique_ptr<Op> make_op(CpuDevice& device, const Relu& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Relu& spec, const OpConfig& config);

}  // namespace convoy::ops
