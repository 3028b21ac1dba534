// Linear against the reference: flat features, whole images, fp32 logits.
#include <gtest/gtest.h>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

OpCase linear(Linear spec, Shape x, bool fp32_output = false) {
  return {.spec = spec, .x = {x}, .fp32_output = fp32_output};
}

std::vector<OpCase> cases() {
  return {
      linear({.out_features = 10}, {4, 64}),
      linear({.out_features = 1000}, {3, 512}),
      linear({.out_features = 10, .bias = false}, {1, 100}),
      linear({.out_features = 1}, {2, 1}),
      linear({.out_features = 17}, {5, 33}),
      linear({.out_features = 15}, {1, 16}),
      linear({.out_features = 100, .bias = false}, {3, 257}),
      linear({.out_features = 3}, {16, 24}),
      // Whole images: features in the order C, H, W.
      linear({.out_features = 10}, {2, 3, 5, 4}),
      linear({.out_features = 24}, {3, 16, 3, 3}),
      linear({.out_features = 33, .bias = false}, {1, 17, 1, 7}),
      linear({.out_features = 64}, {2, 256, 2, 2}),
      // Logits.
      linear({.out_features = 10}, {4, 64}, true),
      linear({.out_features = 1000}, {2, 512}, true),
      linear({.out_features = 17}, {3, 3, 4, 5}, true),
      linear({.out_features = 15, .bias = false}, {1, 100}, true),
  };
}

TEST_P(OpTest, LinearEqualsReference) {
  for (const OpCase& c : cases()) check_op(device(), type(), c);
}

TEST_P(OpTest, LinearInferenceEqualsReference) {
  for (OpCase c : cases()) {
    c.training = false;
    check_op(device(), type(), c);
  }
}

TEST_P(OpTest, LinearWithoutInputGradientEqualsReference) {
  OpCase c = linear({.out_features = 10}, {4, 24});
  c.wants_dx = {false};
  check_op(device(), type(), c);
}

TEST_P(OpTest, FrozenLinearEqualsReference) {
  for (OpCase c : cases()) {
    c.wants_gradients = false;
    check_op(device(), type(), c);
  }
}

TEST_P(Fp32Test, LinearGradientsEqualDifferences) {
  check_gradients(device(), linear({.out_features = 7}, {3, 5}));
  check_gradients(device(), linear({.out_features = 4, .bias = false}, {2, 3, 3, 2}));
}

// The CPU knows no tf32: there the flag changes nothing.
TEST_P(Fp32Test, LinearRoundsToTf32OnlyWhereItMay) {
  OpCase c = linear({.out_features = 128}, {64, 256});
  const OpData data = make_data(c, DType::kFloat32);
  const OpResult exact = run(device(), DType::kFloat32, c, data);
  c.tf32 = true;
  const OpResult rounded = run(device(), DType::kFloat32, c, data);
  if (device().name() == "cpu") {
    EXPECT_TRUE(rounded == exact);
    return;
  }
  EXPECT_NE(rounded.y, exact.y);
  EXPECT_NE(rounded.dx, exact.dx);
  EXPECT_NE(rounded.gradients[0], exact.gradients[0]);
  EXPECT_EQ(rounded.gradients[1], exact.gradients[1]);
  // 256 products of numbers below 1, whose factors were rounded by 2^-11 each.
  for (size_t i = 0; i < exact.y.size(); ++i)
    ASSERT_NEAR(rounded.y[i], exact.y[i], 16 * 0x1p-10) << i;
}

TEST(Linear, ShapesParametersAndCosts) {
  const std::vector<Shape> x = {{2, 512, 7, 7}};
  EXPECT_EQ(output_shape(Linear{.out_features = 4096}, x), (Shape{2, 4096, 1, 1}));
  EXPECT_EQ(macs(Linear{.out_features = 4096}, x), int64_t{2} * 25088 * 4096);
  EXPECT_EQ(parameters(Linear{.out_features = 4096}, x)[0].dims,
            (std::vector<int64_t>{4096, 25088}));
  EXPECT_EQ(parameters(Linear{.out_features = 4096}, x).size(), 2u);
  EXPECT_EQ(parameters(Linear{.out_features = 4096, .bias = false}, x).size(), 1u);
}

TEST(Linear, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"out_features is 0"}, [] { output_shape(Linear{}, {{1, 3}}); });
  expect_error(ExitCode::kBadJob, {"1 input", "got 0"},
               [] { output_shape(Linear{.out_features = 3}, {}); });
}

}  // namespace
}  // namespace convoy::ops
