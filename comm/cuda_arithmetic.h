// What the reduction does to memory of a GPU. Only what is built with CUDA includes this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace convoy::comm {

// As add() of arithmetic.h, bit by bit, denormals included. Enqueued on the stream.
void add(float* sum, const float* left, const float* right, size_t floats, cudaStream_t stream);

}  // namespace convoy::comm
