// How convolutions run on CUDA: which of cuDNN's plans. Apart from the op, because plans can be
// asked for without a GPU.
#pragma once

#include "ops/conv2d.h"
#include "ops/cudnn.h"

namespace convoy::ops {

struct Conv2dPlans {
  std::shared_ptr<const cudnn::Plan> forward, backward_data, backward_weights;  // null: not needed
  // Of x, as the plans see it. In 16 bit, tensor cores take channels in eights; zeros are put
  // behind those of the image, which change no bit of a sum.
  int64_t channels = 0;
  // Where cuDNN cannot do a pass as it should be in 16 bit, it is computed in fp32 from tensors
  // that are converted: their values are exact in TF32, too, so tensor cores lose nothing.
  bool forward_in_fp32 = false, weights_in_fp32 = false;
  // Bias, residual and ReLU are a kernel of ours behind a convolution that is kept in fp32, so that
  // y is rounded once. (False: there are none, or the plan includes them.)
  bool finish = false;
};
// Throws Error (kBadJob) with the node's name if there is no plan.
Conv2dPlans plan_conv2d(cudnn::Library& library, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
