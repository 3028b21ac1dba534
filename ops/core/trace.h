// Named stretches of a thread's time for a profiler: `nsys profile --trace cuda,nvtx` shows them in
// the domain "Convoy" (NVTX 3). Where no profiler listens they cost nanoseconds; in a build without
// CUDA nothing.
#pragma once

namespace convoy {

// From here to the end of its scope, nested in those of the same thread.
class TraceRange {
 public:
  explicit TraceRange(const char* name);
  ~TraceRange();  // NOLINT(performance-trivially-destructible): with CUDA it is not
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;
};

}  // namespace convoy
