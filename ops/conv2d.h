// Convolution: y [N,K,P,Q] = conv(x [N,C,H,W], w [K,C/G,R,S]) (+ bias [K]); square filters.
// P = (H + 2 padding - R) / stride + 1. x and y in NHWC memory; sums in fp32.
//
// In inference ops/fusion.* folds the batch norm behind it into weights and bias, per output
// channel
//   s = gamma / sqrt(var + epsilon)    w' = w s    bias' = beta + (bias - mean) s
// once per prepare(), in double, rounded once; its residual and ReLU are part of the same pass, and
// y is written over the residual.
//
// Weights start as He et al. 2015 (Init::kHeNormal) unless weight_std is given, the bias uniform in
// +-1 / sqrt(fan_in) unless bias_init is.
#pragma once

#include <optional>

#include "ops/batch_norm.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Conv2d {
  int64_t out_channels = 0;
  int64_t kernel = 3;
  int64_t stride = 1;
  int64_t padding = 0;
  int64_t groups = 1;
  bool bias = false;
  std::optional<BatchNorm> batch_norm = {};  // folded in; inference only
  double weight_std = 0;                     // above 0: weights start normal, mean 0, with it
  std::optional<double> bias_init = {};      // the bias starts at it
  // The gradient of x is stored without the pixels that no filter sees, which have none (compact()
  // with this stride). GPU training; of what skips_pixels() alone.
  bool compact_dx = false;
};
// Only every stride-th pixel of every stride-th line is seen, by one filter each: the gradient of x
// is that of a 1x1 convolution of those.
inline bool skips_pixels(const Conv2d& s) {
  return s.kernel == 1 && s.stride > 1 && s.padding == 0;
}

// Throws Error (kBadJob) that names what does not fit; the caller adds the node's name.
Shape output_shape(const Conv2d& spec, const std::vector<Shape>& x);
// Those of a batch norm come first, as in the flat buffers.
std::vector<ParameterSpec> parameters(const Conv2d& spec, const std::vector<Shape>& x);
// Multiply-accumulates of one forward pass over the whole batch.
int64_t macs(const Conv2d& spec, const std::vector<Shape>& x);
inline BackwardNeeds backward_needs(const Conv2d& s) {
  return {.inputs = 1u, .for_parameters = true, .dx_stride = s.compact_dx ? s.stride : 1};
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Conv2d& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
