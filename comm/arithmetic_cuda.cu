#include <cfloat>

#include "comm/cuda_arithmetic.h"
#include "ops/core/cuda_kernel.h"

namespace convoy::comm {
namespace {

using namespace cuda;

// Denormals count as zero, as on the host: part of a sum may be made there.
__device__ float flushed(float v) {
  return fabsf(v) < FLT_MIN ? copysignf(0.0f, v) : v;
}

// Moves 12 bytes for each float.
__global__ void sum_kernel(float* sum, const float* left, const float* right, int64_t n) {
  for_each(n, [=](int64_t i) { sum[i] = flushed(flushed(left[i]) + flushed(right[i])); });
}

// n vectors of eight.
__global__ void sum_wide_kernel(float* sum, const float* left, const float* right, int64_t n) {
  for_each(n, [=](int64_t i) {
    Floats8 l = load8(left + kWide * i);
    const Floats8 r = load8(right + kWide * i);
    for (int k = 0; k < kWide; ++k) l.v[k] = flushed(flushed(l.v[k]) + flushed(r.v[k]));
    store8(sum + kWide * i, l);
  });
}

}  // namespace

void add(float* sum, const float* left, const float* right, size_t floats, cudaStream_t stream) {
  auto n = static_cast<int64_t>(floats);
  if (are_wide(0, sum, left, right)) {
    launch(&sum_wide_kernel, blocks_for(n / kWide), kThreads, stream, sum, left, right, n / kWide);
    const int64_t whole = n / kWide * kWide;  // and what is left of the last vector
    sum += whole;
    left += whole;
    right += whole;
    n -= whole;
  }
  launch(&sum_kernel, blocks_for(n), kThreads, stream, sum, left, right, n);
}

}  // namespace convoy::comm
