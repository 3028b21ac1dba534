// FP16's loss scale: when it falls, grows, and gives up.
#include "trainer/engine/loss_scale.h"

#include <gtest/gtest.h>

namespace convoy::trainer {
namespace {

TEST(LossScale, HalvesAtOnceAndDoublesAfterAWhile) {
  LossScale s;
  EXPECT_EQ(s.scale, 65536);
  EXPECT_TRUE(s.note(true));
  EXPECT_TRUE(s.note(false));
  EXPECT_EQ(s, (LossScale{.scale = 32768, .good_steps = 0}));
  for (uint32_t i = 1; i < LossScale::kStepsToGrow; ++i) EXPECT_TRUE(s.note(true));
  EXPECT_EQ(s.scale, 32768);
  EXPECT_TRUE(s.note(true));
  EXPECT_EQ(s, (LossScale{.scale = 65536, .good_steps = 0}));
}

TEST(LossScale, StaysWithinItsBounds) {
  LossScale s{.scale = LossScale::kLargest, .good_steps = LossScale::kStepsToGrow - 1};
  EXPECT_TRUE(s.note(true));
  EXPECT_EQ(s.scale, LossScale::kLargest);
  s.scale = 2;
  EXPECT_TRUE(s.note(false));
  EXPECT_FALSE(s.note(false));
  EXPECT_EQ(s.scale, 1);
}

}  // namespace
}  // namespace convoy::trainer
