// CUDA's resources as values that free themselves, and its status codes as errors. Only what is
// built with CUDA includes this.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <source_location>
#include <utility>

namespace convoy::cuda {

// Throws Error (kFault) with CUDA's name for the status and the caller's place. Errors of earlier
// work on the device show up here, too.
void check(cudaError_t status, std::source_location where = std::source_location::current());

// Frees what it owns once. Move only; the destroyer must not throw.
template <typename Handle, auto kDestroy>
class UniqueHandle {
 public:
  UniqueHandle() = default;
  explicit UniqueHandle(Handle handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, Handle{})) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~UniqueHandle() {
    if (handle_ != Handle{}) kDestroy(handle_);
  }

  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != Handle{}; }

 private:
  Handle handle_{};
};

// For destructors: logs instead of throwing. Silent where the process's CUDA is already gone.
void destroy(cudaError_t status, const char* what) noexcept;
inline void destroy_stream(cudaStream_t s) {
  destroy(cudaStreamDestroy(s), "a stream");
}
inline void destroy_event(cudaEvent_t e) {
  destroy(cudaEventDestroy(e), "an event");
}
inline void destroy_graph(cudaGraphExec_t g) {
  destroy(cudaGraphExecDestroy(g), "a graph");
}
inline void free_device(void* p) {
  destroy(cudaFree(p), "device memory");
}
inline void free_pinned(void* p) {
  destroy(cudaFreeHost(p), "pinned memory");
}
inline void unpin(void* p) {
  destroy(cudaHostUnregister(p), "a pin of memory");
}

using Stream = UniqueHandle<cudaStream_t, &destroy_stream>;
using Event = UniqueHandle<cudaEvent_t, &destroy_event>;
using GraphExec = UniqueHandle<cudaGraphExec_t, &destroy_graph>;
using DeviceBuffer = UniqueHandle<void*, &free_device>;
using PinnedBuffer = UniqueHandle<void*, &free_pinned>;  // host memory that the GPU copies at once
using Pin = UniqueHandle<void*, &unpin>;                 // makes somebody's memory such

// On the calling thread's current GPU. A stream of high priority is served first.
enum class Priority { kNormal, kHigh };
Stream make_stream(Priority priority = Priority::kNormal);
Event make_event();                          // without timing: cheap
Event make_timing_event();                   // for seconds_between()
DeviceBuffer allocate_device(size_t bytes);  // zeroed when it returns
PinnedBuffer allocate_pinned(size_t bytes);  // zeroed
Pin pin(void* memory, size_t bytes);         // empty where the system does not let us

// From here on, `stream` goes on only when `event` has happened.
void record(const Event& event, cudaStream_t stream);
void wait(cudaStream_t stream, const Event& event);
void synchronize(const Event& event);  // blocks the host
void synchronize(cudaStream_t stream);
// On the GPU; both have happened.
double seconds_between(const Event& begin, const Event& end);

}  // namespace convoy::cuda
