// How Linear runs on CUDA: which of cuBLASLt's products. Apart from the op, because they are
// decided before it is made.
#pragma once

#include "ops/cublas.h"
#include "ops/linear.h"

namespace convoy::ops {

struct LinearPlans {
  cublas::Product forward, backward_weights, backward_data;  // none: not needed
};
// The forward product is y before the bias, in fp32 where there is one. Throws as cublas::Product.
LinearPlans plan_linear(const cublas::Handle& handle, Decisions& decisions, const Linear& spec,
                        const OpConfig& config);

}  // namespace convoy::ops
