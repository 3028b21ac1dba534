// Batch norm against the reference, plain and with what is fused into it; its statistics where
// they are hard to compute; the same bits with any number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "ops/batch_norm_geometry.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

const BatchNorm kPlain = {};
const BatchNorm kRelu = {.relu = true};
const BatchNorm kResidual = {.residual = true};
const BatchNorm kBoth = {.relu = true, .residual = true};

OpCase batch_norm(BatchNorm spec, Shape x, int dy_sources = 1) {
  OpCase c = {.spec = spec, .x = {x}, .dy_sources = dy_sources, .wants_gradients = !spec.frozen};
  if (spec.residual) c.x.push_back(x);
  return c;
}

std::vector<Shape> shapes() {
  // One block of 256 rows, several, a whole number of them; rows of any length.
  std::vector<Shape> all = {{8, 16, 1, 1},   {1, 64, 4, 3}, {2, 16, 16, 16}, {3, 24, 13, 17},
                            {5, 32, 12, 11}, {16, 1, 5, 5}, {2, 3, 31, 29},  {1, 272, 5, 5},
                            {2, 1024, 3, 2}, {4, 512, 1, 3}};
  for (const int64_t c : {1, 3, 15, 16, 17, 24, 32, 33, 64, 100, 256}) all.push_back({2, c, 7, 5});
  return all;
}

TEST_P(OpTest, BatchNormEqualsReference) {
  for (const BatchNorm& spec : {kPlain, kRelu, kResidual, kBoth})
    for (const int dy_sources : {1, 2})
      for (const Shape& x : shapes()) check_op(device(), type(), batch_norm(spec, x, dy_sources));
}

// 4,418 rows: more blocks than a GPU adds up at once; 28,800: more than it reads at once.
TEST_P(OpTest, BatchNormOfManyRowsEqualsReference) {
  check_op(device(), type(), batch_norm(kBoth, {2, 128, 47, 47}, 2));
  check_op(device(), type(), batch_norm(kPlain, {2, 128, 120, 120}));
}

TEST_P(OpTest, BatchNormInferenceEqualsReference) {
  for (const BatchNorm& spec : {kPlain, kRelu, kResidual, kBoth})
    for (const Shape& x : shapes()) {
      OpCase c = batch_norm(spec, x);
      c.training = false;
      check_op(device(), type(), c);
    }
  OpCase one = batch_norm(kBoth, {1, 17, 1, 1});  // one value a channel is enough here
  one.training = false;
  check_op(device(), type(), one);
}

// What one batch norm and its neighbour give, one after the other, is what they give merged, to the
// bit; merge_batch_norms() makes such.
std::vector<std::vector<uint32_t>> bits_of(const OpResult& r) {
  std::vector<std::vector<uint32_t>> all = {convoy::ops::bits_of(r.y),
                                            convoy::ops::bits_of(r.statistics)};
  for (const auto* tensors : {&r.dx, &r.gradients})
    for (const auto& tensor : *tensors) all.push_back(convoy::ops::bits_of(tensor));
  return all;
}

// With whole batches and sample by sample.
void expect_merged(Device& device, DType type, OpCase merged, const OpData& data,
                   const std::function<OpResult(int64_t)>& one_after_the_other) {
  if (!device.merges_batch_norms())
    return expect_error(ExitCode::kFault, {"node", "no CPU"},
                        [&] { run(device, type, merged, data); });
  for (const int64_t slices : {int64_t{1}, merged.x[0].n}) {
    merged.slices = slices;
    SCOPED_TRACE(describe(merged));
    EXPECT_EQ(bits_of(run(device, type, merged, data)), bits_of(one_after_the_other(slices)));
  }
}

OpData part_of(const OpData& all, std::vector<std::vector<float>> x,
               std::vector<std::vector<float>> dy, size_t first_parameter) {
  const auto begin = all.parameters.begin() + static_cast<ptrdiff_t>(first_parameter);
  return {.x = std::move(x),
          .dy = std::move(dy),
          .parameters = {begin, begin + 2},
          .running = all.running};
}

void expect_shortcut_is_merged(Device& device, DType type, bool relu, OpCase merged,
                               const OpData& data) {
  expect_merged(device, type, merged, data, [&](int64_t slices) {
    OpCase shortcut = batch_norm({.epsilon = 0.01}, merged.x[1]),
           main = batch_norm({.relu = relu, .residual = true}, merged.x[0], merged.dy_sources);
    shortcut.slices = main.slices = slices;
    if (!merged.wants_dx.empty()) {
      shortcut.wants_dx = {merged.wants_dx[1]};
      main.wants_dx = {merged.wants_dx[0], true};
    }
    const auto residual =
        run(device, type, shortcut, part_of(data, {data.x[1]}, {data.dy[0]}, 2)).y;
    OpResult all = run(device, type, main, part_of(data, {data.x[0], residual}, data.dy, 0));
    const OpResult its = run(device, type, shortcut, part_of(data, {data.x[1]}, {all.dx[1]}, 2));
    all.dx[1] = its.dx[0];
    all.gradients.insert(all.gradients.end(), its.gradients.begin(), its.gradients.end());
    all.statistics.insert(all.statistics.end(), its.statistics.begin(), its.statistics.end());
    return all;
  });
}

OpCase with_shortcut(bool relu, const Shape& x, int dy_sources) {
  return {.spec =
              BatchNorm{
                  .relu = relu, .residual = true, .shortcut = BatchNorm::Shortcut{.epsilon = 0.01}},
          .x = {x, x},
          .dy_sources = dy_sources};
}

TEST_P(OpTest, BatchNormWithAShortcutHasTheBitsOfBoth) {
  for (const bool relu : {false, true})
    for (const int dy_sources : {1, 2}) {
      for (const Shape& x : shapes()) {
        if (x.n * x.h * x.w < 2) continue;
        const OpCase merged = with_shortcut(relu, x, dy_sources);
        expect_shortcut_is_merged(device(), type(), relu, merged, make_data(merged, type()));
      }
      for (const auto& wants : {std::vector<bool>{true, false}, {false, true}, {false, false}}) {
        OpCase merged = with_shortcut(relu, {2, 17, 5, 5}, dy_sources);
        merged.wants_dx = wants;
        expect_shortcut_is_merged(device(), type(), relu, merged, make_data(merged, type()));
      }
    }
  // More blocks than a GPU adds up at once; numbers that are none.
  for (const float odd :
       {0.5f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const size_t input : {size_t{0}, size_t{1}}) {
      const OpCase merged = with_shortcut(true, {2, 128, 47, 47}, 2);
      OpData data = make_data(merged, type());
      data.x[input][128 * 7 + 3] = odd;
      expect_shortcut_is_merged(device(), type(), true, merged, data);
    }
}

// Sums that convolutions give: of one or both of two merged batch norms, of channels for one block
// and for several, aligned or not.
TEST_P(OpTest, BatchNormWithGivenSumsEqualsReference) {
  if (GetParam().device == "cpu") GTEST_SKIP() << "SKIPPED: no convolution gives any on a CPU";
  for (const int64_t channels : {1, 8, 17, 136, 264}) {
    const Shape x{3, channels, 5, 7};
    check_as_it_is(device(), type(), {.spec = BatchNorm{.relu = true}, .x = {x}, .given = {true}});
    check_as_it_is(device(), type(),
                   {.spec = BatchNorm{.residual = true}, .x = {x, x}, .given = {true}});
    const OpCase merged = with_shortcut(true, x, 1);
    for (const auto& given : {std::vector<bool>{true, true}, {true, false}, {false, true}}) {
      OpCase c = merged;
      c.given = given;
      const OpData data = make_data(c, type());
      OpCase apart = c;
      apart.given.clear();
      const OpResult of_given = run(device(), type(), c, data),
                     gathered = run(device(), type(), apart, data);
      const auto expect_same = [&](const std::string& what, const std::vector<float>& a,
                                   const std::vector<float>& b, DType t) {
        expect_close(what, a, std::vector<double>(b.begin(), b.end()), t);
      };
      expect_same("y", of_given.y, gathered.y, type());
      expect_same("statistics", of_given.statistics, gathered.statistics, DType::kFloat32);
      for (size_t i = 0; i < gathered.dx.size(); ++i)
        expect_same("dx", of_given.dx[i], gathered.dx[i], type());
      for (size_t i = 0; i < gathered.gradients.size(); ++i)
        expect_same("gradient", of_given.gradients[i], gathered.gradients[i], DType::kFloat32);
    }
  }
}

// What a compact gradient leaves out is zero: -0 becomes 0 there, too.
void expect_compact_is_whole(Device& device, DType type, const OpCase& whole, int64_t stride) {
  OpCase stored = whole;
  std::get<BatchNorm>(stored.spec).dy1_stride = stride;
  OpData data = make_data(stored, type);
  for (size_t i = 0; i < data.dy[0].size(); i += 3) data.dy[0][i] = -0.0f;
  for (size_t i = 0; i < data.dy[1].size(); i += 2) data.dy[1][i] = i % 4 == 0 ? -0.0f : 0.0f;
  expect_merged(device, type, stored, data, [&](int64_t slices) {
    OpCase in_slices = whole;
    in_slices.slices = slices;
    OpData spread_out = data;
    spread_out.dy[1] = spread(data.dy[1], whole.x[0], stride);
    return run(device, type, in_slices, spread_out);
  });
}

TEST_P(OpTest, BatchNormAddsACompactGradientAsItWouldTheWhole) {
  for (const int64_t stride : {2, 3})
    for (const bool relu : {false, true}) {
      for (const Shape& x : {Shape{3, 16, 7, 5},
                             {2, 64, 8, 6},
                             {5, 17, 6, 9},
                             {2, 3, 31, 29},
                             {2, 136, 5, 6},
                             {3, 1, 4, 5},
                             {2, 8, 1, 3},
                             {8, 16, 1, 1}}) {
        for (const bool residual : {false, true})
          for (const bool frozen : {false, true})
            expect_compact_is_whole(
                device(), type(),
                batch_norm({.relu = relu, .residual = residual, .frozen = frozen}, x, 2), stride);
        expect_compact_is_whole(device(), type(), with_shortcut(relu, x, 2), stride);
      }
      // More rows than a thread's share; who is not trained before it.
      expect_compact_is_whole(device(), type(), batch_norm({.relu = relu}, {2, 8, 331, 403}, 2),
                              stride);
      for (const auto& wants : {std::vector<bool>{true, false}, {false, true}}) {
        OpCase c = batch_norm({.relu = relu, .residual = true, .frozen = true}, {2, 17, 5, 5}, 2);
        c.wants_dx = wants;
        expect_compact_is_whole(device(), type(), c, stride);
      }
    }
}

TEST_P(OpTest, BatchNormRefusesWhatIsNotMerged) {
  const Shape x = {2, 8, 8, 8};
  for (BatchNorm spec :
       {BatchNorm{.pool = MaxPool{.stride = 1}}, BatchNorm{.pool = MaxPool{.kernel = 5}},
        BatchNorm{.frozen = true, .pool = MaxPool{}}, BatchNorm{.pool = MaxPool{}, .dy1_stride = 2},
        BatchNorm{.residual = true, .pool = MaxPool{}},
        BatchNorm{.residual = true, .frozen = true, .shortcut = BatchNorm::Shortcut{}}}) {
    OpCase c = {.spec = spec, .x = {x}};
    if (spec.residual) c.x.push_back(x);
    expect_error(ExitCode::kFault, {"node"},
                 [&] { run(device(), type(), c, make_data(c, type())); });
  }
}

void expect_pool_is_merged(Device& device, DType type, const OpCase& merged, const OpData& data) {
  expect_merged(device, type, merged, data, [&](int64_t slices) {
    BatchNorm spec = std::get<BatchNorm>(merged.spec);
    OpCase pool = {.spec = *spec.pool, .x = merged.x, .slices = slices};
    spec.pool.reset();
    OpCase norm = batch_norm(spec, merged.x[0]);
    norm.slices = slices;
    norm.wants_dx = merged.wants_dx;
    const auto between = run(device, type, norm, part_of(data, {data.x[0]}, {data.x[0]}, 0)).y;
    const OpResult pooled =
        run(device, type, pool, {.x = {between}, .dy = data.dy, .parameters = {}, .running = {}});
    OpResult all = run(device, type, norm, part_of(data, {data.x[0]}, pooled.dx, 0));
    all.y = pooled.y;
    return all;
  });
}

TEST_P(OpTest, BatchNormWithAPoolHasTheBitsOfBoth) {
  const std::vector<MaxPool> pools = {{},
                                      {.kernel = 3, .stride = 2, .padding = 0},
                                      {.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true},
                                      {.kernel = 3, .stride = 2, .padding = 1, .ceil_mode = true},
                                      {.kernel = 2, .stride = 2, .padding = 0},
                                      {.kernel = 2, .stride = 2, .padding = 1},
                                      {.kernel = 4, .stride = 2, .padding = 2},
                                      {.kernel = 1, .stride = 2, .padding = 0}};
  const std::vector<Shape> all = {{2, 8, 7, 5},  {3, 24, 12, 17}, {2, 64, 16, 16},
                                  {2, 17, 9, 8}, {1, 3, 31, 29},  {2, 136, 5, 6},
                                  {5, 32, 4, 4}, {2, 8, 1, 3},    {2, 8, 2, 1}};
  for (const bool relu : {false, true})
    for (const MaxPool& pool : pools)
      for (const Shape& x : all) {
        if (std::min(x.h, x.w) + 2 * pool.padding < pool.kernel) continue;
        OpCase merged = {.spec = BatchNorm{.relu = relu, .pool = pool}, .x = {x}};
        OpData data = make_data(merged, type());
        expect_pool_is_merged(device(), type(), merged, data);
        // Windows of equal values, and where the ReLU leaves nothing.
        for (size_t i = 0; i < data.x[0].size(); ++i) data.x[0][i] = static_cast<float>(i / 3 % 4);
        expect_pool_is_merged(device(), type(), merged, data);
        merged.wants_dx = {false};
        expect_pool_is_merged(device(), type(), merged, data);
      }
  // As many channels as a block of threads takes, and more.
  for (const int64_t channels : {1024, 2048, 2056}) {
    const OpCase merged = {.spec = BatchNorm{.relu = true, .pool = MaxPool{}},
                           .x = {{1, channels, 3, 4}}};
    expect_pool_is_merged(device(), type(), merged, make_data(merged, type()));
  }
  // More blocks than a GPU adds up at once; numbers that are none; fp16 numbers next to zero.
  for (const float odd :
       {0.5f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()})
    for (const bool relu : {false, true}) {
      const OpCase merged = {.spec = BatchNorm{.relu = relu, .pool = MaxPool{}},
                             .x = {{3, 64, 47, 49}}};
      OpData data = make_data(merged, type());
      data.x[0][64 * 7 + 3] = odd;
      for (float& weight : data.parameters[0]) weight *= 0x1p-14f;
      for (float& bias : data.parameters[1]) bias *= 0x1p-22f;
      expect_pool_is_merged(device(), type(), merged, data);
    }
}

// In training with running statistics, as an affine map; whoever is not trained before it gets no
// gradient.
TEST_P(OpTest, FrozenBatchNormEqualsReference) {
  for (BatchNorm spec : {kPlain, kRelu, kResidual, kBoth}) {
    spec.frozen = true;
    for (const int dy_sources : {1, 2}) {
      for (const Shape& x : shapes()) check_op(device(), type(), batch_norm(spec, x, dy_sources));
      // One value a channel is enough here.
      check_op(device(), type(), batch_norm(spec, {1, 17, 1, 1}, dy_sources));
      if (!spec.residual) continue;
      for (const auto& wants : {std::vector<bool>{true, false}, {false, true}}) {
        OpCase c = batch_norm(spec, {2, 17, 5, 5}, dy_sources);
        c.wants_dx = wants;
        check_op(device(), type(), c);
      }
    }
    check_threads(GetParam().device, type(), batch_norm(spec, {5, 24, 13, 23}, 2));
  }
}

TEST_P(Fp32Test, FrozenBatchNormGradientsEqualDifferences) {
  for (BatchNorm spec : {kPlain, kRelu, kResidual, kBoth}) {
    spec.frozen = true;
    check_gradients(device(), batch_norm(spec, {3, 17, 4, 5}, 2));
  }
}

// As the first node of a network, whose input wants no gradient.
TEST_P(OpTest, BatchNormWithoutInputGradientEqualsReference) {
  for (const BatchNorm& spec : {kPlain, kRelu}) {
    OpCase c = batch_norm(spec, {2, 17, 5, 5});
    c.wants_dx = {false};
    check_op(device(), type(), c);
  }
  for (const auto& wants : {std::vector<bool>{true, false}, {false, true}}) {
    OpCase c = batch_norm(kBoth, {2, 17, 5, 5});
    c.wants_dx = wants;
    check_op(device(), type(), c);
  }
}

// Two gradients must give what their sum gives. Powers of two make the sum exact in bf16 too.
TEST_P(OpTest, BatchNormAddsTwoGradients) {
  for (const BatchNorm& spec : {kPlain, kRelu, kResidual, kBoth}) {
    const OpCase two = batch_norm(spec, {3, 24, 13, 17}, 2);
    OpData data = make_data(two, type());
    for (size_t i = 0; i < data.dy[0].size(); ++i) {
      data.dy[0][i] = static_cast<float>(i % 7) - 3.0f;
      data.dy[1][i] = static_cast<float>(i % 5) * 0.5f;
    }
    const OpResult added = run(device(), type(), two, data);
    for (size_t i = 0; i < data.dy[0].size(); ++i) data.dy[0][i] += data.dy[1][i];
    data.dy.pop_back();
    EXPECT_TRUE(run(device(), type(), batch_norm(spec, two.x[0]), data) == added) << describe(two);
  }
}

TEST_P(OpTest, BatchNormHasTheSameBitsWithAnyThreads) {
  for (const BatchNorm& spec : {kPlain, kBoth})
    for (const int64_t c : {24, 64})  // 1,495 rows: six blocks
      check_threads(GetParam().device, type(), batch_norm(spec, {5, c, 13, 23}, 2));
}

TEST_P(Fp32Test, BatchNormGradientsEqualDifferences) {
  for (const BatchNorm& spec : {kPlain, kRelu, kResidual, kBoth})
    check_gradients(device(), batch_norm(spec, {3, 17, 4, 5}));
  check_gradients(device(), batch_norm(kBoth, {3, 5, 4, 5}, 2));
}

// With two values a channel the gradient of x is zero but for epsilon: what is left of numbers of
// size gamma / std is their rounding.
TEST_P(Fp32Test, BatchNormOverTwoValues) {
  const OpCase c = batch_norm(kPlain, {2, 33, 1, 1});
  OpData data = make_data(c, type());
  for (size_t k = 0; k < 33; ++k) data.x[0][33 + k] = data.x[0][k] + 1.0f;  // std 1/2
  const OpResult op = run(device(), type(), c, data);
  const reference::Node expected = run_reference(c, type(), data, op);
  expect_close("y", op.y, expected.y.v, type());
  expect_close("statistics", op.statistics, expected.statistics, type());
  for (size_t i = 0; i < op.dx[0].size(); ++i)
    EXPECT_NEAR(static_cast<double>(op.dx[0][i]), expected.dx[0].v[i], 1e-6);
}

// A mean 10,000 times the standard deviation: squares would lose the variance altogether (1e8
// has eight digits), sums around a value near the mean keep it. The inputs are given exactly, so
// the variance of what fp32 can hold of them (steps of 2^-10 at 1e4) is the truth.
TEST_P(Fp32Test, BatchNormKeepsTheVarianceWhereTheMeanIsFar) {
  for (const int64_t channels : {17, 64}) {
    OpCase c = batch_norm(kPlain, {4, channels, 13, 17});
    c.mean = 0.57735f * 1e4f;  // uniform in -1..1 has standard deviation 1 / sqrt(3)
    const OpData data = make_data(c, type());
    const OpResult op = run(device(), type(), c, data);
    const reference::Node expected = run_reference(c, type(), data, op);
    for (size_t k = 0; k < static_cast<size_t>(channels); ++k) {
      const double mean = expected.statistics[k];
      const double variance = expected.statistics[static_cast<size_t>(channels) + k];
      EXPECT_GT(mean / std::sqrt(variance), 9e3);
      EXPECT_NEAR(static_cast<double>(op.statistics[k]), mean, 0x1p-12);  // half a unit of fp32
      EXPECT_NEAR(static_cast<double>(op.statistics[static_cast<size_t>(channels) + k]), variance,
                  2e-6 * variance);
    }
    // y takes the mean's rounding: half a unit at 5,774 is 2^-12, over the standard deviation.
    for (size_t i = 0; i < op.y.size(); ++i)
      EXPECT_NEAR(static_cast<double>(op.y[i]), expected.y.v[i], 1.1 * 0x1p-12 / 0.55);
  }
}

// One outlier, or a first half far from the second: the value that sums are taken around is a poor
// one, but then the variance is large.
TEST_P(Fp32Test, BatchNormKeepsTheVarianceOfUnevenBatches) {
  const OpCase c = batch_norm(kPlain, {4, 17, 13, 17});
  for (const int kind : {0, 1}) {
    OpData data = make_data(c, type());
    for (size_t i = 0; i < data.x[0].size(); ++i)
      if (kind == 0 ? i / 17 == 5 : i < data.x[0].size() / 2) data.x[0][i] += 1e4f;
    const OpResult op = run(device(), type(), c, data);
    const reference::Node expected = run_reference(c, type(), data, op);
    expect_close("statistics", op.statistics, expected.statistics, type());
  }
}

TEST_P(OpTest, BatchNormVarianceOfAConstantIsNotNegative) {
  for (const float value : {0.0f, 0.1f, -3.3f, 12345.678f, 1e-20f, 3e18f}) {
    const OpCase c = batch_norm(kPlain, {3, 17, 9, 10});
    OpData data = make_data(c, type());
    for (float& v : data.x[0]) v = round_to(type(), value);
    const float constant = data.x[0][0];
    if (std::isinf(constant)) continue;  // fp16 ends at 65,504
    const OpResult op = run(device(), type(), c, data);
    for (size_t k = 0; k < 17; ++k) {
      EXPECT_EQ(op.statistics[k], constant);
      EXPECT_GE(op.statistics[17 + k], 0.0f);
      // Rounding of the value that the sums are taken around, squared.
      EXPECT_LE(op.statistics[17 + k], std::pow(0x1p-20f * constant, 2.0f));
      EXPECT_EQ(op.y[k], round_to(type(), data.parameters[1][k]));
    }
  }
}

TEST_P(OpTest, BatchNormHandsNanOn) {
  for (const BatchNorm& spec : {kPlain, kRelu, kBoth})
    for (const size_t channel : {size_t{3}, size_t{20}}) {  // in a whole vector and in the rest
      const OpCase c = batch_norm(spec, {2, 24, 5, 5});
      OpData data = make_data(c, type());
      data.x[0][24 * 7 + channel] = std::numeric_limits<float>::quiet_NaN();
      const OpResult op = run(device(), type(), c, data);
      for (size_t k = 0; k < 24; ++k) {
        EXPECT_EQ(std::isnan(op.statistics[k]), k == channel);
        EXPECT_EQ(std::isnan(op.statistics[24 + k]), k == channel);
      }
      for (size_t i = 0; i < op.y.size(); ++i)
        EXPECT_EQ(std::isnan(op.y[i]), i % 24 == channel) << describe(c) << " " << i;
    }
}

// The blocks of CUDA's kernels: each row and each channel is in exactly one.
TEST(BatchNorm, GeometryCoversTheTensorOnce) {
  for (const int64_t rows : {1, 2, 255, 256, 257, 12544, 100000, 3211264})
    for (const int64_t c : {1, 7, 8, 9, 24, 64, 100, 128, 136, 272, 512, 2048, 10000}) {
      const BatchNormGeometry g = batch_norm_geometry(rows, c);
      SCOPED_TRACE(
          fmt::format("{} rows of {} channels: {} groups x {} lanes, {} tiles, {} chunks "
                      "of {} rows",
                      rows, c, g.groups, g.lanes, g.tiles, g.chunks, g.rows_per_block));
      EXPECT_LE((g.chunks - 1) * g.rows_per_block, rows - 1);
      EXPECT_GE(g.chunks * g.rows_per_block, rows);
      EXPECT_LE((g.tiles - 1) * g.groups * 8, c - 1);
      EXPECT_GE(g.tiles * g.groups * 8, c);
      EXPECT_GE(g.groups, 1);
      EXPECT_LE(g.groups, BatchNormGeometry::kMostGroups);
      EXPECT_LE(g.groups * g.lanes, BatchNormGeometry::kThreads);
      EXPECT_GT((g.lanes + 1) * g.groups, BatchNormGeometry::kThreads);  // few idle
      EXPECT_EQ(g.rows_per_block % (g.lanes * BatchNormGeometry::kLeastRows), 0);
      EXPECT_LE(g.rows_per_block, g.lanes * BatchNormGeometry::kMostRows);
    }
}

// ResNet-50, batch 256: a GPU is filled, but where a block would have too little to do.
TEST(BatchNorm, GeometryFillsAGpu) {
  const std::vector<Shape> shapes = {{256, 64, 112, 112}, {256, 64, 56, 56},  {256, 256, 56, 56},
                                     {256, 128, 56, 56},  {256, 128, 28, 28}, {256, 512, 28, 28},
                                     {256, 256, 28, 28},  {256, 256, 14, 14}, {256, 1024, 14, 14},
                                     {256, 512, 14, 14},  {256, 512, 7, 7},   {256, 2048, 7, 7}};
  for (const Shape& s : shapes) {
    const BatchNormGeometry g = batch_norm_geometry(s.rows(), s.c);
    const bool is_small = g.rows_per_block == g.lanes * BatchNormGeometry::kLeastRows;
    EXPECT_GE(g.blocks(), is_small ? 132 * 5 : 132 * 8) << to_string(s);
    EXPECT_LE(g.blocks(), 132 * 24) << to_string(s);  // their sums stay small
  }
}

TEST(BatchNorm, ParametersAreNotWeights) {
  const auto p = parameters(BatchNorm{.zero_init = true}, {{2, 24, 5, 5}});
  ASSERT_EQ(p.size(), 2u);
  EXPECT_EQ(p[0].dims, std::vector<int64_t>{24});
  EXPECT_EQ(p[0].init, Init::kZeros);
  EXPECT_EQ(parameters(kPlain, {{2, 24, 5, 5}})[0].init, Init::kOnes);
  EXPECT_EQ(p[1].init, Init::kZeros);
  EXPECT_FALSE(p[0].is_weight);
  EXPECT_FALSE(p[1].is_weight);
}

TEST_P(OpTest, BatchNormOverOneValueIsAnError) {
  const Shape x = {1, 24, 1, 1};
  expect_error(ExitCode::kBadJob, {"bn1", "one value per channel", "[1, 24, 1, 1]", "batch"}, [&] {
    device().make(kPlain, {.name = "bn1",
                           .x = {x},
                           .y = x,
                           .type = type(),
                           .y_type = type(),
                           .training = true,
                           .wants_dx = {true}});
  });
}

TEST(BatchNorm, ErrorsNameTheNumbers) {
  expect_error(ExitCode::kBadJob, {"[2, 24, 5, 5]", "[2, 24, 5, 4]"}, [] {
    output_shape(kResidual, {{2, 24, 5, 5}, {2, 24, 5, 4}});
  });
  expect_error(ExitCode::kBadJob, {"2 input", "got 1"}, [] {
    output_shape(kResidual, {{2, 24, 5, 5}});
  });
  expect_error(ExitCode::kBadJob, {"epsilon is 0"}, [] {
    output_shape(BatchNorm{.epsilon = 0}, {{2, 24, 5, 5}});
  });
  expect_error(ExitCode::kBadJob, {"momentum is 1.5"}, [] {
    output_shape(BatchNorm{.momentum = 1.5}, {{2, 24, 5, 5}});
  });
}

}  // namespace
}  // namespace convoy::ops
