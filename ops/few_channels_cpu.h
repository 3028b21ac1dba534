// First layers that our own kernels compute faster than oneDNN.
#pragma once

#include <memory>

#include "ops/conv2d.h"

namespace convoy::ops {

// In bf16 on processors whose bf16 products are AVX-512's, of images of up to three channels whose
// gradient nobody wants; without groups and residual, in training without a bias, with output
// channels in multiples of 16. Threads and timing have no say.
bool few_channels_wins(const Conv2d& spec, const OpConfig& config);

// For convolutions of which few_channels_wins().
std::unique_ptr<Op> make_few_channels_op(int threads, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
