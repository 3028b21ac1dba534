// Our decoder of baseline JPEGs has libjpeg's pixels, whatever the sampling, size, region, scale,
// quality, codes and restart markers; and it declines what is not whole or not its kind.
#include "data_loader/baseline_jpeg.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "data_loader/jpeg.h"
#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::JpegStyle;
using test::TestImage;

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

uint32_t draw(uint64_t i, uint64_t j, uint32_t below) {
  return uniform_below(random4(i, Purpose::kSyntheticData, j, 77)[0], below);
}

TestImage make_noise(int width, int height, int channels, uint64_t seed) {
  TestImage image{width, height, channels, {}};
  image.pixels.resize(static_cast<size_t>(width * height * channels));
  for (size_t i = 0; i < image.pixels.size(); ++i)
    image.pixels[i] = static_cast<uint8_t>(draw(seed, i, 256));
  return image;
}

int shrunk(int size, int denominator) {
  return (size + denominator - 1) / denominator;
}

Region random_region(int width, int height, uint64_t seed) {
  Region region;
  region.x = static_cast<int>(draw(seed, 0, static_cast<uint32_t>(width)));
  region.y = static_cast<int>(draw(seed, 1, static_cast<uint32_t>(height)));
  region.width = 1 + static_cast<int>(draw(seed, 2, static_cast<uint32_t>(width - region.x)));
  region.height = 1 + static_cast<int>(draw(seed, 3, static_cast<uint32_t>(height - region.y)));
  return region;
}

// Both decoders, kept from file to file.
struct Both {
  BaselineJpeg ours;
  std::unique_ptr<ImageCodec> libjpeg = make_libjpeg_codec();
  Image our_image, their_image;

  bool decode_ours(const std::string& file, const Region& region, int denominator) {
    ImageShape shape;
    return ours.open(bytes_of(file), shape) && ours.decode(region, denominator, our_image);
  }
  // False where libjpeg refuses.
  bool decode_theirs(const std::string& file, const Region& region, int denominator) {
    try {
      libjpeg->open(bytes_of(file), "x", 1u << 24);
      libjpeg->decode(region, denominator, their_image);
      return true;
    } catch (const BadContent&) {
      return false;
    }
  }
  // Of the last images: the number of rows that differ.
  int differences(const Region& region) const {
    const auto row = [&region](const Image& image, int y) {
      return std::span(image.pixels)
          .subspan(static_cast<size_t>(region.y + y - image.region.y) * image.stride +
                       static_cast<size_t>(region.x - image.region.x) * 3,
                   static_cast<size_t>(region.width) * 3);
    };
    int rows = 0;
    for (int y = 0; y < region.height; ++y)
      rows += std::ranges::equal(row(our_image, y), row(their_image, y)) ? 0 : 1;
    return rows;
  }
  void expect_equal(const std::string& file, const Region& region, int denominator,
                    const std::string& what) {
    ASSERT_TRUE(decode_ours(file, region, denominator)) << what;
    ASSERT_TRUE(decode_theirs(file, region, denominator)) << what;
    ASSERT_EQ(our_image.shape.width, their_image.shape.width) << what;
    ASSERT_EQ(our_image.shape.height, their_image.shape.height) << what;
    ASSERT_EQ(differences(region), 0)
        << what << ", 1/" << denominator << ", region " << region.x << "," << region.y << " "
        << region.width << "x" << region.height;
  }
};

std::string describe(const TestImage& image, const JpegStyle& style) {
  return fmt::format("{}x{}x{} sampled {}x{} quality {} restart {} optimised {}", image.width,
                     image.height, image.channels, style.chroma_x, style.chroma_y, style.quality,
                     style.restart_interval, style.optimised);
}

struct Sampling {
  int channels, x, y;
};
constexpr Sampling kSamplings[] = {{1, 1, 1}, {3, 1, 1}, {3, 2, 1}, {3, 2, 2}};

TEST(BaselineJpeg, HasLibjpegsPixels) {
  Both both;
  const int rounds = std::getenv("CONVOY_LONG_TESTS") != nullptr ? 40 : 2;
  uint64_t n = 0;
  for (const auto& [channels, x, y] : kSamplings)
    for (const auto& [width, height] : {std::pair{9, 17}, {40, 40}, {131, 77}, {30, 200}})
      for (const bool noise : {false, true}) {
        const TestImage image = noise ? make_noise(width, height, channels, ++n)
                                      : test::make_image(width, height, channels, ++n);
        for (const int quality : {4, 40, 85, 100})
          for (const int restart : {0, 1, 5})
            for (const bool optimised : {false, true}) {
              const JpegStyle style{.quality = quality,
                                    .chroma_x = x,
                                    .chroma_y = y,
                                    .optimised = optimised,
                                    .restart_interval = restart};
              const std::string file = test::encode_jpeg(image, style);
              for (const int denominator : {1, 2, 4, 8}) {
                const int w = shrunk(width, denominator), h = shrunk(height, denominator);
                ASSERT_NO_FATAL_FAILURE(
                    both.expect_equal(file, {0, 0, w, h}, denominator, describe(image, style)));
                for (int i = 0; i < rounds; ++i)
                  ASSERT_NO_FATAL_FAILURE(both.expect_equal(file, random_region(w, h, ++n),
                                                            denominator, describe(image, style)));
              }
            }
      }
}

TEST(BaselineJpeg, HasLibjpegsPixelsAtEverySize) {
  Both both;
  for (const auto& [channels, x, y] : kSamplings)
    for (int width = 1; width <= 40; ++width)
      for (int height = 1; height <= 40; ++height) {
        const TestImage image = make_noise(width, height, channels, 3);
        const JpegStyle style{.quality = 70, .chroma_x = x, .chroma_y = y};
        const std::string file = test::encode_jpeg(image, style);
        for (const int denominator : {1, 2 << (width + height) % 3})
          ASSERT_NO_FATAL_FAILURE(both.expect_equal(
              file, {0, 0, shrunk(width, denominator), shrunk(height, denominator)}, denominator,
              describe(image, style)));
      }
}

TEST(BaselineJpeg, DeclinesWhatIsNotWhole) {
  Both both;
  for (const int restart : {0, 2}) {
    const std::string file =
        test::encode_jpeg(test::make_image(60, 50, 3, 4), {.restart_interval = restart});
    const Region top{0, 0, 8, 8}, whole{0, 0, 60, 50};
    ASSERT_TRUE(both.decode_ours(file, top, 1));
    for (size_t length = 0; length < file.size(); ++length) {
      ASSERT_FALSE(both.decode_ours(file.substr(0, length), top, 1)) << length;
      // With an end put behind the cut, the rows that are there are whole, the image is not.
      ASSERT_FALSE(both.decode_ours(file.substr(0, length) + "\xff\xd9", whole, 1) &&
                   length + 2 < file.size())
          << length;
    }
  }
}

TEST(BaselineJpeg, DeclinesOtherKinds) {
  Both both;
  const TestImage image = test::make_image(24, 24, 3, 5);
  const Region whole{0, 0, 24, 24};
  const std::string good = test::encode_jpeg(image);
  EXPECT_TRUE(both.decode_ours(good, whole, 1));
  EXPECT_FALSE(both.decode_ours(test::encode_jpeg(image, {.progressive = true}), whole, 1));
  EXPECT_FALSE(both.decode_ours(test::encode_jpeg(image, {.arithmetic = true}), whole, 1));
  EXPECT_FALSE(
      both.decode_ours(test::encode_jpeg(image, {.chroma_x = 1, .chroma_y = 2}), whole, 1));
  EXPECT_FALSE(
      both.decode_ours(test::encode_jpeg(image, {.chroma_x = 4, .chroma_y = 1}), whole, 1));
  EXPECT_FALSE(both.decode_ours(test::encode_jpeg(test::make_image(24, 24, 4, 6)), whole, 1));
  // No JFIF marker: the components' names decide. Adobe's marker decides before them.
  const std::string plain = good.substr(0, 2) + good.substr(20);
  ASSERT_EQ(plain.substr(2, 2), "\xff\xdb");
  EXPECT_TRUE(both.decode_ours(plain, whole, 1));
  std::string rgb = plain;
  const size_t frame = rgb.find("\xff\xc0"), scan = rgb.find("\xff\xda");
  for (size_t c = 0; c < 3; ++c) rgb[frame + 10 + 3 * c] = rgb[scan + 5 + 2 * c] = "RGB"[c];
  EXPECT_TRUE(both.decode_theirs(rgb, whole, 1));
  EXPECT_FALSE(both.decode_ours(rgb, whole, 1));
  const auto adobe = [](char transform) {
    return std::string(
               "\xff\xee\0\x0e"
               "Adobe\0\0\0\0\0\0",
               15) +
           transform;
  };
  for (const char transform : {'\0', '\1', '\2'})
    EXPECT_EQ(both.decode_ours("\xff\xd8" + adobe(transform) + plain.substr(2), whole, 1),
              transform == '\1');
}

// Wherever bytes are changed: what is accepted, libjpeg accepts, with the same pixels.
TEST(BaselineJpeg, DamagedFilesAreDeclinedOrHaveLibjpegsPixels) {
  Both both;
  std::vector<std::string> files;
  for (const auto& [channels, x, y] : kSamplings)
    for (const int restart : {0, 3})
      files.push_back(
          test::encode_jpeg(test::make_image(50, 40, channels, 7), {.quality = 60,
                                                                    .chroma_x = x,
                                                                    .chroma_y = y,
                                                                    .optimised = restart != 0,
                                                                    .restart_interval = restart}));
  const int trials = std::getenv("CONVOY_LONG_TESTS") != nullptr ? 300'000 : 20'000;
  int accepted = 0, declined = 0;
  for (int trial = 0; trial < trials; ++trial) {
    std::string file = files[static_cast<size_t>(trial) % files.size()];
    const uint64_t seed = static_cast<uint64_t>(trial);
    for (uint32_t i = 0; i < 1 + draw(seed, 9, 3); ++i)
      file[draw(seed, 10 + i, static_cast<uint32_t>(file.size()))] =
          static_cast<char>(draw(seed, 20 + i, 256));
    ImageShape shape;
    if (!both.ours.open(bytes_of(file), shape) || shape.width > 200 || shape.height > 200) {
      ++declined;
      continue;
    }
    const int denominator = 1 << draw(seed, 30, 4);
    const Region whole{0, 0, shrunk(shape.width, denominator), shrunk(shape.height, denominator)};
    if (!both.ours.decode(whole, denominator, both.our_image)) {
      ++declined;
      continue;
    }
    ++accepted;
    ASSERT_TRUE(both.decode_theirs(file, whole, denominator)) << trial;
    ASSERT_EQ(both.differences(whole), 0) << trial << ", 1/" << denominator;
  }
  EXPECT_GT(accepted, trials / 50);
  EXPECT_GT(declined, trials / 50);
}

// Files that no encoder writes: few symbols with very short codes, so that one look at the bits
// finds many; values up to the format's limits; now and then a block that runs over its end.
class OddFile {
 public:
  explicit OddFile(uint64_t seed) : seed_(seed) {}

  std::string make() {
    const bool grey = draw(2) == 0;
    const uint32_t x = grey ? 1 : 1 + draw(2), y = x == 1 ? 1 : 1 + draw(2);
    const uint32_t width = 1 + draw(60), height = 1 + draw(40), components = grey ? 1 : 3;
    runs_over_ = draw(10) < 3;
    file_ = "\xff\xd8";
    std::string quantisation(1, '\0');
    const uint32_t largest = draw(2) == 0 ? 1 : 100;
    for (int i = 0; i < 64; ++i) quantisation += static_cast<char>(1 + draw(largest));
    segment(0xdb, quantisation);
    std::string frame = {8,
                         0,
                         static_cast<char>(height),
                         0,
                         static_cast<char>(width),
                         static_cast<char>(components)};
    std::string scan(1, static_cast<char>(components));
    for (uint32_t c = 1; c <= components; ++c) {
      frame += static_cast<char>(c);
      frame += static_cast<char>(c == 1 ? x << 4 | y : 0x11);
      frame += '\0';
      scan += {static_cast<char>(c), 0};
    }
    segment(0xc0, frame);
    std::vector<uint8_t> dc = {0, static_cast<uint8_t>(1 + draw(11))}, ac = {0x00, 0xf0};
    for (uint32_t i = 0; i < 1 + draw(5); ++i) {
      constexpr uint8_t kSizes[] = {1, 1, 2, 3, 10};
      const auto symbol = static_cast<uint8_t>(draw(16) << 4 | kSizes[draw(5)]);
      if (std::ranges::find(ac, symbol) == ac.end()) ac.push_back(symbol);
    }
    std::swap(ac[0], ac[draw(static_cast<uint32_t>(ac.size()))]);
    table(0x00, dc);
    table(0x10, ac);
    segment(0xda, scan + std::string("\0\x3f\0", 3));
    const uint32_t mcus = ((width + 8 * x - 1) / (8 * x)) * ((height + 8 * y - 1) / (8 * y));
    for (uint32_t i = 0; i < mcus * (x * y + components - 1); ++i) block(dc, ac);
    while (bits_.size() % 8 != 0) bits_ += '1';
    for (size_t i = 0; i < bits_.size(); i += 8) {
      file_ += static_cast<char>(std::stoi(bits_.substr(i, 8), nullptr, 2));
      if (file_.back() == '\xff') file_ += '\0';
    }
    return file_ + "\xff\xd9";
  }

 private:
  uint32_t draw(uint32_t below) { return data::draw(seed_, next_++, below); }
  void segment(uint8_t marker, const std::string& body) {
    const size_t length = body.size() + 2;
    file_ += {'\xff', static_cast<char>(marker), static_cast<char>(length >> 8),
              static_cast<char>(length)};
    file_ += body;
  }
  // The i-th symbol's code is i ones and a zero.
  void table(uint8_t id, const std::vector<uint8_t>& symbols) {
    std::string body(17, '\0');
    body[0] = static_cast<char>(id);
    for (size_t i = 0; i < symbols.size(); ++i) body[1 + i] = 1;
    segment(0xc4, body + std::string(symbols.begin(), symbols.end()));
  }
  void put(size_t code, uint32_t size) {
    bits_ += std::string(code, '1') + '0';
    for (uint32_t i = 0; i < size; ++i) bits_ += draw(2) == 0 ? '0' : '1';
  }
  void block(const std::vector<uint8_t>& dc, const std::vector<uint8_t>& ac) {
    const size_t first = draw(static_cast<uint32_t>(dc.size()));
    put(first, dc[first]);
    for (uint32_t k = 0; k < 63;) {
      size_t code = draw(static_cast<uint32_t>(ac.size()));
      if (!runs_over_ && k + (ac[code] >> 4) + 1 > 63)
        code = static_cast<size_t>(std::ranges::find(ac, 0) - ac.begin());
      put(code, ac[code] & 15);
      if (ac[code] == 0) return;
      k += (ac[code] >> 4) + 1;
    }
  }

  uint64_t seed_, next_ = 0;
  bool runs_over_ = false;
  std::string file_, bits_;
};

TEST(BaselineJpeg, OddCodesAndValuesAreDeclinedOrHaveLibjpegsPixels) {
  Both both;
  const uint64_t trials = std::getenv("CONVOY_LONG_TESTS") != nullptr ? 200'000 : 4'000;
  uint64_t accepted = 0;
  for (uint64_t trial = 0; trial < trials; ++trial) {
    const std::string file = OddFile(trial).make();
    ImageShape shape;
    ASSERT_TRUE(both.ours.open(bytes_of(file), shape)) << trial;
    const int denominator = 1 << draw(trial, 1000, 4);
    const Region region =
        random_region(shrunk(shape.width, denominator), shrunk(shape.height, denominator), trial);
    if (!both.ours.decode(region, denominator, both.our_image)) continue;
    if (!both.decode_theirs(file, region, denominator)) continue;  // damage below the region
    ++accepted;
    ASSERT_EQ(both.differences(region), 0) << trial << ", 1/" << denominator;
  }
  EXPECT_GT(accepted, trials / 20);
}

// Codes of one bit for sixteen zeros, twice in what one look at the bits sees.
TEST(BaselineJpeg, ZerosBehindABlocksEndAreDeclined) {
  std::string file("\xff\xd8\xff\xdb\0\x43\0", 7);
  file += std::string(64, '\1');
  file += std::string("\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xc4\0\x14\0\1", 19);
  file += std::string(16, '\0');
  file += std::string("\xff\xc4\0\x15\x10\1\1", 7) + std::string(14, '\0') + "\xf0\xf1";
  file += std::string("\xff\xda\0\x08\1\1\0\0\x3f\0\0\x5f\xff\xd9", 14);
  Both both;
  ImageShape shape;
  ASSERT_TRUE(both.ours.open(bytes_of(file), shape));
  EXPECT_FALSE(both.ours.decode({0, 0, 8, 8}, 1, both.our_image));
}

std::vector<const BaselineJpegKernels*> all_kernels() {
  std::vector<const BaselineJpegKernels*> tables = {&isa_baseline::baseline_jpeg_kernels};
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) tables.push_back(&isa_avx2::baseline_jpeg_kernels);
  if (cpu_isa() >= Isa::kAvx512) tables.push_back(&isa_avx512::baseline_jpeg_kernels);
  if (cpu_isa() >= Isa::kAvx512Bf16) tables.push_back(&isa_avx512_bf16::baseline_jpeg_kernels);
#endif
  return tables;
}

TEST(BaselineJpegKernels, EveryInstructionSetHasTheSameBits) {
  constexpr int kBlocks = 64;
  std::vector<int16_t> blocks(kBlocks * kBlock);
  std::vector<uint8_t> last(kBlocks), in(3 * 1024);
  std::vector<uint16_t> quantisation(kBlock);
  for (uint64_t trial = 0; trial < 40; ++trial) {
    const uint32_t range = 2u << trial % 9;
    for (size_t i = 0; i < blocks.size(); ++i)
      blocks[i] = static_cast<int16_t>(
          draw(trial, i, trial % 3 == 0 ? 1 : 20) != 0 && i % kBlock != 0
              ? 0
              : static_cast<int>(draw(trial, 9999 + i, range)) - static_cast<int>(range / 2));
    for (int i = 0; i < kBlocks; ++i) last[static_cast<size_t>(i)] = i % 8 == 7 ? 0 : 63;
    for (size_t i = 0; i < quantisation.size(); ++i)
      quantisation[i] = static_cast<uint16_t>(1 + draw(trial, 77777 + i, 30));
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(draw(trial, i, 256));
    std::vector<std::vector<uint8_t>> outputs;
    for (const BaselineJpegKernels* kernels : all_kernels()) {
      std::vector<uint8_t> out;
      for (const int size : {1, 2, 4, 8}) {
        std::vector<uint8_t> pixels(kBlocks * 64);
        BlockRow row{blocks.data(),       last.data(),   1,    kBlocks,
                     quantisation.data(), pixels.data(), size, kBlocks * 8};
        out.push_back(kernels->idct(row, size) ? 1 : 0);
        if (out.back() != 0) out.insert(out.end(), pixels.begin(), pixels.end());
      }
      std::vector<uint8_t> wide(2048), rgb(3 * 1000);
      std::vector<uint16_t> sums(1024);
      kernels->upsample_h2v1(wide.data(), in.data() + 1, 999);
      out.insert(out.end(), wide.begin(), wide.end());
      kernels->upsample_h2v2(wide.data(), in.data() + 1, in.data() + 1025, sums.data(), 999);
      out.insert(out.end(), wide.begin(), wide.end());
      kernels->ycc_to_rgb(rgb.data(), in.data(), in.data() + 1024, in.data() + 2048, 1000);
      out.insert(out.end(), rgb.begin(), rgb.end());
      outputs.push_back(out);
    }
    for (const auto& output : outputs) ASSERT_EQ(output, outputs[0]) << trial;
  }
}

}  // namespace
}  // namespace convoy::data
