// Every stride-th pixel, with zero channels in front and behind: the parameter-free shortcut
// (option A of He et al. 2015, section 4.2). y [N, out_channels, ceil(H / stride), ceil(W /
// stride)]; the new channels are shared evenly, an odd one goes behind.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Subsample {
  int64_t stride = 2;
  int64_t out_channels = 0;
};

Shape output_shape(const Subsample& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Subsample&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Subsample&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Subsample&) {
  return {};
}
inline size_t saved_bytes(const Subsample&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Subsample& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Subsample& spec, const OpConfig& config);

}  // namespace convoy::ops
