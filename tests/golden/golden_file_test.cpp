// The golden files: our generator makes the floats that numpy made, the files agree with
// themselves, and the comparison accepts rounding and nothing else. (The networks are compared with
// them in tests of their own.)
#include "tests/support/golden_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/temp_folder.h"

namespace convoy::golden {
namespace {

std::string path_of(const std::string& model) {
  return GOLDEN_DIR "/" + model + ".json";
}

template <typename T>
std::string digest(const std::vector<T>& values) {
  return Sha256().update(values.data(), values.size() * sizeof(T)).hex();
}

// What the file says of `x`, were `x` PyTorch's: no error of its own.
Summary summarise(const std::string& name, const std::vector<float>& x, int64_t samples) {
  const auto count = static_cast<int64_t>(x.size());
  Summary s;
  s.name = name;
  s.shape = {count};
  s.projections = projections(x);
  for (float value : x) {
    s.norm += static_cast<double>(value) * value;
    s.sum += value;
  }
  s.norm = std::sqrt(s.norm);
  for (int64_t i : sample_positions(count, std::min(samples, count)))
    s.samples.push_back(x[static_cast<size_t>(i)]);
  return s;
}

class GoldenFile : public testing::TestWithParam<const char*> {
 protected:
  const File file = read(path_of(GetParam()));
};

TEST_P(GoldenFile, GeneratorMakesTheFloatsThatNumpyMade) {
  ASSERT_GE(file.generated.size(), 8u);
  for (const Generated& generated : file.generated) {
    const std::string& name = generated.summary.name;
    std::vector<float> values;
    std::string sha256;
    if (name.starts_with("labels ")) {
      const std::vector<int32_t> labels = make_labels(file, std::stoll(name.substr(7)));
      values.assign(labels.begin(), labels.end());
      sha256 = digest(labels);
    } else if (name.starts_with("input ")) {
      values = make_input(file, std::stoll(name.substr(6)));
      sha256 = digest(values);
    } else {
      const bool running = name.find("running") != std::string::npos;
      const std::vector<Parameter>& made = running ? file.running : file.parameters;
      size_t index = 0;
      while (made.at(index).name != name) ++index;
      values = running ? make_running(file, index) : make_parameter(file, index);
      sha256 = digest(values);
    }
    EXPECT_EQ(sha256, generated.sha256) << name;

    // Norms, sums, signs and positions are numpy's, too: double sums of at most 3 million terms
    // agree to 1e-9, samples to the 9 digits that are written.
    const Summary ours =
        summarise(name, values, static_cast<int64_t>(generated.summary.samples.size()));
    EXPECT_NEAR(ours.norm, generated.summary.norm, 1e-9 * ours.norm) << name;
    EXPECT_NEAR(ours.sum, generated.summary.sum, 1e-9 * ours.norm) << name;
    for (size_t p = 0; p < 4; ++p)
      EXPECT_NEAR(ours.projections[p], generated.summary.projections[p], 1e-9 * ours.norm)
          << name << " projection " << p;
    ASSERT_EQ(ours.samples.size(), generated.summary.samples.size()) << name;
    for (size_t k = 0; k < ours.samples.size(); ++k)
      EXPECT_NEAR(ours.samples[k], generated.summary.samples[k], 1e-8 * std::abs(ours.samples[k]))
          << name << " sample " << k;
  }
}

TEST_P(GoldenFile, HoldsEveryTensorOfTheModel) {
  int64_t total = 0;
  ASSERT_EQ(file.gradients.size(), file.parameters.size() - file.frozen.size());
  ASSERT_EQ(file.parameters_after.size(), file.parameters.size());
  size_t gradient = 0;
  for (size_t i = 0; i < file.parameters.size(); ++i) {
    const Parameter& p = file.parameters[i];
    if (std::ranges::find(file.frozen, p.name) == file.frozen.end()) {
      EXPECT_EQ(file.gradients[gradient].name, p.name);
      EXPECT_EQ(file.gradients[gradient].shape, p.shape) << p.name;
      ++gradient;
    }
    EXPECT_EQ(file.parameters_after[i].name, p.name);
    EXPECT_EQ(file.parameters_after[i].shape, p.shape) << p.name;
    total += std::accumulate(p.shape.begin(), p.shape.end(), int64_t{1}, std::multiplies<>());
  }
  // He et al. 2015, table 6 (0.27 M) and torchvision's page of ResNet-18.
  const bool small = file.model.starts_with("resnet20");
  EXPECT_EQ(total, small ? 269'722 : 11'689'512);
  // Batch norms: 1 + 2 in each of 9 blocks; 1 + 2 in each of 8 blocks + 3 projection shortcuts.
  EXPECT_EQ(file.running_after.size(), 2u * (small ? 19 : 20));
  // The stem and the first stage: 3 parameters, and 6 in each of 3 blocks.
  EXPECT_EQ(file.frozen.size(), file.model == "resnet20_frozen" ? 21u : 0u);
  EXPECT_EQ(file.running.size(), file.frozen.empty() ? 0u : file.running_after.size());
  EXPECT_EQ(file.steps(), 10);
}

// The loss and the gradient of the last bias follow from logits and labels alone, so they tell
// whether the file's parts belong together and whether compare_* accepts a right answer.
TEST_P(GoldenFile, LossAndLastGradientFollowFromTheLogits) {
  const auto classes = static_cast<size_t>(file.classes);
  const std::vector<int32_t> labels = make_labels(file, 0);
  const double batch = static_cast<double>(labels.size());
  std::vector<double> exact_bias(classes);
  double loss = 0;
  for (size_t n = 0; n < labels.size(); ++n) {
    const std::span<const double> row(&file.logits.at(n * classes), classes);
    double sum = 0;
    for (double logit : row) sum += std::exp(logit);
    for (size_t c = 0; c < classes; ++c) exact_bias[c] += std::exp(row[c]) / sum / batch;
    const auto label = static_cast<size_t>(labels[n]);
    exact_bias[label] -= 1 / batch;
    loss += (std::log(sum) - row[label]) / batch;
  }
  const std::vector<float> bias(exact_bias.begin(), exact_bias.end());
  EXPECT_NEAR(loss, file.losses[0], 1e-7);  // the logits have 9 digits
  EXPECT_EQ(compare_losses(file, std::vector{loss}), std::vector<std::string>{});
  EXPECT_EQ(compare_logits(file, std::vector<float>(file.logits.begin(), file.logits.end())),
            std::vector<std::string>{});
  ASSERT_EQ(file.gradients.back().name, "fc.bias");
  EXPECT_EQ(compare_tensors({file.gradients.back()}, {{"fc.bias", bias}}),
            std::vector<std::string>{});
}

// A tolerance that swallows the effect it should see would be worthless: PyTorch's own error must
// be small against the values. (A ReLU flipped in step one would be 1e-3 of a gradient, see
// make_golden.py; one flipped in a later step is 3e-5 of a running mean.)
TEST_P(GoldenFile, TolerancesAreTight) {
  for (const Summary& s : file.gradients) EXPECT_LT(s.error_norm, 5e-5 * s.norm) << s.name;
  for (const Summary& s : file.parameters_after) EXPECT_LT(s.error_norm, 2e-5 * s.norm) << s.name;
  for (const Summary& s : file.running_after) EXPECT_LT(s.error_norm, 1e-4 * s.norm) << s.name;
  for (size_t s = 0; s < file.losses.size(); ++s)
    EXPECT_LT(file.error_losses[s], 1e-5 * file.losses[s]) << "step " << s;
  EXPECT_LT(file.error_logits, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenFile,
                         testing::Values("resnet20", "resnet18_64", "resnet20_frozen"),
                         [](const auto& model) { return std::string(model.param); });

// A tensor with a known answer and a known error of "PyTorch's float32".
class Compare : public testing::Test {
 protected:
  void SetUp() override {
    for (size_t i = 0; i < x.size(); ++i) x[i] = noise(1, i);
    expected = summarise("layer1.0.conv1.weight", x, 64);
    expected.error_norm = kError * expected.norm;
    expected.error_max = 4 * kError;
    expected.error_sum = kError * expected.norm;
  }
  static float noise(uint64_t seed, size_t i) {  // variance 1
    return (2 * uniform_float(random4(seed, Purpose::kSyntheticData, 0, i)[0]) - 1) *
           std::sqrt(3.0f);
  }
  std::vector<std::string> compare(const std::vector<float>& got) const {
    return compare_tensors({expected}, {{expected.name, got}});
  }
  std::vector<float> with_noise(double scale) const {
    std::vector<float> noisy = x;
    for (size_t i = 0; i < x.size(); ++i) noisy[i] += static_cast<float>(scale) * noise(2, i);
    return noisy;
  }

  static constexpr double kError = 1e-5;
  std::vector<float> x = std::vector<float>(5000);
  Summary expected;
};

TEST_F(Compare, AcceptsErrorsOfTheSizeOfPyTorchs) {
  EXPECT_EQ(compare(x), std::vector<std::string>{});
  EXPECT_EQ(compare(with_noise(kError)), std::vector<std::string>{});
}

TEST_F(Compare, RefusesErrorsTwentyTimesPyTorchs) {
  EXPECT_NE(compare(with_noise(20 * kError)), std::vector<std::string>{});
}

TEST_F(Compare, SeesOneElementOrTwoSwappedOutsideTheSamples) {
  const auto sampled = sample_positions(5000, 64);
  size_t i = 0;
  while (std::find(sampled.begin(), sampled.end(), i) != sampled.end() ||
         std::find(sampled.begin(), sampled.end(), i + 1) != sampled.end())
    ++i;
  // An error of one element moves each projection by itself: seen from kSlack * error_norm on.
  std::vector<float> got = x;
  got[i] += static_cast<float>(1.1 * kSlack * expected.error_norm);
  EXPECT_NE(compare(got), std::vector<std::string>{});
  got = x;
  std::swap(got[i], got[i + 1]);
  EXPECT_NE(compare(got), std::vector<std::string>{});
}

TEST_F(Compare, NamesTheSampleThatIsOff) {
  std::vector<float> got = x;
  const int64_t position = sample_positions(5000, 64)[7];
  got[static_cast<size_t>(position)] += 100 * kError;
  const std::vector<std::string> mismatches = compare(got);
  ASSERT_EQ(mismatches.size(), 1u);
  EXPECT_NE(mismatches[0].find(fmt::format("layer1.0.conv1.weight: element {} is ", position)),
            std::string::npos)
      << mismatches[0];
}

TEST_F(Compare, SeesAConstantAndAScaleAndANan) {
  std::vector<float> got = x;
  for (float& value : got) value += kError;  // error_norm once, but all of it in the sum
  EXPECT_NE(compare(got), std::vector<std::string>{});
  got = x;
  for (float& value : got) value *= 1 + 10 * kError;
  EXPECT_NE(compare(got), std::vector<std::string>{});
  got = x;
  got.back() = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(compare(got), std::vector<std::string>{});
}

TEST_F(Compare, NamesWhatIsMissingUnknownOrOfAnotherSize) {
  EXPECT_EQ(compare_tensors({expected}, {{"conv9", x}}),
            (std::vector<std::string>{"layer1.0.conv1.weight: missing",
                                      "conv9: PyTorch has no tensor of this name"}));
  EXPECT_EQ(
      compare(std::vector<float>(4999)),
      (std::vector<std::string>{"layer1.0.conv1.weight: 4999 elements, PyTorch's 5000 [5000]"}));
}

TEST(CompareLosses, NamesTheStep) {
  File file;
  file.losses = {2.5, 2.25};
  file.error_losses = {1e-6, 1e-3};
  EXPECT_EQ(compare_losses(file, std::vector{2.5, 2.257}), std::vector<std::string>{});
  const auto mismatches = compare_losses(file, std::vector{2.5, 2.26});
  ASSERT_EQ(mismatches.size(), 1u);
  EXPECT_TRUE(mismatches[0].starts_with("loss: step 1 is 2.26, PyTorch's 2.25")) << mismatches[0];
  EXPECT_EQ(compare_losses(file, {}).size(), 1u);
  EXPECT_EQ(compare_losses(file, std::vector{2.5, 2.25, 2.0}).size(), 1u);
}

TEST(CompareLogits, NamesSampleAndClass) {
  File file;
  file.classes = 2;
  file.logits = {1, 2, 3, 4};
  file.error_logits = 1e-6;
  EXPECT_EQ(compare_logits(file, std::vector<float>{1, 2, 3, 4}), std::vector<std::string>{});
  const auto mismatches = compare_logits(file, std::vector<float>{1, 2, 3, 4.5f});
  ASSERT_EQ(mismatches.size(), 1u);
  EXPECT_TRUE(mismatches[0].starts_with("logits: sample 1 class 1 is 4.5,")) << mismatches[0];
  EXPECT_EQ(compare_logits(file, std::vector<float>{1, 2}),
            std::vector<std::string>{"logits: 2 values, PyTorch's 4"});
}

// The exit code and message of an Error, or "no error".
std::string error_of(const std::string& path) {
  try {
    read(path);
    return "no error";
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
}

TEST(ReadGolden, NamesTheFileThatIsMissingOrDamaged) {
  const test::TempFolder folder;
  const std::string missing = folder.path("none.json");
  const std::string cut = folder.write("cut.json", R"({"model": "resnet20", "seed")");
  const std::string other = folder.write("other.json", R"({"model": "resnet20"})");
  EXPECT_EQ(error_of(missing), "74 " + missing + ": No such file or directory");
  EXPECT_TRUE(error_of(cut).starts_with("65 " + cut + ": not a golden file")) << error_of(cut);
  EXPECT_NE(error_of(other).find("'seed' not found"), std::string::npos) << error_of(other);
}

}  // namespace
}  // namespace convoy::golden
