// How convolutions run on CUDA: which of cuDNN's plans, or what in their place. Apart from the op,
// because plans can be asked for without a GPU.
#pragma once

#include <functional>

#include "ops/conv2d.h"
#include "ops/core/cuda_handle.h"
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
  int64_t channels = 0;  // of x, as the plans see it: padded, without groups
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

// What an op of a convolution takes from its parameters.
class PackedWeights {
 public:
  // stored: channels of a filter in memory. also_fp32: packed32() is wanted, too.
  PackedWeights(CudaDevice& device, const Conv2d& spec, const OpConfig& config, int64_t stored,
                bool also_fp32 = false);

  // Enqueues it; the weights are there when CudaDevice::prepared() has been called, too.
  void prepare(const NodeMemory& m);
  int64_t elements() const { return filters_ * spec_.kernel * spec_.kernel * stored_; }
  const void* packed() const { return packed_.get(); }  // [K,R,S,stored], a folded batch norm in it
  const void* packed32() const { return packed32_.get(); }  // the same values
  // [K], of a bias or a folded batch norm; null: there is neither.
  const float* bias() const { return static_cast<const float*>(bias_.get()); }

 private:
  CudaDevice& device_;
  Conv2d spec_;
  DType type_;
  int64_t filters_, channels_, stored_;
  cuda::DeviceBuffer packed_, packed32_, bias_, scale_;  // scale: [K], in double
};

// Adds the gradient of a bias, the sum of the rows of dy in a fixed order; to zero where `first`.
// sums: bias_gradient_floats() of scratch memory.
size_t bias_gradient_floats(const Shape& y);
template <typename T>
void add_bias_gradient(float* gradient, float* sums, const T* dy, const Shape& y, bool first,
                       cudaStream_t stream);

}  // namespace convoy::ops
