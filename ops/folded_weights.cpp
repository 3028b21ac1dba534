#include "ops/folded_weights.h"

#include <cmath>

#include "ops/core/error.h"

namespace convoy::ops {

FoldedWeights fold_batch_norm(const std::string& node, const Conv2d& spec, const NodeMemory& m,
                              int64_t filter) {
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
    bool finite = std::isfinite(out.bias[static_cast<size_t>(k)]);
    for (int64_t i = k * filter; i < (k + 1) * filter; ++i) {
      const auto weight = static_cast<float>(static_cast<double>(w[i]) * scale);
      out.weights.as<float>()[i] = weight;
      finite &= std::isfinite(weight);
    }
    if (!finite)
      fail(ExitCode::kBadData,
           "conv2d \"{}\": output channel {} with the batch norm behind it (scale {}, bias {}) is "
           "not finite; take an earlier checkpoint",
           printable(node), k, scale, out.bias[static_cast<size_t>(k)]);
  }
  return out;
}

}  // namespace convoy::ops
