// Pixels against Pillow's and torchvision's (images.json, made by image_golden.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data_loader/colour.h"
#include "data_loader/resize.h"

namespace convoy::data {
namespace {

const nlohmann::json& golden() {
  static const nlohmann::json file = [] {
    std::ifstream stream(GOLDEN_DIR "/images.json");
    return nlohmann::json::parse(stream);
  }();
  return file;
}

std::vector<uint8_t> from_base64(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<uint8_t> bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<uint8_t>(bits >> count));
    }
  }
  return bytes;
}

// image_golden.py's source(): the same bytes.
std::vector<uint8_t> source(int width, int height) {
  std::vector<uint8_t> pixels;
  for (uint32_t y = 0; y < static_cast<uint32_t>(height); ++y)
    for (uint32_t x = 0; x < static_cast<uint32_t>(width); ++x)
      for (uint32_t c = 0; c < 3; ++c) {
        const uint32_t noise =
            ((x * 73856093u ^ y * 19349663u ^ c * 83492791u) * 2654435761u) >> 24;
        pixels.push_back(static_cast<uint8_t>((noise + 3 * ((3 * x + 5 * y + 80 * c) % 256)) / 4));
      }
  return pixels;
}

struct Difference {
  int max = 0;
  double mean = 0;
};
Difference difference(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  Difference d;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const int each = std::abs(a[i] - b.at(i));
    d.max = std::max(d.max, each);
    d.mean += each / static_cast<double>(a.size());
  }
  return d;
}

// The arithmetic is Pillow's own where it resizes rows before columns, as it always did up to
// version 12. Where it does so the other way round, rounding between the two makes a difference
// of 1.
TEST(ImageGolden, ResizesAsPillow) {
  ASSERT_EQ(golden()["resizes"].size(), 7u);
  for (const auto& each : golden()["resizes"]) {
    SCOPED_TRACE(each["name"].get<std::string>());
    const int width = each["image"][0], height = each["image"][1];
    const std::vector<int> box = each["box"], to = each["output"];
    const auto axis = [](int low, int high, int count) {
      return AxisMap{low, high, 0.0, double(high - low) / count, 0, count};
    };
    const Geometry geometry{axis(box[0], box[2], to[0]), axis(box[1], box[3], to[1]),
                            each["flip"].get<bool>()};
    const std::vector<uint8_t> pixels = source(width, height);
    std::vector<uint8_t> got(static_cast<size_t>(to[0] * to[1] * 3));
    ResizeScratch scratch;
    apply(got.data(), geometry,
          {pixels.data(), {0, 0, width, height}, 3, static_cast<size_t>(width) * 3}, scratch);
    EXPECT_EQ(difference(got, from_base64(each["pixels"])).max, 0);
    const Difference at_once = difference(got, from_base64(each["at_once"]));
    EXPECT_LE(at_once.max, 1);
    EXPECT_LE(at_once.mean, 0.3);
  }
}

std::vector<uint8_t> changed(const ColourChange& change) {
  const int width = golden()["colour_size"][0], height = golden()["colour_size"][1];
  std::vector<uint8_t> pixels = source(width, height);
  change_colour(pixels.data(), {height, width, 3}, change);
  return pixels;
}

// torchvision counts in floats and we in fixed point: a value near a half may go the other way.
TEST(ImageGolden, ChangesColoursAsTorchvision) {
  const std::map<std::string, ColourOp> ops = {{"brightness", ColourOp::kBrightness},
                                               {"contrast", ColourOp::kContrast},
                                               {"saturation", ColourOp::kSaturation},
                                               {"hue", ColourOp::kHue}};
  ASSERT_EQ(golden()["colours"].size(), 9u);
  for (const auto& each : golden()["colours"]) {
    SCOPED_TRACE(each["name"].get<std::string>());
    ColourChange change;
    for (const auto& step : each["steps"])
      change.steps.at(change.count++) = {ops.at(step[0]), step[1].get<double>()};
    const Difference d = difference(changed(change), from_base64(each["pixels"]));
    EXPECT_LE(d.max, change.count == 1 ? 1 : 2);  // the next operation may amplify it
    EXPECT_LE(d.mean, 0.02);
  }
}

TEST(ImageGolden, AddsAlongTheColourAxesOfAlexNet) {
  ASSERT_EQ(golden()["pca"].size(), 5u);
  for (const auto& each : golden()["pca"]) {
    ColourChange change;
    change.add = pca_addition(each["alpha"].get<std::array<double, 3>>());
    EXPECT_EQ(changed(change), from_base64(each["pixels"])) << each["alpha"];
  }
}

}  // namespace
}  // namespace convoy::data
