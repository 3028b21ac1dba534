// Local response normalisation: windows at the border, sizes beyond the channels, any exponent.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

// Strong enough to be seen: with the paper's numbers y is x / 2^0.75 to four digits.
constexpr LocalResponseNorm kStrong = {.size = 5, .alpha = 2, .beta = 0.75, .k = 1};

OpCase lrn(const LocalResponseNorm& spec, Shape x) {
  return {.spec = spec, .x = {x}};
}

std::vector<OpCase> cases() {
  std::vector<OpCase> all;
  for (const int64_t c : {1, 2, 3, 4, 5, 15, 16, 17, 24, 33, 64, 96, 100, 256})
    all.push_back(lrn(kStrong, {2, c, 3, 2}));
  // Even sizes reach one further to the front, as torch's; 1 is no window, 9 and 300 are wider than
  // some or all channels.
  for (const int64_t size : {1, 2, 3, 4, 9, 300})
    for (const int64_t c : {1, 7, 40})
      all.push_back(lrn({.size = size, .alpha = 3, .beta = 0.75, .k = 2}, {2, c, 2, 2}));
  for (const double beta : {0.0, 0.5, 1.0, 1.7, 3.0})
    all.push_back(lrn({.size = 5, .alpha = 1, .beta = beta, .k = 1}, {2, 33, 2, 2}));
  all.push_back(lrn({.size = 5, .alpha = 5, .beta = 0.75, .k = 1e-3}, {2, 33, 2, 2}));
  all.push_back(lrn({.size = 5, .alpha = 5, .beta = 0.75, .k = 100}, {2, 33, 2, 2}));
  all.push_back(lrn({.size = 5, .alpha = 5e-4, .beta = 0.75, .k = 2}, {2, 96, 5, 5}));
  return all;
}

TEST_P(OpTest, LocalResponseNormEqualsReference) {
  for (OpCase c : cases()) {
    check_op(device(), type(), c);
    c.training = false;
    check_op(device(), type(), c);
  }
}

// torch.nn.LocalResponseNorm(size, alpha=2, beta=0.75, k=1) of the channels 1, 2, ..., 7.
TEST_P(Fp32Test, LocalResponseNormGivesTorchsNumbers) {
  const auto y_of = [&](int64_t size) {
    const OpCase c = {.spec = LocalResponseNorm{.size = size, .alpha = 2, .beta = 0.75, .k = 1},
                      .x = {{1, 7}},
                      .training = false};
    OpData data = make_data(c, DType::kFloat32);
    for (size_t i = 0; i < 7; ++i) data.x[0][i] = static_cast<float>(i + 1);
    return run(device(), DType::kFloat32, c, data).y;
  };
  const std::vector<std::vector<float>> expected = {
      {0.39079497f, 0.42044821f, 0.37500000f, 0.32861809f, 0.29267154f, 0.26516504f, 0.34194560f},
      {0.24285220f, 0.29212753f, 0.28564418f, 0.26662981f, 0.24756998f, 0.31255677f, 0.40289201f}};
  const int64_t sizes[] = {4, 5};
  for (size_t s = 0; s < 2; ++s) {
    const std::vector<float> y = y_of(sizes[s]);
    for (size_t i = 0; i < 7; ++i) EXPECT_NEAR(y[i], expected[s][i], 2e-6f) << sizes[s] << " " << i;
  }
}

// What is not a number reaches every channel whose window it is in, and no other; infinity makes
// its own NaN and shuts its neighbours, as in torch.
TEST_P(OpTest, LocalResponseNormHandsNanOn) {
  const OpCase c = {.spec = kStrong, .x = {{1, 40, 2, 1}}, .training = false};
  OpData data = make_data(c, type());
  data.x[0][10] = std::numeric_limits<float>::quiet_NaN();
  data.x[0][40 + 20] = std::numeric_limits<float>::infinity();
  const std::vector<float> y = run(device(), type(), c, data).y;
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(std::isnan(y[i]), i >= 8 && i <= 12) << i;
    EXPECT_EQ(std::isnan(y[40 + i]), i == 20) << i;
    const bool is_shut = i != 20 && i >= 18 && i <= 22;
    EXPECT_EQ(y[40 + i] == 0.0f, is_shut) << i;
  }
}

TEST_P(OpTest, LocalResponseNormHasTheSameBitsWithAnyThreads) {
  check_threads(GetParam().device, type(), lrn(kStrong, {3, 33, 17, 9}));
  check_threads(GetParam().device, type(), lrn(kStrong, {1, 5, 1, 1}));
}

TEST_P(Fp32Test, LocalResponseNormGradientsEqualDifferences) {
  check_gradients(device(), lrn(kStrong, {2, 17, 3, 3}));
  check_gradients(device(), lrn({.size = 4, .alpha = 3, .beta = 0.5, .k = 2}, {2, 9, 2, 3}));
  check_gradients(device(), lrn({.size = 11, .alpha = 4, .beta = 1.5, .k = 1}, {2, 5, 2, 3}));
}

TEST(LocalResponseNorm, ErrorsNameTheNumbers) {
  const std::vector<Shape> x = {{1, 4, 6, 3}};
  const auto shape = [&](const LocalResponseNorm& spec) { return output_shape(spec, x); };
  EXPECT_EQ(shape({}), x[0]);
  expect_error(ExitCode::kBadJob, {"size is 0"}, [&] { shape({.size = 0}); });
  expect_error(ExitCode::kBadJob, {"alpha is -1", "0 ... 1e6"}, [&] { shape({.alpha = -1}); });
  expect_error(ExitCode::kBadJob, {"beta is 11", "0 ... 10"}, [&] { shape({.beta = 11}); });
  expect_error(ExitCode::kBadJob, {"k is 0", "1e-6 ... 1e6"}, [&] { shape({.k = 0}); });
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    expect_error(ExitCode::kBadJob, {"alpha is"}, [&] { shape({.alpha = bad}); });
    expect_error(ExitCode::kBadJob, {"beta is"}, [&] { shape({.beta = bad}); });
    expect_error(ExitCode::kBadJob, {"k is"}, [&] { shape({.k = bad}); });
  }
  expect_error(ExitCode::kBadJob, {"1 input", "got 2"}, [&] {
    output_shape(LocalResponseNorm{}, {x[0], x[0]});
  });
}

}  // namespace
}  // namespace convoy::ops
