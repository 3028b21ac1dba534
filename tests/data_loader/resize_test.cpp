// The resize of every instruction set, against a plain loop: the same bits.
#include "data_loader/resize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::TestImage;

struct Kernels {
  const char* isa;
  const ResizeKernels* table;
};

std::vector<Kernels> all_kernels() {
  std::vector<Kernels> all = {{"baseline", &isa_baseline::resize_kernels}};
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) all.push_back({"avx2", &isa_avx2::resize_kernels});
  if (cpu_isa() >= Isa::kAvx512) all.push_back({"avx512", &isa_avx512::resize_kernels});
  if (cpu_isa() >= Isa::kAvx512Bf16)
    all.push_back({"avx512_bf16", &isa_avx512_bf16::resize_kernels});
#endif
  return all;
}

// ---- The reference: Pillow's two passes, rows first.

struct Tap {
  int pixel;  // of the image
  int weight;
};

std::vector<Tap> taps_of(const AxisMap& axis, int o) {
  const double support = std::max(axis.scale, 1.0);
  const double center = axis.origin + (axis.first + o + 0.5) * axis.scale;
  const int first = std::max(static_cast<int>(center - support + 0.5), 0);
  const int end = std::min(static_cast<int>(center + support + 0.5), axis.high - axis.low);
  std::vector<double> exact;
  double sum = 0;
  for (int i = first; i < end; ++i) {
    exact.push_back(std::max(0.0, 1 - std::abs((i - center + 0.5) * (1 / support))));
    sum += exact.back();
  }
  std::vector<Tap> taps;
  for (int i = first; i < end; ++i)
    taps.push_back({axis.low + i, static_cast<int>(0.5 + exact[static_cast<size_t>(i - first)] /
                                                             sum * (1 << 22))});
  return taps;
}

template <typename PixelAt>
uint8_t filtered(const std::vector<Tap>& taps, const PixelAt& pixel_at) {
  int64_t sum = 1 << 21;
  for (const Tap& tap : taps) sum += int64_t{tap.weight} * pixel_at(tap.pixel);
  return static_cast<uint8_t>(std::min<int64_t>(sum >> 22, 255));
}

std::vector<uint8_t> reference(const TestImage& image, const Geometry& geometry) {
  TestImage wide{geometry.x.count, image.height, image.channels, {}};
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < wide.width; ++x)
      for (int c = 0; c < image.channels; ++c)
        wide.pixels.push_back(filtered(taps_of(geometry.x, geometry.flip ? wide.width - 1 - x : x),
                                       [&](int from) { return image.at(from, y, c); }));
  std::vector<uint8_t> out;
  for (int y = 0; y < geometry.y.count; ++y)
    for (int x = 0; x < wide.width; ++x)
      for (int c = 0; c < image.channels; ++c)
        out.push_back(
            filtered(taps_of(geometry.y, y), [&](int from) { return wide.at(x, from, c); }));
  return out;
}

// ---- Images whose memory ends with their last pixel, so that a sanitizer sees reading beyond.

struct ExactImage {
  std::unique_ptr<uint8_t[]> pixels;
  PixelView view;

  ExactImage(const TestImage& image, const Region& region)
      : pixels(new uint8_t[static_cast<size_t>(region.width * region.height * image.channels)]),
        view{pixels.get(), region, image.channels,
             static_cast<size_t>(region.width * image.channels)} {
    uint8_t* to = pixels.get();
    for (int y = region.y; y < region.y + region.height; ++y)
      for (int x = region.x; x < region.x + region.width; ++x)
        for (int c = 0; c < image.channels; ++c) *to++ = image.at(x, y, c);
  }
};

TestImage noise(int width, int height, int channels, uint64_t seed) {
  TestImage image{width, height, channels, {}};
  const size_t bytes = static_cast<size_t>(width * height * channels);
  for (size_t i = 0; i < bytes; ++i) {
    const uint32_t word = random4(seed, Purpose::kSyntheticData, 0, i / 4)[i % 4];
    // Black and white among it: the sums' extremes.
    image.pixels.push_back(word >> 30 == 0 ? uint8_t{255} : static_cast<uint8_t>(word & 255));
  }
  return image;
}

// Every instruction set, the whole image and the part that is read: bytes and nothing behind them.
void expect_reference(const TestImage& image, const Geometry& geometry, ResizeScratch& scratch,
                      const std::string& what) {
  const std::vector<uint8_t> expected = reference(image, geometry);
  for (const Kernels& kernels : all_kernels())
    for (const Region& region :
         {Region{0, 0, image.width, image.height}, source_region(geometry)}) {
      const ExactImage exact(image, region);
      std::vector<uint8_t> got(expected.size() + 64, 171);
      apply(got.data(), geometry, exact.view, scratch, *kernels.table);
      const auto end = got.begin() + static_cast<ptrdiff_t>(expected.size());
      EXPECT_TRUE(std::all_of(end, got.end(), [](uint8_t b) { return b == 171; }))
          << what << kernels.isa << " wrote behind the output";
      const auto differs = std::mismatch(expected.begin(), expected.end(), got.begin());
      ASSERT_EQ(differs.first, expected.end())
          << what << kernels.isa << ": byte " << differs.first - expected.begin() << " is "
          << int(*differs.second) << ", not " << int(*differs.first);
    }
}

std::string text(const Geometry& g) {
  const auto axis = [](const AxisMap& a) {
    return fmt::format("[{}, {}) from {} scale {} -> {} + {}", a.low, a.high, a.origin, a.scale,
                       a.first, a.count);
  };
  return fmt::format("x {}, y {}{}: ", axis(g.x), axis(g.y), g.flip ? ", flipped" : "");
}

class Draws {
 public:
  explicit Draws(uint64_t seed) : seed_(seed) {}
  int below(int n) {
    return static_cast<int>(uniform_below(random4(seed_, Purpose::kSyntheticData, 1, next_++)[0],
                                          static_cast<uint32_t>(n)));
  }
  int between(int low, int high) { return low + below(high - low + 1); }

 private:
  uint64_t seed_, next_ = 0;
};

// A box of the image, now and then at its border, resized to between a tenth and ten times its
// size.
AxisMap random_axis(int size, Draws& draws) {
  const int extent = draws.between(1, size);
  const int low = draws.below(3) == 0 ? (draws.below(2) == 0 ? 0 : size - extent)
                                      : draws.between(0, size - extent);
  const int most = std::min(10 * extent, 90), least = std::max(1, extent / 10);
  const int to = std::max(draws.between(least, std::max(most, least)), 1);
  const int first = draws.below(2) == 0 ? 0 : draws.below(to);
  return {low, low + extent, 0.0, double(extent) / to, first, draws.between(1, to - first)};
}

TEST(ResizeKernels, EveryInstructionSetHasTheReferencesBits) {
  Draws draws(1);
  ResizeScratch scratch;  // one for all: nothing of an image may stay for the next
  for (int i = 0; i < 300; ++i) {
    const int channels = draws.below(3) == 0 ? 1 : 3;
    const int width = draws.between(1, i % 10 == 0 ? 400 : 60), height = draws.between(1, 60);
    const TestImage image = noise(width, height, channels, static_cast<uint64_t>(i));
    Geometry geometry{random_axis(width, draws), random_axis(height, draws), draws.below(2) == 0};
    if (geometry.x.is_copy() && geometry.y.is_copy()) continue;
    expect_reference(image, geometry, scratch,
                     fmt::format("{} x {} x {}, ", width, height, channels) + text(geometry));
    if (HasFatalFailure()) return;
  }
}

// All of the kernels' ways to find a lane's taps: two, up to four, up to six and more of them.
TEST(ResizeKernels, ScalesUpAndDownByTen) {
  ResizeScratch scratch;
  for (const int channels : {1, 3})
    for (const int size : {3, 18, 33, 48, 63, 81, 99, 250}) {
      const TestImage image = noise(size, size, channels, 7);
      for (const bool flip : {false, true}) {
        const AxisMap axis{0, size, 0.0, size / 25.0, 0, 25};
        const Geometry geometry{axis, axis, flip};
        expect_reference(image, geometry, scratch, text(geometry));
        if (HasFatalFailure()) return;
      }
    }
}

TEST(ResizeKernels, ImagesOfOnePixelAndOneRowOrColumn) {
  ResizeScratch scratch;
  for (const int channels : {1, 3})
    for (const auto& [width, height] : {std::pair{1, 1}, {1, 50}, {50, 1}, {2, 2}}) {
      const TestImage image = noise(width, height, channels, 8);
      for (const int count : {2, 5, 17, 224}) {
        const Geometry geometry{{0, width, 0.0, double(width) / count, 0, count},
                                {0, height, 0.0, double(height) / count, 0, count},
                                true};
        expect_reference(image, geometry, scratch, text(geometry));
        if (HasFatalFailure()) return;
      }
    }
}

// The geometry of an image that a decoder has shrunk begins between its pixels.
TEST(ResizeKernels, ShrunkImages) {
  ResizeScratch scratch;
  const TestImage image = noise(50, 40, 3, 9);
  for (const int denominator : {2, 4, 8}) {
    const Geometry large{{11, 11 + 30 * denominator, 0.0, 30.0 * denominator / 13, 0, 13},
                         {7, 7 + 29 * denominator, 0.0, 29.0 * denominator / 12, 0, 12},
                         false,
                         true};
    const Geometry geometry = shrink(large, denominator);
    expect_reference(image, geometry, scratch, text(geometry));
  }
}

// The same geometry again on other pixels, channels, flips, and from another first column.
TEST(ResizeKernels, KeptTablesAreUsedOnlyWhereTheyFit) {
  ResizeScratch scratch;
  const AxisMap x{5, 45, 0.0, 40 / 16.0, 0, 16}, y{0, 30, 0.0, 30 / 16.0, 0, 16};
  for (int i = 0; i < 24; ++i) {
    const TestImage image = noise(50, 30, i % 3 == 0 ? 1 : 3, static_cast<uint64_t>(i));
    expect_reference(image, {x, y, i % 4 < 2}, scratch, fmt::format("{}: ", i));
    if (HasFatalFailure()) return;
  }
}

// More taps than the fast kernels take.
TEST(Resize, AWhiteRowOfManyPixelsStaysWhite) {
  constexpr int kWidth = 60001;
  const std::vector<uint8_t> white(kWidth * 3, 255);
  Geometry geometry;
  geometry.x = {0, kWidth, 0.0, kWidth, 0, 1};
  geometry.y = {0, 1, 0.0, 0.5, 0, 2};
  ResizeScratch scratch;
  std::vector<uint8_t> out(6);
  apply(out.data(), geometry, {white.data(), {0, 0, kWidth, 1}, 3, white.size()}, scratch);
  EXPECT_EQ(out, std::vector<uint8_t>(6, 255));
}

}  // namespace
}  // namespace convoy::data
