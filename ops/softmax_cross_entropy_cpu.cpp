// Loss on the CPU. A row is a few hundred numbers, so this is plain code in double.
#include <cmath>
#include <limits>

#include "ops/cpu_device.h"

namespace convoy::ops {
namespace {

double get(const float& v) {
  return static_cast<double>(v);
}
double get(const Bfloat16& v) {
  return static_cast<double>(to_float(v));
}
void put(float& out, double v) {
  out = static_cast<float>(v);
}
void put(Bfloat16& out, double v) {
  out = to_bfloat16(static_cast<float>(v));
}

template <typename D, typename T>
LossResult softmax_cross_entropy(const SoftmaxCrossEntropy& s, D* dlogits, const T* logits,
                                 const int32_t* labels) {
  LossResult result;
  const auto k = static_cast<double>(s.classes);
  const double gradient_scale = s.gradient_scale * s.loss_scale;
  for (int64_t row = 0; row < s.n; ++row) {
    const T* x = logits + row * s.classes;
    D* dx = dlogits ? dlogits + row * s.classes : nullptr;
    const RowLabels label = labels_of(s, labels, row);
    if (label.main < 0) {
      for (int64_t i = 0; dx && i < s.classes; ++i) put(dx[i], 0.0);
      continue;
    }
    double largest = get(x[0]), mean = 0;
    for (int64_t i = 0; i < s.classes; ++i) {
      if (get(x[i]) > largest) largest = get(x[i]);
      mean += get(x[i]);
    }
    mean /= k;
    double sum = 0;
    for (int64_t i = 0; i < s.classes; ++i) sum += std::exp(get(x[i]) - largest);
    const double log_sum = largest + std::log(sum);
    // A NaN anywhere reaches the loss through the sum. Without smoothing the mean does not count,
    // so that a logit of -inf is harmless.
    double own = get(x[label.main]);
    if (label.share < 1) own = label.share * own + (1 - label.share) * get(x[label.other]);
    result.loss_sum += log_sum - (1 - s.label_smoothing) * own;
    if (s.label_smoothing > 0) result.loss_sum -= s.label_smoothing * mean;
    ++result.count;

    int64_t ahead = 0;
    for (int64_t i = 0; i < s.classes; ++i)
      ahead +=
          !(get(x[i]) < get(x[label.main])) && (get(x[i]) != get(x[label.main]) || i < label.main);
    result.top1 += ahead == 0;
    result.top5 += ahead < 5;

    const bool finite = std::isfinite(log_sum) && std::isfinite(own) &&
                        (s.label_smoothing == 0 || std::isfinite(mean));
    for (int64_t i = 0; dx && i < s.classes; ++i) {
      const double target = s.label_smoothing / k + (1 - s.label_smoothing) * label.share_of(i);
      put(dx[i], finite ? (std::exp(get(x[i]) - log_sum) - target) * gradient_scale
                        : std::numeric_limits<double>::quiet_NaN());
    }
  }
  return result;
}

}  // namespace

void CpuDevice::loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype,
                     const void* logits, DType type, const int32_t* labels, LossResult* result,
                     float* head) {
  check_labels(spec, labels);
  *result = with_type(dtype, [&]<typename D>(D*) {
    return with_type(type, [&]<typename T>(T*) {
      return softmax_cross_entropy(spec, static_cast<D*>(dlogits), static_cast<const T*>(logits),
                                   labels);
    });
  });
  if (!head) return;
  head[0] = static_cast<float>(result->loss_sum * spec.gradient_scale);
  head[1] = static_cast<float>(result->top1);
}

}  // namespace convoy::ops
