// The learning rate against values computed by hand.
#include "trainer/job/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace convoy::trainer {
namespace {

using Kind = Job::Schedule::Kind;

Job::Optimizer optimizer(double rate) {
  Job::Optimizer o;
  o.learning_rate = rate;
  return o;
}

Job::Schedule schedule(Kind kind) {
  Job::Schedule s;
  s.kind = kind;
  return s;
}

// 100 samples, 10 a step, 10 epochs: an epoch is 10 steps, the run 100.
constexpr RunLength kRun{100, 10, 10};

double rate_at(uint64_t step, const Job::Schedule& s, const RunLength& run = kRun,
               const PlateauState& plateau = {}) {
  return learning_rate(step, run, optimizer(0.4), s, plateau);
}

TEST(RunLength, StepsAreRoundedUp) {
  EXPECT_EQ(total_steps({100, 10, 10}), 100u);
  EXPECT_EQ(total_steps({101, 10, 10}), 101u);
  EXPECT_EQ(total_steps({101, 10, 1}), 11u);
  EXPECT_EQ(total_steps({1281167, 256, 90}), 450411u);  // 115,305,030 / 256 = 450,410.27
  EXPECT_EQ(total_steps({5, 100, 1}), 1u);
  // E * N beyond 64 bits: 2^33 * 2^33 / 2^20.
  EXPECT_EQ(total_steps({uint64_t{1} << 33, uint64_t{1} << 20, uint64_t{1} << 33}),
            uint64_t{1} << 46);
}

TEST(RunLength, AnEpochEndsWithTheFirstStepThatCoversIt) {
  const RunLength run{101, 10, 3};
  EXPECT_EQ(steps_to_epoch(1, run), 11u);
  EXPECT_EQ(steps_to_epoch(2, run), 21u);  // 202 samples
  EXPECT_EQ(steps_to_epoch(3, run), 31u);
  EXPECT_EQ(steps_to_epoch(0, run), 0u);
}

TEST(RunLength, EpochIsExactAtWholeNumbers) {
  const RunLength run{1281167, 256, 90};
  EXPECT_EQ(epoch_at(1281167, run), 256.0);
  EXPECT_EQ(epoch_at(1281167ull * 30, {1281167, 256, 90}), 7680.0);
  EXPECT_LT(epoch_at(150136, run), 30.0);  // 38,434,816 of 38,435,010 samples
  EXPECT_GT(epoch_at(150137, run), 30.0);
  EXPECT_DOUBLE_EQ(epoch_at(1, run), 256.0 / 1281167.0);
  EXPECT_EQ(epoch_at(uint64_t{1} << 40, {uint64_t{1} << 40, uint64_t{1} << 30, 1}), 0x1p30);
}

TEST(LearningRate, StepFallsExactlyAtTheMilestone) {
  Job::Schedule s = schedule(Kind::kStep);
  s.milestones = {3, 6.5};
  s.gamma = 0.5;
  EXPECT_DOUBLE_EQ(rate_at(0, s), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(29, s), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(30, s), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(64, s), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(65, s), 0.1);
  EXPECT_DOUBLE_EQ(rate_at(99, s), 0.1);
}

TEST(LearningRate, StepBetweenTwoStepsFallsAtTheNext) {
  // 101 samples: epoch 3 is reached inside step 30 (303 samples), so step 31 is the first after it.
  Job::Schedule s = schedule(Kind::kStep);
  s.milestones = {3};
  EXPECT_DOUBLE_EQ(rate_at(30, s, {101, 10, 10}), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(31, s, {101, 10, 10}), 0.04);
}

TEST(LearningRate, WarmUpRisesLinearlyFromItsFactor) {
  Job::Schedule s = schedule(Kind::kConstant);
  s.warmup_epochs = 2;
  s.warmup_start_factor = 0.25;
  EXPECT_DOUBLE_EQ(rate_at(0, s), 0.1);
  EXPECT_DOUBLE_EQ(rate_at(10, s), 0.25);  // half way between 0.1 and 0.4
  EXPECT_DOUBLE_EQ(rate_at(19, s), 0.4 * (0.25 + 0.75 * 0.95));
  EXPECT_DOUBLE_EQ(rate_at(20, s), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(99, s), 0.4);
}

TEST(LearningRate, CosineSpansTheEpochsAfterTheWarmUp) {
  Job::Schedule s = schedule(Kind::kCosine);
  s.warmup_epochs = 2;
  s.end_factor = 0.1;
  EXPECT_DOUBLE_EQ(rate_at(0, s), 0.0);
  EXPECT_DOUBLE_EQ(rate_at(10, s), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(20, s), 0.4);           // t = 0
  EXPECT_NEAR(rate_at(60, s), 0.4 * 0.55, 1e-15);  // t = 1/2: half way from 1 to 0.1
  EXPECT_NEAR(rate_at(40, s), 0.4 * (0.1 + 0.9 * (2 + std::sqrt(2.0)) / 4), 1e-15);  // t = 1/4
  EXPECT_NEAR(rate_at(100, s), 0.04, 1e-15);  // t = 1: the end itself
  EXPECT_NEAR(rate_at(150, s), 0.04, 1e-15);  // beyond it: no rise
}

TEST(LearningRate, PolynomialAndOneCycle) {
  Job::Schedule s = schedule(Kind::kPolynomial);
  s.power = 2;
  EXPECT_DOUBLE_EQ(rate_at(0, s), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(50, s), 0.1);
  EXPECT_DOUBLE_EQ(rate_at(75, s), 0.025);
  EXPECT_DOUBLE_EQ(rate_at(100, s), 0.0);

  s = schedule(Kind::kOneCycle);
  s.warmup_epochs = 5;
  s.warmup_start_factor = 0.5;
  s.end_factor = 0.2;
  EXPECT_DOUBLE_EQ(rate_at(0, s), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(25, s), 0.3);
  EXPECT_DOUBLE_EQ(rate_at(50, s), 0.4);
  EXPECT_DOUBLE_EQ(rate_at(75, s), 0.4 * 0.6);
  EXPECT_NEAR(rate_at(100, s), 0.08, 1e-15);
}

TEST(LearningRate, AWarmUpAsLongAsTheRunEndsAtTheFullRate) {
  Job::Schedule s = schedule(Kind::kOneCycle);
  s.warmup_epochs = 10;
  EXPECT_DOUBLE_EQ(rate_at(50, s), 0.2);
  EXPECT_DOUBLE_EQ(rate_at(100, s), 0.4);
}

TEST(LearningRate, ScalesWithTheGlobalBatch) {
  Job::Optimizer o = optimizer(0.1);
  o.base_batch = 256;
  const Job::Schedule s = schedule(Kind::kConstant);
  EXPECT_DOUBLE_EQ(learning_rate(0, {10000, 8192, 1}, o, s, {}), 0.1);
  o.linear_scaling = true;
  EXPECT_DOUBLE_EQ(learning_rate(0, {10000, 8192, 1}, o, s, {}), 3.2);
  EXPECT_DOUBLE_EQ(learning_rate(0, {10000, 64, 1}, o, s, {}), 0.025);
}

TEST(Plateau, DropsWhenTheErrorStopsFalling) {
  Job::Schedule s = schedule(Kind::kPlateau);
  s.patience = 2;
  s.threshold = 0.01;
  s.gamma = 0.1;
  PlateauState state;
  note_evaluation(state, 0.5, s);
  EXPECT_EQ(state, (PlateauState{0, 0.5, 0}));
  note_evaluation(state, 0.495, s);  // better, but by less than the threshold
  EXPECT_EQ(state, (PlateauState{0, 0.5, 1}));
  note_evaluation(state, 0.25, s);
  EXPECT_EQ(state, (PlateauState{0, 0.25, 0}));
  note_evaluation(state, 0.3, s);
  note_evaluation(state, std::numeric_limits<double>::quiet_NaN(), s);
  EXPECT_EQ(state, (PlateauState{1, 0.25, 0}));
  EXPECT_DOUBLE_EQ(rate_at(50, s, kRun, state), 0.04);
  note_evaluation(state, 0.3, s);
  EXPECT_EQ(state, (PlateauState{1, 0.25, 1}));
  note_evaluation(state, 0.3, s);
  EXPECT_EQ(state, (PlateauState{2, 0.25, 0}));
  EXPECT_DOUBLE_EQ(rate_at(50, s, kRun, state), 0.4 * 0.01);
}

TEST(Plateau, WithoutThresholdAnEqualErrorIsNoImprovement) {
  Job::Schedule s = schedule(Kind::kPlateau);
  s.patience = 1;
  s.threshold = 0;
  PlateauState state;
  note_evaluation(state, 0.5, s);
  note_evaluation(state, 0.5, s);
  EXPECT_EQ(state.drops, 1u);
}

TEST(Plateau, OtherSchedulesKeepNoState) {
  PlateauState state;
  note_evaluation(state, 0.5, schedule(Kind::kStep));
  EXPECT_EQ(state, PlateauState{});
}

}  // namespace
}  // namespace convoy::trainer
