#include "ops/image_input.h"

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

}  // namespace convoy::ops
