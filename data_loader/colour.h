// Changes of an image's colours in training, on bytes: AlexNet's PCA jitter and torchvision's
// ColorJitter. Every operation rounds to the nearest byte (torchvision cuts its bytes off, which
// darkens them by half a level per operation) and clamps to 0 ... 255. The same bits on every
// instruction set.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "data_loader/colour_kernels.h"
#include "data_loader/transforms.h"

namespace convoy::data {

enum class ColourOp {
  kBrightness,  // f x
  kContrast,    // f x + (1 - f) mean of the image's grey
  kSaturation,  // f x + (1 - f) the pixel's grey; grey = 0.2989 R + 0.587 G + 0.114 B
  kHue,         // the hue of HSV turned by f of a full circle
};

struct ColourChange {
  struct Step {
    ColourOp op;
    double f;
  };
  std::array<Step, 4> steps{};  // the first `count`, one after the other
  size_t count = 0;
  std::array<int, 3> add{};  // then to R, G and B: PCA jitter
};

// What the transform draws for a sample. Each operation's amount is the same whichever others are
// on, and so is the order of those that are.
ColourChange train_colour(const TrainTransform& transform, uint64_t seed, uint64_t epoch,
                          uint64_t sample);

// PCA jitter's addition to R, G and B for the three shares alpha: Krizhevsky, Sutskever and Hinton,
// "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 4.1.
std::array<int, 3> pca_addition(const std::array<double, 3>& alpha);

// pixels [height, width, channels]; channels 1 or 3, with 1 brightness and contrast only.
void change_colour(uint8_t* pixels, ImageShape shape, const ColourChange& change);
// With the kernels of one instruction set: for tests.
void change_colour(uint8_t* pixels, ImageShape shape, const ColourChange& change,
                   const ColourKernels& kernels);

}  // namespace convoy::data
