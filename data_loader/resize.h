// Crop, resize and flip in one go: from the pixels of an image to the network's input. Resampling
// is Pillow's antialiased BILINEAR (src/libImaging/Resample.c: triangle filter, 22-bit fixed point,
// horizontal pass first, rounded to 8 bits between the passes), bit for bit, whatever the
// instruction set. Pillow 13 takes the vertical pass of some shapes first: there up to 1 of 255 is
// between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "data_loader/resize_kernels.h"
#include "ops/core/tensor.h"

namespace convoy::data {

// One axis of a geometry. The filter sees the image's pixels [low, high) only. In coordinates where
// pixel low + i covers [i, i + 1), the centre of output pixel o lies at
// origin + (first + o + 0.5) * scale: Pillow's own arithmetic, so that the weights have Pillow's
// bits.
struct AxisMap {
  int low = 0, high = 0;
  double origin = 0;
  double scale = 1;
  int first = 0;
  int count = 0;  // output pixels

  // Pixels are copied, not resampled: output pixel o is pixel low + first + o.
  bool is_copy() const { return scale == 1.0 && origin == 0.0; }
  bool operator==(const AxisMap&) const = default;
};

// What to do with one image. Where both axes are copies, pixels outside the image are zero.
struct Geometry {
  AxisMap x, y;
  bool flip = false;
  // A decoder may shrink the image by 1/2, 1/4 or 1/8 first where the filter would shrink it at
  // least as much: training only. Evaluation decodes every pixel, as torchvision does.
  bool may_shrink = false;
};

// A rectangle of pixels of an image, in image coordinates.
struct Region {
  int x = 0, y = 0, width = 0, height = 0;
  bool operator==(const Region&) const = default;
};

// The pixels of the image that the geometry reads.
Region source_region(const Geometry& geometry);

// 1, 2, 4 or 8: by how much a decoder may shrink the image first.
int shrink_denominator(const Geometry& geometry);
// The same geometry on the image shrunk to 1/denominator (sizes rounded up, as libjpeg does).
Geometry shrink(const Geometry& geometry, int denominator);

// Borrowed pixels: `region` of an image, rows `stride` bytes apart, `channels` bytes per pixel.
struct PixelView {
  const uint8_t* data = nullptr;
  Region region;
  int channels = 0;
  size_t stride = 0;
};

// Working memory of apply(), one per thread. It keeps the filters of the last image for the next
// one, which may have the same geometry.
struct ResizeScratch {
  struct Axis {
    AxisMap map;
    bool flip = false;
    int taps = 0;                     // even
    std::vector<int32_t> first, end;  // per output pixel, from map.low on
    std::vector<int32_t> weights;     // [count, taps]
  };
  Axis x, y;
  std::vector<double> sums;

  // The horizontal pass, for pixels that begin `start` columns right of x.map.low.
  RowFilter row_filter;
  int start = 0;
  const ResizeKernels* kernels = nullptr;
  std::vector<int32_t> starts, offsets;
  AlignedBuffer table;

  AlignedBuffer ring;                  // pairs of rows after the horizontal pass
  std::vector<const uint32_t*> pairs;  // those that one output row needs
  std::vector<int32_t> weights;        // theirs
  std::vector<uint8_t> last_rows;      // copies of rows behind which nothing may be read
};

// out [y.count, x.count, channels]. `pixels` covers source_region().
void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels, ResizeScratch& scratch);
// With the kernels of one instruction set: for tests.
void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels, ResizeScratch& scratch,
           const ResizeKernels& kernels);

}  // namespace convoy::data
