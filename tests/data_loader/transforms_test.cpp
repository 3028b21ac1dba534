// Where crops lie, and what resizing computes.
#include "data_loader/transforms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "data_loader/sample_maker.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::TestImage;

constexpr ImageShape kOut{224, 224, 3};

Region box_of(const Geometry& geometry) {
  return {geometry.x.low, geometry.y.low, geometry.x.high - geometry.x.low,
          geometry.y.high - geometry.y.low};
}

PixelView view_of(const TestImage& image) {
  return {image.pixels.data(),
          {0, 0, image.width, image.height},
          image.channels,
          static_cast<size_t>(image.width) * static_cast<size_t>(image.channels)};
}

std::vector<uint8_t> apply_to(const TestImage& image, const Geometry& geometry) {
  ResizeScratch scratch;
  std::vector<uint8_t> out(
      static_cast<size_t>(geometry.x.count * geometry.y.count * image.channels));
  apply(out.data(), geometry, view_of(image), scratch);
  return out;
}

// The triangle filter in double, without rounding between the passes: slow and plain.
std::vector<double> reference(const TestImage& image, const Geometry& geometry) {
  const auto weights = [](const AxisMap& axis, int o) {
    const double width = std::max(1.0, axis.scale);
    const double center = axis.low + axis.origin + (axis.first + o + 0.5) * axis.scale;
    std::map<int, double> w;
    double sum = 0;
    for (int i = axis.low; i < axis.high; ++i) {
      const double value = 1 - std::abs(i + 0.5 - center) / width;
      if (value > 0) sum += w[i] = value;
    }
    for (auto& [i, value] : w) value /= sum;
    return w;
  };
  std::vector<std::map<int, double>> columns;
  for (int x = 0; x < geometry.x.count; ++x) columns.push_back(weights(geometry.x, x));
  std::vector<double> out;
  for (int y = 0; y < geometry.y.count; ++y) {
    const std::map<int, double> rows = weights(geometry.y, y);
    for (int x = 0; x < geometry.x.count; ++x)
      for (int c = 0; c < image.channels; ++c) {
        double sum = 0;
        for (const auto& [j, wy] : rows)
          for (const auto& [i, wx] :
               columns[static_cast<size_t>(geometry.flip ? geometry.x.count - 1 - x : x)])
            sum += wy * wx * image.at(i, j, c);
        out.push_back(sum);
      }
  }
  return out;
}

int largest_difference(const std::vector<uint8_t>& a, const std::vector<double>& b) {
  int largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, static_cast<int>(std::abs(a[i] - std::floor(b[i] + 0.5))));
  return largest;
}

TEST(RandomResizedCrop, BoxesHaveTheRightAreaAndRatio) {
  const TrainTransform transform;
  const ImageShape image{375, 500, 3};
  double areas = 0, log_ratios = 0, flips = 0;
  std::set<int> lefts;
  constexpr int kDraws = 4000;
  for (uint64_t sample = 0; sample < kDraws; ++sample) {
    const Geometry geometry = train_geometry(transform, image, kOut, 1, 2, sample, "x");
    const Region box = box_of(geometry);
    ASSERT_GE(box.x, 0);
    ASSERT_GE(box.y, 0);
    ASSERT_LE(box.x + box.width, image.width);
    ASSERT_LE(box.y + box.height, image.height);
    const double area = double(box.width) * box.height / (image.width * image.height);
    const double ratio = double(box.width) / box.height;
    ASSERT_GT(area, 0.078);
    ASSERT_GT(ratio, 0.74);
    ASSERT_LT(ratio, 1.35);
    EXPECT_EQ(geometry.x.count, 224);
    EXPECT_DOUBLE_EQ(geometry.x.scale, box.width / 224.0);
    areas += area;
    log_ratios += std::log(ratio);
    flips += geometry.flip ? 1 : 0;
    lefts.insert(box.x);
  }
  // Means of 200,000 draws of torchvision's algorithm; the standard errors here are 0.004 and
  // 0.003.
  EXPECT_NEAR(areas / kDraws, 0.4328, 0.02);
  EXPECT_NEAR(log_ratios / kDraws, 0.0309, 0.015);
  EXPECT_NEAR(flips / kDraws, 0.5, 0.04);
  EXPECT_GT(lefts.size(), 150u);
}

TEST(RandomResizedCrop, FallsBackToTheCentre) {
  const TrainTransform transform;
  // No try fits: torchvision's fallback, by hand.
  EXPECT_EQ(box_of(train_geometry(transform, {10, 1000, 3}, kOut, 1, 0, 0, "x")),
            (Region{493, 0, 13, 10}));
  EXPECT_EQ(box_of(train_geometry(transform, {1000, 10, 3}, kOut, 1, 0, 0, "x")),
            (Region{0, 493, 10, 13}));
  EXPECT_EQ(box_of(train_geometry(transform, {1, 1, 3}, kOut, 1, 0, 0, "x")), (Region{0, 0, 1, 1}));
  TrainTransform whole;
  whole.area_min = whole.area_max = 1;
  EXPECT_EQ(box_of(train_geometry(whole, {100, 100, 3}, kOut, 1, 0, 7, "x")).width > 0, true);
}

// Crops are part of every run's identity.
TEST(RandomResizedCrop, TheStreamIsPinned) {
  const TrainTransform transform;
  std::vector<Region> boxes;
  std::vector<bool> flips;
  for (uint64_t sample = 0; sample < 3; ++sample) {
    const Geometry geometry = train_geometry(transform, {375, 500, 3}, kOut, 1, 2, sample, "x");
    boxes.push_back(box_of(geometry));
    flips.push_back(geometry.flip);
  }
  EXPECT_EQ(boxes,
            (std::vector<Region>{{87, 70, 271, 300}, {188, 91, 268, 277}, {19, 89, 345, 274}}));
  EXPECT_EQ(flips, (std::vector<bool>{false, true, false}));
}

TEST(EvalTransform, RoundsAsTorchvision) {
  const EvalTransform transform;
  // 500 x 375 -> 341 x 256; (341 - 224) / 2 = 58.5 -> 58 (to even), (256 - 224) / 2 = 16.
  Geometry geometry = eval_geometry(transform, {375, 500, 3}, kOut, "x");
  EXPECT_EQ(geometry.x.first, 58);
  EXPECT_EQ(geometry.y.first, 16);
  EXPECT_DOUBLE_EQ(geometry.x.scale, 500.0 / 341);
  EXPECT_DOUBLE_EQ(geometry.y.scale, 375.0 / 256);
  EXPECT_FALSE(geometry.flip);
  EXPECT_FALSE(geometry.may_shrink);
  // 300 x 403 -> 256 x 343; (343 - 224) / 2 = 59.5 -> 60 (to even).
  geometry = eval_geometry(transform, {403, 300, 3}, kOut, "x");
  EXPECT_EQ(geometry.x.first, 16);
  EXPECT_EQ(geometry.y.first, 60);
  EXPECT_DOUBLE_EQ(geometry.y.scale, 403.0 / 343);
  // A training transform CENTER is the same.
  TrainTransform center;
  center.crop = Crop::kCenter;
  const Geometry same = train_geometry(center, {403, 300, 3}, kOut, 5, 6, 7, "x");
  EXPECT_EQ(same.y.first, 60);
  EXPECT_FALSE(same.flip);
}

// 500 x 375 -> 341 x 256; its central square begins at (341 - 256) / 2 = 42.5 -> 42 (to even).
TEST(TenCrops, AreCornersAndCentreOfTheSquareAndTheirMirrorImages) {
  const std::pair<int, int> places[] = {{42, 0}, {74, 0}, {42, 32}, {74, 32}, {58, 16}};
  for (int crop = 0; crop < kCropLooks; ++crop) {
    const Geometry geometry = ten_crop_geometry({}, crop, {375, 500, 3}, kOut, "x");
    EXPECT_EQ(geometry.x.first, places[crop % 5].first) << crop;
    EXPECT_EQ(geometry.y.first, places[crop % 5].second) << crop;
    EXPECT_DOUBLE_EQ(geometry.x.scale, 500.0 / 341);
    EXPECT_EQ(geometry.flip, crop >= 5);
    EXPECT_FALSE(geometry.may_shrink);
  }
  // Without a resize the corners are the image's.
  const Geometry corner = ten_crop_geometry({0, 224}, 3, {300, 400, 3}, kOut, "x");
  EXPECT_EQ(corner.x.first, 176);
  EXPECT_EQ(corner.y.first, 76);
  EXPECT_TRUE(corner.x.is_copy());
  EXPECT_THROW(ten_crop_geometry({0, 224}, 0, {200, 400, 3}, kOut, "x"), Error);
}

TEST(Dense, ShapesAreFewAndCutAboutTheCentre) {
  EXPECT_EQ(dense_shape({375, 500, 3}, 256), (ImageShape{256, 320, 3}));  // of 256 x 341
  EXPECT_EQ(dense_shape({500, 375, 3}, 256), (ImageShape{320, 256, 3}));
  EXPECT_EQ(dense_shape({224, 224, 3}, 224), (ImageShape{224, 224, 3}));
  EXPECT_EQ(dense_shape({300, 300, 1}, 250), (ImageShape{250, 250, 1}));   // a scale is kept
  EXPECT_EQ(dense_shape({100, 1000, 3}, 224), (ImageShape{224, 448, 3}));  // at most twice
  const Geometry geometry = dense_geometry({375, 500, 3}, 256);
  EXPECT_EQ(geometry.x.first, 10);  // (341 - 320) / 2 = 10.5 -> 10 (to even)
  EXPECT_EQ(geometry.y.first, 0);
  EXPECT_EQ(geometry.x.count, 320);
  EXPECT_DOUBLE_EQ(geometry.y.scale, 375.0 / 256);
}

TEST(ScaleAndCrop, DrawsScalesAndPlaces) {
  TrainTransform transform;
  transform.crop = Crop::kScaleAndCrop;
  transform.scale_min = 30;
  transform.scale_max = 33;
  const ImageShape image{60, 100, 3}, out{28, 28, 3};
  std::map<int, int> scales;
  std::map<int, std::set<int>> tops;
  for (uint64_t sample = 0; sample < 2000; ++sample) {
    const Geometry geometry = train_geometry(transform, image, out, 1, 0, sample, "x");
    const int scale = static_cast<int>(std::lround(60 / geometry.y.scale));
    const int width = scale * 100 / 60;
    ++scales[scale];
    tops[scale].insert(geometry.y.first);
    EXPECT_DOUBLE_EQ(geometry.x.scale, 100.0 / width);
    ASSERT_GE(geometry.x.first, 0);
    ASSERT_LE(geometry.x.first + 28, width);
  }
  ASSERT_EQ(scales.size(), 4u);
  for (const auto& [scale, count] : scales) {
    EXPECT_NEAR(count, 500, 120) << scale;
    EXPECT_EQ(tops[scale].size(), static_cast<size_t>(scale - 28 + 1)) << scale;
    EXPECT_EQ(*tops[scale].begin(), 0);
  }
}

TEST(PadAndCrop, MovesTheImageAndFillsWithZeros) {
  TrainTransform transform;
  transform.crop = Crop::kPadAndCrop;
  transform.pad = 4;
  const TestImage image = test::make_image(9, 8, 3, 1);
  const ImageShape shape{8, 9, 3}, out{8, 9, 3};
  std::set<std::pair<int, int>> places;
  for (uint64_t sample = 0; sample < 1000; ++sample) {
    const Geometry geometry = train_geometry(transform, shape, out, 1, 0, sample, "x");
    const int left = geometry.x.first, top = geometry.y.first;
    places.insert({left, top});
    const std::vector<uint8_t> got = apply_to(image, geometry);
    std::vector<uint8_t> expected;
    for (int y = 0; y < out.height; ++y)
      for (int x = 0; x < out.width; ++x) {
        const int from_x = left + (geometry.flip ? out.width - 1 - x : x), from_y = top + y;
        const bool inside =
            from_x >= 0 && from_x < image.width && from_y >= 0 && from_y < image.height;
        for (int c = 0; c < 3; ++c)
          expected.push_back(inside ? image.at(from_x, from_y, c) : uint8_t{0});
      }
    ASSERT_EQ(got, expected) << left << " " << top << " " << geometry.flip;
  }
  EXPECT_EQ(places.size(), 81u);
}

TEST(Resize, EqualsTheTriangleFilter) {
  for (const int channels : {1, 3}) {
    const TestImage image = test::make_image(83, 61, channels, 5);
    const ImageShape shape{61, 83, channels};
    TrainTransform transform;
    for (const int size : {7, 24, 61, 100})
      for (uint64_t sample = 0; sample < 12; ++sample) {
        const Geometry geometry =
            train_geometry(transform, shape, {size, size, channels}, 3, 0, sample, "x");
        EXPECT_LE(largest_difference(apply_to(image, geometry), reference(image, geometry)), 1)
            << size << " " << sample;
      }
    const EvalTransform eval{40, 32};
    const Geometry geometry = eval_geometry(eval, shape, {32, 32, channels}, "x");
    EXPECT_LE(largest_difference(apply_to(image, geometry), reference(image, geometry)), 1);
  }
}

TEST(Resize, FlatAndUnchangedImagesStayExactlyAsTheyAre) {
  TestImage flat{50, 40, 3, std::vector<uint8_t>(6000, 200)};
  const TrainTransform transform;
  const Geometry geometry = train_geometry(transform, {40, 50, 3}, {17, 17, 3}, 1, 0, 1, "x");
  EXPECT_EQ(apply_to(flat, geometry), std::vector<uint8_t>(17 * 17 * 3, 200));
  const TestImage image = test::make_image(30, 20, 3, 6);
  // The same size: a copy, also with one axis resampled.
  const EvalTransform eval{0, 0};
  EXPECT_EQ(apply_to(image, eval_geometry(eval, {20, 30, 3}, {20, 30, 3}, "x")), image.pixels);
}

// Found by fuzzing: a random box that has just the output's size lies anywhere in the image.
TEST(Resize, ABoxOfTheOutputsSizeIsCopiedFromItsPlace) {
  const TestImage image = test::make_image(26, 25, 3, 9);
  int copies = 0;
  for (uint64_t sample = 0; sample < 2000; ++sample) {
    Geometry geometry = train_geometry({}, {25, 26, 3}, {24, 24, 3}, 1, 0, sample, "x");
    if (!geometry.x.is_copy() || !geometry.y.is_copy() || geometry.x.low == 0) continue;
    ++copies;
    EXPECT_EQ(source_region(geometry), (Region{geometry.x.low, geometry.y.low, 24, 24}));
    geometry.flip = false;
    const std::vector<uint8_t> out = apply_to(image, geometry);
    for (int y = 0; y < 24; ++y)
      for (int x = 0; x < 24; ++x)
        for (int c = 0; c < 3; ++c)
          ASSERT_EQ(out[static_cast<size_t>((y * 24 + x) * 3 + c)],
                    image.at(geometry.x.low + x, geometry.y.low + y, c));
  }
  EXPECT_GT(copies, 0);
  // The same on an image that a decoder has shrunk.
  Geometry large;
  large.x = {16, 16 + 192, 0.0, 8.0, 0, 24};
  large.y = {8, 8 + 192, 0.0, 8.0, 0, 24};
  EXPECT_EQ(source_region(shrink(large, 8)), (Region{2, 1, 24, 24}));
}

TEST(Resize, AFlipIsTheMirrorImage) {
  const TestImage image = test::make_image(50, 41, 3, 7);
  Geometry geometry = train_geometry({}, {41, 50, 3}, {16, 16, 3}, 1, 0, 3, "x");
  geometry.flip = false;
  const std::vector<uint8_t> straight = apply_to(image, geometry);
  geometry.flip = true;
  const std::vector<uint8_t> mirrored = apply_to(image, geometry);
  EXPECT_NE(straight, mirrored);
  for (size_t y = 0; y < 16; ++y)
    for (size_t x = 0; x < 16; ++x)
      for (size_t c = 0; c < 3; ++c)
        ASSERT_EQ(straight[(y * 16 + x) * 3 + c], mirrored[(y * 16 + 15 - x) * 3 + c]);
}

// What a decoder returns is a part of the image; the result must not depend on how large a part.
TEST(Resize, ReadsItsSourceRegionOnly) {
  const TestImage image = test::make_image(90, 80, 3, 8);
  for (uint64_t sample = 0; sample < 20; ++sample)
    for (const Crop crop : {Crop::kRandomResized, Crop::kScaleAndCrop, Crop::kPadAndCrop}) {
      TrainTransform transform;
      transform.crop = crop;
      transform.scale_min = 30;
      transform.scale_max = 60;
      const Geometry geometry =
          train_geometry(transform, {80, 90, 3}, {24, 24, 3}, 1, 0, sample, "x");
      const Region source = source_region(geometry);
      TestImage part{source.width, source.height, 3, {}};
      for (int y = 0; y < source.height; ++y)
        for (int x = 0; x < source.width; ++x)
          for (int c = 0; c < 3; ++c)
            part.pixels.push_back(image.at(source.x + x, source.y + y, c));
      PixelView view = view_of(part);
      view.region = source;
      ResizeScratch scratch;
      std::vector<uint8_t> out(24 * 24 * 3);
      apply(out.data(), geometry, view, scratch);
      EXPECT_EQ(out, apply_to(image, geometry));
    }
}

TEST(Shrink, OnlyWhereTheFilterShrinksAsMuch) {
  Geometry geometry = train_geometry({}, {4000, 4000, 3}, {32, 32, 3}, 1, 0, 1, "x");
  const auto denominator = [&](double x, double y) {
    geometry.x.scale = x;
    geometry.y.scale = y;
    return shrink_denominator(geometry);
  };
  EXPECT_EQ(denominator(1.99, 5), 1);
  EXPECT_EQ(denominator(2, 2), 2);
  EXPECT_EQ(denominator(4, 3.9), 2);
  EXPECT_EQ(denominator(7.9, 4), 4);
  EXPECT_EQ(denominator(30, 8), 8);
  geometry.may_shrink = false;
  EXPECT_EQ(denominator(30, 8), 1);
}

// Shrinking in the decoder and then filtering gives nearly the same picture, in the same place.
TEST(Shrink, KeepsThePlaceOfThePicture) {
  TestImage image{400, 320, 3, {}};
  for (int y = 0; y < 320; ++y)
    for (int x = 0; x < 400; ++x)
      for (int c = 0; c < 3; ++c)
        image.pixels.push_back(
            static_cast<uint8_t>(128 + 60 * std::sin(x * 0.05) + 60 * std::cos(y * 0.06 + c)));
  const std::string file = test::encode_jpeg(image, {.quality = 98, .chroma_x = 1, .chroma_y = 1});
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  SampleScratch scratch;
  std::set<int> used;
  for (uint64_t sample = 0; sample < 40; ++sample) {
    const int size = sample % 2 == 0 ? 20 : 48;
    const ImageShape shape{320, 400, 3}, out{size, size, 3};
    const Geometry geometry = train_geometry({}, shape, out, 1, 0, sample, "x");
    const int denominator = shrink_denominator(geometry);
    used.insert(denominator);
    ImageShape opened;
    ImageCodec& codec = scratch.decoder.open(bytes, "x", 1000000, opened);
    const Geometry small = shrink(geometry, denominator);
    codec.decode(source_region(small), denominator, scratch.image);
    std::vector<uint8_t> got(out.bytes());
    apply(got.data(), small, scratch.image.view(), scratch.resize);
    const std::vector<uint8_t> exact = apply_to(image, geometry);
    double sum = 0;
    for (size_t i = 0; i < got.size(); ++i) sum += std::abs(got[i] - exact[i]);
    EXPECT_LT(sum / static_cast<double>(got.size()), 2.0) << sample << " 1/" << denominator;
  }
  EXPECT_EQ(used, (std::set<int>{2, 4, 8}));
}

class FixedShape final : public Dataset {
 public:
  explicit FixedShape(std::optional<ImageShape> shape) : shape_(shape) {}
  uint64_t size() const override { return 1; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return shape_; }
  void read(uint64_t, Sample&) const override {}
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t) const override { return "fixed"; }
  const std::string& digest() const override { return classes_[0]; }

 private:
  std::optional<ImageShape> shape_;
  std::vector<std::string> classes_ = {"only"};
};

TEST(OutputShape, ContradictionsAndTooLargeCropsAreErrors) {
  const FixedShape raw(ImageShape{28, 28, 1}), encoded(std::nullopt);
  const auto expect = [](const auto& transform, const Dataset& dataset, ExitCode code,
                         const std::vector<std::string>& parts) {
    try {
      output_shape(transform, dataset);
      ADD_FAILURE() << "no error: " << parts[0];
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      for (const std::string& part : parts)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "'" << part << "' is not in: " << error.what();
    }
  };
  TrainTransform pad;
  pad.crop = Crop::kPadAndCrop;
  pad.size = 64;
  expect(pad, raw, ExitCode::kBadData, {"64 x 64", "28 x 28", "data.train.size to at most 36"});
  pad.size = 0;
  EXPECT_EQ(output_shape(pad, raw), (ImageShape{28, 28, 1}));
  expect(pad, encoded, ExitCode::kBadJob, {"data.train.size"});
  pad.pad = 28;
  expect(pad, raw, ExitCode::kBadJob, {"data.train.pad: 28"});
  TrainTransform center;
  center.crop = Crop::kCenter;
  center.resize = 0;
  center.size = 32;
  expect(center, raw, ExitCode::kBadData, {"32 x 32", "28 x 28"});
  TrainTransform bad;
  bad.area_min = 0;
  expect(bad, encoded, ExitCode::kBadJob, {"area_min"});
  bad = {};
  bad.ratio_min = 2;
  expect(bad, encoded, ExitCode::kBadJob, {"ratio_min"});
  bad = {};
  bad.crop = Crop::kScaleAndCrop;
  bad.scale_min = 200;
  expect(bad, encoded, ExitCode::kBadJob, {"scale_min: 200", "224"});
  bad.scale_min = 500;
  expect(bad, encoded, ExitCode::kBadJob, {"scale_min, scale_max: 500, 480"});
  bad = {};
  bad.size = -1;
  expect(bad, encoded, ExitCode::kBadJob, {"data.train.size: -1"});
  expect(EvalTransform{0, 32}, raw, ExitCode::kBadData, {"32 x 32", "28 x 28"});
  expect(EvalTransform{100, 224}, encoded, ExitCode::kBadJob, {"data.eval.resize: 100"});
  EXPECT_EQ(output_shape(EvalTransform{256, 224}, encoded), kOut);
  EXPECT_EQ(output_shape(EvalTransform{32, 28}, raw), (ImageShape{28, 28, 1}));
  // An encoded image is judged when it is met.
  pad = {};
  pad.crop = Crop::kPadAndCrop;
  try {
    train_geometry(pad, {100, 90, 3}, kOut, 1, 0, 0, "some/file.jpg");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("some/file.jpg: a crop of 224 x 224"),
              std::string::npos)
        << error.what();
  }
}

// Real photographs, where they are: all decode, and the resize equals the reference.
TEST(ImagenetSample, DecodesAndTransforms) {
  const std::string path = std::string(CONVOY_SOURCE_DIR) + "/../shared/data/imagenet-sample";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "SKIPPED LOUDLY: no " << path;
  DatasetSpec spec;
  spec.path = path;
  const auto dataset = open_dataset(spec, Split::kVal);
  EXPECT_EQ(dataset->size(), 200u);
  const EvalTransform eval{72, 64};
  const ImageShape out = output_shape(eval, *dataset);
  const SampleMaker maker(*dataset, out, 178956970);
  SampleScratch scratch;
  std::vector<uint8_t> pixels(out.bytes());
  for (uint64_t i = 0; i < dataset->size(); ++i) {
    Geometry used;
    const auto geometry = [&](ImageShape image, const std::string& name) {
      return used = eval_geometry(eval, image, out, name);
    };
    EXPECT_EQ(maker.make(pixels.data(), i, geometry, scratch), dataset->label(i));
    dataset->read(i, scratch.sample);
    ImageShape shape;
    ImageCodec& codec =
        scratch.decoder.open(scratch.sample.bytes, dataset->name(i), 178956970, shape);
    codec.decode({0, 0, shape.width, shape.height}, 1, scratch.image);
    const TestImage whole{shape.width, shape.height, 3, scratch.image.pixels};
    EXPECT_LE(largest_difference(pixels, reference(whole, used)), 1) << dataset->name(i);
    const auto random = [&](ImageShape image, const std::string& name) {
      return train_geometry({}, image, out, 1, 0, i, name);
    };
    maker.make(pixels.data(), i, random, scratch);
  }
}

}  // namespace
}  // namespace convoy::data
