// How long plans of convolutions, and products in their place, take on this GPU: the measure by
// which a run that tunes chooses.
#pragma once

#include <functional>
#include <map>

#include "ops/core/cuda_handle.h"
#include "ops/cublas.h"
#include "ops/cudnn.h"

namespace convoy::ops {

// Has memory of its own for the largest convolution so far. For the device's thread.
class PlanTimer {
 public:
  explicit PlanTimer(cudaStream_t stream) : stream_(stream) {}

  // Seconds of one run: the median of a few, behind one that does not count. Waits.
  double measure(const cudnn::Convolution& c, const cudnn::Plan& plan);
  double measure(const cublas::ProductShape& shape, const cublas::Product& product);
  // Of a pass that reads so many bytes.
  double measure_pass(size_t bytes);

 private:
  enum class Tensor { kX, kW, kY, kBias, kResidual, kSums, kWorkspace };
  double median_seconds(const std::function<void()>& run) const;
  void* memory(Tensor tensor, size_t bytes);

  struct Memory {
    cuda::DeviceBuffer data;
    size_t bytes = 0;
  };
  cudaStream_t stream_;
  std::map<Tensor, Memory> memory_;
};

}  // namespace convoy::ops
