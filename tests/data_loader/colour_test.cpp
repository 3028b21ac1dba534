// Colour augmentation: what is drawn, what it does, and where it is refused. (Its pixels against
// torchvision's: tests/golden/image_golden_test.cpp.)
#include "data_loader/colour.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "data_loader/loader.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

TrainTransform all_on() {
  TrainTransform transform;
  transform.pca_jitter = 0.1;
  transform.brightness = 0.4;
  transform.contrast = 0.3;
  transform.saturation = 0.2;
  transform.hue = 0.1;
  return transform;
}

std::vector<uint8_t> random_bytes(size_t n, uint64_t seed) {
  std::vector<uint8_t> bytes(n);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t word = random4(seed, Purpose::kSyntheticData, 0, i / 4)[i % 4];
    bytes[i] = word >> 30 == 0 ? uint8_t{255} : static_cast<uint8_t>(word & 255);
  }
  return bytes;
}

TEST(ColourDraws, HaveTheRangesAndMomentsTheyShould) {
  const TrainTransform transform = all_on();
  const std::map<ColourOp, std::pair<double, double>> ranges = {{ColourOp::kBrightness, {0.6, 1.4}},
                                                                {ColourOp::kContrast, {0.7, 1.3}},
                                                                {ColourOp::kSaturation, {0.8, 1.2}},
                                                                {ColourOp::kHue, {-0.1, 0.1}}};
  constexpr int kDraws = 4800;
  std::map<std::vector<ColourOp>, int> orders;
  std::map<ColourOp, std::pair<double, double>> seen;
  double sums[3] = {}, squares[3] = {};
  for (uint64_t sample = 0; sample < kDraws; ++sample) {
    const ColourChange change = train_colour(transform, 1, 2, sample);
    ASSERT_EQ(change.count, 4u);
    std::vector<ColourOp> order;
    for (const ColourChange::Step& step : change.steps) {
      order.push_back(step.op);
      ASSERT_GE(step.f, ranges.at(step.op).first);
      ASSERT_LE(step.f, ranges.at(step.op).second);
      const auto at = seen.emplace(step.op, std::pair{step.f, step.f}).first;
      at->second = {std::min(at->second.first, step.f), std::max(at->second.second, step.f)};
    }
    ++orders[order];
    for (size_t c = 0; c < 3; ++c) {
      sums[c] += change.add[c];
      squares[c] += double(change.add[c]) * change.add[c];
    }
  }
  ASSERT_EQ(orders.size(), 24u);
  for (const auto& [order, count] : orders) EXPECT_NEAR(count, kDraws / 24, 75);
  for (const auto& [op, range] : ranges) {
    const double width = range.second - range.first;
    EXPECT_NEAR(seen[op].first, range.first, 0.01 * width);
    EXPECT_NEAR(seen[op].second, range.second, 0.01 * width);
  }
  // 255 * 0.1 * sqrt(sum over axes of (length * component)^2), and 1/12 from rounding.
  const double variances[3] = {10.03, 10.48, 10.61};
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(sums[c] / kDraws, 0, 0.2);
    EXPECT_NEAR(squares[c] / kDraws, variances[c], 1);
  }
}

// Part of every such run's identity.
TEST(ColourDraws, ArePinnedAndDoNotDependOnEachOther) {
  const ColourChange all = train_colour(all_on(), 1, 2, 3);
  EXPECT_EQ(all.steps[0].op, ColourOp::kHue);
  EXPECT_NEAR(all.steps[0].f, 0.08170020580291748, 1e-12);
  EXPECT_EQ(all.add, (std::array<int, 3>{1, 1, 0}));
  const auto amount = [](const ColourChange& change, ColourOp op) {
    for (size_t i = 0; i < change.count; ++i)
      if (change.steps[i].op == op) return change.steps[i].f;
    return std::nan("");
  };
  TrainTransform transform;
  EXPECT_FALSE(transform.changes_colour());
  EXPECT_EQ(train_colour(transform, 1, 2, 3).count, 0u);
  EXPECT_EQ(train_colour(transform, 1, 2, 3).add, (std::array<int, 3>{}));
  transform.saturation = 0.2;
  EXPECT_TRUE(transform.changes_colour());
  const ColourChange one = train_colour(transform, 1, 2, 3);
  ASSERT_EQ(one.count, 1u);
  EXPECT_EQ(one.steps[0].f, amount(all, ColourOp::kSaturation));
  EXPECT_NE(train_colour(transform, 2, 2, 3).steps[0].f, one.steps[0].f);
  EXPECT_NE(train_colour(transform, 1, 3, 3).steps[0].f, one.steps[0].f);
  EXPECT_NE(train_colour(transform, 1, 2, 4).steps[0].f, one.steps[0].f);
}

TEST(ColourKernels, EveryInstructionSetHasTheSameBits) {
  std::vector<std::pair<const char*, const ColourKernels*>> others;
#if defined(__x86_64__)
  if (cpu_isa() >= Isa::kAvx2) others.push_back({"avx2", &isa_avx2::colour_kernels});
  if (cpu_isa() >= Isa::kAvx512) others.push_back({"avx512", &isa_avx512::colour_kernels});
  if (cpu_isa() >= Isa::kAvx512Bf16)
    others.push_back({"avx512_bf16", &isa_avx512_bf16::colour_kernels});
#endif
  for (const int width : {1, 2, 63, 64, 65, 150})
    for (uint64_t sample = 0; sample < 20; ++sample) {
      TrainTransform transform = all_on();
      transform.brightness = transform.contrast = transform.saturation = 1;
      transform.hue = 0.5;
      transform.pca_jitter = 5;
      const ColourChange change = train_colour(transform, 1, 0, sample);
      const ImageShape shape{3, width, 3};
      const std::vector<uint8_t> before = random_bytes(shape.bytes(), sample);
      std::vector<uint8_t> expected = before;
      change_colour(expected.data(), shape, change, isa_baseline::colour_kernels);
      EXPECT_NE(expected, before);
      for (const auto& [isa, kernels] : others) {
        std::vector<uint8_t> got = before;
        change_colour(got.data(), shape, change, *kernels);
        ASSERT_EQ(got, expected) << isa << ", width " << width << ", sample " << sample;
      }
    }
}

// Sums of bytes of more pixels than a 16-bit sum could hold: a white image has the mean grey of
// 255 * 0.9999.
TEST(ColourKernels, TheMeanOfALargeWhiteImage) {
  const std::vector<uint8_t> white(size_t{3} * 700 * 300 + 3 * 7, 255);
  EXPECT_EQ(colour_kernels().grey_sum(white.data(), white.size() / 3),
            uint64_t{255} * 65530 * (white.size() / 3));
}

TEST(ChangeColour, FactorsOfOneAndWholeTurnsChangeNothing) {
  const ImageShape shape{20, 33, 3};
  const std::vector<uint8_t> before = random_bytes(shape.bytes(), 5);
  for (const ColourOp op : {ColourOp::kBrightness, ColourOp::kContrast, ColourOp::kSaturation}) {
    std::vector<uint8_t> pixels = before;
    change_colour(pixels.data(), shape, {{{{op, 1.0}}}, 1, {}});
    EXPECT_EQ(pixels, before) << static_cast<int>(op);
  }
  std::vector<uint8_t> pixels = before;
  change_colour(pixels.data(), shape, {{{{ColourOp::kHue, 0.0}}}, 1, {}});
  EXPECT_EQ(pixels, before);
  change_colour(pixels.data(), shape, {{{{ColourOp::kHue, 0.5}, {ColourOp::kHue, -0.5}}}, 2, {}});
  for (size_t i = 0; i < pixels.size(); ++i) EXPECT_NEAR(pixels[i], before[i], 1);
}

TEST(ChangeColour, OfGreyPixels) {
  std::vector<uint8_t> pixels = {0, 100, 200, 255};
  change_colour(pixels.data(), {2, 2, 1}, {{{{ColourOp::kBrightness, 0.5}}}, 1, {}});
  EXPECT_EQ(pixels, (std::vector<uint8_t>{0, 50, 100, 128}));
  // Their mean is 69.5.
  change_colour(pixels.data(), {2, 2, 1}, {{{{ColourOp::kContrast, 0.0}}}, 1, {}});
  EXPECT_EQ(pixels, (std::vector<uint8_t>(4, 70)));
}

class Shaped final : public Dataset {
 public:
  explicit Shaped(ImageShape shape) : shape_(shape) {}
  uint64_t size() const override { return 1; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return shape_; }
  void read(uint64_t, Sample&) const override {}
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t) const override { return "x"; }
  const std::string& digest() const override { return classes_[0]; }

 private:
  ImageShape shape_;
  std::vector<std::string> classes_ = {"only"};
};

TEST(ColourTransform, ContradictionsAreNamed) {
  const Shaped grey({28, 28, 1}), rgb({28, 28, 3});
  const auto error_of = [](const TrainTransform& transform, const Dataset& dataset) -> std::string {
    try {
      output_shape(transform, dataset);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadJob);
      return error.what();
    }
    return "";
  };
  const std::pair<const char*, double TrainTransform::*> fields[] = {
      {"pca_jitter", &TrainTransform::pca_jitter},
      {"brightness", &TrainTransform::brightness},
      {"contrast", &TrainTransform::contrast},
      {"saturation", &TrainTransform::saturation},
      {"hue", &TrainTransform::hue}};
  for (const auto& [name, field] : fields) {
    SCOPED_TRACE(name);
    TrainTransform transform;
    transform.crop = Crop::kPadAndCrop;
    transform.size = 0;
    const auto with = [&transform, at = field](double value) {
      TrainTransform changed = transform;
      changed.*at = value;
      return changed;
    };
    const std::string key = std::string("data.train.") + name;
    EXPECT_EQ(error_of(with(0.25), rgb), "");
    for (const double bad : {-0.1, 11.0, std::nan("")})
      EXPECT_TRUE(error_of(with(bad), rgb).starts_with(key + ":")) << error_of(with(bad), rgb);
    const bool meaningless = field == &TrainTransform::pca_jitter ||
                             field == &TrainTransform::saturation || field == &TrainTransform::hue;
    const std::string on_grey = error_of(with(0.25), grey);
    if (meaningless) {
      EXPECT_TRUE(on_grey.starts_with(key + ": 0.25 has no meaning")) << on_grey;
      EXPECT_NE(on_grey.find("1 channel and"), std::string::npos) << on_grey;
    } else {
      EXPECT_EQ(on_grey, "");
    }
    transform.crop = Crop::kCenter;
    transform.resize = 0;
    EXPECT_NE(error_of(with(0.25), rgb).find("CENTER"), std::string::npos);
  }
}

// A loader's batches: the same with any number of threads, another from epoch to epoch, and what
// train_colour() says of the sample; with every way to crop.
TEST(ColourTransform, BatchesAreTheSameWithAnyNumberOfThreads) {
  const test::TempFolder root;
  test::make_image_folder(root, 2, 6, 1);
  DatasetSpec spec;
  spec.path = root.path();
  const auto dataset = open_dataset(spec, Split::kTrain);
  for (const Crop crop : {Crop::kRandomResized, Crop::kScaleAndCrop, Crop::kPadAndCrop}) {
    const auto pixels = [&](const TrainTransform& transform, int threads) {
      LoaderConfig config;
      config.transform = transform;
      config.transform.crop = crop;
      config.transform.size = 12;
      config.transform.scale_min = 14;
      config.transform.scale_max = 30;
      config.batch_per_worker = 12;
      config.end_step = 2;
      config.threads = threads;
      Loader loader(*dataset, config);
      std::vector<std::vector<uint8_t>> all;
      for (uint64_t step = 0; step < 2; ++step) {
        const Batch& batch = loader.acquire(step, 0);
        for (size_t i = 0; i < 12; ++i) {
          const size_t bytes = batch.shape.bytes();
          all.emplace_back(batch.pixels + i * bytes, batch.pixels + (i + 1) * bytes);
          if (transform.changes_colour()) continue;
          change_colour(all.back().data(), batch.shape,
                        train_colour(all_on(), config.seed, batch.epochs[i], batch.sample_ids[i]));
        }
        loader.release(batch);
      }
      return all;
    };
    const auto expected = pixels({}, 1);
    EXPECT_EQ(pixels(all_on(), 0), expected);
    EXPECT_EQ(pixels(all_on(), 1), expected);
    EXPECT_EQ(pixels(all_on(), 4), expected);
    for (size_t i = 1; i < expected.size(); ++i) EXPECT_NE(expected[i], expected[0]);
  }
}

}  // namespace
}  // namespace convoy::data
