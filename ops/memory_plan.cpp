#include "ops/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "ops/core/cache_line.h"

namespace convoy::ops {

MemoryPlan plan_memory(const std::vector<Lifetime>& buffers) {
  MemoryPlan plan;
  plan.offsets.assign(buffers.size(), 0);
  const auto rounded = [&](size_t i) { return round_up(buffers[i].bytes, kCacheLineBytes); };

  std::vector<size_t> by_size(buffers.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });

  std::vector<size_t> placed;  // sorted by offset
  for (const size_t i : by_size) {
    const size_t bytes = rounded(i);
    plan.naive_bytes += bytes;
    if (bytes == 0) continue;
    size_t offset = 0;
    for (const size_t other : placed) {
      const bool together =
          buffers[other].first <= buffers[i].last && buffers[i].first <= buffers[other].last;
      if (!together) continue;
      if (offset + bytes <= plan.offsets[other]) break;
      offset = std::max(offset, plan.offsets[other] + rounded(other));
    }
    plan.offsets[i] = offset;
    plan.bytes = std::max(plan.bytes, offset + bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [&](size_t value, size_t j) { return value < plan.offsets[j]; }),
                  i);
  }
  return plan;
}

}  // namespace convoy::ops
