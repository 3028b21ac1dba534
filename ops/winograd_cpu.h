// 3x3 convolutions that Winograd's kernels compute in fewer products than oneDNN's direct ones.
#pragma once

#include <memory>

#include "ops/conv2d.h"
#include "ops/winograd_kernels.h"

namespace convoy::ops {

// 3x3, stride 1, padding 1, no groups, channels in multiples of 16.
inline bool winograd_computes(const Conv2d& spec, int64_t in_channels) {
  return spec.kernel == 3 && spec.stride == 1 && spec.padding == 1 && spec.groups == 1 &&
         in_channels % kWinogradChannels == 0 && spec.out_channels % kWinogradChannels == 0;
}

// Of these, in fp32 and in bf16 without AMX, where the image fills the 4x4 tiles well enough: a
// function of the shape and of the instruction set alone.
bool winograd_wins(const Conv2d& spec, const OpConfig& config);

// For convolutions of which winograd_wins().
std::unique_ptr<Op> make_winograd_op(int threads, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
