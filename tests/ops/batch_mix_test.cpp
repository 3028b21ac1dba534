// How batches are mixed: distributions, boxes, and that nothing but (seed, step, worker) counts.
#include "ops/batch_mix.h"

#include <gtest/gtest.h>

#include <cmath>

namespace convoy::ops {
namespace {

constexpr int64_t kHeight = 20, kWidth = 30;
constexpr int kDraws = 20000;

BatchMix draw(const BatchMixing& mixing, uint64_t step, int worker = 0, uint64_t seed = 1) {
  return draw_batch_mix(mixing, seed, step, worker, kHeight, kWidth);
}

TEST(BatchMix, OffIsNothing) {
  EXPECT_EQ(draw({}, 5), BatchMix{});
  EXPECT_FALSE(draw({}, 5).is_on());
}

TEST(BatchMix, EveryStepWorkerAndSeedDrawsItsOwn) {
  for (const BatchMixing& mixing :
       {BatchMixing{.mixup_alpha = 0.2}, BatchMixing{.cutmix_alpha = 1}}) {
    EXPECT_EQ(draw(mixing, 5, 2), draw(mixing, 5, 2));
    EXPECT_NE(draw(mixing, 5, 2), draw(mixing, 6, 2));
    EXPECT_NE(draw(mixing, 5, 2), draw(mixing, 5, 3));
    EXPECT_NE(draw(mixing, 5, 2), draw(mixing, 5, 2, 2));
  }
}

// Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); small parameters keep to the ends.
TEST(BatchMix, MixUpSharesAreBetaDistributed) {
  for (const double alpha : {0.01, 0.2, 1.0, 1.5, 4.0, 100.0}) {
    double sum = 0, squares = 0;
    for (int step = 0; step < kDraws; ++step) {
      const BatchMix mix = draw({.mixup_alpha = alpha}, static_cast<uint64_t>(step));
      ASSERT_GE(mix.label_share, 0.0);
      ASSERT_LE(mix.label_share, 1.0);
      ASSERT_EQ(mix.image_share, static_cast<float>(mix.label_share));
      ASSERT_EQ((mix.bottom - mix.top) * (mix.right - mix.left), kHeight * kWidth);
      sum += mix.label_share;
      squares += (mix.label_share - 0.5) * (mix.label_share - 0.5);
    }
    const double variance = 1 / (4 * (2 * alpha + 1));
    EXPECT_NEAR(sum / kDraws, 0.5, 4 * std::sqrt(variance / kDraws)) << alpha;
    EXPECT_NEAR(squares / kDraws, variance, 0.03 * variance) << alpha;
  }
}

TEST(BatchMix, CutMixLabelsFollowTheArea) {
  bool cut_at_border = false;
  double rows = 0, columns = 0;
  for (int step = 0; step < kDraws; ++step) {
    const BatchMix mix = draw({.cutmix_alpha = 1}, static_cast<uint64_t>(step));
    ASSERT_GE(mix.top, 0);
    ASSERT_GE(mix.left, 0);
    ASSERT_LE(mix.bottom, kHeight);
    ASSERT_LE(mix.right, kWidth);
    ASSERT_EQ(mix.image_share, 0.0f);
    const auto area = static_cast<double>((mix.bottom - mix.top) * (mix.right - mix.left));
    ASSERT_DOUBLE_EQ(mix.label_share, 1 - area / (kHeight * kWidth));
    cut_at_border |= mix.bottom == kHeight && (mix.bottom - mix.top) % 2 == 1;
    rows += static_cast<double>(mix.top + mix.bottom) / 2;
    columns += static_cast<double>(mix.left + mix.right) / 2;
  }
  EXPECT_TRUE(cut_at_border);
  EXPECT_NEAR(rows / kDraws, kHeight / 2.0, 0.5);
  EXPECT_NEAR(columns / kDraws, kWidth / 2.0, 0.5);
}

// With sides s of the image's, s^2 uniform, and centres anywhere, (s - s^2 / 4)^2 of the image lies
// in the box: 1/2 - 1/5 + 1/48 on average.
TEST(BatchMix, CutMixBoxesAreAsLargeAsTheyShouldBe) {
  double sum = 0;
  for (int step = 0; step < kDraws; ++step)
    sum += 1 - draw_batch_mix({.cutmix_alpha = 1}, 1, static_cast<uint64_t>(step), 0, 2000, 3000)
                   .label_share;
  EXPECT_NEAR(sum / kDraws, 0.5 - 0.2 + 1.0 / 48, 0.007);
}

TEST(BatchMix, BothTakeTurns) {
  int cuts = 0;
  for (int step = 0; step < kDraws; ++step)
    cuts +=
        draw({.mixup_alpha = 0.2, .cutmix_alpha = 1}, static_cast<uint64_t>(step)).image_share ==
        0.0f;
  EXPECT_NEAR(cuts, kDraws / 2, 300);
}

}  // namespace
}  // namespace convoy::ops
