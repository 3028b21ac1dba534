// Dropout: which elements it drops, how many, what they depend on.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

OpCase dropout(double rate, Shape x) {
  return {.spec = Dropout{.rate = rate}, .x = {x}, .step = {.seed = 5, .step = 7, .worker = 1}};
}

// Where y is not zero, for inputs that are all one.
std::vector<bool> kept(Device& device, DType type, const OpCase& c) {
  OpData data = make_data(c, type);
  for (float& v : data.x[0]) v = 1.0f;
  std::vector<bool> out;
  for (const float v : run(device, type, c, data).y) out.push_back(v != 0.0f);
  return out;
}

TEST_P(OpTest, DropoutScalesWhatItKeepsAndBackwardDropsTheSame) {
  for (const Shape& x :
       {Shape{1, 1, 1, 1}, Shape{2, 17, 3, 5}, Shape{3, 64}, Shape{1, 24}, Shape{1, 256, 2, 2}})
    for (const double rate : {0.0, 0.2, 0.5, 0.9}) {
      const OpCase c = dropout(rate, x);
      const std::vector<bool> keeps = kept(device(), type(), c);
      // Seed 1 draws a single element that lies, divided, in the middle of two numbers of fp16.
      const OpData data = make_data(c, type(), 2);
      const OpResult op = run(device(), type(), c, data);
      std::vector<double> y, dx;
      for (size_t i = 0; i < keeps.size(); ++i) {
        y.push_back(keeps[i] ? static_cast<double>(data.x[0][i]) / (1 - rate) : 0.0);
        dx.push_back(keeps[i] ? static_cast<double>(data.dy[0][i]) / (1 - rate) : 0.0);
        EXPECT_TRUE(keeps[i] || rate > 0);
      }
      SCOPED_TRACE(describe(c) + fmt::format(" rate {}", rate));
      expect_close("y", op.y, y, type());
      expect_close("dx", op.dx[0], dx, type());
    }
}

TEST_P(OpTest, DropoutIsTheIdentityInInference) {
  OpCase c = dropout(0.5, {2, 17, 3, 5});
  c.training = false;
  const OpData data = make_data(c, type());
  EXPECT_EQ(run(device(), type(), c, data).y, data.x[0]);
}

TEST_P(OpTest, DropoutKeepsTheRightShare) {
  for (const double rate : {0.1, 0.5, 0.75}) {
    const std::vector<bool> keeps = kept(device(), type(), dropout(rate, {4, 100, 10, 10}));
    double share = 0;
    for (const bool k : keeps) share += k ? 1.0 / static_cast<double>(keeps.size()) : 0.0;
    const double error = std::sqrt(rate * (1 - rate) / static_cast<double>(keeps.size()));
    EXPECT_NEAR(share, 1 - rate, 4 * error);
  }
}

TEST_P(OpTest, DropoutDependsOnSeedStepWorkerAndNodeOnly) {
  const OpCase c = dropout(0.5, {3, 33, 37, 19});
  const std::vector<bool> first = kept(device(1), type(), c);
  for (const int threads : {1, 2, 3, 4}) EXPECT_EQ(kept(device(threads), type(), c), first);
  EXPECT_EQ(kept(device(), DType::kFloat32, c), first);
  EXPECT_EQ(kept(*make_device("cpu", 1), DType::kFloat32, c), first);  // on every device
  // Of a smaller batch the same elements: an element's number decides, not the shape.
  OpCase part = c;
  part.x = {{1, 33, 37, 19}};
  const std::vector<bool> beginning = kept(device(), type(), part);
  EXPECT_TRUE(std::equal(beginning.begin(), beginning.end(), first.begin()));

  // Any of the four changed: about half of the elements differ.
  OpCase seed = c, step = c, worker = c, node = c;
  seed.step.seed = uint64_t{1} << 40;
  step.step.step = 8;
  worker.step.worker = 2;
  node.node = "another";
  for (const OpCase& other : {seed, step, worker, node}) {
    const std::vector<bool> drawn = kept(device(), type(), other);
    double differ = 0;
    for (size_t i = 0; i < drawn.size(); ++i) differ += drawn[i] != first[i] ? 1 : 0;
    EXPECT_NEAR(differ / static_cast<double>(drawn.size()), 0.5, 0.01);  // five standard errors
  }
}

TEST_P(OpTest, DropoutHasTheSameBitsWithAnyThreads) {
  check_threads(GetParam().device, type(), dropout(0.3, {3, 33, 37, 19}));
}

TEST(Dropout, ErrorsNameTheNumbers) {
  for (const double rate : {1.0, -0.1})
    expect_error(ExitCode::kBadJob, {fmt::format("rate is {}", rate), "[0, 1)"}, [&] {
      output_shape(Dropout{.rate = rate}, {{1, 3}});
    });
  expect_error(ExitCode::kBadJob, {"1 input", "got 0"}, [] { output_shape(Dropout{}, {}); });
}

}  // namespace
}  // namespace convoy::ops
