// Which convolutions take the bf16 gradient kernel of our own, and that no bit of it depends on
// threads. Against the reference it is held by conv2d_test.cpp.
#include "ops/weight_gradient_cpu.h"

#include <gtest/gtest.h>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

OpConfig config(const Conv2d& spec, const Shape& x, DType type = DType::kBfloat16) {
  return {.x = {x}, .y = output_shape(spec, {x}), .batch = x.n, .type = type};
}

bool wins(const Conv2d& spec, const Shape& x, DType type = DType::kBfloat16) {
  return weight_gradient_wins(spec, config(spec, x, type));
}

// Strided with and without padding, a small image; a second group of channels of y, a second part
// of the pixels, odd numbers of them.
const std::pair<Conv2d, Shape> kCases[] = {
    {{.out_channels = 528, .kernel = 1, .stride = 2}, {1, 16, 5, 5}},
    {{.out_channels = 64, .kernel = 3, .stride = 2, .padding = 1}, {5, 32, 25, 27}},
    {{.out_channels = 64, .kernel = 3, .padding = 1}, {3, 48, 5, 7}},
    {{.out_channels = 80, .kernel = 1}, {2, 48, 9, 7}},
};

TEST(WeightGradient, IsTakenWhereItWins) {
  if (!wins(kCases[0].first, kCases[0].second))
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const auto& [spec, x] : kCases) EXPECT_TRUE(wins(spec, x));
  // Without a stride: 1x1, and small images with a window (of 3x3 those remain whose size does not
  // fill Winograd's tiles).
  const Conv2d same = {.out_channels = 256, .kernel = 3, .padding = 1};
  EXPECT_FALSE(wins(same, {4, 256, 14, 14}));
  EXPECT_TRUE(wins(same, {4, 256, 6, 6}));
  EXPECT_TRUE(wins({.out_channels = 512, .kernel = 1}, {4, 512, 7, 7}));
  // What the kernel does not compute.
  const Shape x = {4, 256, 7, 7};
  EXPECT_FALSE(wins(same, x, DType::kFloat32));
  EXPECT_FALSE(wins({.out_channels = 256, .kernel = 3, .groups = 2}, x));
  EXPECT_FALSE(wins({.out_channels = 256, .kernel = 3, .bias = true}, x));
  EXPECT_FALSE(wins({.out_channels = 250, .kernel = 3}, x));
  EXPECT_FALSE(wins(same, {4, 250, 7, 7}));
}

std::vector<Bfloat16> uniform(int64_t n, uint64_t stream) {
  std::vector<Bfloat16> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = to_bfloat16(random_value(3, stream, i));
  return v;
}

TEST(WeightGradient, BitsDependOnTheShapeAlone) {
  if (!wins(kCases[0].first, kCases[0].second))
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const auto& [spec, x_shape] : kCases) {
    const OpConfig c = config(spec, x_shape);
    std::vector<Bfloat16> x = uniform(x_shape.elements(), 0), dy = uniform(c.y.elements(), 1);
    const auto gradient = [&, &s = spec, &shape = x_shape](int threads) {
      WeightGradientCpu op(threads, s, c);
      std::vector<float> dw(static_cast<size_t>(s.kernel * s.kernel * shape.c * c.y.c));
      const AlignedBuffer scratch(op.scratch_bytes());
      NodeMemory m;
      m.x = {x.data()};
      m.dy = {dy.data()};
      m.gradients = {dw.data()};
      m.scratch = scratch.data();
      op.add(m);
      return dw;
    };
    const std::vector<float> expected = gradient(1);
    for (const int threads : {2, 3, 4, 9})
      EXPECT_TRUE(gradient(threads) == expected) << threads << " threads";
  }
}

}  // namespace
}  // namespace convoy::ops
