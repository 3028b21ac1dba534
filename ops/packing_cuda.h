// Weights of convolutions on CUDA as their kernels take them, [K,R,S,C] in the network's type, from
// OIHW in fp32. Those of up to 64 convolutions are packed in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "ops/core/tensor.h"

namespace convoy::ops {

struct WeightPacking {
  DType type = DType::kFloat32;   // of `packed`
  void* packed = nullptr;         // [filters, area, stored], zero behind `channels`
  float* packed32 = nullptr;      // the same values in fp32; null: not wanted
  const float* oihw = nullptr;    // [filters, channels, area]
  const double* scale = nullptr;  // [filters], what weights are multiplied by; null: 1
  int64_t filters = 0, channels = 0, stored = 0, area = 0;  // area: pixels of a filter
};

// Of one device, for the thread that computes on it.
class WeightPacker {
 public:
  void add(const WeightPacking& packing) { added_.push_back(packing); }
  // Enqueues the packing of all that were added since the last call. Moves 6 bytes per weight in 16
  // bit.
  void run(cudaStream_t stream);

 private:
  std::vector<WeightPacking> added_;
};

}  // namespace convoy::ops
