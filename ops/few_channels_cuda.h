// First layers on CUDA that our own kernels compute: in 16 bit, of images of up to four channels,
// which lie in memory as four. Libraries take channels of a place in eights, in gradients of
// weights 64 at a time; here a product of the tensor cores takes four places of a window at once.
#pragma once

#include <memory>

#include "ops/conv2d.h"

namespace convoy::ops {

class CudaDevice;

// For convolutions of an image that CudaDevice::wants_four_channels(), whose gradient nobody wants.
std::unique_ptr<Op> make_few_channels_op(CudaDevice& device, const Conv2d& spec,
                                         const OpConfig& config);

}  // namespace convoy::ops
