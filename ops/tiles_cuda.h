// How a filter is turned round on CUDA, from [channels, area] to [area, channels] or back: a block
// of threads takes some of its channels through shared memory, so that it reads and writes memory
// in its order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/core/cuda_kernel.h"

namespace convoy::ops {

// Elements of shared memory, a multiple of a block's threads: 256 channels of 3x3.
inline constexpr int kFilterTile = 2304;
inline constexpr int kOfATile = kFilterTile / cuda::kThreads;  // elements of a thread
static_assert(kFilterTile % cuda::kThreads == 0);

// Channels of a block; 1 where a filter's area is larger than a tile.
inline int64_t filter_tile_channels(int64_t channels, int64_t area) {
  return std::clamp<int64_t>(kFilterTile / area, 1, channels);
}
inline int64_t filter_tiles(int64_t channels, int64_t area) {
  const int64_t tile = filter_tile_channels(channels, area);
  return (channels + tile - 1) / tile;
}

}  // namespace convoy::ops
