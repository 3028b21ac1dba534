// How convolutions run on CUDA: which of cuDNN's plans, or what in their place. Apart from the op,
// because plans can be asked for without a GPU.
#pragma once

#include <functional>

#include "ops/conv2d.h"
#include "ops/cublas.h"
#include "ops/cudnn.h"

namespace convoy::ops {

// What matrix products are made with, where they may take a convolution's place.
struct Products {
  const cublas::Handle& handle;
  // Seconds of one, where they are measured against cuDNN's plans.
  std::function<double(const cublas::ProductShape&, const cublas::Product&)> measure;
  std::function<double(size_t)> measure_pass;  // likewise; of a pass that reads so many bytes
};

// In 16 bit, tensor cores take channels in eights; zeros behind those that there are change no bit
// of a sum.
inline int64_t stored_channels(int64_t channels, DType type) {
  return type == DType::kFloat32 ? channels : (channels + 7) / 8 * 8;
}

struct Conv2dPlans {
  std::shared_ptr<const cudnn::Plan> forward, backward_data, backward_weights;  // null: not needed
  // Of a convolution that skips pixels (ops/conv2d.h) backward_data gives the compact gradient.
  // In their places: in 16 bit a 1x1 convolution is x w^T, its gradients dy w and dy^T x. cuDNN's
  // plans are preferred unless products are measured to be as fast; but for fp32 gradients of
  // weights, which cuDNN computes only by engines that it compiles for a fused graph, most of them
  // for an A100's tensor cores, products are preferred unless cuDNN is measured to be faster.
  cublas::Product forward_product, data_product, weights_product;
  // In place of both in fp16, where it was measured to be faster than them and a pass for the sums:
  // y and NodeMemory::sums.
  std::shared_ptr<const cudnn::Plan> forward_with_sums;
  // Of x, as the plans see it: padded, without groups; of patches (OpConfig::patches), whose plans
  // are those of a 1x1 convolution, C R S.
  int64_t channels = 0;
  // Where cuDNN cannot do a pass as it should be in 16 bit, it is computed in fp32 from tensors
  // that are converted: their values are exact in TF32, too, so tensor cores lose nothing.
  bool forward_in_fp32 = false, weights_in_fp32 = false;
  // Bias, residual and ReLU are a kernel of ours behind a convolution that is kept in fp32, so that
  // y is rounded once. (False: there are none, or the plan includes them.)
  bool finish = false;
};
// products: null where there are none. Throws Error (kBadJob) with the node's name if there is no
// plan.
Conv2dPlans plan_conv2d(cudnn::Library& library, const Products* products, const Conv2d& spec,
                        const OpConfig& config);

}  // namespace convoy::ops
