// Pooling against the reference: windows, padding, ceil mode, both ways to count.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

template <typename Spec>
OpCase pool(Spec spec, Shape x, Draw draw = Draw::kUniform) {
  return {.spec = spec, .x = {x}, .draw = draw};
}

std::vector<OpCase> max_cases() {
  std::vector<OpCase> all = {
      pool(MaxPool{}, {2, 64, 9, 7}),
      pool(MaxPool{.kernel = 2, .stride = 2, .padding = 0}, {1, 16, 5, 5}),
      pool(MaxPool{.kernel = 3, .stride = 2, .padding = 0}, {2, 100, 7, 8}),
      pool(MaxPool{.kernel = 3, .stride = 1, .padding = 1}, {2, 33, 4, 5}),
      pool(MaxPool{.kernel = 1, .stride = 2, .padding = 0}, {2, 17, 5, 3}),
      pool(MaxPool{.kernel = 15, .stride = 3, .padding = 7}, {1, 24, 9, 16}),
      pool(MaxPool{}, {3, 16, 1, 1}),
      pool(MaxPool{.kernel = 2, .stride = 3, .padding = 1}, {2, 24, 7, 6}),
      // The last windows of ceil mode: partly outside, or dropped because they start outside.
      pool(MaxPool{.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true}, {2, 64, 6, 8}),
      pool(MaxPool{.kernel = 2, .stride = 2, .padding = 0, .ceil_mode = true}, {1, 15, 5, 7}),
      pool(MaxPool{.kernel = 2, .stride = 2, .padding = 1, .ceil_mode = true}, {1, 16, 4, 5}),
      pool(MaxPool{.kernel = 3, .stride = 3, .padding = 1, .ceil_mode = true}, {1, 3, 8, 9}),
      // The only window is larger than the image.
      pool(MaxPool{.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true}, {2, 16, 2, 4}),
      pool(MaxPool{.kernel = 2, .stride = 2, .padding = 0, .ceil_mode = true}, {2, 7, 1, 1}),
  };
  for (const int64_t c : {1, 3, 15, 16, 17, 24, 33, 64, 100, 256, 272})
    all.push_back(pool(MaxPool{}, {2, c, 5, 6}));
  return all;
}

std::vector<OpCase> average_cases() {
  std::vector<OpCase> all;
  for (const bool include : {false, true}) {
    for (const Shape& x : {Shape{2, 64, 9, 7}, Shape{1, 17, 3, 3}, Shape{3, 100, 5, 2}})
      for (const auto [kernel, stride, padding] :
           {std::array<int64_t, 3>{2, 2, 0}, {2, 1, 1}, {2, 3, 1}, {1, 2, 0}})
        all.push_back(pool(AvgPool{.kernel = kernel,
                                   .stride = stride,
                                   .padding = padding,
                                   .count_include_pad = include},
                           x));
    all.push_back(
        pool(AvgPool{.kernel = 3, .stride = 2, .padding = 1, .count_include_pad = include},
             {2, 24, 1, 1}));
    for (const int64_t c : {1, 3, 15, 16, 17, 24, 33, 64, 100, 256, 272})
      all.push_back(
          pool(AvgPool{.kernel = 3, .stride = 1, .padding = 1, .count_include_pad = include},
               {2, c, 4, 5}));
  }
  return all;
}

std::vector<OpCase> global_cases() {
  std::vector<OpCase> all = {
      pool(GlobalAvgPool{}, {1, 16, 1, 1}), pool(GlobalAvgPool{}, {3, 64, 1, 9}),
      pool(GlobalAvgPool{}, {2, 33, 17, 3}), pool(GlobalAvgPool{}, {1, 512, 7, 7})};
  for (const int64_t c : {1, 3, 15, 16, 17, 24, 33, 64, 100, 256})
    all.push_back(pool(GlobalAvgPool{}, {2, c, 8, 5}));
  return all;
}

std::vector<OpCase> adaptive_cases() {
  std::vector<OpCase> all;
  // Windows that tile, that share rows, that are the image, that are as many as pixels or more.
  for (const auto [height, width] :
       {std::array<int64_t, 2>{1, 1}, {2, 3}, {4, 4}, {6, 6}, {7, 5}, {9, 7}, {12, 3}})
    for (const Shape& x : {Shape{2, 33, 9, 7}, Shape{1, 16, 14, 14}})
      all.push_back(pool(AdaptiveAvgPool{.h = height, .w = width}, x));
  all.push_back(pool(AdaptiveAvgPool{.h = 7, .w = 7}, {2, 64, 7, 7}));
  for (const int64_t c : {1, 3, 15, 16, 17, 24, 33, 64, 100, 256})
    all.push_back(pool(AdaptiveAvgPool{.h = 3, .w = 2}, {2, c, 8, 5}));
  return all;
}

TEST_P(OpTest, AdaptiveAvgPoolEqualsReference) {
  for (OpCase c : adaptive_cases()) {
    check_op(device(), type(), c);
    c.training = false;
    check_op(device(), type(), c);
  }
}

TEST_P(OpTest, AdaptiveAvgPoolOfTheSameSizeIsTheIdentity) {
  const OpCase c = pool(AdaptiveAvgPool{.h = 5, .w = 6}, {2, 17, 5, 6});
  OpData data = make_data(c, type());
  data.x[0][7] = -0.0f;
  const OpResult op = run(device(), type(), c, data);
  EXPECT_EQ(bits_of(op.y), bits_of(data.x[0]));
  EXPECT_EQ(bits_of(op.dx[0]), bits_of(data.dy[0]));
}

TEST_P(OpTest, MaxPoolEqualsReference) {
  for (OpCase c : max_cases()) {
    check_op(device(), type(), c);
    c.training = false;
    check_op(device(), type(), c);
  }
}

TEST_P(OpTest, AvgPoolEqualsReference) {
  for (OpCase c : average_cases()) {
    check_op(device(), type(), c);
    c.training = false;
    check_op(device(), type(), c);
  }
}

TEST_P(OpTest, GlobalAvgPoolEqualsReference) {
  for (OpCase c : global_cases()) {
    check_op(device(), type(), c);
    c.training = false;
    check_op(device(), type(), c);
  }
}

// Equal values everywhere, as after a ReLU: the gradient goes to the first of each window.
TEST_P(OpTest, MaxPoolGivesTiesToTheFirst) {
  const OpCase c = pool(MaxPool{}, {2, 17, 5, 6});
  OpData data = make_data(c, type());
  for (float& v : data.x[0]) v = v > 0 ? 1.0f : 0.0f;
  const OpResult op = run(device(), type(), c, data);
  const reference::Node expected = run_reference(c, type(), data, op);
  expect_close("y", op.y, expected.y.v, type());
  expect_close("dx", op.dx[0], expected.dx[0].v, type());
}

// Whatever a window holds, its gradient arrives: also where all of it is minus infinity.
TEST_P(OpTest, MaxPoolLosesNoGradient) {
  const OpCase c = pool(MaxPool{}, {1, 16, 3, 3});
  OpData data = make_data(c, type());
  for (float& v : data.x[0]) v = -std::numeric_limits<float>::infinity();
  for (float& v : data.dy[0]) v = 1.0f;
  const OpResult op = run(device(), type(), c, data);
  float sum = 0;
  for (const float v : op.dx[0]) sum += v;
  EXPECT_EQ(sum, static_cast<float>(data.dy[0].size()));
}

TEST_P(OpTest, MaxPoolHandsNanOn) {
  const OpCase c = pool(MaxPool{}, {1, 24, 5, 5});
  OpData data = make_data(c, type());
  const size_t channel = 20, pixel = 2 * 5 + 1;  // covered by windows (1, 0) and (1, 1)
  data.x[0][pixel * 24 + channel] = std::numeric_limits<float>::quiet_NaN();
  const OpResult op = run(device(), type(), c, data);
  for (size_t i = 0; i < op.y.size(); ++i) {
    const bool covers = i % 24 == channel && (i / 24 == 3 || i / 24 == 4);
    EXPECT_EQ(std::isnan(op.y[i]), covers) << i;
  }
}

TEST_P(OpTest, PoolsHaveTheSameBitsWithAnyThreads) {
  check_threads(GetParam().device, type(), pool(MaxPool{}, {3, 33, 17, 9}));
  check_threads(GetParam().device, type(),
                pool(AvgPool{.kernel = 3, .stride = 2, .padding = 1}, {3, 33, 17, 9}));
  check_threads(GetParam().device, type(), pool(GlobalAvgPool{}, {3, 33, 17, 9}));
  check_threads(GetParam().device, type(), pool(AdaptiveAvgPool{.h = 4, .w = 5}, {3, 33, 17, 9}));
}

TEST_P(Fp32Test, PoolGradientsEqualDifferences) {
  check_gradients(device(), pool(MaxPool{}, {2, 3, 7, 5}, Draw::kSpaced));
  check_gradients(device(), pool(MaxPool{.kernel = 2, .padding = 0, .ceil_mode = true},
                                 {1, 17, 5, 3}, Draw::kSpaced));
  check_gradients(device(), pool(AvgPool{.kernel = 3, .stride = 2, .padding = 1}, {2, 3, 5, 6}));
  check_gradients(
      device(), pool(AvgPool{.kernel = 3, .padding = 1, .count_include_pad = false}, {2, 3, 5, 6}));
  check_gradients(device(), pool(GlobalAvgPool{}, {2, 17, 3, 4}));
  check_gradients(device(), pool(AdaptiveAvgPool{.h = 3, .w = 2}, {2, 17, 7, 5}));
  check_gradients(device(), pool(AdaptiveAvgPool{.h = 5, .w = 4}, {1, 3, 3, 4}));
}

// Sizes as PyTorch gives them.
TEST(Pool, Shapes) {
  const auto side = [](const auto& spec, int64_t size) {
    const Shape y = output_shape(spec, {Shape{1, 8, size, size + 1}});
    EXPECT_EQ(y.c, 8);
    return y.h;
  };
  EXPECT_EQ(side(MaxPool{}, 112), 56);
  EXPECT_EQ(side(MaxPool{}, 1), 1);
  EXPECT_EQ(side(MaxPool{.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true}, 112), 56);
  EXPECT_EQ(side(MaxPool{.kernel = 3, .stride = 2, .padding = 0}, 112), 55);
  // A last window that would start in the right padding does not count.
  EXPECT_EQ(side(MaxPool{.kernel = 2, .stride = 2, .padding = 1, .ceil_mode = true}, 4), 3);
  EXPECT_EQ(side(MaxPool{.kernel = 2, .stride = 2, .padding = 1, .ceil_mode = true}, 5), 3);
  EXPECT_EQ(side(AvgPool{}, 7), 3);
  EXPECT_EQ(output_shape(GlobalAvgPool{}, {{2, 512, 7, 6}}), (Shape{2, 512, 1, 1}));
  EXPECT_EQ(output_shape(AdaptiveAvgPool{.h = 6, .w = 5}, {{2, 512, 13, 3}}),
            (Shape{2, 512, 6, 5}));
}

TEST(Pool, ErrorsNameTheNumbers) {
  const std::vector<Shape> x = {{1, 4, 6, 3}};
  expect_error(ExitCode::kBadJob, {"5-pixel", "3 pixels", "padding 0"},
               [&] { output_shape(MaxPool{.kernel = 5, .padding = 0}, x); });
  expect_error(ExitCode::kBadJob, {"5-pixel", "3 pixels", "padding 0"},
               [&] { output_shape(AvgPool{.kernel = 5}, x); });
  expect_error(ExitCode::kBadJob, {"kernel 16", "1..15"}, [&] {
    output_shape(MaxPool{.kernel = 16}, {{1, 4, 32, 32}});
  });
  expect_error(ExitCode::kBadJob, {"stride 0"}, [&] { output_shape(MaxPool{.stride = 0}, x); });
  expect_error(ExitCode::kBadJob, {"padding 2", "0..1"},
               [&] { output_shape(MaxPool{.padding = 2}, x); });
  expect_error(ExitCode::kBadJob, {"padding -1"}, [&] { output_shape(AvgPool{.padding = -1}, x); });
  expect_error(ExitCode::kBadJob, {"1 input", "got 2"}, [&] {
    output_shape(GlobalAvgPool{}, {x[0], x[0]});
  });
  expect_error(ExitCode::kBadJob, {"0 x 3"},
               [&] { output_shape(AdaptiveAvgPool{.h = 0, .w = 3}, x); });
}

}  // namespace
}  // namespace convoy::ops
