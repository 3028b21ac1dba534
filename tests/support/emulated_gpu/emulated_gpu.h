// A GPU for machines without one: stands in for the CUDA runtime and its libraries at link time,
// and runs our kernels, compiled for the host, thread by thread. It proves results, not speed.
//
// It is as unkind as the real one may be: work runs only when somebody waits for it (in the order
// of its stream, and of another's where an event says so), the host cannot touch device memory (it
// faults), memory is not zeroed, and __shared__ memory holds what the last block left.
//
// The kernels' source files are compiled with this header first (-include).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

// What a kernel knows of itself.
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)

// All threads of the block that still run meet here.
void __syncthreads();

namespace convoy::emulated_gpu {

// Enqueues a kernel: body() once for each thread. Blocks have so many bytes of dynamic_shared().
void launch(int64_t blocks, int threads, size_t bytes, cudaStream_t stream,
            std::function<void()> body);
char* dynamic_shared();

// The 32 threads of a warp meet; each puts down so many bytes, at most 64, and gets what all of
// them have put down, which stays until it meets them twice more.
const void* meet_warp(const void* own, size_t bytes);

// A copy to shared memory, zeros where `is_there` is false, which is made when the calling thread
// of a kernel waits for it, or may be made before.
void copy_later(void* to, const void* from, size_t bytes, bool is_there);
void wait_for_copies();

// Enqueues any other work, for stand-ins of libraries. Device memory can be touched in there.
void enqueue(cudaStream_t stream, std::function<void()> work);

// Enqueues work that may have to wait for other processes: it is called until it returns true, when
// somebody waits and now and then by a thread of the emulator's, for a real GPU would go on, too.
void enqueue_polled(cudaStream_t stream, std::function<bool()> work);

// Running work calls it: so much later it is on the GPU's clock, which hardly moves otherwise.
void spend(double milliseconds);

// Ends the program where a vector access would fault.
void expect_aligned(const void* p, size_t bytes);

// The next call of the runtime that enqueues or waits returns this error, once (tests of errors).
void fail_next_call(cudaError_t error);
bool fails_next_call();

// While it is broken, NCCL reports a lost peer, and transfers stand still until they are aborted.
void break_nccl(bool now);

}  // namespace convoy::emulated_gpu
