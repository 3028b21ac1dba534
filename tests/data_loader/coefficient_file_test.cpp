// Files of coefficients: libjpeg's pixels whatever the image, region and scale; the same bits with
// every instruction set; a format that is what its header says; and damage that is refused.
#include "data_loader/coefficient_file.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "data_loader/coefficient_kernels.h"
#include "data_loader/jpeg.h"
#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::JpegStyle;
using test::TestImage;
using Bytes = std::vector<uint8_t>;

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

int draw(uint64_t i, uint64_t j, int below) {
  return static_cast<int>(
      uniform_below(random4(i, Purpose::kSyntheticData, j, 78)[0], static_cast<uint32_t>(below)));
}

TestImage make_noise(int width, int height, int channels, uint64_t seed) {
  TestImage image{width, height, channels, {}};
  for (int i = 0; i < width * height * channels; ++i)
    image.pixels.push_back(static_cast<uint8_t>(draw(seed, static_cast<uint64_t>(i), 256)));
  return image;
}

Bytes encoded(const std::string& jpeg) {
  CoefficientEncoder encoder(1u << 24);
  Bytes out;
  EXPECT_TRUE(encoder.encode(bytes_of(jpeg), "x.jpg", out));
  return out;
}

// Rows of `region`, whatever else was decoded.
Bytes pixels_of(const Image& image, const Region& region) {
  Bytes out;
  for (int y = 0; y < region.height; ++y) {
    const uint8_t* const row = image.pixels.data() +
                               image.stride * static_cast<size_t>(region.y + y - image.region.y) +
                               static_cast<ptrdiff_t>(region.x - image.region.x) * 3;
    out.insert(out.end(), row, row + static_cast<ptrdiff_t>(region.width) * 3);
  }
  return out;
}

Bytes decoded(ImageCodec& codec, std::span<const uint8_t> file, const Region& region, int by) {
  Image image;
  codec.open(file, "x", 1u << 24);
  codec.decode(region, by, image);
  return pixels_of(image, region);
}

void expect_libjpegs_pixels(const std::string& jpeg, uint64_t seed) {
  static const auto ours = make_coefficient_codec();
  static const auto libjpeg = make_libjpeg_codec();
  const Bytes file = encoded(jpeg);
  const ImageShape shape = ours->open(file, "x", 1u << 24);
  for (const int by : {1, 2, 4, 8}) {
    const int width = (shape.width + by - 1) / by, height = (shape.height + by - 1) / by;
    for (uint64_t i = 0; i < 4; ++i) {
      Region region{0, 0, width, height};
      if (i > 0) {
        region.x = draw(seed, 4 * i, width);
        region.y = draw(seed, 4 * i + 1, height);
        region.width = 1 + draw(seed, 4 * i + 2, width - region.x);
        region.height = 1 + draw(seed, 4 * i + 3, height - region.y);
      }
      ASSERT_TRUE(decoded(*ours, file, region, by) == decoded(*libjpeg, bytes_of(jpeg), region, by))
          << shape.width << "x" << shape.height << ", 1/" << by << ", region " << region.x << ","
          << region.y << " " << region.width << "x" << region.height;
    }
  }
}

struct Sampling {
  int channels, x, y;
};
constexpr Sampling kSamplings[] = {{1, 1, 1}, {3, 1, 1}, {3, 2, 1}, {3, 2, 2}};

TEST(CoefficientFile, HasLibjpegsPixels) {
  uint64_t n = 0;
  for (const auto& [channels, x, y] : kSamplings)
    for (const auto& [width, height] :
         {std::pair{1, 1}, {8, 8}, {9, 17}, {40, 40}, {131, 77}, {30, 200}})
      for (const bool noise : {false, true})
        for (const int quality : {4, 40, 85, 100})
          for (const bool progressive : {false, true}) {
            const TestImage image = noise ? make_noise(width, height, channels, ++n)
                                          : test::make_image(width, height, channels, ++n);
            ASSERT_NO_FATAL_FAILURE(expect_libjpegs_pixels(
                test::encode_jpeg(image, {.quality = quality,
                                          .progressive = progressive,
                                          .chroma_x = x,
                                          .chroma_y = y,
                                          .restart_interval = noise ? 3 : 0}),
                n));
          }
}

TEST(CoefficientFile, WhatHasOtherPixelsStaysAsItIs) {
  CoefficientEncoder encoder(1u << 24);
  Bytes out;
  for (const std::string& file :
       {test::encode_jpeg(test::make_image(20, 20, 4, 1)),
        test::encode_jpeg(test::make_image(20, 20, 4, 2), {.ycck = true}),
        test::encode_jpeg(test::make_image(20, 20, 3, 3), {.chroma_x = 1, .chroma_y = 2}),
        test::encode_png(test::make_image(20, 20, 3, 4))})
    EXPECT_FALSE(encoder.encode(bytes_of(file), "x", out));
  std::string cut = test::encode_jpeg(make_noise(40, 40, 3, 5));
  cut.resize(cut.size() / 2);
  EXPECT_THROW(encoder.encode(bytes_of(cut), "x", out), BadContent);
  EXPECT_THROW(CoefficientEncoder(99).encode(
                   bytes_of(test::encode_jpeg(test::make_image(10, 10, 3, 6))), "x", out),
               BadContent);
}

// By hand, from the description in the header.
TEST(CoefficientFile, IsWhatItsDescriptionSays) {
  const TestImage grey{8, 8, 1, Bytes(64, 200)};
  const Bytes file = encoded(test::encode_jpeg(grey, {.quality = 100}));
  Bytes expected(kCoefficientMagic.begin(), kCoefficientMagic.end());
  const auto put = [&expected](int value, int bytes) {
    for (int i = 0; i < bytes; ++i) expected.push_back(static_cast<uint8_t>(value >> 8 * i));
  };
  put(8, 2);  // width, height
  put(8, 2);
  for (const int value : {1, 1, 1, 1}) put(value, 1);  // components, h, v, orientation
  for (int k = 0; k < 64; ++k) put(1, 2);              // quantisation
  put(14, 4);                                          // bytes of the only row of blocks
  // 8 * (200 - 128) = 576 takes 11 bits, stored as 12, and seven zeros; then a block of no group.
  put(12, 1);
  put(576, 2);
  for (int i = 2; i < 12; ++i) put(0, 1);
  put(0, 1);
  EXPECT_EQ(file, expected);
  EXPECT_TRUE(is_coefficient_file(file));
  EXPECT_EQ(coefficient_file_orientation(file), 1);
}

TEST(CoefficientFile, KeepsExifsOrientation) {
  // APP1 behind SOI: a TIFF directory of one entry, 0x112 = 6.
  std::string jpeg = test::encode_jpeg(test::make_image(20, 12, 3, 7));
  const std::string tiff("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", 26);
  const std::string body = std::string("Exif\0\0", 6) + tiff;
  jpeg.insert(2, std::string("\xff\xe1\0", 3) + static_cast<char>(body.size() + 2) + body);
  ASSERT_EQ(stored_orientation(bytes_of(jpeg)), 6);
  EXPECT_EQ(stored_orientation(encoded(jpeg)), 6);
}

TEST(CoefficientFile, IsRefusedWhereItIsCutOff) {
  const auto codec = make_coefficient_codec();
  const Bytes file = encoded(test::encode_jpeg(make_noise(33, 20, 3, 8), {.quality = 60}));
  for (size_t bytes = kCoefficientMagic.size(); bytes < file.size(); ++bytes) {
    // In memory of its own, so that a sanitizer sees what is read behind its end.
    const Bytes cut(file.begin(), file.begin() + static_cast<ptrdiff_t>(bytes));
    ASSERT_THROW(codec->open(cut, "x", 1u << 20), BadContent) << bytes;
  }
  Bytes longer = file;
  longer.push_back(0);
  EXPECT_THROW(codec->open(longer, "x", 1u << 20), BadContent);
}

// Any byte may be anything: pixels or a refusal, the same at once and with another instruction set.
TEST(CoefficientFile, BearsAnyBytes) {
  const auto codec = make_coefficient_codec();
  const Bytes file =
      encoded(test::encode_jpeg(make_noise(33, 20, 3, 9), {.chroma_x = 2, .chroma_y = 2}));
  int refused = 0;
  for (uint64_t n = 0; n < 20000; ++n) {
    Bytes changed = file;
    for (int i = 0; i <= draw(n, 0, 3); ++i)
      changed[static_cast<size_t>(
          8 + draw(n, 1 + static_cast<uint64_t>(i), static_cast<int>(file.size()) - 8))] =
          static_cast<uint8_t>(draw(n, 9 + static_cast<uint64_t>(i), 256));
    try {
      const ImageShape shape = codec->open(changed, "x", 4096);
      Image image;
      codec->decode({0, 0, shape.width, shape.height}, 1, image);
      EXPECT_EQ(image.pixels.size(), static_cast<size_t>(shape.width * shape.height) * 3);
    } catch (const BadContent&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000);
  EXPECT_LT(refused, 20000);
}

TEST(CoefficientKernels, EveryInstructionSetGivesTheSameBits) {
  std::vector<const CoefficientKernels*> tables = {&isa_baseline::coefficient_kernels};
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) tables.push_back(&isa_avx2::coefficient_kernels);
  if (cpu_isa() >= Isa::kAvx512) tables.push_back(&isa_avx512::coefficient_kernels);
  if (cpu_isa() >= Isa::kAvx512Bf16) tables.push_back(&isa_avx512_bf16::coefficient_kernels);
#endif
  constexpr int kBlocks = 21, kFirst = 4, kLast = 18;
  int good = 0;
  for (uint64_t n = 0; n < 3000; ++n) {
    // Rows that are well formed up to the widths, now and then with more groups than there may be.
    Bytes row;
    const auto some = [&](uint64_t i, int below) { return draw(n, 1000 * row.size() + i, below); };
    const auto add = [&](int bytes) {
      for (int i = 0; i < bytes; ++i)
        row.push_back(static_cast<uint8_t>(some(static_cast<uint64_t>(i), 256)));
    };
    for (int i = 0; i < kBlocks; i += kGroup) {
      int w = some(2000, 12);
      if (w == 11) w = 12;
      row.push_back(static_cast<uint8_t>(w));
      add(w);
    }
    for (int i = 0; i < kBlocks; ++i) {
      const int groups = some(7, 200) == 0 ? 9 : some(8, 9);
      uint64_t header = static_cast<uint64_t>(groups);
      int data = 0;
      for (int g = 0; g < groups; ++g) {
        const int w = some(100 + static_cast<uint64_t>(g), 16);
        header |= static_cast<uint64_t>(w) << 4 * (g + 1);
        data += w;
      }
      for (int b = 0; b < 1 + groups / 2; ++b) row.push_back(static_cast<uint8_t>(header >> 8 * b));
      add(data);
    }
    const size_t bytes = row.size();
    row.resize(bytes + kCoefficientPadding);
    std::vector<std::vector<int16_t>> results;
    std::vector<ptrdiff_t> ends;
    for (const CoefficientKernels* kernels : tables) {
      std::vector<int16_t> out((kLast - kFirst) * 3 * kBlock, 77), first_ones(kBlocks + kGroup);
      Bytes is_more((kLast - kFirst) * 3, 9);
      const uint8_t* const end = kernels->decode({.begin = row.data(),
                                                  .end = row.data() + bytes,
                                                  .blocks = kBlocks,
                                                  .first = kFirst,
                                                  .last = kLast,
                                                  .h = 2,
                                                  .step = 5,
                                                  .out = out.data(),
                                                  .is_more = is_more.data(),
                                                  .dc_only = n % 7 == 0,
                                                  .first_ones = first_ones.data()});
      ends.push_back(end == nullptr ? -1 : end - row.data());
      out.insert(out.end(), is_more.begin(), is_more.end());
      results.push_back(std::move(out));
    }
    for (size_t i = 1; i < tables.size(); ++i) {
      ASSERT_EQ(ends[i], ends[0]) << n;
      if (ends[0] >= 0) {
        ASSERT_EQ(results[i], results[0]) << n;
      }
    }
    good += ends[0] >= 0 ? 1 : 0;
  }
  EXPECT_GT(good, 2000);
  EXPECT_LT(good, 3000);
}

}  // namespace
}  // namespace convoy::data
