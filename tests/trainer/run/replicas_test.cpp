// Which rank differs, and in what: digests of an engine's state, and the difference over ranks.
#include "trainer/run/replicas.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/core/error.h"
#include "tests/support/op_tester.h"
#include "trainer/job/skipped_steps.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

TEST(Judge, NamesTheRankThatIsOutvoted) {
  const Digests good = {1, 2, 3};
  EXPECT_TRUE(compare_digests({good, good, good}).all_equal());
  const Difference one = compare_digests({good, {1, 9, 3}, good});
  EXPECT_TRUE(one.decided);
  EXPECT_EQ(one.ranks, std::vector<int>{1});
  EXPECT_EQ(one.tensors, std::vector<size_t>{1});
  // Two that are wrong in different tensors, or in the same one.
  const Difference two = compare_digests({{1, 2, 9}, {8, 2, 3}, good, good, good});
  EXPECT_TRUE(two.decided);
  EXPECT_EQ(two.ranks, (std::vector<int>{0, 1}));
  EXPECT_EQ(two.tensors, (std::vector<size_t>{0, 2}));
  EXPECT_EQ(compare_digests({{9, 2, 3}, {8, 2, 3}, good, good, good}).ranks,
            (std::vector<int>{0, 1}));
}

TEST(Judge, NamesAllWhereThereIsNoMajority) {
  const Difference difference = compare_digests({{1, 2}, {1, 3}});
  EXPECT_FALSE(difference.decided);
  EXPECT_EQ(difference.ranks, (std::vector<int>{0, 1}));
  EXPECT_FALSE(compare_digests({{1}, {1}, {2}, {2}}).decided);
  EXPECT_THROW(compare_digests({{1, 2}, {1}}), Error);
}

TEST(Judge, SaysItInOneLine) {
  const std::vector<std::string> names = {"a", "b", "c", "d", "e", "f"}, hosts = {"n0", "n1", "n2"};
  EXPECT_EQ(to_text(compare_digests({{1, 2, 3}, {1, 2, 3}, {1, 0, 3}}), names, hosts),
            "rank 2 (n2) has other bits than the other ranks in b");
  EXPECT_EQ(to_text(compare_digests({{1, 1, 1, 1, 1, 1}, {2, 2, 2, 2, 2, 2}}), names, hosts),
            "no majority: rank 0 (n0), rank 1 (n1) differ in a, b, c, d and 2 more");
}

TEST(SkippedSteps, ArePassedOverAndCounted) {
  SkippedSteps skipped;
  EXPECT_EQ(skipped.next(5), 5u);
  EXPECT_EQ(skipped.previous(5), 4u);
  skipped.add(5, 8);
  EXPECT_EQ(skipped.next(4), 4u);
  for (const uint64_t step : {5, 6, 7}) EXPECT_EQ(skipped.next(step), 8u);
  EXPECT_EQ(skipped.next(8), 8u);
  EXPECT_EQ(skipped.previous(8), 5u);
  EXPECT_EQ(skipped.previous(9), 8u);
  skipped.add(5, 10);  // the same checkpoint again
  EXPECT_EQ(skipped.ranges.size(), 1u);
  EXPECT_EQ(skipped.next(5), 10u);
  skipped.add(10, 11);
  EXPECT_EQ(skipped.previous(11), 10u);
  EXPECT_EQ(skipped.previous(10), 5u);
}

class Replica : public testing::TestWithParam<std::string> {
 protected:
  static constexpr int kWorkers = 3;
  static constexpr int64_t kBatch = 2;

  std::unique_ptr<Engine> make(int lanes) {
    ModelOptions options;
    options.image = {.n = 1, .c = 1, .h = 8, .w = 8};
    options.dropout = 0.3;
    Shape batch = options.image;
    batch.n = kBatch;
    return std::make_unique<Engine>(
        *communicator_, make_model("cifar_resnet20", options),
        EngineConfig{.device = GetParam(),
                     .workers = kWorkers,
                     .batch_per_worker = kBatch,
                     .lanes = lanes_for(GetParam(), kWorkers, lanes, 1),
                     .input = ops::per_channel_input(batch, {0.5}, {0.25}),
                     .optimizer = {.ema_decay = 0.9},
                     .bucket_mib = 0.1});
  }
  Engine::Source source() {
    return {[this](uint64_t w) {
              return Engine::Images{pixels_.data() + w * kBatch * 64, labels_};
            },
            [](uint64_t) {}};
  }
  Replica() {
    for (uint64_t i = 0; i < kWorkers * kBatch * 64; ++i)
      pixels_.push_back(static_cast<uint8_t>(random4(4, Purpose::kSyntheticData, i, 0)[0] >> 24));
  }

  std::unique_ptr<comm::Communicator> communicator_ = comm::make_communicator("local");
  std::vector<uint8_t> pixels_;
  int32_t labels_[kBatch] = {3, 7};
};

TEST_P(Replica, AChangeIsSeenInItsTensorAlone) {
  const auto engine = make(2);
  engine->step(0, 0.1, {}, source());
  const std::vector<std::string> names = engine->state_names();
  const Digests before = engine->state_digests();
  ASSERT_EQ(before.size(), names.size());
  const std::pair<FaultTarget, const char*> cases[] = {
      {FaultTarget::kWeights, "fc.weight"},
      {FaultTarget::kRunning, "bn1.running_mean"},
      {FaultTarget::kMomentum, "momentum of fc.weight"},
      {FaultTarget::kEma, "moving average of fc.weight"}};
  for (const auto& [what, name] : cases) {
    const Fault fault = {.kind = FaultKind::kBitflip, .what = what, .index = 5, .bit = 0};
    engine->apply(fault);
    const Difference difference = compare_digests({before, engine->state_digests(), before});
    ASSERT_EQ(difference.tensors.size(), 1u);
    EXPECT_EQ(names[difference.tensors[0]], name);
    engine->apply(fault);  // back
    EXPECT_EQ(engine->state_digests(), before);
  }
}

TEST_P(Replica, AResetEngineStartsAgainWithTheSameBits) {
  const auto engine = make(1);
  const Digests start = engine->state_digests();
  engine->step(0, 0.1, {}, source());
  const Digests first = engine->state_digests();
  EXPECT_NE(first, start);
  engine->step(1, 0.1, {}, source());
  engine->reset();
  EXPECT_EQ(engine->state_digests(), start);
  engine->step(0, 0.1, {}, source());
  EXPECT_EQ(engine->state_digests(), first);
}

// Law 1: on any lane, before or after the reducer has used the memory, and it changes nothing.
TEST_P(Replica, AWorkerComputedAgainGivesWhatItContributed) {
  const auto engine = make(2), other = make(1);
  for (uint64_t step = 0; step < kWorkers; ++step) {
    const int worker = static_cast<int>(step);
    engine->compute(step, {}, source(), worker);
    const Digests contribution = engine->contribution();
    ASSERT_EQ(contribution.size(), engine->contribution_names().size());
    for (int lane = 0; lane < engine->lanes(); ++lane)
      EXPECT_EQ(engine->compute_again(step, worker, lane, source()), contribution)
          << "worker " << worker << ", lane " << lane;
    EXPECT_NE(engine->compute_again(step, (worker + 1) % kWorkers, 0, source()), contribution);
    engine->update(0.1);
    other->step(step, 0.1, {}, source());
    EXPECT_EQ(engine->state_digests(), other->state_digests());
  }
}

TEST_P(Replica, AWrongGradientIsSeenInItsTensorAlone) {
  const auto engine = make(1);
  engine->apply(
      {.kind = FaultKind::kBitflip, .what = FaultTarget::kGradient, .index = 5, .bit = 0});
  engine->compute(0, {}, source(), 0);
  const Difference difference =
      compare_digests({engine->contribution(), engine->compute_again(0, 0, 0, source())});
  ASSERT_EQ(difference.tensors.size(), 1u);
  EXPECT_EQ(engine->contribution_names()[difference.tensors[0]], "gradient of fc.weight");
  EXPECT_TRUE(engine->update(0.1).updated);
}

TEST_P(Replica, AGradientThatIsNotANumberIsNamedAndChangesNothing) {
  const auto engine = make(1);
  const Digests before = engine->state_digests();
  engine->apply({.kind = FaultKind::kNan, .what = FaultTarget::kGradient, .index = 5});
  engine->compute(0, {}, source());
  const Engine::Result result = engine->update(0.1);
  EXPECT_TRUE(result.diverged);
  EXPECT_FALSE(result.updated);
  EXPECT_EQ(engine->state_digests(), before);
  EXPECT_NE(engine->about_divergence(0, result).find("the gradient of fc.weight)"),
            std::string::npos)
      << engine->about_divergence(0, result);
}

INSTANTIATE_TEST_SUITE_P(Devices, Replica, testing::ValuesIn(ops::device_names()),
                         [](const auto& each) { return each.param; });

}  // namespace
}  // namespace convoy::trainer
