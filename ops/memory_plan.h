// Lays buffers out in one arena by their lifetimes: two that are never alive together may share
// bytes.
#pragma once

#include <cstddef>
#include <vector>

namespace convoy::ops {

struct Lifetime {
  size_t bytes = 0;
  int first = 0, last = 0;  // moments, both included
};

struct MemoryPlan {
  std::vector<size_t> offsets;  // of each buffer; each begins a cache line
  size_t bytes = 0;             // of the arena
  size_t naive_bytes = 0;       // had every buffer its own place
};

// Largest first, each at the lowest place that is free during its life. A pure function.
MemoryPlan plan_memory(const std::vector<Lifetime>& buffers);

}  // namespace convoy::ops
