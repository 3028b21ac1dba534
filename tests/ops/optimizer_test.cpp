// Optimizers against their formulas, on every device.
#include "ops/optim/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

double norm(std::span<const float> v) {
  double sum = 0;
  for (const float x : v) sum += double{x} * double{x};
  return std::sqrt(sum);
}

void assign(DeviceFloats& to, const std::vector<float>& values) {
  std::ranges::copy(values, to.read().begin());
  to.write();
}
std::vector<float> values_of(DeviceFloats& from) {
  const std::span<const float> all = from.read();
  return {all.begin(), all.end()};
}

std::vector<float> halves(size_t n, uint64_t stream) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = random_value(1, stream, i) / 2;
  return v;
}

// One weight of 5000 elements and one bias of 100.
ParameterLayout one_linear() {
  Graph g{.name = "one", .image = {.n = 1, .c = 50, .h = 1, .w = 1}, .nodes = {}};
  g.add("fc", Linear{.out_features = 100}, {kImage});
  return layout_of(g);
}

// Tensors of odd sizes, of one float, and of several blocks, at odd places.
ParameterLayout odd_tensors() {
  Graph g{.name = "odd", .image = {.n = 1, .c = 3, .h = 1, .w = 1}, .nodes = {}};
  int x = kImage;
  for (const int64_t features : {7, 1, 97, 131, 2}) {
    x = g.add("fc" + std::to_string(features), Linear{.out_features = features}, {x});
    x = g.add("bn" + std::to_string(features), BatchNorm{}, {x});
  }
  return layout_of(g);
}

// Weights and gradients of a layout on a device, and its optimizer.
class Trained {
 public:
  // The gradients lie `shift` floats further than the weights.
  Trained(Device& device, const OptimizerConfig& config, const ParameterLayout& layout,
          size_t shift = 0)
      : device_(device),
        layout_(layout),
        shift_(shift),
        w0(halves(layout.parameter_floats, 1)),
        g(halves(layout.parameter_floats, 2)),
        optimizer(device.make_optimizer(config, layout)),
        w_(device, layout.parameter_floats) {
    assign(w_, w0);
  }

  // With the gradients as they are in `g` now; they lie somewhere else each time.
  void update(double learning_rate, const float* loss = nullptr) {
    std::vector<float> shifted(shift_, std::nanf(""));
    shifted.insert(shifted.end(), g.begin(), g.end());
    gradients_.push_back(upload(device_, shifted, DType::kFloat32));
    std::vector<const float*> pieces;
    for (const auto& p : layout_.parameters)
      pieces.push_back(static_cast<const float*>(gradients_.back().data.get()) + shift_ + p.offset);
    optimizer->update(w_.data(), pieces, learning_rate, loss);
  }
  std::vector<float> w() { return values_of(w_); }

 private:
  Device& device_;
  ParameterLayout layout_;
  size_t shift_;
  std::vector<DeviceMemory> gradients_;

 public:
  std::vector<float> w0, g;  // weights at first, gradients
  std::unique_ptr<Optimizer> optimizer;

 private:
  DeviceFloats w_;
};

TEST_P(Fp32Test, SgdEqualsItsFormula) {
  for (const bool nesterov : {false, true}) {
    Trained t(device(),
              {.momentum = 0.9,
               .nesterov = nesterov,
               .weight_decay = 0.01,
               .decay_batch_norm_and_bias = false,
               .ema_decay = 0.75},
              one_linear());
    assign(t.optimizer->ema(), t.w0);
    std::vector<double> expected(t.w0.begin(), t.w0.end()), v(expected.size()), ema(expected);
    for (int step = 0; step < 3; ++step) {
      t.update(0.1);
      for (size_t i = 0; i < v.size(); ++i) {
        const double decay = i < 5000 ? 0.01 : 0.0;
        const double g = double{t.g[i]} + decay * expected[i];
        v[i] = 0.9 * v[i] + g;
        expected[i] -= 0.1 * (nesterov ? g + 0.9 * v[i] : v[i]);
        ema[i] = 0.75 * ema[i] + 0.25 * expected[i];
      }
    }
    const std::vector<float> w = t.w(), momentum = values_of(t.optimizer->momentum()),
                             average = values_of(t.optimizer->ema());
    for (size_t i = 0; i < w.size(); ++i) {
      ASSERT_NEAR(w[i], expected[i], 1e-6) << i;
      ASSERT_NEAR(momentum[i], v[i], 1e-6) << i;
      ASSERT_NEAR(average[i], ema[i], 1e-6) << i;
    }
  }
}

TEST_P(Fp32Test, ClippingScalesTheGradientToItsNorm) {
  Trained t(device(), {.momentum = 0.0, .weight_decay = 0.0, .clip_norm = 0.5}, one_linear());
  const double before = norm(t.g);
  t.update(1.0);
  EXPECT_NEAR(t.optimizer->result().gradient_norm, before, 1e-5 * before);
  const std::vector<float> w = t.w();
  for (size_t i = 0; i < w.size(); ++i)
    ASSERT_NEAR(t.w0[i] - w[i], double{t.g[i]} * 0.5 / before, 1e-6) << i;
}

TEST_P(Fp32Test, LarsScalesWeightsByTheirTrustRatio) {
  Trained t(device(),
            {.kind = OptimizerConfig::Kind::kLars,
             .momentum = 0.0,
             .weight_decay = 0.01,
             .decay_batch_norm_and_bias = false,
             .trust_coefficient = 0.02},
            one_linear());
  t.update(2.0);
  const std::vector<float> w = t.w();
  const double weight = norm(std::span(t.w0).first(5000)),
               gradient = norm(std::span(t.g).first(5000));
  const double ratio = 0.02 * weight / (gradient + 0.01 * weight + 1e-9);
  for (size_t i = 0; i < w.size(); ++i) {
    const double step =
        i < 5000 ? ratio * (double{t.g[i]} + 0.01 * double{t.w0[i]}) : double{t.g[i]};
    ASSERT_NEAR(t.w0[i] - w[i], 2.0 * step, 1e-6) << i;
  }
}

// Weights, momentum, moving average and running statistics stay as they are.
TEST_P(Fp32Test, AnUpdateThatIsNotFiniteChangesNothing) {
  Device& d = device();
  ParameterLayout layout = one_linear();
  layout.statistics.push_back(
      {.name = "bn", .node = 0, .offset = 0, .channels = 1, .momentum = 0.1});
  layout.statistics_floats = layout.batch_floats = 2;
  const DeviceMemory nan = upload(d, {std::nanf("")}, DType::kFloat32),
                     fine = upload(d, {1.0f}, DType::kFloat32),
                     sum = upload(d, {8, 8}, DType::kFloat32);
  for (const bool bad_loss : {true, false}) {
    Trained t(d, {.ema_decay = 0.5}, layout);
    DeviceFloats running(d, 2);
    assign(running, {1, 2});
    if (!bad_loss) t.g[17] = std::numeric_limits<float>::infinity();
    t.update(0.1, static_cast<const float*>((bad_loss ? nan : fine).data.get()));
    t.optimizer->update_running(running.data(), static_cast<const float*>(sum.data.get()), 0.25f);
    EXPECT_EQ(t.w(), t.w0);
    EXPECT_EQ(values_of(t.optimizer->momentum()), std::vector<float>(t.w0.size()));
    EXPECT_EQ(values_of(t.optimizer->ema()), std::vector<float>(t.w0.size()));
    EXPECT_EQ(values_of(running), (std::vector<float>{1, 2}));
    const double gradient_norm = t.optimizer->result().gradient_norm;
    if (bad_loss)
      EXPECT_EQ(gradient_norm, 0.0);
    else
      EXPECT_FALSE(std::isfinite(gradient_norm));
    // The next one is an update again.
    t.g[17] = 0.25f;
    t.update(0.1, static_cast<const float*>(fine.data.get()));
    t.optimizer->update_running(running.data(), static_cast<const float*>(sum.data.get()), 0.25f);
    EXPECT_NE(t.w(), t.w0);
    EXPECT_NE(values_of(running), (std::vector<float>{1, 2}));
    EXPECT_GT(t.optimizer->result().gradient_norm, 0.0);
  }
}

TEST_P(Fp32Test, RunningStatisticsTakeTheMeanOfTheWorkers) {
  Device& d = device();
  ParameterLayout layout = one_linear();
  layout.statistics.push_back(
      {.name = "bn", .node = 0, .offset = 0, .channels = 2, .momentum = 0.25});
  layout.statistics_floats = layout.batch_floats = 4;
  Trained t(d, {}, layout);
  DeviceFloats running(d, 4);
  assign(running, {4, 8, 12, 16});
  const DeviceMemory sum = upload(d, {32, 0, 16, 64}, DType::kFloat32);
  t.update(0.1);
  t.optimizer->update_running(running.data(), static_cast<const float*>(sum.data.get()), 0.5f);
  EXPECT_EQ(values_of(running), (std::vector<float>{7, 6, 11, 20}));
}

// A factor of the learning rate is a learning rate, and one of the decay a decay: the same bits.
// The other tensors hear nothing of it.
TEST_P(Fp32Test, FactorsEqualAnotherRateAndDecay) {
  Device& d = device();
  for (const auto kind : {OptimizerConfig::Kind::kSgd, OptimizerConfig::Kind::kLars}) {
    const OptimizerConfig config = {.kind = kind, .nesterov = true, .weight_decay = 0.01};
    OptimizerConfig scaled = config;
    scaled.weight_decay = 0.01 * 3;
    const ParameterLayout layout = odd_tensors();
    ParameterLayout with_factors = layout;
    for (size_t p = 0; p < layout.parameters.size(); p += 2)
      with_factors.parameters[p].factors = {.learning_rate = 0.1, .weight_decay = 3};
    Trained plain(d, config, layout), other(d, scaled, layout), own(d, config, with_factors);
    for (int step = 0; step < 3; ++step) {
      plain.update(0.5);
      other.update(0.5 * 0.1);
      own.update(0.5);
    }
    const std::vector<float> a = plain.w(), b = other.w(), found = own.w();
    for (size_t p = 0; p < layout.parameters.size(); ++p)
      for (size_t i = 0; i < layout.parameters[p].floats(); ++i) {
        const size_t at = layout.parameters[p].offset + i;
        ASSERT_EQ(found[at], (p % 2 == 0 ? b : a)[at]) << layout.parameters[p].name << " " << i;
      }
    EXPECT_NE(a, b);
  }
}

// No decay, no momentum, no average; and norm and clipping as if there were only the others.
TEST_P(Fp32Test, FrozenTensorsAreNotTouched) {
  const ParameterLayout layout = odd_tensors();
  ParameterLayout some_frozen = layout;
  for (size_t p = 0; p < layout.parameters.size(); ++p)
    some_frozen.parameters[p].trained = p % 3 != 1;
  for (const auto kind : {OptimizerConfig::Kind::kSgd, OptimizerConfig::Kind::kLars}) {
    Trained t(device(), {.kind = kind, .weight_decay = 0.01, .clip_norm = 0.5, .ema_decay = 0.75},
              some_frozen);
    assign(t.optimizer->ema(), t.w0);
    std::vector<float> trained_gradients;
    for (const auto& p : some_frozen.parameters)
      for (size_t i = p.offset; i < p.offset + p.floats(); ++i) {
        if (!p.trained) t.g[i] = std::nanf("");
        if (p.trained) trained_gradients.push_back(t.g[i]);
      }
    for (int step = 0; step < 3; ++step) t.update(0.1);
    // Sums of squares in fp32 over blocks of 4096 floats.
    EXPECT_NEAR(t.optimizer->result().gradient_norm, norm(trained_gradients),
                1e-6 * norm(trained_gradients));
    const std::vector<float> w = t.w(), momentum = values_of(t.optimizer->momentum()),
                             ema = values_of(t.optimizer->ema());
    for (const auto& p : some_frozen.parameters) {
      size_t changed = 0;
      for (size_t i = p.offset; i < p.offset + p.floats(); ++i)
        changed += w[i] != t.w0[i] || ema[i] != t.w0[i] || momentum[i] != 0;
      EXPECT_EQ(changed > 0, p.trained) << p.name;
    }
  }
}

TEST_P(Fp32Test, FrozenRunningStatisticsStay) {
  Device& d = device();
  ParameterLayout layout = one_linear();
  layout.statistics = {{"frozen", 0, 0, 1, 0.25, false, 0}, {"bn", 0, 2, 1, 0.25, true, 0}};
  layout.statistics_floats = 4;
  layout.batch_floats = 2;
  Trained t(d, {}, layout);
  DeviceFloats running(d, 4);
  assign(running, {4, 8, 12, 16});
  const DeviceMemory sum = upload(d, {16, 64}, DType::kFloat32);
  t.update(0.1);
  t.optimizer->update_running(running.data(), static_cast<const float*>(sum.data.get()), 0.5f);
  EXPECT_EQ(values_of(running), (std::vector<float>{4, 8, 11, 20}));
}

// Weights, momentum, moving average and norm after three steps of changing rate.
std::vector<float> trained_bits(Device& device, const OptimizerConfig& config, size_t shift) {
  const ParameterLayout layout = odd_tensors();
  Trained t(device, config, layout, shift);
  if (config.ema_decay > 0) assign(t.optimizer->ema(), t.w0);
  for (int step = 0; step < 3; ++step) {
    t.update(0.1 + 0.01 * step);
    for (float& g : t.g) g *= -0.75f;
  }
  std::vector<float> all = t.w();
  for (DeviceFloats* more : {&t.optimizer->momentum(), &t.optimizer->ema()})
    if (!more->empty()) std::ranges::copy(values_of(*more), std::back_inserter(all));
  all.push_back(static_cast<float>(t.optimizer->result().gradient_norm));
  return all;
}

std::vector<OptimizerConfig> different_configs() {
  return {{.clip_norm = 0.1, .ema_decay = 0.9},
          {.nesterov = true, .decay_batch_norm_and_bias = false},
          {.kind = OptimizerConfig::Kind::kLars, .clip_norm = 0.1, .ema_decay = 0.5},
          {.kind = OptimizerConfig::Kind::kLars, .decay_batch_norm_and_bias = false}};
}

// Its multiplications and sums are the same everywhere, wherever the gradients lie.
TEST_P(Fp32Test, OptimizersMakeTheSameBitsAsOnTheCpu) {
  for (const OptimizerConfig& config : different_configs()) {
    const std::vector<float> expected = trained_bits(*make_device("cpu", 1), config, 0);
    for (const size_t shift : {0, 1, 2, 3, 4})
      EXPECT_EQ(trained_bits(device(), config, shift), expected) << "gradients at " << shift;
  }
}

TEST_P(Fp32Test, OptimizersMakeTheSameBitsOnAnyNumberOfThreads) {
  for (const OptimizerConfig& config : different_configs()) {
    const std::vector<float> expected = trained_bits(device(1), config, 0);
    for (const int threads : {2, 3})
      EXPECT_EQ(trained_bits(device(threads), config, 0), expected) << threads << " threads";
  }
}

}  // namespace
}  // namespace convoy::ops
