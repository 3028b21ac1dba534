// The kernels for first layers against the reference, which convolutions take them, and that no bit
// of theirs depends on threads or on how a batch is cut.
#include "ops/few_channels_cpu.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

// wants_dx: of the image, nobody does.
OpConfig config(const Conv2d& spec, const Shape& x, bool training, bool wants_dx = false) {
  return {.x = {x},
          .y = output_shape(spec, {x}),
          .batch = x.n,
          .type = DType::kBfloat16,
          .y_type = DType::kBfloat16,
          .training = training,
          .wants_dx = {wants_dx},
          .wants_gradients = training};
}

bool wins(const Conv2d& spec, const Shape& x, bool training = true, bool wants_dx = false) {
  return few_channels_wins(spec, config(spec, x, training, wants_dx));
}

// ResNet's, CIFAR's, MNIST's; strides without padding and longer than the window, even windows, all
// widths of a block of channels, odd widths and rows shorter than a block of pixels.
const std::pair<Conv2d, Shape> kCases[] = {
    {{.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3}, {2, 3, 32, 30}},
    {{.out_channels = 16, .kernel = 3, .padding = 1}, {3, 3, 16, 17}},
    {{.out_channels = 32, .kernel = 5}, {2, 1, 28, 28}},
    {{.out_channels = 96, .kernel = 11, .stride = 4, .padding = 2}, {1, 3, 47, 51}},
    {{.out_channels = 48, .kernel = 2, .stride = 3, .padding = 1}, {2, 2, 11, 13}},
    {{.out_channels = 80, .kernel = 4, .padding = 3}, {1, 2, 5, 3}},
    {{.out_channels = 16, .kernel = 1, .stride = 2}, {2, 3, 7, 9}},
    {{.out_channels = 64, .kernel = 3, .padding = 1}, {1, 3, 1, 1}},
};

std::string describe(const Conv2d& s, const Shape& x) {
  return fmt::format("{} to {}, kernel {}, stride {}, padding {}", to_string(x), s.out_channels,
                     s.kernel, s.stride, s.padding);
}

TEST(FewChannels, IsTakenWhereItWins) {
  if (!wins(kCases[0].first, kCases[0].second))
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const auto& [spec, x] : kCases) {
    EXPECT_TRUE(wins(spec, x)) << describe(spec, x);
    EXPECT_TRUE(wins(spec, x, /*training=*/false)) << describe(spec, x);
  }
  const Conv2d spec = {.out_channels = 64, .kernel = 3, .padding = 1};
  const Shape x = {2, 3, 8, 8};
  EXPECT_FALSE(wins(spec, {2, 4, 8, 8}));
  // What the kernels do not compute.
  EXPECT_FALSE(wins(spec, x, true, /*wants_dx=*/true));
  EXPECT_FALSE(wins({.out_channels = 60, .kernel = 3}, x));
  EXPECT_FALSE(wins({.out_channels = 48, .kernel = 3, .groups = 3}, x));
  const Conv2d with_bias = {.out_channels = 64, .kernel = 3, .bias = true};
  EXPECT_FALSE(wins(with_bias, x));
  EXPECT_TRUE(wins(with_bias, x, /*training=*/false));
  Conv2d folded = {.out_channels = 64, .padding = 1, .batch_norm = BatchNorm{.relu = true}};
  EXPECT_TRUE(wins(folded, x, /*training=*/false));
  folded.batch_norm->residual = true;
  OpConfig with_residual = config(spec, x, false);
  with_residual.x.push_back(with_residual.y);
  EXPECT_FALSE(few_channels_wins(folded, with_residual));
  OpConfig fp32 = config(spec, x, true);
  fp32.type = fp32.y_type = DType::kFloat32;
  EXPECT_FALSE(few_channels_wins(spec, fp32));
}

std::vector<Bfloat16> as_bfloat16(const std::vector<double>& values) {
  std::vector<Bfloat16> v;
  for (const double value : values) v.push_back(to_bfloat16(static_cast<float>(value)));
  return v;
}

std::vector<double> uniform(int64_t n, uint64_t stream) {
  std::vector<double> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = round_to(DType::kBfloat16, random_value(3, stream, i));
  return v;
}

struct Data {
  Data(const Conv2d& spec, const Shape& shape)
      : x(uniform(shape.elements(), 0)),
        dy(uniform(output_shape(spec, {shape}).elements(), 1)),
        w(uniform(spec.out_channels * shape.c * spec.kernel * spec.kernel, 2)) {}
  std::vector<double> x, dy, w;
};

struct Results {
  std::vector<float> y, dw;
  bool operator==(const Results&) const = default;
};

// Forward and the gradient, `step` images at a time.
Results run(const Conv2d& spec, const Shape& shape, const Data& data, int threads, int64_t step) {
  Shape part = shape;
  part.n = step;
  OpConfig c = config(spec, part, true);
  c.batch = shape.n;
  const auto op = make_few_channels_op(threads, spec, c);
  const AlignedBuffer scratch(op->scratch_bytes());
  std::vector<Bfloat16> x = as_bfloat16(data.x), dy = as_bfloat16(data.dy), y(data.dy.size());
  std::vector<float> w(data.w.begin(), data.w.end()), dw(data.w.size());
  NodeMemory m;
  m.parameters = {w.data()};
  m.gradients = {dw.data()};
  m.scratch = scratch.data();
  op->prepare(m);
  for (int64_t n = 0; n < shape.n; n += step) {
    const int64_t of_x = n * shape.elements() / shape.n, of_y = n * c.y.elements() / step;
    m.x = {x.data() + of_x};
    m.y = y.data() + of_y;
    m.dy = {dy.data() + of_y};
    m.slice = {.first = n == 0, .last = n + step == shape.n};
    op->forward(m, {});
    op->backward(m, {});
  }
  Results results;
  for (const Bfloat16 value : y) results.y.push_back(to_float(value));
  results.dw = dw;
  return results;
}

TEST(FewChannels, EqualsReference) {
  if (!wins(kCases[0].first, kCases[0].second))
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const auto& [spec, x] : kCases) {
    SCOPED_TRACE(describe(spec, x));
    const Data data(spec, x);
    reference::Node node;
    node.x.emplace_back(x, data.x);
    node.parameters = {data.w};
    reference::forward(spec, node);
    node.dy = reference::Array(node.y.shape, data.dy);
    reference::backward(spec, node);
    const Results out = run(spec, x, data, 1, x.n);
    expect_close("y", out.y, node.y.v, DType::kBfloat16);
    expect_close("dw", out.dw, node.gradients[0], DType::kFloat32);
  }
}

// As a folded batch norm asks for.
TEST(FewChannels, AddsABiasAndTakesReLU) {
  const auto& [spec, x] = kCases[0];
  if (!wins(spec, x)) GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  Conv2d folded = spec;
  folded.batch_norm = BatchNorm{.epsilon = 0, .relu = true};
  const Data data(spec, x);
  reference::Node node;
  node.x.emplace_back(x, data.x);
  node.parameters = {data.w};
  reference::forward(spec, node);
  const auto k = static_cast<size_t>(spec.out_channels);
  std::vector<float> gamma(k, 1.0f), beta(k), running(2 * k, 1.0f);
  for (size_t i = 0; i < k; ++i) {
    beta[i] = random_value(3, 3, i);
    running[i] = 0;
  }
  for (size_t i = 0; i < node.y.v.size(); ++i)
    node.y.v[i] = std::max(node.y.v[i] + beta[i % k], 0.0);

  std::vector<Bfloat16> image = as_bfloat16(data.x), y(node.y.v.size());
  std::vector<float> w(data.w.begin(), data.w.end());
  const auto op = make_few_channels_op(1, folded, config(folded, x, false));
  const AlignedBuffer scratch(op->scratch_bytes());
  NodeMemory m;
  m.parameters = {gamma.data(), beta.data(), w.data()};
  m.running = running.data();
  m.x = {image.data()};
  m.y = y.data();
  m.scratch = scratch.data();
  op->prepare(m);
  op->forward(m, {});
  std::vector<float> out;
  for (const Bfloat16 value : y) out.push_back(to_float(value));
  expect_close("y", out, node.y.v, DType::kBfloat16);
}

TEST(FewChannels, BitsDependOnTheShapeAlone) {
  if (!wins(kCases[0].first, kCases[0].second))
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const auto& [spec, x] : kCases) {
    SCOPED_TRACE(describe(spec, x));
    const Data data(spec, x);
    const Results expected = run(spec, x, data, 1, x.n);
    for (const int threads : {2, 3, 4, 9})
      EXPECT_TRUE(run(spec, x, data, threads, x.n) == expected) << threads << " threads";
    for (const int threads : {1, 3})
      EXPECT_TRUE(run(spec, x, data, threads, 1) == expected)
          << threads << " threads, one image at a time";
  }
}

}  // namespace
}  // namespace convoy::ops
