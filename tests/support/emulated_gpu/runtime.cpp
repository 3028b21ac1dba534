// The CUDA runtime's calls that we use, on the host: streams are queues, device memory is memory
// that only running work may touch.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/support/emulated_gpu/emulated_gpu.h"
#include "tests/support/emulated_gpu/threads.h"

namespace convoy::emulated_gpu {
namespace {

using Work = std::function<void()>;

// One lock for all: calls come from few threads. Recursive, because work runs under it.
std::recursive_mutex mutex;
cudaError_t next_error = cudaSuccess;

struct Graph;

struct Stream {
  std::deque<Work> queue;
  uint64_t begun = 0;  // work that has left the queue
  uint64_t enqueued = 0;
  Graph* capture = nullptr;  // the graph that takes the work instead
};

struct Event {
  Stream* stream = nullptr;  // null: never recorded
  uint64_t after = 0;        // work of that stream
  Graph* capture = nullptr;  // recorded while capturing
};

struct Graph {
  std::vector<Work> work;
  Stream* origin = nullptr;
  std::vector<Stream*> joined;  // streams that wait for captured events
};

Stream& null_stream() {
  static Stream stream;
  return stream;
}
Stream& of(cudaStream_t stream) {
  return stream ? *reinterpret_cast<Stream*>(stream) : null_stream();
}
Event& of(cudaEvent_t event) {
  return *reinterpret_cast<Event*>(event);
}
std::vector<Stream*>& streams() {
  static std::vector<Stream*> all = {&null_stream()};
  return all;
}

// ---- Device memory: each allocation is pages of its own, open only while work runs.

std::map<char*, size_t>& allocations() {
  static std::map<char*, size_t> all;
  return all;
}
int open_count = 0;

class OpenMemory {
 public:
  OpenMemory() {
    if (open_count++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  ~OpenMemory() {
    if (--open_count == 0) protect(PROT_NONE);
  }
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;

 private:
  static void protect(int how) {
    for (const auto& [memory, bytes] : allocations()) mprotect(memory, bytes, how);
  }
};

// ---- Running.

// Runs the work of a stream up to number `count` of what was ever enqueued there.
void run_until(Stream& stream, uint64_t count) {
  if (stream.begun >= count) return;
  const OpenMemory open;
  while (stream.begun < count && !stream.queue.empty()) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.begun;
    work();
  }
}
void run_all(Stream& stream) {
  run_until(stream, stream.enqueued);
}
void run_everything() {
  for (Stream* stream : streams()) run_all(*stream);
}

void put(Stream& stream, Work work) {
  if (stream.capture) {
    stream.capture->work.push_back(std::move(work));
    return;
  }
  stream.queue.push_back(std::move(work));
  ++stream.enqueued;
}

cudaError_t take_error() {
  return std::exchange(next_error, cudaSuccess);
}

}  // namespace

void enqueue(cudaStream_t stream, Work work) {
  const std::lock_guard lock(mutex);
  put(of(stream), std::move(work));
}

void launch(int64_t blocks, int threads, cudaStream_t stream, Work body) {
  enqueue(stream, [=] {
    gridDim = {static_cast<unsigned>(blocks), 1, 1};
    blockDim = {static_cast<unsigned>(threads), 1, 1};
    for (int64_t k = 0; k < blocks; ++k) {
      // Blocks may run in any order, too.
      const int64_t block = k % 2 == 0 ? k / 2 : blocks - 1 - k / 2;
      blockIdx = {static_cast<unsigned>(block), 0, 0};
      run_block(threads, static_cast<unsigned>(block), body);
    }
  });
}

void expect_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 == 0) return;
  std::fprintf(stderr, "emulated GPU: a vector access at %p, which is not aligned to 16 bytes\n",
               p);
  std::abort();
}

void fail_next_call(cudaError_t error) {
  const std::lock_guard lock(mutex);
  next_error = error;
}

}  // namespace convoy::emulated_gpu

using namespace convoy::emulated_gpu;

extern "C" {

// ---- Devices.

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = size_t{8} << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  std::strncpy(id, "0000:00:00.0", static_cast<size_t>(length));
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  run_everything();
  return take_error();
}

// ---- Errors.

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() {
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an emulated error";
}

// ---- Memory.

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* all_bytes) {
  *free_bytes = size_t{4} << 30;
  *all_bytes = size_t{8} << 30;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** out, size_t bytes) {
  const std::lock_guard lock(mutex);
  if (bytes > size_t{8} << 30) return cudaErrorMemoryAllocation;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t rounded = (bytes + page - 1) / page * page;
  void* memory = mmap(nullptr, rounded, open_count > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
  allocations()[static_cast<char*>(memory)] = rounded;
  {
    const OpenMemory open;
    std::memset(memory, 0xcd, rounded);
  }
  *out = memory;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  const std::lock_guard lock(mutex);
  run_everything();
  const auto found = allocations().find(static_cast<char*>(memory));
  if (found == allocations().end()) return cudaErrorInvalidValue;
  munmap(memory, found->second);
  allocations().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  *out = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
  const std::lock_guard lock(mutex);
  run_everything();
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void*, size_t, unsigned) {
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void*) {
  const std::lock_guard lock(mutex);
  run_everything();
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  put(of(stream), [=] { std::memmove(to, from, bytes); });
  return take_error();
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  put(of(stream), [=] { std::memset(to, value, bytes); });
  return take_error();
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

// ---- Streams and events.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned, int) {
  const std::lock_guard lock(mutex);
  auto* stream = new Stream;
  streams().push_back(stream);
  *out = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  run_everything();
  std::erase(streams(), &of(stream));
  static std::vector<std::unique_ptr<Stream>> gone;  // events may still name it
  gone.emplace_back(&of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (of(stream).capture) return cudaErrorStreamCaptureUnsupported;
  run_all(of(stream));
  return take_error();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);  // nothing else would ever run it
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
  *out = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* out) {
  return cudaEventCreateWithFlags(out, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  run_everything();
  delete &of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  of(event) = {.stream = &of(stream), .after = of(stream).enqueued, .capture = of(stream).capture};
  return take_error();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  const Event now = of(event);
  if (!now.stream) return take_error();
  if (now.capture) {
    Stream& joining = of(stream);
    if (!joining.capture) now.capture->joined.push_back(&joining);
    joining.capture = now.capture;
    return take_error();
  }
  put(of(stream), [now] { run_until(*now.stream, now.after); });
  return take_error();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  const Event now = of(event);
  if (now.capture) return cudaErrorStreamCaptureUnsupported;
  if (now.stream) run_until(*now.stream, now.after);
  return take_error();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return cudaEventSynchronize(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

// ---- Graphs: the captured work in the order of the host's calls.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  if (of(stream).capture) return cudaErrorIllegalState;
  auto* graph = new Graph;
  graph->origin = &of(stream);
  of(stream).capture = graph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* out) {
  const std::lock_guard lock(mutex);
  Graph* graph = std::exchange(of(stream).capture, nullptr);
  if (!graph || graph->origin != &of(stream)) return cudaErrorIllegalState;
  for (Stream* joined : graph->joined) joined->capture = nullptr;
  *out = reinterpret_cast<cudaGraph_t>(graph);
  return take_error();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  *out = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  for (const Work& work : reinterpret_cast<Graph*>(graph)->work) put(of(stream), work);
  return take_error();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

}  // extern "C"
