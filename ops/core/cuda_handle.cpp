#include "ops/core/cuda_handle.h"

#include <atomic>
#include <cstring>

#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::cuda {

void check(cudaError_t status, std::source_location where) {
  if (status == cudaSuccess) return;
  fail(ExitCode::kFault, "CUDA: {} ({}) in {} ({}:{})", cudaGetErrorName(status),
       cudaGetErrorString(status), where.function_name(), where.file_name(), where.line());
}

void destroy(cudaError_t status, const char* what) noexcept {
  if (status == cudaSuccess || status == cudaErrorCudartUnloading) return;
  // After a fault every call returns it, and check() has thrown it: once is enough.
  static std::atomic<bool> said = false;
  if (said.exchange(true)) return;
  log::error("CUDA: {} while freeing {}", cudaGetErrorName(status), what);
}

Stream make_stream(Priority priority) {
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                     priority == Priority::kHigh ? highest : lowest));
  return Stream(stream);
}

Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

Event make_timing_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event));
  return Event(event);
}

DeviceBuffer allocate_device(size_t bytes) {
  if (bytes == 0) return {};
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, all_bytes = 0;
    cudaGetLastError();  // it is handled here
    check(cudaMemGetInfo(&free_bytes, &all_bytes));
    fail(ExitCode::kFault,
         "the GPU's memory is exhausted: {} MiB refused, {} of {} MiB are free; use a smaller "
         "batch_per_worker",
         bytes >> 20, free_bytes >> 20, all_bytes >> 20);
  }
  check(status);
  DeviceBuffer buffer(memory);
  check(cudaMemset(memory, 0, bytes));
  check(cudaStreamSynchronize(nullptr));  // streams of ours do not wait for the null stream
  return buffer;
}

PinnedBuffer allocate_pinned(size_t bytes) {
  if (bytes == 0) return {};
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes));
  std::memset(memory, 0, bytes);
  return PinnedBuffer(memory);
}

Pin pin(void* memory, size_t bytes) {
  const cudaError_t status = cudaHostRegister(memory, bytes, cudaHostRegisterDefault);
  if (status == cudaSuccess) return Pin(memory);
  cudaGetLastError();  // it is handled here
  static std::atomic<bool> said = false;
  if (!said.exchange(true))
    log::warning(
        "CUDA: {}: {} MiB for images cannot be pinned, so that copying them takes longer; "
        "raise the limit of locked memory (ulimit -l)",
        cudaGetErrorName(status), bytes >> 20);
  return {};
}

void record(const Event& event, cudaStream_t stream) {
  check(cudaEventRecord(event.get(), stream));
}
void wait(cudaStream_t stream, const Event& event) {
  check(cudaStreamWaitEvent(stream, event.get(), 0));
}
void synchronize(const Event& event) {
  check(cudaEventSynchronize(event.get()));
}
void synchronize(cudaStream_t stream) {
  check(cudaStreamSynchronize(stream));
}
double seconds_between(const Event& begin, const Event& end) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  return static_cast<double>(milliseconds) / 1e3;
}

}  // namespace convoy::cuda
