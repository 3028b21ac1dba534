// Runs the threads of one block of a kernel on the calling thread.
#pragma once

#include <functional>

namespace convoy::emulated_gpu {

// body() for threads 0 to threads - 1, each until it ends or meets the others at __syncthreads().
// `seed` varies the order in which they run.
void run_block(int threads, unsigned seed, const std::function<void()>& body);

}  // namespace convoy::emulated_gpu
