#include "trainer/engine/layer_statistics.h"

#include <array>
#include <cmath>
#include <numeric>

namespace convoy::trainer {

double sum_of_squares(std::span<const float> values) {
  constexpr size_t kLanes = 8;  // sums side by side, so that the processor need not wait for each
  std::array<double, kLanes> sums = {};
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes)
    for (size_t k = 0; k < kLanes; ++k) {
      const double v = values[i + k];
      sums[k] += v * v;
    }
  for (; i < values.size(); ++i) sums[0] += static_cast<double>(values[i]) * values[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double response_std(std::span<const float> gamma, std::span<const float> beta,
                    std::span<const double> variance, double epsilon) {
  const auto channels = static_cast<double>(gamma.size());
  const double mean = std::accumulate(beta.begin(), beta.end(), 0.0) / channels;
  double sum = 0;
  for (size_t c = 0; c < gamma.size(); ++c) {
    const double g = gamma[c], off = beta[c] - mean;
    sum += g * g * variance[c] / (variance[c] + epsilon) + off * off;
  }
  return std::sqrt(sum / channels);
}

}  // namespace convoy::trainer
