// Statistics of a training set: exact, the same for any number of threads, cached.
#include "data_loader/mean.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::TempFolder;

constexpr int kSamples = 23;

std::unique_ptr<Dataset> open(const std::string& path) {
  DatasetSpec spec;
  spec.path = path;
  return open_dataset(spec, Split::kTrain);
}

// 23 grey images of 5 x 6; their pixels.
std::vector<uint8_t> write_idx(const TempFolder& root) {
  const std::vector<uint8_t> pixels = test::make_image(6, 5 * kSamples, 1, 4).pixels;
  root.write("train-images-idx3-ubyte", test::encode_idx_images(kSamples, 5, 6, pixels));
  root.write("train-labels-idx1-ubyte", test::encode_idx_labels(std::vector<uint8_t>(kSamples, 1)));
  return pixels;
}

// Silences the progress lines while it lives.
struct Quiet {
  Quiet() { log::set_level(log::Level::kError); }
  ~Quiet() { log::set_level(log::Level::kInfo); }
};

TEST(ImageStatistics, EqualThePlainSums) {
  const Quiet quiet;
  const TempFolder root;
  const std::vector<uint8_t> pixels = write_idx(root);
  const auto dataset = open(root.path());
  StatisticsConfig config;
  config.transform = {0, 0};
  const ImageStatistics got = image_statistics(*dataset, config);
  EXPECT_EQ(got.shape, (ImageShape{5, 6, 1}));
  EXPECT_EQ(got.samples, 23u);
  double sum = 0, squares = 0, from_mean_image = 0;
  for (const uint8_t value : pixels) sum += value / 255.0;
  const double mean = sum / static_cast<double>(pixels.size());
  for (const uint8_t value : pixels) squares += (value / 255.0 - mean) * (value / 255.0 - mean);
  ASSERT_EQ(got.mean_image.size(), 30u);
  for (size_t p = 0; p < 30; ++p) {
    double pixel_sum = 0;
    for (size_t i = 0; i < kSamples; ++i) pixel_sum += pixels[i * 30 + p] / 255.0;
    EXPECT_NEAR(got.mean_image[p], pixel_sum / kSamples, 1e-12);
    for (size_t i = 0; i < kSamples; ++i)
      from_mean_image += std::pow(pixels[i * 30 + p] / 255.0 - pixel_sum / kSamples, 2);
  }
  const double n = static_cast<double>(pixels.size());
  EXPECT_NEAR(got.mean.at(0), mean, 1e-12);
  EXPECT_NEAR(got.std.at(0), std::sqrt(squares / n), 1e-12);
  EXPECT_NEAR(got.mean_image_std, std::sqrt(from_mean_image / n), 1e-12);
}

TEST(ImageStatistics, DoNotDependOnTheThreads) {
  const Quiet quiet;
  const TempFolder root;
  test::make_image_folder(root, 2, 9, 1);
  const auto dataset = open(root.path());
  StatisticsConfig config;
  config.transform = {20, 16};
  const ImageStatistics one = image_statistics(*dataset, config);
  config.threads = 3;
  const ImageStatistics three = image_statistics(*dataset, config);
  EXPECT_EQ(one.samples, 18u);
  EXPECT_EQ(one.mean.size(), 3u);
  EXPECT_EQ(one.mean, three.mean);
  EXPECT_EQ(one.std, three.std);
  EXPECT_EQ(one.mean_image, three.mean_image);
  EXPECT_EQ(one.mean_image_std, three.mean_image_std);
  for (const double mean : one.mean) EXPECT_NEAR(mean, 0.5, 0.1);
}

TEST(ImageStatistics, AConstantChannelCanBeDividedBy) {
  const Quiet quiet;
  const TempFolder root;
  root.write("train-images-idx3-ubyte",
             test::encode_idx_images(2, 2, 2, std::vector<uint8_t>(8, 51)));
  root.write("train-labels-idx1-ubyte", test::encode_idx_labels({0, 1}));
  StatisticsConfig config;
  config.transform = {0, 0};
  const ImageStatistics got = image_statistics(*open(root.path()), config);
  EXPECT_DOUBLE_EQ(got.mean.at(0), 0.2);
  EXPECT_DOUBLE_EQ(got.std.at(0), 1.0 / 255);
  EXPECT_DOUBLE_EQ(got.mean_image_std, 1.0 / 255);
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

TEST(ImageStatistics, AreCachedByDatasetAndTransform) {
  const Quiet quiet;
  const TempFolder root, cache;
  write_idx(root);
  const auto dataset = open(root.path());
  StatisticsConfig config;
  config.transform = {0, 0};
  config.cache_folder = cache.path();
  const ImageStatistics right = image_statistics(*dataset, config);
  const auto files = [&] {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(cache.path()))
      out.push_back(entry.path().string());
    return out;
  };
  ASSERT_EQ(files().size(), 1u);
  const std::string path = files()[0];

  // It is read: another sum (the last pixel's is one less) under a right digest is believed.
  std::string text = read_text(path);
  text.resize(text.size() - 65);
  const size_t last = text.rfind('\n', text.size() - 2) + 1;
  text.replace(last, std::string::npos, fmt::format("{}\n", std::stoull(text.substr(last)) - 1));
  {
    std::ofstream out(path, std::ios::binary);
    out << text << sha256_hex(text) << "\n";
  }
  const ImageStatistics darker = image_statistics(*dataset, config);
  EXPECT_EQ(darker.samples, 23u);
  const double values = 23.0 * static_cast<double>(right.shape.bytes());
  EXPECT_NEAR(darker.mean[0], right.mean[0] - 1 / (255 * values), 1e-12);

  // A wrong digest is not, nor numbers under a right one that are too few, too many or impossible.
  const auto expect_made_anew = [&](const std::string& content) {
    {
      std::ofstream out(path, std::ios::binary);
      out << content;
    }
    EXPECT_EQ(image_statistics(*dataset, config).mean, right.mean);
  };
  expect_made_anew(text + sha256_hex(text + "x") + "\n");
  expect_made_anew("");
  for (const char* samples : {"46", "22", "0", "18446744073709551615"}) {
    std::string other = text;
    ASSERT_NE(other.find("\n23\n"), std::string::npos);
    other.replace(other.find("\n23\n"), 4, fmt::format("\n{}\n", samples));
    expect_made_anew(other + sha256_hex(other) + "\n");
  }
  for (const char* sum : {"5866", "18446744073709551615"}) {  // of the last pixel; 255 x 23 is less
    const std::string other = text.substr(0, last) + sum + "\n";
    expect_made_anew(other + sha256_hex(other) + "\n");
  }
  expect_made_anew(text + "7\n" + sha256_hex(text + "7\n") + "\n");
  const std::string shorter = text.substr(0, text.rfind('\n', text.size() - 2) + 1);
  expect_made_anew(shorter + sha256_hex(shorter) + "\n");

  config.transform = {0, 4};
  EXPECT_EQ(image_statistics(*dataset, config).shape, (ImageShape{4, 4, 1}));
  EXPECT_EQ(files().size(), 2u);
}

TEST(ImageStatistics, BadImagesFailOrAreLeftOut) {
  const Quiet quiet;
  const TempFolder root;
  test::make_image_folder(root, 1, 6, 1);
  const std::string first = root.write("train/class_0/image_2.jpg", "text");
  root.write("train/class_0/image_4.jpg", "");
  const auto dataset = open(root.path());
  StatisticsConfig config;
  config.transform = {20, 16};
  for (const int threads : {1, 3}) {
    config.threads = threads;
    try {
      image_statistics(*dataset, config);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_EQ(std::string(error.what()).rfind(first, 0), 0u) << error.what();
    }
  }
  config.bad_sample = BadSample::kSubstitute;
  EXPECT_EQ(image_statistics(*dataset, config).samples, 4u);
}

// Every image is bad, and the first is the slowest.
class AllBad final : public Dataset {
 public:
  uint64_t size() const override { return 50; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  void read(uint64_t i, Sample& sample) const override {
    if (i == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    sample.bytes = {};
  }
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t i) const override { return fmt::format("image {}", i); }
  const std::string& digest() const override { return classes_[0]; }

 private:
  std::vector<std::string> classes_ = {"only"};
};

TEST(ImageStatistics, TheFirstBadImageIsNamedWhicheverThreadIsFaster) {
  const Quiet quiet;
  StatisticsConfig config;
  config.threads = 3;
  try {
    image_statistics(AllBad(), config);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).rfind("image 0:", 0), 0u) << error.what();
  }
}

}  // namespace
}  // namespace convoy::data
