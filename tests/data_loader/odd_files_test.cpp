// Files of odd kinds, made by odd_files/make_odd_files.py, decode to the pixels that Pillow sees,
// or are refused by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "data_loader/eval_loader.h"
#include "data_loader/image.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/sample_maker.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxPixels = 1'000'000;

std::string folder(const std::string& inside) {
  return std::string(CONVOY_SOURCE_DIR) + "/tests/data_loader/odd_files/" + inside;
}

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct Pixels {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

// A binary PPM as Pillow writes it; no pixels where there is no such file.
Pixels read_ppm(const std::string& path) {
  const std::string text = test::read_file(path);
  Pixels out;
  int used = 0;
  if (std::sscanf(text.c_str(), "P6 %d %d 255%n", &out.width, &out.height, &used) != 2) return out;
  out.rgb.assign(text.begin() + used + 1, text.end());
  return out;
}

// Of the whole image; as EXIF says it is to be seen where `upright`.
Pixels decode(const std::string& file, bool upright) {
  ImageDecoder decoder;
  ImageShape shape;
  ImageCodec& codec = decoder.open(bytes_of(file), "image", kMaxPixels, shape);
  Image image, turned;
  codec.decode({0, 0, shape.width, shape.height}, 1, image);
  const int orientation = jpeg_facts(bytes_of(file)).orientation;
  if (upright && orientation != 1) {
    turn_upright(image, orientation, turned);
    std::swap(image, turned);
  }
  return {image.shape.width, image.shape.height, image.pixels};
}

int greatest_difference(const Pixels& a, const Pixels& b) {
  EXPECT_EQ(a.width, b.width);
  EXPECT_EQ(a.height, b.height);
  EXPECT_EQ(a.rgb.size(), b.rgb.size());
  int most = 0;
  for (size_t i = 0; i < std::min(a.rgb.size(), b.rgb.size()); ++i)
    most = std::max(most, std::abs(a.rgb[i] - b.rgb[i]));
  return most;
}

TEST(OddFiles, DecodeToPillowsPixelsOrAreRefusedByName) {
  const std::pair<const char*, const char*> refusals[] = {{"arithmetic", "arithmetic coding"},
                                                          {"12_bit", "precision 12"},
                                                          {"lossless", "lossless coding"}};
  int decoded = 0, refused = 0;
  for (const auto& entry : fs::directory_iterator(folder("files"))) {
    const std::string name = entry.path().filename();
    SCOPED_TRACE(name);
    const std::string file = test::read_file(entry.path());
    const Pixels expected = read_ppm(folder("expected/" + name + ".ppm"));
    if (!expected.rgb.empty()) {
      ++decoded;
      EXPECT_EQ(greatest_difference(decode(file, false), expected), 0);
      continue;
    }
    ++refused;
    try {
      decode(file, false);
      ADD_FAILURE() << "decoded";
    } catch (const BadContent& bad) {
      EXPECT_EQ(bad.damage(), Damage::kUnsupported);
      const auto* row = std::find_if(std::begin(refusals), std::end(refusals),
                                     [&](const auto& r) { return name.starts_with(r.first); });
      ASSERT_NE(row, std::end(refusals));
      EXPECT_NE(std::string(bad.what()).find(row->second), std::string::npos) << bad.what();
    }
  }
  EXPECT_EQ(decoded, 30);
  EXPECT_EQ(refused, 4);
}

TEST(OddFiles, EveryOrientationIsTurnedUpright) {
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string name = fmt::format("orientation_{}.jpg", orientation);
    SCOPED_TRACE(name);
    const std::string file = test::read_file(folder("files/" + name));
    EXPECT_EQ(jpeg_facts(bytes_of(file)).orientation, orientation);
    const Pixels expected = read_ppm(folder("expected/" + name + ".upright.ppm"));
    ASSERT_FALSE(expected.rgb.empty());
    EXPECT_EQ(greatest_difference(decode(file, true), expected), 0);
  }
}

// One image per sample, from memory.
class Images final : public Dataset {
 public:
  std::vector<std::string> files;
  uint64_t size() const override { return files.size(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  void read(uint64_t i, Sample& sample) const override { sample.bytes = bytes_of(files[i]); }
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t i) const override { return fmt::format("image {}", i); }
  const std::string& digest() const override { return digest_; }

 private:
  std::vector<std::string> classes_ = {"one"};
  std::string digest_ = std::string(64, '0');
};

std::vector<uint8_t> eval_pixels(const Dataset& dataset, bool apply) {
  EvalLoader loader(dataset, {.looks = {.transform = {.resize = 12, .size = 12}},
                              .batch = static_cast<int>(dataset.size()),
                              .slices = {0},
                              .apply_exif_orientation = apply});
  const Batch& batch = loader.acquire(0);
  std::vector<uint8_t> out(batch.pixels, batch.pixels + dataset.size() * batch.shape.bytes());
  loader.release(batch);
  return out;
}

// The same picture stored lying and stored upright: equal where the tag is applied.
TEST(OddFiles, TheLoaderTurnsImagesWhenTheJobSaysSo) {
  Images stored, upright;
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string name = fmt::format("orientation_{}.jpg", orientation);
    stored.files.push_back(test::read_file(folder("files/" + name)));
    const Pixels seen = read_ppm(folder("expected/" + name + ".upright.ppm"));
    upright.files.push_back(test::encode_png({seen.width, seen.height, 3, seen.rgb}));
  }
  EXPECT_EQ(eval_pixels(stored, true), eval_pixels(upright, false));
  EXPECT_NE(eval_pixels(stored, false), eval_pixels(upright, false));
  const SampleMaker maker(stored, {8, 8, 3}, kMaxPixels, true);
  SampleScratch scratch;
  std::vector<uint8_t> out(8 * 8 * 3);
  for (uint64_t i = 0; i < stored.size(); ++i) {
    ImageShape seen;
    maker.make(
        out.data(), i,
        [&](ImageShape shape, const std::string& name) {
          seen = shape;
          return eval_geometry({8, 8}, shape, {8, 8, 3}, name);
        },
        scratch);
    EXPECT_EQ(seen, (i < 4 ? ImageShape{14, 21, 3} : ImageShape{21, 14, 3})) << i;
  }
}

// ---- The tag ----

std::string number(uint32_t value, int bytes, bool little) {
  std::string out;
  for (int i = 0; i < bytes; ++i)
    out += static_cast<char>(value >> 8 * (little ? i : bytes - 1 - i));
  return out;
}

struct Tag {
  uint32_t id = 0x112, type = 3, count = 1, value = 6;
};

// A TIFF structure with these tags.
std::string tiff(bool little, const std::vector<Tag>& tags, uint32_t directory = 8) {
  std::string out = (little ? "II" : "MM") + number(42, 2, little) + number(directory, 4, little);
  out += number(static_cast<uint32_t>(tags.size()), 2, little);
  for (const Tag& tag : tags) {
    out += number(tag.id, 2, little) + number(tag.type, 2, little) + number(tag.count, 4, little);
    out += tag.type == 3 ? number(tag.value, 2, little) + number(0, 2, little)
                         : number(tag.value, 4, little);
  }
  return out + number(0, 4, little);
}

TEST(Exif, TheOrientationIsReadInBothByteOrders) {
  for (const bool little : {false, true}) {
    for (uint32_t value = 0; value < 20; ++value)
      EXPECT_EQ(exif_orientation(bytes_of(tiff(little, {{.value = value}}))),
                value >= 1 && value <= 8 ? static_cast<int>(value) : 1);
    EXPECT_EQ(exif_orientation(bytes_of(tiff(little, {{.type = 4, .value = 7}}))), 7);
    EXPECT_EQ(exif_orientation(bytes_of(tiff(little, {{.id = 0x103}, {.value = 5}}))), 5);
  }
}

TEST(Exif, WhatMakesNoSenseIsUpright) {
  for (const bool little : {false, true}) {
    const std::string good = tiff(little, {{.id = 0x103}, {.value = 6}});
    EXPECT_EQ(exif_orientation(bytes_of(good)), 6);
    const size_t needed = 8 + 2 + 2 * 12;
    for (size_t length = 0; length < good.size(); ++length)
      EXPECT_EQ(exif_orientation(bytes_of(good.substr(0, length))), length < needed ? 1 : 6)
          << length;
    for (const Tag& tag : {Tag{.id = 0x113}, {.type = 2}, {.count = 0}, {.count = 2}})
      EXPECT_EQ(exif_orientation(bytes_of(tiff(little, {tag}))), 1);
    for (const uint32_t directory : {0u, 25u, 100u, 0x7fffffffu, 0xfffffffeu, 0xffffffffu})
      EXPECT_EQ(exif_orientation(bytes_of(tiff(little, {{}}, directory))), 1) << directory;
  }
  EXPECT_EQ(exif_orientation(bytes_of("IM" + tiff(true, {{}}).substr(2))), 1);
}

TEST(Exif, ItIsFoundBehindOtherSegmentsAndNowhereElse) {
  const auto segment = [](char marker, const std::string& body) {
    return std::string{'\xff', marker} + number(static_cast<uint32_t>(body.size()) + 2, 2, false) +
           body;
  };
  const std::string start("\xff\xd8", 2);
  const std::string exif = segment('\xe1', std::string("Exif\0\0", 6) + tiff(true, {{}}));
  const std::string scan = segment('\xda', "x");
  const auto orientation = [](const std::string& file) {
    return jpeg_facts(bytes_of(file)).orientation;
  };
  EXPECT_EQ(orientation(start + exif), 6);
  EXPECT_EQ(orientation(start + segment('\xe0', "JFIF") + "\xff\xff" + exif), 6);
  EXPECT_EQ(orientation(start + segment('\xe1', "http://ns.adobe.com/xap/1.0/") + exif), 6);
  EXPECT_EQ(orientation(start + scan + exif), 1);
  EXPECT_EQ(orientation("xx" + exif), 1);
  EXPECT_EQ(orientation(start + exif.substr(0, exif.size() - 1)), 1);
  // The first of two counts, as in Pillow.
  const std::string second =
      segment('\xe1', std::string("Exif\0\0", 6) + tiff(true, {{.value = 3}}));
  EXPECT_EQ(orientation(start + exif + second), 6);
}

}  // namespace
}  // namespace convoy::data
