// The CUDA runtime's calls that we use, on the host: streams are queues, device memory is memory
// that only running work may touch.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/emulated_gpu/emulated_gpu.h"
#include "tests/support/emulated_gpu/threads.h"

namespace convoy::emulated_gpu {
namespace {

using Work = std::function<bool()>;  // true: done; false: blocked, to be called again

// One lock for all: calls come from few threads. Recursive, because work runs under it.
std::recursive_mutex mutex;
cudaError_t next_error = cudaSuccess;
double clock_ms = 0;  // spend()

struct Graph;

struct Stream {
  std::deque<Work> queue;
  uint64_t done = 0;  // work that has left the queue
  uint64_t enqueued = 0;
  uint64_t polled = 0;       // up to here there is work that may block
  Graph* capture = nullptr;  // the graph that takes the work instead
  uint64_t captured = 0;     // work that a graph has taken from here, and of that
  uint64_t joined = 0;       // what the stream that is captured waits for
};

struct Event {
  Stream* stream = nullptr;      // null: never recorded
  uint64_t after = 0;            // work of that stream, of what it enqueued or a graph took
  Graph* capture = nullptr;      // recorded while capturing
  std::shared_ptr<double> time;  // of events that have one: when it happened
};

struct Item {
  Work work;
  bool polled = false;
};

struct Graph {
  std::vector<Item> work;  // in the order in which it runs
  Stream* origin = nullptr;
  std::map<Stream*, std::deque<Item>> aside;  // of other streams, until the origin waits for it
  std::vector<Stream*> joined;                // streams that wait for captured events
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

// ---- Host memory that a GPU reads at once.

struct Pinned {
  size_t bytes = 0;
  std::shared_ptr<int> reads = std::make_shared<int>(0);  // enqueued
};
std::map<const char*, Pinned>& pinned() {
  static std::map<const char*, Pinned> all;
  return all;
}
// Null: it is not pinned, or not all of it.
const Pinned* find_pinned(const void* from, size_t bytes) {
  const auto* begin = static_cast<const char*>(from);
  const auto behind = pinned().upper_bound(begin);
  if (behind == pinned().begin()) return nullptr;
  const auto& [memory, range] = *std::prev(behind);
  return begin + bytes <= memory + range.bytes ? &range : nullptr;
}
// Every upload's bytes, and whether they lay in pinned memory, for tests that ask.
void note_upload(bool is_pinned, size_t bytes) {
  if (const char* path = std::getenv("CONVOY_EMULATED_GPU_UPLOADS"))
    std::ofstream(path, std::ios::app) << (is_pinned ? "pinned " : "pageable ") << bytes << "\n";
}

// ---- Running.

// Runs the work of a stream up to number `count` of what was ever enqueued there; false where it is
// blocked before.
bool try_run(Stream& stream, uint64_t count) {
  if (stream.done >= count) return true;
  const OpenMemory open;
  for (; stream.done < count && !stream.queue.empty(); ++stream.done) {
    if (!stream.queue.front()()) return false;
    stream.queue.pop_front();
  }
  return true;
}

// Until `run` says true; whoever else wants something has his turn between.
template <typename Run>
void finish(std::unique_lock<std::recursive_mutex>& lock, Run run) {
  while (!run()) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    lock.lock();
  }
}
void run_everything(std::unique_lock<std::recursive_mutex>& lock) {
  finish(lock, [] {
    bool done = true;
    for (Stream* stream : streams()) done = try_run(*stream, stream->enqueued) && done;
    return done;
  });
}

// Work that waits for other processes goes on by itself, as on a real GPU: a peer may wait for it
// while the host here does something else.
class Progress {
 public:
  ~Progress() { thread_.request_stop(); }

 private:
  static void run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      {
        const std::lock_guard lock(mutex);
        for (Stream* stream : streams()) try_run(*stream, stream->polled);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  std::jthread thread_{run};
};

void put(Stream& stream, Work work, bool polled = false) {
  if (stream.capture) {
    Graph& graph = *stream.capture;
    if (graph.origin == &stream)
      graph.work.push_back({std::move(work), polled});
    else
      graph.aside[&stream].push_back({std::move(work), polled});
    ++stream.captured;
    return;
  }
  stream.queue.push_back(std::move(work));
  ++stream.enqueued;
  if (polled) stream.polled = stream.enqueued;
}
bool is_capturing() {
  return std::ranges::any_of(streams(), [](const Stream* stream) { return stream->capture; });
}
// Work that is done when it returns.
Work once(std::function<void()> work) {
  return [work = std::move(work)] {
    work();
    return true;
  };
}

cudaError_t take_error() {
  return std::exchange(next_error, cudaSuccess);
}

}  // namespace

void enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(mutex);
  put(of(stream), once(std::move(work)));
}

void enqueue_polled(cudaStream_t stream, std::function<bool()> work) {
  streams();  // outlives the thread
  allocations();
  static Progress progress;
  const std::lock_guard lock(mutex);
  put(of(stream), std::move(work), true);
}

namespace {

// Of the block that runs, between margins that nobody may touch.
constexpr size_t kMostShared = 227 << 10, kMargin = 1024;
constexpr char kUntouched = -1;  // not a number, in any type
thread_local std::vector<char> shared_memory;

void expect_within(size_t bytes) {
  const auto is_margin = [](const char* begin) {
    return std::all_of(begin, begin + kMargin, [](char c) { return c == kUntouched; });
  };
  if (bytes <= kMostShared && is_margin(shared_memory.data()) &&
      is_margin(dynamic_shared() + bytes))
    return;
  std::fprintf(stderr, "emulated GPU: a block shares %zu bytes and needs more, or a GPU has less\n",
               bytes);
  std::abort();
}

}  // namespace

char* dynamic_shared() {
  return shared_memory.data() + kMargin;
}

void launch(int64_t blocks, int threads, size_t bytes, cudaStream_t stream,
            std::function<void()> body) {
  enqueue(stream, [=] {
    gridDim = {static_cast<unsigned>(blocks), 1, 1};
    blockDim = {static_cast<unsigned>(threads), 1, 1};
    for (int64_t k = 0; k < blocks; ++k) {
      // Blocks may run in any order, too.
      const int64_t block = k % 2 == 0 ? k / 2 : blocks - 1 - k / 2;
      blockIdx = {static_cast<unsigned>(block), 0, 0};
      shared_memory.assign(bytes > 0 ? bytes + 2 * kMargin : 0, kUntouched);
      run_block(threads, static_cast<unsigned>(block), body);
      if (bytes > 0) expect_within(bytes);
    }
  });
}

void expect_aligned(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  std::fprintf(stderr, "emulated GPU: a vector access at %p, which is not aligned to %zu bytes\n",
               p, bytes);
  std::abort();
}

void spend(double milliseconds) {
  const std::lock_guard lock(mutex);
  clock_ms += milliseconds;
}

void fail_next_call(cudaError_t error) {
  const std::lock_guard lock(mutex);
  next_error = error;
}
bool fails_next_call() {
  const std::lock_guard lock(mutex);
  return next_error != cudaSuccess;
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
  // Every process has a GPU of its own, unless it is told that all share one.
  const bool shared = std::getenv("CONVOY_EMULATED_GPU_SHARED") != nullptr;
  std::snprintf(id, static_cast<size_t>(length), "%08x:00:00.0",
                shared ? 0u : static_cast<unsigned>(getpid()));
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
  std::unique_lock lock(mutex);
  run_everything(lock);
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
  if (is_capturing()) return cudaErrorStreamCaptureUnsupported;
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
  std::unique_lock lock(mutex);
  if (is_capturing()) return cudaErrorStreamCaptureUnsupported;
  run_everything(lock);
  const auto found = allocations().find(static_cast<char*>(memory));
  if (found == allocations().end()) return cudaErrorInvalidValue;
  munmap(memory, found->second);
  allocations().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** out, size_t bytes) {
  *out = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*out) return cudaErrorMemoryAllocation;
  const std::lock_guard lock(mutex);
  pinned()[static_cast<const char*>(*out)] = {.bytes = bytes};
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::unique_lock lock(mutex);
  run_everything(lock);
  pinned().erase(static_cast<const char*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  const std::lock_guard lock(mutex);
  if (next_error != cudaSuccess) return take_error();
  if (!pinned().emplace(static_cast<const char*>(memory), Pinned{.bytes = bytes}).second)
    return cudaErrorHostMemoryAlreadyRegistered;
  return cudaSuccess;
}
// It does not wait for those who read.
cudaError_t cudaHostUnregister(void* memory) {
  const std::lock_guard lock(mutex);
  const auto found = pinned().find(static_cast<const char*>(memory));
  if (found == pinned().end()) return cudaErrorHostMemoryNotRegistered;
  if (*found->second.reads > 0) {
    std::fprintf(stderr, "emulated GPU: memory at %p is unpinned while it is read\n", memory);
    std::abort();
  }
  pinned().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  std::shared_ptr<int> reads;
  if (kind == cudaMemcpyHostToDevice) {
    const Pinned* range = find_pinned(from, bytes);
    note_upload(range != nullptr, bytes);
    if (range) ++*(reads = range->reads);
  }
  put(of(stream), once([=] {
        std::memmove(to, from, bytes);
        if (reads) --*reads;
      }));
  return take_error();
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  put(of(stream), once([=] { std::memset(to, value, bytes); }));
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
cudaError_t cudaStreamGetDevice(cudaStream_t, int* device) {
  return cudaGetDevice(device);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::unique_lock lock(mutex);
  run_everything(lock);
  std::erase(streams(), &of(stream));
  static std::vector<std::unique_ptr<Stream>> gone;  // events may still name it
  gone.emplace_back(&of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  std::unique_lock lock(mutex);
  Stream& waited = of(stream);
  if (waited.capture) return cudaErrorStreamCaptureUnsupported;
  finish(lock, [&, count = waited.enqueued] { return try_run(waited, count); });
  return take_error();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  if (of(stream).capture) return cudaErrorStreamCaptureUnsupported;
  // Nothing else would ever run it.
  return try_run(of(stream), of(stream).enqueued) ? take_error() : cudaErrorNotReady;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  auto* event = new Event;
  if ((flags & cudaEventDisableTiming) == 0) event->time = std::make_shared<double>();
  *out = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* out) {
  return cudaEventCreateWithFlags(out, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::unique_lock lock(mutex);
  run_everything(lock);
  delete &of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const std::shared_ptr<double> time = of(event).time;
  // No two at the same time.
  if (time) put(of(stream), once([time] { *time = clock_ms += 1e-3; }));
  of(event) = {.stream = &of(stream),
               .after = of(stream).capture ? of(stream).captured : of(stream).enqueued,
               .capture = of(stream).capture,
               .time = time};
  return take_error();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  const Event now = of(event);
  if (!now.stream) return take_error();
  if (of(stream).capture && !now.capture) return cudaErrorStreamCaptureIsolation;
  if (now.capture) {
    Stream& joining = of(stream);
    if (!joining.capture) now.capture->joined.push_back(&joining);
    joining.capture = now.capture;
    // Work of other streams runs as late as it may.
    if (&joining == now.capture->origin)
      for (std::deque<Item>& items = now.capture->aside[now.stream];
           now.stream->joined < now.after && !items.empty(); ++now.stream->joined) {
        now.capture->work.push_back(std::move(items.front()));
        items.pop_front();
      }
    return take_error();
  }
  // What waits for work that may block may block itself, but only that goes on by itself.
  put(of(stream), [now] { return try_run(*now.stream, now.after); });
  return take_error();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::unique_lock lock(mutex);
  const Event now = of(event);
  if (now.capture) return cudaErrorStreamCaptureUnsupported;
  if (now.stream) finish(lock, [&] { return try_run(*now.stream, now.after); });
  return take_error();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  const Event now = of(event);
  if (now.capture) return cudaErrorStreamCaptureUnsupported;
  if (!now.stream || try_run(*now.stream, now.after)) return take_error();
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::lock_guard lock(mutex);
  if (!of(begin).time || !of(end).time) return cudaErrorInvalidResourceHandle;
  *milliseconds = static_cast<float>(*of(end).time - *of(begin).time);
  return cudaSuccess;
}

// ---- Graphs: the captured work of the origin in the order of the host's calls.

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
  bool all_joined = true;
  for (Stream* joined : graph->joined) {
    joined->capture = nullptr;
    all_joined = all_joined && graph->aside[joined].empty();
    joined->joined = joined->captured;
  }
  if (!all_joined) {
    delete graph;
    return cudaErrorStreamCaptureUnjoined;
  }
  *out = reinterpret_cast<cudaGraph_t>(graph);
  return take_error();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  if (std::getenv("CONVOY_EMULATED_GPU_NO_GRAPHS")) return cudaErrorNotSupported;
  *out = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  for (const Item& item : reinterpret_cast<Graph*>(graph)->work)
    put(of(stream), item.work, item.polled);
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
