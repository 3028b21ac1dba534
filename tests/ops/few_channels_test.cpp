// Which convolutions take the kernels for first layers. Against the reference, and that no bit
// depends on threads, they are held by conv2d_test.cpp.
#include "ops/few_channels_cpu.h"

#include <gtest/gtest.h>

#include "ops/core/isa.h"
#include "ops/onednn.h"

namespace convoy::ops {
namespace {

OpConfig config(const Conv2d& spec, const Shape& x) {
  return {.x = {x},
          .y = output_shape(spec, {x}),
          .batch = x.n,
          .type = DType::kBfloat16,
          .y_type = DType::kBfloat16,
          .wants_dx = {false}};
}

TEST(FewChannels, IsTakenWhereItWins) {
  const bool computes =
      cpu_isa() == Isa::kAvx512Bf16 && onednn::instruction_set() == "avx512_core_bf16";
  const auto wins = [](const Conv2d& spec, const Shape& x) {
    return few_channels_wins(spec, config(spec, x));
  };
  const Conv2d spec = {.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3};
  const Shape x = {2, 3, 32, 30};
  EXPECT_EQ(wins(spec, x), computes);
  EXPECT_EQ(wins({.out_channels = 16, .padding = 1}, {2, 1, 28, 28}), computes);
  // oneDNN needs no padded channels, or the kernels do not compute it.
  EXPECT_FALSE(wins(spec, {2, 4, 32, 30}));
  EXPECT_FALSE(wins({.out_channels = 60}, x));
  EXPECT_FALSE(wins({.out_channels = 48, .groups = 3}, x));

  const auto wins_with = [&](const Conv2d& other, auto change) {
    OpConfig c = config(other, x);
    change(c);
    return few_channels_wins(other, c);
  };
  const auto infer = [](OpConfig& c) { c.training = false; };
  EXPECT_EQ(wins_with(spec, infer), computes);
  EXPECT_FALSE(wins_with(spec, [](OpConfig& c) { c.wants_dx = {true}; }));
  EXPECT_FALSE(wins_with(spec, [](OpConfig& c) { c.type = c.y_type = DType::kFloat32; }));
  Conv2d other = {.out_channels = 64, .bias = true};
  EXPECT_FALSE(wins(other, x));
  EXPECT_EQ(wins_with(other, infer), computes);
  other = {.out_channels = 64, .batch_norm = BatchNorm{.relu = true}};
  EXPECT_EQ(wins_with(other, infer), computes);
  other.batch_norm->residual = true;
  EXPECT_FALSE(few_channels_wins(other, {.x = {x, {2, 64, 30, 28}},
                                         .y = {2, 64, 30, 28},
                                         .batch = 2,
                                         .type = DType::kBfloat16,
                                         .y_type = DType::kBfloat16,
                                         .training = false}));
}

}  // namespace
}  // namespace convoy::ops
