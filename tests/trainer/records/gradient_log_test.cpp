// The log of gradients and responses: its numbers, its lines, what a resumed run keeps of it.
#include "trainer/records/gradient_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/temp_folder.h"

namespace convoy::trainer {
namespace {

using test::read_file;
using test::TempFolder;

std::vector<float> normals(uint64_t stream, size_t count) {
  std::vector<float> out;
  for (size_t i = 0; i < count; ++i)
    out.push_back(static_cast<float>(normal2(random4(7, Purpose::kInitialise, stream, i))[0]));
  return out;
}

TEST(LayerStatistics, SumsOfSquares) {
  EXPECT_EQ(sum_of_squares({}), 0);
  const std::vector<float> ones(19, 1.0f);
  EXPECT_EQ(sum_of_squares(ones), 19);
  const std::vector<float> values = normals(1, 1003);
  double expected = 0;
  for (const float v : values) expected += static_cast<double>(v) * v;
  EXPECT_NEAR(sum_of_squares(values), expected, 1e-12 * expected);  // another order of additions
}

// Against the elements themselves: a batch of x, normalised as batch norm does.
TEST(LayerStatistics, TheSpreadOfABatchNormsOutputFollowsFromItsStatistics) {
  constexpr size_t kRows = 300, kChannels = 5;
  constexpr double kEpsilon = 1e-2;  // large, so that it counts
  const std::vector<float> gamma = normals(2, kChannels), beta = normals(3, kChannels);
  const std::vector<float> x = normals(4, kRows * kChannels);
  std::vector<double> variance(kChannels, 0.0), y;
  for (size_t c = 0; c < kChannels; ++c) {
    const double scale = 0.05 * static_cast<double>(c + 1);
    double mean = 0;
    for (size_t r = 0; r < kRows; ++r) mean += scale * x[r * kChannels + c] / kRows;
    for (size_t r = 0; r < kRows; ++r)
      variance[c] += std::pow(scale * x[r * kChannels + c] - mean, 2) / kRows;
    for (size_t r = 0; r < kRows; ++r)
      y.push_back((scale * x[r * kChannels + c] - mean) / std::sqrt(variance[c] + kEpsilon) *
                      gamma[c] +
                  beta[c]);
  }
  double mean = 0, square = 0;
  for (const double v : y) mean += v / static_cast<double>(y.size());
  for (const double v : y) square += (v - mean) * (v - mean) / static_cast<double>(y.size());
  EXPECT_NEAR(response_std(gamma, beta, variance, kEpsilon), std::sqrt(square), 1e-12);
}

GradientRecord record(uint64_t step) {
  GradientRecord r{.step = step, .epoch = 0.25};
  r.layers.weights = {"conv1.weight", "a \"b\".weight"};
  r.layers.gradient_norm = {0.5, std::numeric_limits<double>::quiet_NaN()};
  r.layers.gradient_rms = {0.001953125, std::numeric_limits<double>::infinity()};
  r.layers.weight_norm = {3, 4};
  r.layers.weight_rms = {1.0 / 3, 2};
  r.layers.batch_norms = {"bn1"};
  r.layers.response_std = {0.75};
  return r;
}

TEST(GradientLog, ALineIsOneObject) {
  EXPECT_EQ(to_json(record(100)),
            "{\"step\":100,\"epoch\":0.25,\"weights\":[\"conv1.weight\",\"a \\\"b\\\".weight\"],"
            "\"gradient_norm\":[0.5,null],\"gradient_rms\":[0.00195312,null],"
            "\"weight_norm\":[3,4],\"weight_rms\":[0.333333,2],\"batch_norms\":[\"bn1\"],"
            "\"response_std\":[0.75]}");
  EXPECT_TRUE(nlohmann::json::parse(to_json(record(1))).is_object());
}

TEST(GradientLog, IsReadBackAndKeepsWhatAResumedRunHasDone) {
  const TempFolder dir;
  {
    GradientLog log(dir.path(), 0);
    for (const uint64_t step : {1, 100, 200, 300}) log.write(record(step));
  }
  dir.write("gradients.jsonl", read_file(dir.path("gradients.jsonl")) + "{\"step\":");
  GradientLog(dir.path(), 200).write(record(201));
  std::vector<uint64_t> steps;
  for (const GradientRecord& r : read_gradients(dir.path())) {
    steps.push_back(r.step);
    EXPECT_EQ(r.layers.weights, record(0).layers.weights);
    EXPECT_EQ(r.layers.gradient_norm[0], 0.5);
    EXPECT_TRUE(std::isnan(r.layers.gradient_norm[1]));
    EXPECT_EQ(r.layers.response_std, (std::vector<double>{0.75}));
  }
  EXPECT_EQ(steps, (std::vector<uint64_t>{1, 100, 200, 201}));
}

TEST(GradientLog, TheFirstStepAndEveryNth) {
  std::vector<uint64_t> due;
  for (uint64_t done = 0; done < 12; ++done)
    if (GradientLog::due(done, 5)) due.push_back(done + 1);
  EXPECT_EQ(due, (std::vector<uint64_t>{1, 5, 10}));
  EXPECT_FALSE(GradientLog::due(0, 0));
}

TEST(GradientLog, ARunWithoutOneIsNamed) {
  const TempFolder dir;
  try {
    read_gradients(dir.path());
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(e.what()).find("--log-gradients"), std::string::npos) << e.what();
  }
  dir.write("gradients.jsonl", "");
  EXPECT_THROW(read_gradients(dir.path()), Error);
}

TEST(GradientLog, ALineThatIsNoneIsNamed) {
  const TempFolder dir;
  const std::string good = to_json(record(1)) + "\n";
  const std::pair<const char*, const char*> bad[] = {
      {"nonsense\n", "gradients.jsonl: line 2: is no JSON object: nonsense"},
      {"[1]\n", "gradients.jsonl: line 2: is no JSON object: [1]"},
      {"\n", "gradients.jsonl: line 2: is no JSON object"},
      {"{\"step\":3}\n", "key 'epoch' not found"},
      {"{\"step\":\"x\",\"epoch\":1}\n", "type must be number"}};
  for (const auto& [line, words] : bad) {
    dir.write("gradients.jsonl", good + line + good);
    try {
      read_gradients(dir.path());
      ADD_FAILURE() << line;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadData);
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("gradients.jsonl: line 2: "), std::string::npos);
    }
  }
  // What a kill left at the end is no mistake.
  dir.write("gradients.jsonl", good + good.substr(0, 40));
  EXPECT_EQ(read_gradients(dir.path()).size(), 1u);
}

}  // namespace
}  // namespace convoy::trainer
