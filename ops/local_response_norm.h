// Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3):
//
//   y_c = x_c / s_c ^ beta        s_c = k + alpha / size * sum x_j^2
//
// over the `size` channels around c, j = c - size / 2 ... c + (size - 1) / 2, cut at the first and
// the last channel. As in torch.nn.LocalResponseNorm alpha is divided by size; the paper's alpha,
// which is not, is size times as small: its k = 2, n = 5, alpha = 1e-4, beta = 0.75 is
// {.size = 5, .alpha = 5e-4, .beta = 0.75, .k = 2} here. x and y [N,C,H,W] in NHWC; s in fp32.
//
//   dx_i = dy_i s_i^-beta - 2 alpha beta / size * x_i * sum dy_j x_j s_j^(-beta - 1)
//
// over the j whose sums have i in them, j = i - (size - 1) / 2 ... i + size / 2. Backward computes
// s again from x, and keeps nothing else.
#pragma once

#include "ops/channel_window.h"
#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct LocalResponseNorm {
  int64_t size = 5;
  double alpha = 1e-4;
  double beta = 0.75;
  double k = 1;
};

Shape output_shape(const LocalResponseNorm& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const LocalResponseNorm&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const LocalResponseNorm&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const LocalResponseNorm&) {
  return {.inputs = 1u, .dx_in_place = 0};
}
inline size_t saved_bytes(const LocalResponseNorm&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const LocalResponseNorm& spec,
                            const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const LocalResponseNorm& spec,
                            const OpConfig& config);

}  // namespace convoy::ops
