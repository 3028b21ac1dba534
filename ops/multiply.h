// y = x0 * x1, element by element, same shapes: what a gate lets through. dx0 = dy x1, dx1 = dy x0.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Multiply {};

Shape output_shape(const Multiply& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Multiply&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Multiply&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Multiply&) {
  return {.inputs = 3u, .dx_in_place = 0};
}
inline size_t saved_bytes(const Multiply&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Multiply& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Multiply& spec, const OpConfig& config);

}  // namespace convoy::ops
