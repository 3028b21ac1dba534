// What follows from probabilities: guesses, confusion, calibration, mistakes; and how probabilities
// are summed.
#include "trainer/evaluation/predictions.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "trainer/evaluation/probabilities.h"

namespace convoy::trainer {
namespace {

using nlohmann::json;

Prediction said(uint64_t image, int32_t label, int32_t guess, double probability) {
  return {.image = image, .label = label, .loss = 0, .top = {{guess, probability}}};
}

TEST(Predictions, TheMostProbableFirstAndOfEqualsTheLower) {
  const std::vector<double> p = {0.1, 0.3, 0.05, 0.3, 0.25};
  const Prediction made = predict(7, 4, p, 3);
  EXPECT_EQ(made.image, 7u);
  ASSERT_EQ(made.top.size(), 3u);
  EXPECT_EQ(made.top[0].label, 1);
  EXPECT_EQ(made.top[1].label, 3);
  EXPECT_EQ(made.top[2].label, 4);
  EXPECT_EQ(made.top[2].probability, 0.25);
  EXPECT_DOUBLE_EQ(made.loss, -std::log(0.25));
  EXPECT_FALSE(made.right());
  EXPECT_FALSE(made.among(2));
  EXPECT_TRUE(made.among(3));
  EXPECT_EQ(predict(0, -1, p, 100).top.size(), 5u);
}

TEST(Predictions, ConfusionCountsEveryImageOnce) {
  Confusion c(3);
  uint64_t image = 0;
  for (const auto& [t, p, n] : {std::tuple{0, 0, 5}, {0, 2, 2}, {0, 1, 2}, {2, 2, 4}})
    for (int i = 0; i < n; ++i) c.add(said(image++, t, p, 0.5));
  uint64_t all = 0;
  for (size_t t = 0; t < 3; ++t) {
    uint64_t row = 0;
    for (size_t p = 0; p < 3; ++p) row += c.at(t, p);
    EXPECT_EQ(row, c.images(t));
    all += row;
  }
  EXPECT_EQ(all, image);
  EXPECT_EQ(c.correct(0), 5u);
  EXPECT_EQ(c.mistaken_for(0), 1u);  // as often as 2, and lower
  EXPECT_EQ(c.mistaken_for(1), 1u);
  EXPECT_EQ(c.mistaken_for(2), 2u);
  EXPECT_EQ(to_csv(c, {"cat", "a \"big\", dog", "fox"}),
            "true \\ predicted,cat,\"a \"\"big\"\", dog\",fox\n"
            "cat,5,2,2\n"
            "\"a \"\"big\"\", dog\",0,0,0\n"
            "fox,0,0,4\n");
  const json object = json::parse(to_json(c, {"cat"}));
  EXPECT_EQ(object["classes"], (json{"cat", "class 1", "class 2"}));
  EXPECT_EQ(object["matrix"], (json{{5, 2, 2}, {0, 0, 0}, {0, 0, 4}}));
}

// Bins of a fifteenth: 0.05 and 1/15 lie in the first, 0.07 in the second, 1 in the last.
TEST(Predictions, CalibrationErrorByHand) {
  Calibration c;
  EXPECT_EQ(c.error(), 0);
  c.add(said(0, 1, 1, 1.0));
  c.add(said(1, 1, 0, 0.95));  // the last bin: 1 of 2 right, confidence 0.975
  c.add(said(2, 1, 0, 0.05));
  c.add(said(3, 1, 0, 1 / 15.0));
  c.add(said(4, 1, 1, 0.07));
  EXPECT_EQ(c.bins()[14].images, 2u);
  EXPECT_EQ(c.bins()[0].images, 2u);
  EXPECT_EQ(c.bins()[1].images, 1u);
  EXPECT_NEAR(c.error(), (std::abs(1 - 1.95) + 0.05 + 1 / 15.0 + std::abs(1 - 0.07)) / 5, 1e-15);
  c.add(said(5, 1, 0, 0.0));
  EXPECT_EQ(c.bins()[0].images, 3u);
}

TEST(Predictions, TheWorstMistakesAreTheMostConfident) {
  WorstMistakes worst(3);
  worst.add(said(0, 1, 1, 1.0));  // right
  worst.add(said(1, 1, 0, 0.4));
  worst.add(said(2, 1, 0, 0.9));
  worst.add(said(3, 1, 0, 0.2));
  worst.add(said(4, 1, 0, 0.9));
  worst.add(said(5, 1, 0, 0.4));
  std::vector<uint64_t> images;
  for (const Prediction& p : worst.list()) images.push_back(p.image);
  EXPECT_EQ(images, (std::vector<uint64_t>{2, 4, 1}));
}

TEST(Probabilities, SoftmaxOfAnySize) {
  std::vector<double> sum(3, 0.0);
  const float huge[] = {1e30f, 0, -1e30f};
  EXPECT_TRUE(add_softmax(huge, sum));
  EXPECT_EQ(sum, (std::vector<double>{1, 0, 0}));
  const float even[] = {-5, -5, -5};
  EXPECT_TRUE(add_softmax(even, sum));
  EXPECT_DOUBLE_EQ(sum[1], 1 / 3.0);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const float logits[] = {1, bad, 2};
    const std::vector<double> before = sum;
    EXPECT_FALSE(add_softmax(logits, sum));
    EXPECT_EQ(sum, before);
  }
}

TEST(Probabilities, RoundsOfSeveralLooksAreAveraged) {
  const auto alone = comm::make_communicator("local");
  ProbabilitySums sums(2, 2);
  const float a[] = {0, 0}, b[] = {50, 0};
  for (int look = 0; look < 2; ++look) add_softmax(a, sums.round(1));
  sums.end_round(*alone, 2);
  for (int look = 0; look < 2; ++look) add_softmax(b, sums.round(1));
  sums.end_round(*alone, 2);
  EXPECT_EQ(sums.mean(0), (std::vector<double>{0, 0}));
  EXPECT_NEAR(sums.mean(1)[0], 0.75, 1e-15);
}

}  // namespace
}  // namespace convoy::trainer
