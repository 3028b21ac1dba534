// Gradients of convolution weights that our own kernels compute faster than oneDNN.
#pragma once

#include <vector>

#include "ops/conv2d.h"
#include "ops/weight_gradient_kernels.h"

namespace convoy::ops {

// A function of the shape and of the instruction set alone.
bool weight_gradient_wins(const Conv2d& spec, const OpConfig& config);

// For convolutions of which weight_gradient_wins().
class WeightGradientCpu {
 public:
  WeightGradientCpu(int threads, const Conv2d& spec, const OpConfig& config);

  // A slice of the batch; the gradient is final after the last.
  void add(const NodeMemory& m);
  size_t scratch_bytes() const;

 private:
  const WeightGradientKernels& kernels_;
  int threads_;
  std::vector<int32_t> offsets_;
  WeightGradientShape shape_;
  AlignedBuffer sum_;  // where the window is larger than one pixel; else the gradient itself
};

}  // namespace convoy::ops
