// A CPU's cache lines: what begins on one is not shared with what another thread writes.
#pragma once

#include <cstddef>

namespace convoy {

inline constexpr size_t kCacheLineBytes = 64;
inline constexpr size_t kCacheLineFloats = kCacheLineBytes / sizeof(float);

constexpr size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace convoy
