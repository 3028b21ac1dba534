// The ops in which nothing but the elements of one place meet: ReLU, sigmoid, add, multiply, and
// those that only move elements: concat, subsample.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

std::vector<Shape> shapes() {
  std::vector<Shape> all = {{1, 1, 1, 1},  {1, 16, 1, 1},  {2, 3, 7, 5},
                            {3, 64, 5, 4}, {2, 256, 3, 3}, {4, 100}};
  for (const int64_t c : {1, 3, 15, 16, 17, 24, 33, 64, 100, 272}) all.push_back({2, c, 3, 5});
  return all;
}

TEST_P(OpTest, ReluEqualsReference) {
  for (const Shape& x : shapes()) {
    check_op(device(), type(), {.spec = Relu{}, .x = {x}});
    check_op(device(), type(), {.spec = Relu{}, .x = {x}, .training = false});
  }
}

TEST_P(OpTest, ReluHandsNanOnAndKillsMinusInfinity) {
  const OpCase c = {.spec = Relu{}, .x = {{1, 33, 1, 1}}};
  OpData data = make_data(c, type());
  const float inf = std::numeric_limits<float>::infinity();
  // In a whole vector and in the rest of the row.
  for (const size_t base : {size_t{0}, size_t{29}}) {
    data.x[0][base] = std::numeric_limits<float>::quiet_NaN();
    data.x[0][base + 1] = inf;
    data.x[0][base + 2] = -inf;
    data.x[0][base + 3] = 0;
  }
  const OpResult op = run(device(), type(), c, data);
  for (const size_t base : {size_t{0}, size_t{29}}) {
    EXPECT_TRUE(std::isnan(op.y[base]));
    EXPECT_EQ(op.y[base + 1], inf);
    EXPECT_EQ(op.y[base + 2], 0);
    EXPECT_EQ(op.dx[0][base + 1], data.dy[0][base + 1]);
    EXPECT_EQ(op.dx[0][base + 2], 0);
    EXPECT_EQ(op.dx[0][base + 3], 0);  // the gradient at zero is zero, as in PyTorch
  }
}

TEST_P(OpTest, AddEqualsReference) {
  for (const Shape& x : shapes()) {
    check_op(device(), type(), {.spec = Add{}, .x = {x, x}});
    check_op(device(), type(), {.spec = Add{}, .x = {x, x}, .training = false});
  }
  const Shape x = {2, 24, 3, 3};
  check_op(device(), type(), {.spec = Add{}, .x = {x, x}, .wants_dx = {true, false}});
  check_op(device(), type(), {.spec = Add{}, .x = {x, x}, .wants_dx = {false, true}});
}

TEST_P(OpTest, MultiplyEqualsReference) {
  for (const Shape& x : shapes()) {
    check_op(device(), type(), {.spec = Multiply{}, .x = {x, x}});
    check_op(device(), type(), {.spec = Multiply{}, .x = {x, x}, .training = false});
  }
  const Shape x = {2, 24, 3, 3};
  check_op(device(), type(), {.spec = Multiply{}, .x = {x, x}, .wants_dx = {true, false}});
  check_op(device(), type(), {.spec = Multiply{}, .x = {x, x}, .wants_dx = {false, true}});
}

TEST_P(OpTest, SigmoidEqualsReference) {
  for (const Shape& x : shapes())
    for (const bool complement : {false, true}) {
      const OpSpec spec = Sigmoid{.complement = complement};
      check_op(device(), type(), {.spec = spec, .x = {x}});
      check_op(device(), type(), {.spec = spec, .x = {x}, .training = false});
    }
}

// Far from zero the gate is shut or open, without overflow; near its end small values keep their
// digits in the complement. Spaced values reach from -12 to 12.
TEST_P(OpTest, SigmoidIsExactFarFromZero) {
  for (const bool complement : {false, true}) {
    const OpCase c = {.spec = Sigmoid{.complement = complement},
                      .x = {{1, 240}},
                      .training = false,
                      .draw = Draw::kSpaced};
    OpData data = make_data(c, type());
    const OpResult op = run(device(), type(), c, data);
    for (size_t i = 0; i < op.y.size(); ++i) {
      const double x = static_cast<double>(data.x[0][i]) * (complement ? -1 : 1);
      const double expected = 1 / (1 + std::exp(-x));
      // Relative: fp32 rounds the exponent by 12 * 2^-24, the 16-bit types their result.
      const double share = type() == DType::kFloat32    ? 2e-6
                           : type() == DType::kBfloat16 ? 0x1p-8
                                                        : 0x1p-10;
      // Below 2^-14 numbers of fp16 are 2^-24 apart.
      const double least = type() == DType::kFloat16 ? 0x1p-25 : 0;
      EXPECT_NEAR(static_cast<double>(op.y[i]), expected, share * expected + least) << x;
    }
    const float inf = std::numeric_limits<float>::infinity();
    const float big = type() == DType::kFloat16 ? 60000.0f : 1e30f;
    data.x[0].assign(240, 0.0f);
    for (const size_t base :
         {size_t{0}, size_t{235}}) {  // in a whole vector and behind all of them
      data.x[0][base] = std::numeric_limits<float>::quiet_NaN();
      data.x[0][base + 1] = inf;
      data.x[0][base + 2] = -inf;
      data.x[0][base + 3] = big;
      data.x[0][base + 4] = -big;
    }
    const std::vector<float> y = run(device(), type(), c, data).y;
    for (const size_t base : {size_t{0}, size_t{235}}) {
      EXPECT_TRUE(std::isnan(y[base]));
      for (const size_t i : {base + 1, base + 3}) EXPECT_EQ(y[i], complement ? 0.0f : 1.0f);
      for (const size_t i : {base + 2, base + 4}) EXPECT_EQ(y[i], complement ? 1.0f : 0.0f);
    }
    EXPECT_EQ(y[10], 0.5f);
  }
}

TEST_P(OpTest, ConcatEqualsReference) {
  const std::vector<std::vector<Shape>> all = {
      {{2, 16, 3, 5}},
      {{2, 16, 3, 5}, {2, 1, 3, 5}},
      {{1, 3, 1, 1}, {1, 17, 1, 1}, {1, 24, 1, 1}},
      {{2, 64, 4, 3}, {2, 100, 4, 3}, {2, 15, 4, 3}, {2, 33, 4, 3}},
      {{3, 256}, {3, 32}}};
  for (const auto& x : all) {
    check_op(device(), type(), {.spec = Concat{}, .x = x});
    check_op(device(), type(), {.spec = Concat{}, .x = x, .training = false});
  }
  check_op(device(), type(), {.spec = Concat{}, .x = all[1], .wants_dx = {false, true}});
}

TEST_P(OpTest, SubsampleEqualsReference) {
  const auto check = [&](int64_t stride, int64_t out_channels, Shape x) {
    const OpSpec spec = Subsample{.stride = stride, .out_channels = out_channels};
    check_op(device(), type(), {.spec = spec, .x = {x}});
    check_op(device(), type(), {.spec = spec, .x = {x}, .training = false});
  };
  check(2, 32, {2, 16, 8, 8});
  check(2, 32, {3, 16, 7, 5});
  check(2, 17, {1, 16, 1, 1});
  check(1, 64, {2, 64, 3, 4});
  check(1, 100, {2, 33, 3, 4});  // an odd number of new channels
  check(3, 24, {2, 3, 8, 10});
  check(4, 256, {1, 1, 5, 3});
}

TEST_P(OpTest, ElementwiseHasTheSameBitsWithAnyThreads) {
  const Shape x = {3, 33, 37, 19};  // 69,597 elements: several pieces, the last one odd
  check_threads(GetParam().device, type(), {.spec = Relu{}, .x = {x}});
  check_threads(GetParam().device, type(), {.spec = Sigmoid{}, .x = {x}});
  check_threads(GetParam().device, type(), {.spec = Add{}, .x = {x, x}});
  check_threads(GetParam().device, type(), {.spec = Multiply{}, .x = {x, x}});
  check_threads(GetParam().device, type(), {.spec = Concat{}, .x = {x, x}});
  check_threads(GetParam().device, type(), {.spec = Subsample{.out_channels = 40}, .x = {x}});
}

TEST_P(Fp32Test, ElementwiseGradientsEqualDifferences) {
  const Shape x = {2, 17, 3, 3};
  check_gradients(device(), {.spec = Relu{}, .x = {x}, .draw = Draw::kSpaced});
  check_gradients(device(), {.spec = Sigmoid{}, .x = {x}});
  check_gradients(device(), {.spec = Sigmoid{.complement = true}, .x = {x}});
  check_gradients(device(), {.spec = Add{}, .x = {x, x}});
  check_gradients(device(), {.spec = Multiply{}, .x = {x, x}});
  check_gradients(device(), {.spec = Concat{}, .x = {x, {2, 3, 3, 3}}});
  check_gradients(device(), {.spec = Subsample{.out_channels = 20}, .x = {x}});
}

TEST(Add, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"[2, 3, 4, 5]", "[2, 3, 5, 4]"}, [] {
    output_shape(Add{}, {{2, 3, 4, 5}, {2, 3, 5, 4}});
  });
  expect_error(ExitCode::kBadJob, {"2 input", "got 1"}, [] {
    output_shape(Add{}, {{2, 3, 4, 5}});
  });
}

TEST(Multiply, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"[2, 3, 4, 5]", "[2, 1, 1, 1]"}, [] {
    output_shape(Multiply{}, {{2, 3, 4, 5}, {2, 1}});
  });
  expect_error(ExitCode::kBadJob, {"2 input", "got 3"}, [] {
    output_shape(Multiply{}, {{1, 2}, {1, 2}, {1, 2}});
  });
}

TEST(Sigmoid, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"1 input", "got 2"}, [] {
    output_shape(Sigmoid{}, {{1, 2}, {1, 2}});
  });
}

TEST(Relu, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"1 input", "got 2"}, [] {
    output_shape(Relu{}, {{1, 2}, {1, 2}});
  });
}

TEST(Concat, ErrorsNameTheNumbers) {
  EXPECT_EQ(output_shape(Concat{}, {{2, 3, 4, 5}, {2, 7, 4, 5}}), (Shape{2, 10, 4, 5}));
  expect_error(ExitCode::kBadJob, {"[2, 3, 4, 5]", "[2, 3, 4, 6]"}, [] {
    output_shape(Concat{}, {{2, 3, 4, 5}, {2, 3, 4, 6}});
  });
  expect_error(ExitCode::kBadJob, {"at least one"}, [] { output_shape(Concat{}, {}); });
}

TEST(Subsample, ErrorsNameTheNumbers) {
  EXPECT_EQ(output_shape(Subsample{.stride = 2, .out_channels = 32}, {{2, 16, 7, 8}}),
            (Shape{2, 32, 4, 4}));
  expect_error(ExitCode::kBadJob, {"out_channels is 8", "16"}, [] {
    output_shape(Subsample{.out_channels = 8}, {{1, 16, 4, 4}});
  });
  expect_error(ExitCode::kBadJob, {"stride is 0"}, [] {
    output_shape(Subsample{.stride = 0, .out_channels = 16}, {{1, 16, 4, 4}});
  });
}

}  // namespace
}  // namespace convoy::ops
