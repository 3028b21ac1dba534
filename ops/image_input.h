// The network's first step: uint8 pixels to normalised activations, x = (pixel - mean) * inv_std
// for each place (h, w, c) of the image. Not a node of a graph: it has no backward.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/batch_mix.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

struct ImageInput {
  Shape shape;                 // of the batch, NHWC
  std::vector<float> mean;     // [H * W * C], in units of 0..255
  std::vector<float> inv_std;  // [H * W * C], 1 / (units of 0..255)
  bool four_channels = false;  // of x in memory (Device::wants_four_channels)
};

// Of an image in memory where its convolution would have it so: zeros behind those that it has.
inline constexpr int64_t kFourChannels = 4;
Shape with_four_channels(Shape image);
// An image of that shape from one of shape `image`, on the host; elements of so many bytes.
void pad_to_four_channels(const Shape& image, const void* x, void* out, size_t element_bytes);

// On a device, for one element type; made by Device::make_input.
class ImageInputOp {
 public:
  virtual ~ImageInputOp() = default;
  // pixels: uint8 [N, H, W, C] in host memory, which stays as it is until Device::inputs_read(). A
  // GPU copies them while it works on what was run before.
  virtual void send(const uint8_t* pixels) = 0;
  // x from the pixels that were sent last.
  virtual void run(void* x, const BatchMix& mix) = 0;
};

// Means and standard deviations per channel in units of [0, 1], as torchvision writes them.
ImageInput per_channel_input(const Shape& shape, const std::vector<double>& mean,
                             const std::vector<double>& std);

}  // namespace convoy::ops
