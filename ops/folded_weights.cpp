#include "ops/folded_weights.h"

#include <cmath>

namespace convoy::ops {

FoldedWeights fold_batch_norm(const Conv2d& spec, const NodeMemory& m, int64_t filter) {
  const int64_t channels = spec.out_channels;
  const float *gamma = m.parameters[0], *beta = m.parameters[1], *w = m.parameters[2];
  const float *mean = m.running, *variance = m.running + channels;
  FoldedWeights out{
      .weights = AlignedBuffer(static_cast<size_t>(channels * filter) * sizeof(float)),
      .bias = std::vector<float>(static_cast<size_t>(channels))};
  for (int64_t k = 0; k < channels; ++k) {
    const double scale = static_cast<double>(gamma[k]) /
                         std::sqrt(static_cast<double>(variance[k]) + spec.batch_norm->epsilon);
    const double bias = spec.bias ? static_cast<double>(m.parameters[3][k]) : 0.0;
    out.bias[static_cast<size_t>(k)] = static_cast<float>(
        static_cast<double>(beta[k]) + (bias - static_cast<double>(mean[k])) * scale);
    for (int64_t i = k * filter; i < (k + 1) * filter; ++i)
      out.weights.as<float>()[i] = static_cast<float>(static_cast<double>(w[i]) * scale);
  }
  return out;
}

}  // namespace convoy::ops
