#include "data_loader/transforms.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::data {
namespace {

ImageShape sized(int size, const Dataset& dataset, const char* field) {
  const std::optional<ImageShape> raw = dataset.raw_shape();
  constexpr int kMaxSize = 16384;
  if (size < 0 || size > kMaxSize)
    fail(ExitCode::kBadJob, "{}: {} is outside 0 ... {}", field, size, kMaxSize);
  if (size == 0 && !raw)
    fail(ExitCode::kBadJob, "{}: 0 means the dataset's own size, but its images have many sizes",
         field);
  const int channels = raw ? raw->channels : 3;
  return size == 0 ? *raw : ImageShape{size, size, channels};
}

[[noreturn]] void crop_too_large(const std::string& name, ImageShape output, int width, int height,
                                 const std::string& remedy) {
  fail(ExitCode::kBadData, "{}: a crop of {} x {} is larger than the image of {} x {}: {}",
       printable(name), output.width, output.height, width, height, remedy);
}

// Python's round(): halves go to the even neighbour.
int python_round(double x) {
  return static_cast<int>(std::nearbyint(x));
}

AxisMap copy_axis(int start, int size, int count) {
  return {0, size, 0.0, 1.0, start, count};
}

// torchvision's Resize(int): the shorter side becomes `shorter`, the other keeps the ratio, cut to
// an integer.
ImageShape resized(ImageShape image, int shorter) {
  const auto longer = [&](int long_side, int short_side) {
    return static_cast<int>(int64_t{shorter} * long_side / short_side);
  };
  if (image.width <= image.height)
    return {longer(image.height, image.width), shorter, image.channels};
  return {shorter, longer(image.width, image.height), image.channels};
}

// `count` pixels from `first` on of an axis of `size` pixels resized to `new_size`.
AxisMap resize_axis(int size, int new_size, int first, int count) {
  return {0, size, 0.0, double(size) / new_size, first, count};
}

// Resizes to `resized_to` and cuts the output's size out at (left, top).
Geometry resize_and_crop(ImageShape image, ImageShape resized_to, int left, int top,
                         ImageShape output) {
  Geometry geometry;
  geometry.x = resize_axis(image.width, resized_to.width, left, output.width);
  geometry.y = resize_axis(image.height, resized_to.height, top, output.height);
  return geometry;
}

// The box [start, start + extent) resized to `count` pixels; the filter stays inside the box,
// because torchvision crops before it resizes.
AxisMap box_axis(int start, int extent, int count) {
  return {start, start + extent, 0.0, double(extent) / count, 0, count};
}

// RandomResizedCrop.get_params() of torchvision 0.x. Try t draws its four numbers (area, ratio,
// top, left) from counter (epoch + t * 2^32, sample).
Region random_resized_box(const TrainTransform& transform, ImageShape image, uint64_t seed,
                          uint64_t epoch, uint64_t sample) {
  const double area = double(image.width) * image.height;
  const double log_min = std::log(transform.ratio_min), log_max = std::log(transform.ratio_max);
  for (uint64_t attempt = 0; attempt < 10; ++attempt) {
    const Random4 words = random4(seed, Purpose::kCrop, epoch + (attempt << 32), sample);
    const double share =
        transform.area_min + (transform.area_max - transform.area_min) * uniform_float(words[0]);
    const double ratio = std::exp(log_min + (log_max - log_min) * uniform_float(words[1]));
    const double width = std::nearbyint(std::sqrt(share * area * ratio));
    const double height = std::nearbyint(std::sqrt(share * area / ratio));
    if (width < 1 || width > image.width || height < 1 || height > image.height) continue;
    const int w = static_cast<int>(width), h = static_cast<int>(height);
    const int top =
        static_cast<int>(uniform_below(words[2], static_cast<uint32_t>(image.height - h + 1)));
    const int left =
        static_cast<int>(uniform_below(words[3], static_cast<uint32_t>(image.width - w + 1)));
    return {left, top, w, h};
  }
  // The centre, as near to the allowed ratios as the image is.
  int w = image.width, h = image.height;
  const double ratio = double(w) / h;
  if (ratio < transform.ratio_min)
    h = std::clamp(python_round(w / transform.ratio_min), 1, h);
  else if (ratio > transform.ratio_max)
    w = std::clamp(python_round(h * transform.ratio_max), 1, w);
  return {(image.width - w) / 2, (image.height - h) / 2, w, h};
}

// Evaluation's: shorter side to `resize` (0: as it is), then the centre.
Geometry center_geometry(int resize, ImageShape image, ImageShape output, const std::string& name) {
  const ImageShape from = resize == 0 ? image : resized(image, resize);
  if (output.width > from.width || output.height > from.height)
    crop_too_large(
        name, output, from.width, from.height,
        "choose a smaller data.train.size (or data.eval.size), or a larger data.eval.resize");
  const int left = python_round((from.width - output.width) / 2.0);
  const int top = python_round((from.height - output.height) / 2.0);
  return resize_and_crop(image, from, left, top, output);
}

void check_colour(const TrainTransform& transform, ImageShape shape) {
  struct Field {
    const char* name;
    double value, most;
    bool needs_rgb;
  };
  for (const Field& field : {Field{"pca_jitter", transform.pca_jitter, 10, true},
                             {"brightness", transform.brightness, 1, false},
                             {"contrast", transform.contrast, 1, false},
                             {"saturation", transform.saturation, 1, true},
                             {"hue", transform.hue, 0.5, true}}) {
    if (!(field.value >= 0 && field.value <= field.most))
      fail(ExitCode::kBadJob, "data.train.{}: {} is outside 0 ... {}", field.name, field.value,
           field.most);
    if (field.value == 0) continue;
    if (transform.crop == Crop::kCenter)
      fail(ExitCode::kBadJob,
           "data.train.{}: {} contradicts data.train.crop: CENTER, which knows no randomness; set "
           "one of them otherwise",
           field.name, field.value);
    if (field.needs_rgb && shape.channels != 3)
      fail(ExitCode::kBadJob,
           "data.train.{}: {} has no meaning for the dataset's images, which have {} channel{} and "
           "not three; set it to 0",
           field.name, field.value, shape.channels, shape.channels == 1 ? "" : "s");
  }
}

}  // namespace

ImageShape output_shape(const TrainTransform& transform, const Dataset& dataset) {
  const ImageShape shape = sized(transform.size, dataset, "data.train.size");
  check_colour(transform, shape);
  const std::optional<ImageShape> raw = dataset.raw_shape();
  const auto check = [](bool good, const std::string& message) {
    if (!good) throw Error(ExitCode::kBadJob, message);
  };
  switch (transform.crop) {
    case Crop::kRandomResized:
      check(transform.area_min > 0 && transform.area_min <= transform.area_max &&
                transform.area_max <= 1,
            fmt::format("data.train.area_min, area_max: {}, {}; must be 0 < min <= max <= 1",
                        transform.area_min, transform.area_max));
      check(transform.ratio_min > 0 && transform.ratio_min <= transform.ratio_max &&
                transform.ratio_max <= 1e6,
            fmt::format("data.train.ratio_min, ratio_max: {}, {}; must be 0 < min <= max",
                        transform.ratio_min, transform.ratio_max));
      break;
    case Crop::kScaleAndCrop:
      check(transform.scale_min <= transform.scale_max && transform.scale_max <= 16384,
            fmt::format("data.train.scale_min, scale_max: {}, {}; must be min <= max <= 16384",
                        transform.scale_min, transform.scale_max));
      check(transform.scale_min >= std::max(shape.width, shape.height),
            fmt::format("data.train.scale_min: {} is smaller than the crop of {} x {}",
                        transform.scale_min, shape.width, shape.height));
      break;
    case Crop::kPadAndCrop:
      check(transform.pad >= 0 && transform.pad < std::min(shape.width, shape.height),
            fmt::format("data.train.pad: {}; must be less than the crop of {} x {}, else a crop "
                        "could miss the image",
                        transform.pad, shape.width, shape.height));
      break;
    case Crop::kCenter:
      break;
  }
  if (raw) train_geometry(transform, *raw, shape, 0, 0, 0, "every image of the dataset");
  return shape;
}

ImageShape output_shape(const EvalTransform& transform, const Dataset& dataset) {
  const ImageShape shape = sized(transform.size, dataset, "data.eval.size");
  const int larger = std::max(shape.width, shape.height);
  if (transform.resize != 0 && (transform.resize < larger || transform.resize > 16384))
    fail(ExitCode::kBadJob, "data.eval.resize: {}; must be 0 or {} (the crop) ... 16384",
         transform.resize, larger);
  if (const std::optional<ImageShape> raw = dataset.raw_shape())
    eval_geometry(transform, *raw, shape, "every image of the dataset");
  return shape;
}

Geometry train_geometry(const TrainTransform& transform, ImageShape image, ImageShape output,
                        uint64_t seed, uint64_t epoch, uint64_t sample, const std::string& name) {
  Geometry geometry;
  const Random4 words = random4(seed, Purpose::kCrop, epoch, sample);
  switch (transform.crop) {
    case Crop::kRandomResized: {
      const Region box = random_resized_box(transform, image, seed, epoch, sample);
      geometry.x = box_axis(box.x, box.width, output.width);
      geometry.y = box_axis(box.y, box.height, output.height);
      geometry.may_shrink = true;
      break;
    }
    case Crop::kScaleAndCrop: {
      const uint32_t scales = static_cast<uint32_t>(transform.scale_max - transform.scale_min + 1);
      const ImageShape to =
          resized(image, transform.scale_min + static_cast<int>(uniform_below(words[0], scales)));
      const uint32_t tops = static_cast<uint32_t>(to.height - output.height + 1);
      const uint32_t lefts = static_cast<uint32_t>(to.width - output.width + 1);
      geometry = resize_and_crop(image, to, static_cast<int>(uniform_below(words[3], lefts)),
                                 static_cast<int>(uniform_below(words[2], tops)), output);
      geometry.may_shrink = true;
      break;
    }
    case Crop::kPadAndCrop: {
      const int width = image.width + 2 * transform.pad, height = image.height + 2 * transform.pad;
      if (output.width > width || output.height > height)
        crop_too_large(name, output, image.width, image.height,
                       fmt::format("set data.train.size to at most {} (with data.train.pad: {})",
                                   std::min(width, height), transform.pad));
      const uint32_t tops = static_cast<uint32_t>(height - output.height + 1);
      const uint32_t lefts = static_cast<uint32_t>(width - output.width + 1);
      const int top = static_cast<int>(uniform_below(words[2], tops)) - transform.pad;
      const int left = static_cast<int>(uniform_below(words[3], lefts)) - transform.pad;
      geometry.x = copy_axis(left, image.width, output.width);
      geometry.y = copy_axis(top, image.height, output.height);
      break;
    }
    case Crop::kCenter:
      return center_geometry(transform.resize, image, output, name);
  }
  geometry.flip = transform.flip && random4(seed, Purpose::kFlip, epoch, sample)[0] >> 31 != 0;
  return geometry;
}

Geometry eval_geometry(const EvalTransform& transform, ImageShape image, ImageShape output,
                       const std::string& name) {
  return center_geometry(transform.resize, image, output, name);
}

Geometry ten_crop_geometry(const EvalTransform& transform, int crop, ImageShape image,
                           ImageShape output, const std::string& name) {
  center_geometry(transform.resize, image, output, name);  // refuses what does not fit
  const ImageShape from = transform.resize == 0 ? image : resized(image, transform.resize);
  // The square, or the whole image: first pixel and pixels of each axis.
  const int width = transform.resize == 0 ? from.width : transform.resize;
  const int height = transform.resize == 0 ? from.height : transform.resize;
  const int left = python_round((from.width - width) / 2.0);
  const int top = python_round((from.height - height) / 2.0);
  const int corner = crop % 5;
  const int right_by = width - output.width, down_by = height - output.height;
  const bool centre = corner == 4;
  const int x = centre ? python_round(right_by / 2.0) : corner % 2 * right_by;
  const int y = centre ? python_round(down_by / 2.0) : corner / 2 * down_by;
  Geometry geometry = resize_and_crop(image, from, left + x, top + y, output);
  geometry.flip = crop >= 5;
  return geometry;
}

ImageShape dense_shape(ImageShape image, int scale) {
  const ImageShape from = resized(image, scale);
  const auto cut = [&](int side) {
    return std::max(scale, std::min(side, 2 * scale) / kDenseMultiple * kDenseMultiple);
  };
  return image.width <= image.height ? ImageShape{cut(from.height), scale, image.channels}
                                     : ImageShape{scale, cut(from.width), image.channels};
}

Geometry dense_geometry(ImageShape image, int scale) {
  const ImageShape from = resized(image, scale), output = dense_shape(image, scale);
  return resize_and_crop(image, from, python_round((from.width - output.width) / 2.0),
                         python_round((from.height - output.height) / 2.0), output);
}

}  // namespace convoy::data
