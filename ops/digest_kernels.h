// The pass over memory that digests floats (ops/core/digest_term.h).
#pragma once

#include <cstdint>

#include "ops/core/isa.h"

namespace convoy::ops {

struct DigestKernels {
  // Sum of the terms of x [n], the first of which has the index `index` in its tensor.
  uint64_t (*digest)(const float* x, uint64_t index, int64_t n);
};

CONVOY_KERNELS(DigestKernels, digest_kernels)

}  // namespace convoy::ops
