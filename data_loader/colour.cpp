#include "data_loader/colour.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/core/random.h"

namespace convoy::data {
namespace {

// The square roots of the eigenvalues, and in columns the eigenvectors, of the covariance of
// ImageNet's RGB values in [0, 1].
constexpr double kAxisLengths[3] = {0.2175, 0.0188, 0.0045};
constexpr double kAxes[3][3] = {
    {-0.5675, 0.7192, 0.4009}, {-0.5808, -0.0045, -0.8140}, {-0.5836, -0.6948, 0.4203}};

// Draw d of a sample's colour: counter (epoch + d * 2^32, sample).
Random4 draw(uint64_t d, uint64_t seed, uint64_t epoch, uint64_t sample) {
  return random4(seed, Purpose::kColour, epoch + (d << 32), sample);
}

int32_t fixed_point(double f) {
  return static_cast<int32_t>(std::lround(f * (1 << kFactorBits)));
}

// Mean grey in levels.
double mean_grey(const uint8_t* pixels, ImageShape shape, const ColourKernels& kernels) {
  const size_t bytes = shape.bytes();
  if (shape.channels == 1)
    return static_cast<double>(std::accumulate(pixels, pixels + bytes, uint64_t{0})) /
           static_cast<double>(bytes);
  const size_t count = bytes / 3;
  return std::ldexp(static_cast<double>(kernels.grey_sum(pixels, count)), -kGreyBits) /
         static_cast<double>(count);
}

}  // namespace

std::array<int, 3> pca_addition(const std::array<double, 3>& alpha) {
  std::array<int, 3> add{};
  for (size_t c = 0; c < 3; ++c) {
    double sum = 0;
    for (size_t k = 0; k < 3; ++k) sum += kAxes[c][k] * (alpha[k] * kAxisLengths[k]);
    add[c] = static_cast<int>(std::clamp(std::floor(255 * sum + 0.5), -255.0, 255.0));
  }
  return add;
}

ColourChange train_colour(const TrainTransform& transform, uint64_t seed, uint64_t epoch,
                          uint64_t sample) {
  ColourChange change;
  const Random4 order = draw(0, seed, epoch, sample), amounts = draw(1, seed, epoch, sample);
  std::array<ColourOp, 4> ops = {ColourOp::kBrightness, ColourOp::kContrast, ColourOp::kSaturation,
                                 ColourOp::kHue};
  for (size_t i = 3; i > 0; --i)
    std::swap(ops[i], ops[uniform_below(order[i], static_cast<uint32_t>(i) + 1)]);
  for (const ColourOp op : ops) {
    const auto between = [&](double low, double high) {
      return low + (high - low) * uniform_float(amounts[static_cast<size_t>(op)]);
    };
    const auto factor = [&](double most) {
      if (most > 0) change.steps[change.count++] = {op, between(1 - most, 1 + most)};
    };
    switch (op) {
      case ColourOp::kBrightness:
        factor(transform.brightness);
        break;
      case ColourOp::kContrast:
        factor(transform.contrast);
        break;
      case ColourOp::kSaturation:
        factor(transform.saturation);
        break;
      case ColourOp::kHue:
        if (transform.hue > 0)
          change.steps[change.count++] = {op, between(-transform.hue, transform.hue)};
        break;
    }
  }
  if (transform.pca_jitter > 0) {
    const std::array<double, 2> a = normal2(draw(2, seed, epoch, sample)),
                                b = normal2(draw(3, seed, epoch, sample));
    const double std = transform.pca_jitter;
    change.add = pca_addition({std * a[0], std * a[1], std * b[0]});
  }
  return change;
}

void change_colour(uint8_t* pixels, ImageShape shape, const ColourChange& change,
                   const ColourKernels& kernels) {
  const size_t bytes = shape.bytes();
  for (size_t i = 0; i < change.count; ++i) {
    const double f = change.steps[i].f;
    switch (change.steps[i].op) {
      case ColourOp::kBrightness:
        kernels.scale(pixels, bytes, fixed_point(f), 0);
        break;
      case ColourOp::kContrast:
        kernels.scale(pixels, bytes, fixed_point(f),
                      fixed_point((1 - f) * mean_grey(pixels, shape, kernels)));
        break;
      case ColourOp::kSaturation:
        kernels.saturate(pixels, bytes / 3, fixed_point(f));
        break;
      case ColourOp::kHue:
        kernels.turn_hue(pixels, bytes / 3, static_cast<float>(6 * f));
        break;
    }
  }
  if (change.add != std::array<int, 3>{}) kernels.add(pixels, bytes / 3, change.add.data());
}

void change_colour(uint8_t* pixels, ImageShape shape, const ColourChange& change) {
  change_colour(pixels, shape, change, colour_kernels());
}

}  // namespace convoy::data
