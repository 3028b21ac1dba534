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

double center_of(const AxisMap& axis, int o) {
  return axis.origin + (axis.first + o + 0.5) * axis.scale;
}

// Source pixels [first, end) under output pixel o, counted from axis.low.
struct TapRange {
  int first, end;
};
TapRange tap_range(const AxisMap& axis, int o) {
  const double support = std::max(axis.scale, 1.0);
  const double center = center_of(axis, o);
  return {std::max(static_cast<int>(center - support + 0.5), 0),
          std::min(static_cast<int>(center + support + 0.5), axis.high - axis.low)};
}

constexpr int kWeightBits = 32 - 8 - 2;  // Pillow's PRECISION_BITS

// Pillow's precompute_coeffs() for its BILINEAR filter, the triangle of width 2 * max(scale, 1).
void make_taps(const AxisMap& axis, ResizeScratch::Taps& taps) {
  const double filter_scale = std::max(axis.scale, 1.0);
  const size_t count = static_cast<size_t>(axis.count);
  taps.width = static_cast<size_t>(std::ceil(filter_scale)) * 2 + 1;
  taps.first.resize(count);
  taps.count.resize(count);
  taps.weights.assign(count * taps.width, 0);
  std::vector<double> exact(taps.width);
  for (int o = 0; o < axis.count; ++o) {
    const TapRange range = tap_range(axis, o);
    const double center = center_of(axis, o);
    const size_t n = static_cast<size_t>(range.end - range.first);
    double sum = 0;
    for (size_t k = 0; k < n; ++k) {
      const double distance = std::abs((range.first + double(k) - center + 0.5) / filter_scale);
      exact[k] = std::max(0.0, 1.0 - distance);
      sum += exact[k];
    }
    taps.first[static_cast<size_t>(o)] = axis.low + range.first;
    taps.count[static_cast<size_t>(o)] = static_cast<int>(n);
    for (size_t k = 0; k < n; ++k)
      taps.weights[static_cast<size_t>(o) * taps.width + k] =
          static_cast<int32_t>(0.5 + exact[k] / sum * (1 << kWeightBits));
  }
}

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

// out [taps, C] = row [*, C] filtered; `left` is the column of the row's first pixel.
template <int C>
void filter_row(uint8_t* out, const uint8_t* row, int left, const ResizeScratch::Taps& taps,
                bool flip) {
  const size_t count = taps.first.size();
  for (size_t o = 0; o < count; ++o) {
    const uint8_t* pixel = row + static_cast<ptrdiff_t>(taps.first[o] - left) * C;
    const int32_t* weight = &taps.weights[o * taps.width];
    int32_t sums[C];
    for (int c = 0; c < C; ++c) sums[c] = 1 << (kWeightBits - 1);
    for (int k = 0; k < taps.count[o]; ++k, pixel += C)
      for (int c = 0; c < C; ++c) sums[c] += pixel[c] * weight[k];
    uint8_t* to = out + (flip ? count - 1 - o : o) * C;
    for (int c = 0; c < C; ++c) to[c] = to_byte(sums[c]);
  }
}

template <int C>
void resample(uint8_t* out, const Geometry& geometry, const PixelView& pixels,
              ResizeScratch& scratch) {
  make_taps(geometry.x, scratch.x);
  make_taps(geometry.y, scratch.y);
  const Region source = source_region(geometry);
  const size_t row_bytes = static_cast<size_t>(geometry.x.count) * C;
  scratch.rows.resize(row_bytes * static_cast<size_t>(source.height));
  for (int y = 0; y < source.height; ++y)
    filter_row<C>(&scratch.rows[static_cast<size_t>(y) * row_bytes],
                  pixels.data + static_cast<size_t>(source.y + y - pixels.region.y) * pixels.stride,
                  pixels.region.x, scratch.x, geometry.flip);
  scratch.sums.resize(row_bytes);
  int32_t* sums = scratch.sums.data();
  for (size_t o = 0; o < static_cast<size_t>(geometry.y.count); ++o) {
    std::fill_n(sums, row_bytes, 1 << (kWeightBits - 1));
    for (int k = 0; k < scratch.y.count[o]; ++k) {
      const uint8_t* row =
          &scratch.rows[static_cast<size_t>(scratch.y.first[o] + k - source.y) * row_bytes];
      const int32_t weight = scratch.y.weights[o * scratch.y.width + static_cast<size_t>(k)];
      for (size_t i = 0; i < row_bytes; ++i) sums[i] += row[i] * weight;
    }
    for (size_t i = 0; i < row_bytes; ++i) out[o * row_bytes + i] = to_byte(sums[i]);
  }
}

void copy(uint8_t* out, const Geometry& geometry, const PixelView& pixels) {
  const size_t channels = static_cast<size_t>(pixels.channels);
  const size_t row_bytes = static_cast<size_t>(geometry.x.count) * channels;
  const Region source = source_region(geometry);
  const int left = source.x - geometry.x.low - geometry.x.first;  // zeros before the image
  const int top = source.y - geometry.y.low - geometry.y.first;
  std::memset(out, 0, row_bytes * static_cast<size_t>(geometry.y.count));
  for (int y = 0; y < source.height; ++y) {
    const uint8_t* row = pixels.data +
                         static_cast<size_t>(source.y + y - pixels.region.y) * pixels.stride +
                         static_cast<size_t>(source.x - pixels.region.x) * channels;
    uint8_t* to = out + static_cast<size_t>(top + y) * row_bytes;
    if (!geometry.flip) {
      std::memcpy(to + static_cast<size_t>(left) * channels, row,
                  static_cast<size_t>(source.width) * channels);
      continue;
    }
    for (int x = 0; x < source.width; ++x)
      std::memcpy(to + static_cast<size_t>(geometry.x.count - 1 - left - x) * channels,
                  row + static_cast<size_t>(x) * channels, channels);
  }
}

}  // namespace

ImageShape output_shape(const TrainTransform& transform, const Dataset& dataset) {
  const ImageShape shape = sized(transform.size, dataset, "data.train.size");
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

Region source_region(const Geometry& geometry) {
  const bool copies = geometry.x.is_copy() && geometry.y.is_copy();
  const auto range = [&](const AxisMap& axis) -> TapRange {
    if (copies)
      return {axis.low + std::max(axis.first, 0),
              std::min(axis.low + axis.first + axis.count, axis.high)};
    return {axis.low + tap_range(axis, 0).first, axis.low + tap_range(axis, axis.count - 1).end};
  };
  const TapRange x = range(geometry.x), y = range(geometry.y);
  return {x.first, y.first, x.end - x.first, y.end - y.first};
}

int shrink_denominator(const Geometry& geometry) {
  if (!geometry.may_shrink) return 1;
  for (const int denominator : {8, 4, 2})
    if (geometry.x.scale >= denominator && geometry.y.scale >= denominator) return denominator;
  return 1;
}

Geometry shrink(const Geometry& geometry, int denominator) {
  Geometry small = geometry;
  for (AxisMap* axis : {&small.x, &small.y}) {
    const double start = (axis->low + axis->origin) / denominator;
    axis->low /= denominator;
    axis->high = (axis->high + denominator - 1) / denominator;
    axis->origin = start - axis->low;
    axis->scale /= denominator;
  }
  return small;
}

void apply(uint8_t* out, const Geometry& geometry, const PixelView& pixels,
           ResizeScratch& scratch) {
  if (geometry.x.is_copy() && geometry.y.is_copy())
    copy(out, geometry, pixels);
  else if (pixels.channels == 1)
    resample<1>(out, geometry, pixels, scratch);
  else
    resample<3>(out, geometry, pixels, scratch);
}

}  // namespace convoy::data
