// 3x3 convolutions that Winograd's kernels compute in fewer products than oneDNN's direct ones.
#pragma once

#include <memory>

#include "ops/conv2d.h"
#include "ops/winograd_kernels.h"

namespace convoy::ops {

// 3x3, stride 1, padding 1, no groups, channels in multiples of 16.
inline bool winograd_computes(const Conv2d& spec, int64_t in_channels) {
  return spec.kernel == 3 && spec.stride == 1 && spec.padding == 1 && spec.groups == 1 &&
         in_channels % kWinogradChannels == 0 && spec.out_channels % kWinogradChannels == 0;
}

// Of these, in fp32 and in bf16 without AMX, where the image fills the 4x4 tiles well enough: a
// function of the shape and of the instruction set alone.
bool winograd_wins(const Conv2d& spec, const OpConfig& config);

// Rows and columns of the tiles of y: of forward and dx, and of dw.
enum class WinogradTile { k4x4, k7x4, k7x7 };
struct WinogradTiles {
  WinogradTile forward = WinogradTile::k4x4, gradient = WinogradTile::k4x4;
};
// In fp32 4x4, the most accurate; in bf16 those that take the least time, but for dw, which stays
// fp32, 7x4 at most. An image of one 7x7 tile has no use for its large weights: with 512 channels
// they would take more time to pack and to read than they save.
WinogradTiles winograd_tiles(DType type, const Shape& x);

// For convolutions of which winograd_wins().
std::unique_ptr<Op> make_winograd_op(int threads, const Conv2d& spec, const OpConfig& config);

}  // namespace convoy::ops
