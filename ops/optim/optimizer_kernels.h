// The passes over the flat buffers of parameters.
#pragma once

#include <cstdint>

#include "ops/core/isa.h"

namespace convoy::ops {

// Factors of one tensor's update, in the order in which they are applied.
struct SgdFactors {
  float gradient;      // of the gradient: clipping
  float weight_decay;  // times w, added to the gradient
  float momentum;
  float learning_rate;
  bool nesterov;
  float ema;  // 1 - decay of the moving average; 0: none
};

struct OptimizerKernels {
  // w, v and (if ema is not null) the average, n elements.
  void (*sgd)(float* w, float* v, float* ema, const float* g, const SgdFactors& f, int64_t n);
  // Sum of squares of n <= 4096 elements.
  float (*squares)(const float* x, int64_t n);
};

CONVOY_KERNELS(OptimizerKernels, optimizer_kernels)

}  // namespace convoy::ops
