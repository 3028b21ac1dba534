// The loss against the reference: label smoothing, padding rows, counts, types.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

struct Loss {
  LossResult result;
  std::vector<float> dlogits;
};

// Logits are fp32, as networks make them; dlogits in `type`.
Loss loss_of(Device& device, DType type, const SoftmaxCrossEntropy& spec,
             const std::vector<float>& logits, const std::vector<int32_t>& labels) {
  const DeviceMemory x = upload(device, logits, DType::kFloat32);
  const DeviceMemory dx = upload(device, {}, type, (logits.size() + 1) * size_of(type));
  const DeviceMemory result = device.allocate(sizeof(LossResult));
  const DeviceMemory head = upload(device, {0, 0, -1}, DType::kFloat32);
  std::vector<int32_t> slot = labels;
  device.loss(spec, dx.data.get(), type, x.data.get(), DType::kFloat32, slot.data(),
              static_cast<LossResult*>(result.data.get()), static_cast<float*>(head.data.get()));
  device.inputs_read();
  slot.assign(labels.size(), 0);  // the next batch
  Loss out;
  device.download(&out.result, result.data.get(), sizeof out.result);
  const std::vector<float> floats = download(device, head, DType::kFloat32);
  if (!std::isnan(out.result.loss_sum)) {
    EXPECT_EQ(floats[0], static_cast<float>(out.result.loss_sum * spec.gradient_scale));
  }
  EXPECT_EQ(floats[1], static_cast<float>(out.result.top1));
  EXPECT_EQ(floats[2], -1.0f) << "written behind the end";
  out.dlogits = download(device, dx, type);
  EXPECT_TRUE(std::isnan(out.dlogits.back())) << "written behind the end";
  out.dlogits.pop_back();
  return out;
}

std::vector<float> random_logits(const SoftmaxCrossEntropy& spec) {
  std::vector<float> logits(static_cast<size_t>(spec.n * spec.classes));
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 4 * random_value(3, 0, i);
  return logits;
}

// Every third row from the second on is padding.
std::vector<int32_t> labels_with_padding(const SoftmaxCrossEntropy& spec) {
  std::vector<int32_t> labels;
  for (int32_t n = 0; n < spec.n; ++n)
    labels.push_back(n % 3 == 1 ? -1 - n : n * 7 % static_cast<int32_t>(spec.classes));
  return labels;
}

// A loss that is not finite takes its row's gradient along, and no other's.
TEST_P(OpTest, ALossThatIsNotFiniteHasNoFiniteGradient) {
  const float inf = std::numeric_limits<float>::infinity();
  const SoftmaxCrossEntropy plain = {.n = 4, .classes = 3};
  const std::vector<int32_t> labels = {0, 0, 0, 0};
  const std::vector<float> logits = {-inf, 1, 2, /**/ 1, -inf, 2, /**/ inf, 1, 2, /**/ 1, 2, 3};
  for (const double smoothing : {0.0, 0.1}) {
    SoftmaxCrossEntropy spec = plain;
    spec.label_smoothing = smoothing;
    const Loss op = loss_of(device(), type(), spec, logits, labels);
    // Of row 1 another class is impossible: without smoothing its loss is finite.
    const bool finite[] = {false, smoothing == 0, false, true};
    for (size_t i = 0; i < op.dlogits.size(); ++i)
      EXPECT_EQ(std::isfinite(op.dlogits[i]), finite[i / 3]) << i << " smoothing " << smoothing;
  }
}

TEST_P(OpTest, LossEqualsReference) {
  for (const int64_t n : {1, 2, 7, 300})
    for (const int64_t classes : {2, 10, 17, 1000})
      for (const double smoothing : {0.0, 0.1})
        for (const double scale : {1.0, 1.0 / 256}) {
          if (n * classes > 10000) continue;  // takes long, shows nothing new
          const SoftmaxCrossEntropy spec = {.n = n,
                                            .classes = classes,
                                            .label_smoothing = smoothing,
                                            .gradient_scale = scale,
                                            .loss_scale = 8 * scale};
          SCOPED_TRACE(fmt::format("{} rows of {}, smoothing {}", n, classes, smoothing));
          const std::vector<float> logits = random_logits(spec);
          const std::vector<int32_t> labels = labels_with_padding(spec);
          const Loss op = loss_of(device(), type(), spec, logits, labels);
          std::vector<double> dlogits;
          const double expected = reference::softmax_cross_entropy(
              spec, {logits.begin(), logits.end()}, labels, dlogits);
          EXPECT_NEAR(op.result.loss_sum, expected, 1e-12 * expected);
          EXPECT_EQ(op.result.count, n - (n + 1) / 3);
          expect_close("dlogits", op.dlogits, dlogits, type());
        }
}

TEST_P(OpTest, LossOfMixedLabelsEqualsReference) {
  for (const double share : {0.7, 0.2, 0.0})
    for (const double smoothing : {0.0, 0.1}) {
      const SoftmaxCrossEntropy spec = {
          .n = 5, .classes = 7, .label_smoothing = smoothing, .label_share = share};
      const std::vector<float> logits = random_logits(spec);
      const std::vector<int32_t> labels = {3, 1, 1, 6, 0};
      const Loss op = loss_of(device(), type(), spec, logits, labels);
      std::vector<double> dlogits;
      const double expected =
          reference::softmax_cross_entropy(spec, {logits.begin(), logits.end()}, labels, dlogits);
      EXPECT_NEAR(op.result.loss_sum, expected, 1e-12 * expected);
      EXPECT_EQ(op.result.count, 5);
      expect_close("dlogits", op.dlogits, dlogits, type());
    }
}

// The label with the larger share counts, wherever it comes from.
TEST_P(Fp32Test, LossCountsTheLabelWithTheLargerShare) {
  const std::vector<float> logits = {9, 0, 0, 0, 0, 9};
  SoftmaxCrossEntropy spec = {.n = 2, .classes = 3, .label_share = 0.6};
  EXPECT_EQ(loss_of(device(), type(), spec, logits, {0, 1}).result.top1, 1);
  EXPECT_EQ(loss_of(device(), type(), spec, logits, {2, 0}).result.top1, 0);
  spec.label_share = 0.4;
  EXPECT_EQ(loss_of(device(), type(), spec, logits, {0, 1}).result.top1, 0);
  EXPECT_EQ(loss_of(device(), type(), spec, logits, {2, 0}).result.top1, 2);
}

TEST_P(OpTest, LossOfPaddingIsZero) {
  const SoftmaxCrossEntropy spec = {.n = 2, .classes = 3};
  const Loss op = loss_of(device(), type(), spec, {1, 2, 3, 4, 5, 6}, {-1, -1});
  EXPECT_EQ(op.result.loss_sum, 0);
  EXPECT_EQ(op.result.count, 0);
  EXPECT_EQ(op.result.top1, 0);
  EXPECT_EQ(op.result.top5, 0);
  EXPECT_EQ(op.dlogits, std::vector<float>(6, 0.0f));
}

// In double on both sides, so the differences are exact to 1e-8 or so.
TEST_P(Fp32Test, LossGradientEqualsDifferences) {
  const SoftmaxCrossEntropy spec = {.n = 4, .classes = 7, .label_smoothing = 0.1};
  std::vector<float> logits = random_logits(spec);
  const std::vector<int32_t> labels = labels_with_padding(spec);
  const Loss op = loss_of(device(), type(), spec, logits, labels);
  std::vector<double> in_double(logits.begin(), logits.end()), dlogits, unused;
  reference::softmax_cross_entropy(spec, in_double, labels, dlogits);
  for (size_t i = 0; i < logits.size(); ++i) {
    const float before = logits[i];
    const float above = before + 0x1p-8f, below = before - 0x1p-8f;
    logits[i] = above;
    const double loss_above = loss_of(device(), type(), spec, logits, labels).result.loss_sum;
    logits[i] = below;
    const double loss_below = loss_of(device(), type(), spec, logits, labels).result.loss_sum;
    logits[i] = before;
    EXPECT_NEAR(static_cast<double>(op.dlogits[i]),
                (loss_above - loss_below) / static_cast<double>(above - below), 1e-5);

    in_double[i] = static_cast<double>(before) + 1e-5;
    const double up = reference::softmax_cross_entropy(spec, in_double, labels, unused);
    in_double[i] = static_cast<double>(before) - 1e-5;
    const double down = reference::softmax_cross_entropy(spec, in_double, labels, unused);
    in_double[i] = static_cast<double>(before);
    EXPECT_NEAR(dlogits[i], (up - down) / 2e-5, 1e-8);
  }
}

TEST_P(Fp32Test, LossCountsTop1AndTop5) {
  const SoftmaxCrossEntropy spec = {.n = 6, .classes = 7};
  const std::vector<float> row = {5, 4, 3, 2, 1, 0, -1};
  std::vector<float> logits;
  for (int n = 0; n < 6; ++n) logits.insert(logits.end(), row.begin(), row.end());
  const LossResult r = loss_of(device(), type(), spec, logits, {0, 1, 4, 5, 6, -1}).result;
  EXPECT_EQ(r.count, 5);
  EXPECT_EQ(r.top1, 1);
  EXPECT_EQ(r.top5, 3);
  // Of equal logits the lowest class wins.
  const LossResult ties =
      loss_of(device(), type(), spec, std::vector<float>(42, 2.5f), {0, 1, 4, 5, 6, 0}).result;
  EXPECT_EQ(ties.top1, 2);
  EXPECT_EQ(ties.top5, 4);
}

TEST_P(Fp32Test, LossOfLargeLogitsIsFinite) {
  const SoftmaxCrossEntropy spec = {.n = 2, .classes = 2, .label_smoothing = 0.1};
  const Loss op = loss_of(device(), type(), spec, {1e30f, -1e30f, -1e30f, 1e30f}, {0, 0});
  EXPECT_TRUE(std::isfinite(op.result.loss_sum));
  EXPECT_NEAR(op.result.loss_sum / 2e30, 1.0, 1e-6);  // 0.05 * 2e30 + 0.95 * 2e30
}

TEST_P(OpTest, LossHandsNanOn) {
  const SoftmaxCrossEntropy spec = {.n = 2, .classes = 3};
  for (const size_t place : {0, 1, 2}) {
    std::vector<float> logits = {1, 2, 3, 4, 5, 6};
    logits[place] = std::numeric_limits<float>::quiet_NaN();
    const Loss op = loss_of(device(), type(), spec, logits, {1, 1});
    EXPECT_TRUE(std::isnan(op.result.loss_sum)) << place;
    EXPECT_TRUE(std::isnan(op.dlogits[0])) << place;
    EXPECT_FALSE(std::isnan(op.dlogits[3])) << place;
    EXPECT_EQ(op.result.top1, 0) << place;  // a row with a NaN before or at its label is not right
  }
}

TEST_P(Fp32Test, LossWithoutGradientForEvaluation) {
  const SoftmaxCrossEntropy spec = {.n = 1, .classes = 3};
  const std::vector<float> logits = {1, 2, 3};
  const std::vector<int32_t> labels = {2};
  Device& d = device();
  const DeviceMemory x = upload(d, logits, type()), result = d.allocate(sizeof(LossResult));
  d.loss(spec, nullptr, type(), x.data.get(), type(), labels.data(),
         static_cast<LossResult*>(result.data.get()), nullptr);
  LossResult r;
  d.download(&r, result.data.get(), sizeof r);
  EXPECT_NEAR(r.loss_sum, std::log(1 + std::exp(-1.0) + std::exp(-2.0)), 1e-12);
  EXPECT_EQ(r.top1, 1);
}

TEST_P(Fp32Test, LossRefusesALabelOutOfRange) {
  const SoftmaxCrossEntropy spec = {.n = 2, .classes = 10};
  const std::vector<float> logits(20);
  expect_error(ExitCode::kBadData, {"label 10", "row 1", "10 classes"}, [&] {
    loss_of(device(), type(), spec, logits, {3, 10});
  });
}

}  // namespace
}  // namespace convoy::ops
