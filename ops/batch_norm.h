// Batch norm over (N, H, W) for each channel, with what usually follows it in one pass:
//   y = relu( (x - mean) / sqrt(var + epsilon) * gamma + beta  + residual )
// where the residual and the ReLU are there if the spec says so (ops/fusion.* sets them). In
// training on a GPU the residual may itself be a batch norm's output, computed here as well, and
// y's maximum over windows may take y's place. Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms
// 1 and 2.
//
// Training normalises by the batch's mean and biased variance and writes both (the variance
// unbiased) to NodeMemory::statistics; the running values are the trainer's. Inference uses
// NodeMemory::running; a frozen one (ops/freezing.h) does so in training, too, where it is an
// affine map and dx = dy * gamma / sqrt(var + epsilon). x, residual and y [N,C,H,W] in NHWC;
// parameters weight (gamma) and bias (beta), [C], fp32. Statistics are summed in fp32 over blocks
// of 256 rows around a value near the mean, and in double over the blocks, in a fixed order: the
// same bits for any number of threads, and safe where the mean is far from zero. Where a
// convolution gives the sums (GPU; NodeMemory::sums), they are around zero: the variance is off by
// about 1e-7 of the mean's square.
#pragma once

#include <optional>

#include "ops/op.h"
#include "ops/pool.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct BatchNorm {
  double epsilon = 1e-5;
  double momentum = 0.1;   // of the running values: new = (1 - momentum) old + momentum batch
  bool zero_init = false;  // gamma starts at 0 instead of 1
  bool relu = false;
  bool residual = false;  // the second input is added before the ReLU
  bool frozen = false;    // running statistics in training, too; no gradients of the parameters

  // The second input is not the residual, but what another batch norm makes the residual of: its
  // parameters and statistics follow the own ones.
  struct Shortcut {
    double epsilon = 1e-5;
  };
  std::optional<Shortcut> shortcut;
  std::optional<MaxPool> pool;  // follows; not with a residual
  // Above 1: of the two gradients of y the second one is compact (Conv2d::compact_dx), with this
  // stride. Not with a pool.
  int64_t dy1_stride = 1;
};
// What BatchNorm::pool may be: on each side a pixel is in two windows at most.
inline bool can_follow_batch_norm(const MaxPool& pool) {
  return pool.stride == 2 && pool.kernel <= 4;
}
inline constexpr int kBatchNormParameters = 2;  // weight and bias

Shape output_shape(const BatchNorm& spec, const std::vector<Shape>& x);
std::vector<ParameterSpec> parameters(const BatchNorm& spec, const std::vector<Shape>& x);
inline int64_t macs(const BatchNorm&, const std::vector<Shape>&) {
  return 0;
}
// Backward adds up to two gradients of y over the first, without a pooling. With a residual, its
// gradient is the masked sum, in place; that of what a shortcut reads is written there, too.
inline BackwardNeeds backward_needs(const BatchNorm& s) {
  const unsigned gathered = s.shortcut ? 3u : 1u;
  return {.inputs = s.frozen ? 0u : gathered,
          .dy_sources = s.pool ? 1 : 2,
          .dx_in_place = s.residual ? 1 : -1,
          .writes_dy = !s.pool,
          .dy1_stride = s.dy1_stride};
}
// Bytes that wait for backward: the ReLU's mask, a bit per element, or the pooling's places, a byte
// per output.
size_t saved_bytes(const BatchNorm& spec, const Shape& y);
// For training. Throws Error (kBadJob) where a channel has but one value.
void expect_variance(const OpConfig& config);

std::unique_ptr<Op> make_op(CpuDevice& device, const BatchNorm& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const BatchNorm& spec, const OpConfig& config);

}  // namespace convoy::ops
