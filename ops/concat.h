// y [N, sum of C, H, W]: the inputs' channels one after the other.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Concat {};

Shape output_shape(const Concat& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Concat&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Concat&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Concat&) {
  return {};
}
inline size_t saved_bytes(const Concat&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Concat& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Concat& spec, const OpConfig& config);

}  // namespace convoy::ops
