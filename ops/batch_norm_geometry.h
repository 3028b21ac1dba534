// How the CUDA kernels of batch norm share a tensor of `rows` rows of c channels: a function of its
// shape alone, since sums follow it and bits must not depend on the GPU (law 1).
//
// A thread takes a group of 8 channels (one access of 16 bytes in a 16-bit type) in up to 64 rows.
// A block is `groups` such threads side by side, so that they read up to 256 bytes in a row, times
// `lanes` rows. Blocks are `tiles` side by side, to reach all channels, times `chunks` of
// rows_per_block rows: block b is tile b % tiles of chunk b / tiles.
#pragma once

#include <algorithm>
#include <cstdint>

namespace convoy::ops {

struct BatchNormGeometry {
  static constexpr int kThreads = 256;    // of a block; the last kThreads - groups * lanes idle
  static constexpr int kMostGroups = 16;  // wider blocks have fewer lanes and more partial sums
  static constexpr int64_t kBlocks = 132 * 8;  // an SM of an H200 has 8, of which it runs 2 to 4
  // Of a thread, a multiple of kLeastRows, the most that a pass loads at once: fewer would not pay
  // for the sums of a block, more would round them more.
  static constexpr int64_t kLeastRows = 4, kMostRows = 64;

  int64_t rows, c;
  int groups, lanes, tiles;
  int64_t chunks, rows_per_block;

  int64_t blocks() const { return tiles * chunks; }
};

inline BatchNormGeometry batch_norm_geometry(int64_t rows, int64_t c) {
  using Geometry = BatchNormGeometry;
  Geometry g = {.rows = rows, .c = c};
  const auto all_groups = static_cast<int>((c + 7) / 8);
  g.tiles = (all_groups + Geometry::kMostGroups - 1) / Geometry::kMostGroups;
  g.groups = (all_groups + g.tiles - 1) / g.tiles;
  g.lanes = Geometry::kThreads / g.groups;
  const int64_t rows_per_thread = std::clamp(rows * g.tiles / (g.lanes * Geometry::kBlocks),
                                             Geometry::kLeastRows, Geometry::kMostRows) /
                                  Geometry::kLeastRows * Geometry::kLeastRows;
  g.rows_per_block = g.lanes * rows_per_thread;
  g.chunks = (rows + g.rows_per_block - 1) / g.rows_per_block;
  return g;
}

}  // namespace convoy::ops
