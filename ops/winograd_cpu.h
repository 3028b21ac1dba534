// 3x3 convolutions that Winograd's kernels compute in fewer products than oneDNN's direct ones.
#pragma once

#include <memory>

#include "ops/conv2d.h"

namespace convoy::ops {

// A function of the shape and of what this processor computes fastest: 3x3, stride 1, padding 1, no
// groups, channels in multiples of 16, an image whose size fills the 4x4 tiles well enough; fp32,
// and bf16 without AMX.
bool winograd_wins(const Conv2d& spec, const OpConfig& config);

// For convolutions of which winograd_wins().
std::unique_ptr<Op> make_winograd_op(int threads, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
