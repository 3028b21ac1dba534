// From an image to the network's input pixels: where to crop, and one pass of crop, resize and
// flip. Pure functions; randomness comes from (seed, epoch, sample) alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

enum class Crop {
  kRandomResized,  // torchvision's RandomResizedCrop
  kScaleAndCrop,   // shorter side drawn from [scale_min, scale_max], then a random crop (He et al.
                   // 2015)
  kPadAndCrop,     // zero padding on each side, then a random crop (CIFAR)
  kCenter,         // as in evaluation: no randomness, no flip
};

struct EvalTransform {
  int resize = 256;  // shorter side in pixels before the centre crop; 0: no resize
  int size = 224;    // output height and width; 0: the dataset's own (raw pixels only)
};

struct TrainTransform {
  Crop crop = Crop::kRandomResized;
  int size = 224;  // output height and width; 0: the dataset's own (raw pixels only)
  double area_min = 0.08, area_max = 1.0;               // kRandomResized: share of the area
  double ratio_min = 3.0 / 4.0, ratio_max = 4.0 / 3.0;  // kRandomResized: width / height
  int scale_min = 256, scale_max = 480;                 // kScaleAndCrop: pixels of the shorter side
  int pad = 4;                                          // kPadAndCrop: pixels on each side
  int resize = 256;                                     // kCenter: EvalTransform::resize
  bool flip = true;
};

// Checks a transform against itself and against the dataset. Returns the shape of its output
// (encoded images have 3 channels). Throws Error: kBadJob for contradictions within the transform,
// kBadData where a crop is larger than the dataset's raw images.
ImageShape output_shape(const TrainTransform& transform, const Dataset& dataset);
ImageShape output_shape(const EvalTransform& transform, const Dataset& dataset);

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
};

// What to do with one image. Where both axes are copies, pixels outside the image are zero.
struct Geometry {
  AxisMap x, y;
  bool flip = false;
  // A decoder may shrink the image by 1/2, 1/4 or 1/8 first where the filter would shrink it at
  // least as much: training only. Evaluation decodes every pixel, as torchvision does.
  bool may_shrink = false;
};

// For an image of the given size; `name` is for the message. Throws Error (kBadData) where the crop
// is larger than the image.
Geometry train_geometry(const TrainTransform& transform, ImageShape image, ImageShape output,
                        uint64_t seed, uint64_t epoch, uint64_t sample, const std::string& name);
Geometry eval_geometry(const EvalTransform& transform, ImageShape image, ImageShape output,
                       const std::string& name);

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

// Working memory of apply(), one per thread.
struct ResizeScratch {
  struct Taps {
    std::vector<int> first, count;  // per output pixel: first source pixel, number of taps
    std::vector<int32_t> weights;   // per output pixel: `width` weights in fixed point
    size_t width = 0;
  };
  Taps x, y;
  std::vector<uint8_t> rows;  // after the horizontal pass
  std::vector<int32_t> sums;  // of one row
};

// out [y.count, x.count, channels]. `pixels` covers source_region(). Resampling is Pillow's
// antialiased BILINEAR (triangle filter, 22-bit fixed point, horizontal pass first, rounded to 8
// bits between the passes).
void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels, ResizeScratch& scratch);

}  // namespace convoy::data
