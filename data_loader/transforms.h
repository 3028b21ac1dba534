// Where to crop an image, and to what size. Pure functions; randomness comes from (seed, epoch,
// sample) alone.
#pragma once

#include <cstdint>
#include <string>

#include "data_loader/dataset.h"
#include "data_loader/resize.h"

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
  // Colour, drawn per sample and applied to its bytes after the resize (colour.h). 0: off.
  double pca_jitter = 0;  // AlexNet's: standard deviation of the shares of ImageNet's colour axes
  double brightness = 0, contrast = 0, saturation = 0;  // torchvision's ColorJitter
  double hue = 0;                                       // its share of the circle, at most 0.5

  bool changes_colour() const {
    return pca_jitter != 0 || brightness != 0 || contrast != 0 || saturation != 0 || hue != 0;
  }
};

// Checks a transform against itself and against the dataset. Returns the shape of its output
// (encoded images have 3 channels). Throws Error: kBadJob for contradictions within the transform,
// kBadData where a crop is larger than the dataset's raw images.
ImageShape output_shape(const TrainTransform& transform, const Dataset& dataset);
ImageShape output_shape(const EvalTransform& transform, const Dataset& dataset);

// For an image of the given size; `name` is for the message. Throws Error (kBadData) where the crop
// is larger than the image.
Geometry train_geometry(const TrainTransform& transform, ImageShape image, ImageShape output,
                        uint64_t seed, uint64_t epoch, uint64_t sample, const std::string& name);
Geometry eval_geometry(const EvalTransform& transform, ImageShape image, ImageShape output,
                       const std::string& name);

// Ten looks at an image (Krizhevsky et al. 2012, section 4.1): the four corners and the centre of
// its central square, 0 to 4 (top left, top right, bottom left, bottom right, centre), and their
// mirror images, 5 to 9. The square has `transform.resize` pixels a side, as in the paper; without
// a resize the corners are the whole image's. Throws as eval_geometry().
constexpr int kCropLooks = 10;
Geometry ten_crop_geometry(const EvalTransform& transform, int crop, ImageShape image,
                           ImageShape output, const std::string& name);

// Dense evaluation: the shorter side is resized to `scale`, and of the longer one the centre is
// kept: the next smaller multiple of kDenseMultiple pixels, at most twice the scale. So images come
// in few shapes, each of which needs a network of its own, and most lose less than a twentieth.
constexpr int kDenseMultiple = 32;
ImageShape dense_shape(ImageShape image, int scale);
Geometry dense_geometry(ImageShape image, int scale);

}  // namespace convoy::data
