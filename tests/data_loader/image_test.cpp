// JPEG and PNG: all kinds decode to the right RGB, parts equal the whole, and damage is an error.
#include "data_loader/image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "data_loader/jpeg.h"
#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::JpegStyle;
using test::PngStyle;
using test::TestImage;

constexpr uint64_t kMaxPixels = 1'000'000;

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Decodes `region` (empty: all) into an image of exactly that size.
TestImage decode(ImageDecoder& decoder, const std::string& file, int denominator = 1,
                 Region region = {}) {
  ImageShape shape;
  ImageCodec& codec = decoder.open(bytes_of(file), "dir/image.jpg", kMaxPixels, shape);
  if (region.width == 0)
    region = {0, 0, (shape.width + denominator - 1) / denominator,
              (shape.height + denominator - 1) / denominator};
  Image image;
  codec.decode(region, denominator, image);
  EXPECT_LE(image.region.x, region.x);
  EXPECT_LE(image.region.y, region.y);
  EXPECT_GE(image.region.x + image.region.width, region.x + region.width);
  EXPECT_GE(image.region.y + image.region.height, region.y + region.height);
  EXPECT_EQ(image.shape.width, (shape.width + denominator - 1) / denominator);
  TestImage out{region.width, region.height, 3, {}};
  for (int y = 0; y < region.height; ++y) {
    const uint8_t* row = image.pixels.data() +
                         static_cast<size_t>(region.y - image.region.y + y) * image.stride +
                         static_cast<size_t>(region.x - image.region.x) * 3;
    out.pixels.insert(out.pixels.end(), row, row + region.width * 3);
  }
  return out;
}

// The text of the error, which must be BadContent of one line and name the file.
std::string error_of(ImageDecoder& decoder, const std::string& file, Region region = {}) {
  try {
    decode(decoder, file, 1, region);
  } catch (const BadContent& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_EQ(text.rfind("dir/image.jpg: ", 0), 0u) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
    return text;
  }
  return "";
}

double mean_difference(const TestImage& a, const TestImage& b) {
  double sum = 0;
  for (size_t i = 0; i < a.pixels.size(); ++i) sum += std::abs(a.pixels[i] - b.pixels[i]);
  return sum / static_cast<double>(a.pixels.size());
}

TestImage grey_as_rgb(const TestImage& grey) {
  TestImage out{grey.width, grey.height, 3, {}};
  for (const uint8_t value : grey.pixels) out.pixels.insert(out.pixels.end(), 3, value);
  return out;
}

TEST(Jpeg, DecodesWhatWasEncoded) {
  ImageDecoder decoder;
  const TestImage image = test::make_image(67, 45, 3, 1);
  for (const bool progressive : {false, true}) {
    const std::string file = test::encode_jpeg(
        image, {.quality = 100, .progressive = progressive, .chroma_x = 1, .chroma_y = 1});
    EXPECT_LT(mean_difference(decode(decoder, file), image), 1.0);
  }
  const TestImage grey = test::make_image(67, 45, 1, 2);
  EXPECT_LT(mean_difference(decode(decoder, test::encode_jpeg(grey, {.quality = 100})),
                            grey_as_rgb(grey)),
            1.0);
}

TEST(Jpeg, CmykAndYcckBecomeRgb) {
  ImageDecoder decoder;
  // Ink as Adobe stores it: inverted, so 255 is no ink.
  TestImage ink{16, 16, 4, {}};
  for (int i = 0; i < 256; ++i) ink.pixels.insert(ink.pixels.end(), {200, 100, 50, 128});
  for (const bool ycck : {false, true}) {
    const TestImage rgb = decode(decoder, test::encode_jpeg(ink, {.quality = 100, .ycck = ycck}));
    EXPECT_NEAR(rgb.at(5, 5, 0), 200 * 128 / 255.0, 2);
    EXPECT_NEAR(rgb.at(5, 5, 1), 100 * 128 / 255.0, 2);
    EXPECT_NEAR(rgb.at(5, 5, 2), 50 * 128 / 255.0, 2);
  }
  const TestImage plain =
      decode(decoder, test::encode_jpeg(ink, {.quality = 100, .adobe_marker = false}));
  EXPECT_NEAR(plain.at(5, 5, 0), 55 * 127 / 255.0, 2);
  EXPECT_NEAR(plain.at(5, 5, 2), 205 * 127 / 255.0, 2);
}

// One decoder for all, so this also shows that nothing is left over from the image before.
TEST(Jpeg, APartEqualsTheWhole) {
  ImageDecoder decoder;
  std::vector<std::string> files;
  for (const bool progressive : {false, true})
    for (const auto& [x, y] : std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {1, 2}, {2, 2}})
      files.push_back(test::encode_jpeg(
          test::make_image(150, 131, 3, 3),
          {.quality = 80, .progressive = progressive, .chroma_x = x, .chroma_y = y}));
  files.push_back(test::encode_jpeg(test::make_image(150, 131, 1, 4)));
  files.push_back(test::encode_jpeg(test::make_image(150, 131, 4, 5)));
  for (size_t f = 0; f < files.size(); ++f)
    for (const int denominator : {1, 2, 4, 8}) {
      const TestImage whole = decode(decoder, files[f], denominator);
      for (uint64_t trial = 0; trial < 40; ++trial) {
        const Random4 words = random4(trial, Purpose::kSyntheticData, f, 0);
        Region region;
        region.x = static_cast<int>(uniform_below(words[0], static_cast<uint32_t>(whole.width)));
        region.y = static_cast<int>(uniform_below(words[1], static_cast<uint32_t>(whole.height)));
        region.width = 1 + static_cast<int>(uniform_below(
                               words[2], static_cast<uint32_t>(whole.width - region.x)));
        region.height = 1 + static_cast<int>(uniform_below(
                                words[3], static_cast<uint32_t>(whole.height - region.y)));
        const TestImage part = decode(decoder, files[f], denominator, region);
        int differences = 0;
        for (int y = 0; y < region.height; ++y)
          for (int x = 0; x < region.width; ++x)
            for (int c = 0; c < 3; ++c)
              differences += part.at(x, y, c) != whole.at(region.x + x, region.y + y, c) ? 1 : 0;
        ASSERT_EQ(differences, 0) << "file " << f << ", 1/" << denominator << ", region "
                                  << region.x << "," << region.y << " " << region.width << "x"
                                  << region.height;
      }
    }
}

TEST(Jpeg, EveryTruncationIsAnErrorWhateverTheCrop) {
  ImageDecoder decoder;
  testing::internal::CaptureStderr();
  for (const bool progressive : {false, true}) {
    const std::string file =
        test::encode_jpeg(test::make_image(90, 70, 3, 6), {.progressive = progressive});
    ASSERT_EQ(error_of(decoder, file), "");
    for (size_t length = 0; length < file.size(); length += length + 40 < file.size() ? 37 : 1) {
      const std::string part = file.substr(0, length);
      ASSERT_NE(error_of(decoder, part), "") << length << " of " << file.size();
      if (length > 700) {
        ASSERT_NE(error_of(decoder, part, {0, 0, 20, 8}), "") << length << " of " << file.size();
      }
    }
    EXPECT_EQ(error_of(decoder, file + "bytes after the end"), "");
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "libjpeg's own messages";
}

TEST(Jpeg, DamageOutsideTheCropIsFound) {
  ImageDecoder decoder;
  const std::string file = test::encode_jpeg(test::make_image(90, 170, 3, 7));
  std::string damaged = file;
  damaged.replace(file.size() * 8 / 10, 2, "\xff\xd9");  // an end in the middle
  EXPECT_EQ(error_of(decoder, file, {10, 20, 30, 30}), "");
  EXPECT_NE(error_of(decoder, damaged, {10, 20, 30, 30}).find("premature end"), std::string::npos);
  damaged = file;
  damaged.replace(file.size() * 2 / 10, 2, "\xff\xd9");
  EXPECT_NE(error_of(decoder, damaged, {10, 120, 30, 30}), "");
}

// What is below the crop is not decoded where the file's end is in place: only Reading::kAll sees
// that a piece is missing.
TEST(Jpeg, DamageBelowTheCropIsForWhoReadsAll) {
  ImageDecoder decoder, strict(Reading::kAll);
  const std::string file = test::encode_jpeg(test::make_image(90, 170, 3, 7));
  std::string damaged = file;
  damaged.erase(file.size() * 8 / 10, 100);
  for (const std::string& good : {file, file + std::string(kMaxTrailingBytes, '\0')})
    EXPECT_EQ(error_of(strict, good, {10, 20, 30, 30}), "");
  EXPECT_EQ(error_of(decoder, damaged, {10, 20, 30, 30}), "");
  EXPECT_NE(error_of(strict, damaged, {10, 20, 30, 30}), "");
  EXPECT_NE(error_of(decoder, damaged), "");
  // With more behind the end than padding, all is read.
  EXPECT_NE(error_of(decoder, damaged + std::string(kMaxTrailingBytes + 1, '\0'), {10, 20, 30, 30}),
            "");
}

// Flipping bytes must end in pixels or in BadContent: never in a crash or a hang.
TEST(Jpeg, RandomDamageDoesNoHarm) {
  ImageDecoder decoder;
  const std::string files[] = {
      test::encode_jpeg(test::make_image(60, 50, 3, 8)),
      test::encode_jpeg(test::make_image(60, 50, 3, 8), {.progressive = true}),
      test::encode_png(test::make_image(60, 50, 3, 8))};
  int errors = 0;
  for (uint64_t trial = 0; trial < 600; ++trial) {
    std::string file = files[trial % 3];
    const Random4 words = random4(trial, Purpose::kSyntheticData, 8, 8);
    for (int i = 0; i < 3; ++i)
      file[uniform_below(words[static_cast<size_t>(i)], static_cast<uint32_t>(file.size()))] =
          static_cast<char>(words[3] >> (8 * i));
    try {
      ImageShape shape;
      ImageCodec& codec = decoder.open(bytes_of(file), "x", kMaxPixels, shape);
      Image image;
      codec.decode({shape.width / 3, shape.height / 3, 1, 1}, codec.can_shrink() ? 2 : 1, image);
    } catch (const BadContent&) {
      ++errors;
    }
  }
  EXPECT_GT(errors, 100);
}

// Found by fuzzing: libjpeg keeps quantization tables from one file to the next.
TEST(Jpeg, AFileIsDecodedAloneWhateverCameBefore) {
  const std::string whole = test::encode_jpeg(test::make_image(20, 20, 3, 14));
  std::string lacking = whole;
  for (size_t at; (at = lacking.find("\xff\xdb")) != std::string::npos;)
    lacking.erase(at, 2 + static_cast<size_t>(static_cast<uint8_t>(lacking[at + 2]) << 8 |
                                              static_cast<uint8_t>(lacking[at + 3])));
  ImageDecoder fresh, used;
  const std::string error = error_of(fresh, lacking);
  EXPECT_NE(error.find("Quantization table"), std::string::npos) << error;
  EXPECT_EQ(error_of(used, whole), "");
  EXPECT_EQ(error_of(used, lacking), error);
}

TEST(Jpeg, TooManyPixelsOrScansAreRefused) {
  ImageDecoder decoder;
  std::string file = test::encode_jpeg(test::make_image(32, 32, 3, 9));
  // The frame header says 65,000 x 65,000 now.
  const size_t frame = file.find("\xff\xc0");
  ASSERT_NE(frame, std::string::npos);
  file.replace(frame + 5, 4, "\xfd\xe8\xfd\xe8");
  const std::string text = error_of(decoder, file);
  EXPECT_NE(text.find("65000 x 65000"), std::string::npos) << text;
  EXPECT_NE(text.find("data.max_pixels = 1000000"), std::string::npos) << text;

  // The first scan of a progressive file again and again.
  file = test::encode_jpeg(test::make_image(32, 32, 3, 9), {.progressive = true});
  const size_t scan = file.find("\xff\xda");
  size_t end = scan + 2;
  while (file[end] != '\xff' || file[end + 1] == '\0') ++end;
  const std::string first = file.substr(scan, end - scan);
  file.resize(file.size() - 2);
  for (int i = 0; i < 1000; ++i) file += first;
  file += "\xff\xd9";
  const std::string scans = error_of(decoder, file);
  EXPECT_NE(scans.find("more than 500 scans"), std::string::npos) << scans;
}

TEST(Png, AllKindsDecode) {
  ImageDecoder decoder;
  const TestImage rgb = test::make_image(33, 21, 3, 10);
  const TestImage grey = test::make_image(33, 21, 1, 11);
  const TestImage alpha = test::make_image(33, 21, 4, 12);
  TestImage opaque{33, 21, 3, {}};
  for (size_t i = 0; i < alpha.pixels.size(); ++i)
    if (i % 4 != 3) opaque.pixels.push_back(alpha.pixels[i]);
  for (const bool interlaced : {false, true})
    for (const int bits : {8, 16}) {
      const PngStyle style{bits, interlaced};
      EXPECT_EQ(decode(decoder, test::encode_png(rgb, style)).pixels, rgb.pixels);
      EXPECT_EQ(decode(decoder, test::encode_png(grey, style)).pixels, grey_as_rgb(grey).pixels);
      EXPECT_EQ(decode(decoder, test::encode_png(alpha, style)).pixels, opaque.pixels);
      const TestImage part = decode(decoder, test::encode_png(rgb, style), 1, {4, 5, 7, 3});
      for (int y = 0; y < 3; ++y)
        for (int x = 0; x < 7; ++x) EXPECT_EQ(part.at(x, y, 1), rgb.at(4 + x, 5 + y, 1));
    }
}

TEST(Png, EveryTruncationIsAnError) {
  ImageDecoder decoder;
  testing::internal::CaptureStderr();
  const std::string file = test::encode_png(test::make_image(40, 30, 3, 13));
  for (size_t length = 0; length < file.size(); length += length + 40 < file.size() ? 31 : 1)
    ASSERT_NE(error_of(decoder, file.substr(0, length)), "") << length << " of " << file.size();
  EXPECT_NE(error_of(decoder, file.substr(0, file.size() / 2), {0, 0, 5, 2}), "");
  std::string large = file;
  large.replace(16, 8, std::string("\0\x10\0\0\0\x10\0\0", 8));
  EXPECT_NE(error_of(decoder, large), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "libpng's own messages";
}

TEST(Image, OtherFilesAreNamedByTheirFirstBytes) {
  ImageDecoder decoder;
  EXPECT_EQ(error_of(decoder, ""), "dir/image.jpg: not an image (the file is empty)");
  EXPECT_NE(
      error_of(decoder, "<html>\n<body>").find("not an image (starts with \"<html>\\n<body>\")"),
      std::string::npos);
  EXPECT_NE(error_of(decoder, std::string("GIF89a\0\1", 8)).find("GIF89a\\x00\\x01"),
            std::string::npos);
  EXPECT_NE(error_of(decoder, "\xff\xd8").find("not an image"), std::string::npos);
}

}  // namespace
}  // namespace convoy::data
