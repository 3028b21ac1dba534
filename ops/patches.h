// An image as the convolution that reads it wants it: not pixels but windows, C R S values each, in
// the order of its weights (im2col; Chellapilla et al. 2006). Tensor cores take channels of one
// place in eights, in gradients of weights 64 at a time, and an image has three; of its windows the
// convolution is a 1x1 one of 147 channels, for 7x7. It costs memory: 13 times the pixels then.
#pragma once

#include "ops/conv2d.h"

namespace convoy::ops {

struct Patches {
  Shape image;  // [N,C,H,W]
  int64_t kernel = 1, stride = 1, padding = 0;

  int64_t values() const { return image.c * kernel * kernel; }  // of a window
  // In NHWC memory: [N,P,Q,values], zero where a window reaches over the edge, and zeros behind the
  // values up to a multiple of eight.
  Shape shape() const;
  Shape unpadded_shape() const;  // without those zeros
  bool operator==(const Patches&) const = default;
};

Patches patches_of(const Conv2d& reader, const Shape& image);
// What reads patches where `reader` reads the image, with the same parameters.
Conv2d over_patches(Conv2d reader);

// Patches of an image in NHWC memory, on the host; elements of so many bytes.
void gather_patches(const Patches& patches, const void* image, void* out, size_t element_bytes);

}  // namespace convoy::ops
