#include "ops/image_input.h"

#include <cstring>

#include "ops/shape_checks.h"

namespace convoy::ops {

ImageInput per_channel_input(const Shape& shape, const std::vector<double>& mean,
                             const std::vector<double>& std) {
  const auto channels = static_cast<size_t>(shape.c);
  expect(mean.size() == channels && std.size() == channels,
         "{} means and {} standard deviations for images of {} channels", mean.size(), std.size(),
         shape.c);
  ImageInput input{.shape = shape, .mean = {}, .inv_std = {}};
  const auto plane = static_cast<size_t>(shape.h * shape.w * shape.c);
  for (size_t i = 0; i < plane; ++i) {
    input.mean.push_back(static_cast<float>(mean[i % channels] * 255.0));
    input.inv_std.push_back(static_cast<float>(1.0 / (std[i % channels] * 255.0)));
  }
  return input;
}

Shape with_four_channels(Shape image) {
  image.c = kFourChannels;
  return image;
}

void pad_to_four_channels(const Shape& image, const void* x, void* out, size_t element_bytes) {
  const size_t bytes = static_cast<size_t>(image.c) * element_bytes;
  const auto* from = static_cast<const char*>(x);
  auto* to = static_cast<char*>(out);
  for (int64_t i = 0; i < image.rows(); ++i, from += bytes) {
    std::memcpy(to, from, bytes);
    std::memset(to + bytes, 0, kFourChannels * element_bytes - bytes);
    to += kFourChannels * element_bytes;
  }
}

}  // namespace convoy::ops
