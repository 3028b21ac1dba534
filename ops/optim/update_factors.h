// What an update multiplies with, from the norms: in double, by the same code on every device.
#pragma once

#include <cmath>

#include "ops/core/host_device.h"
#include "ops/optim/optimizer.h"
#include "ops/optim/optimizer_kernels.h"

namespace convoy::ops {

// Sums of squares are taken over blocks of this many elements of a tensor.
inline constexpr size_t kNormBlock = 4096;

// Of the whole gradient, whose norm it is.
CONVOY_HOST_DEVICE inline double clip_factor(const OptimizerConfig& c, double gradient_norm) {
  return c.clip_norm > 0 && gradient_norm > c.clip_norm ? c.clip_norm / gradient_norm : 1.0;
}

// Of one tensor. clip: times the gradient factor. weight_squares is read for LARS alone.
CONVOY_HOST_DEVICE inline SgdFactors update_factors(const OptimizerConfig& c, bool is_weight,
                                                    const ParameterFactors& own,
                                                    double learning_rate, double clip,
                                                    double gradient_squares,
                                                    double weight_squares) {
  const bool lars = c.kind == OptimizerConfig::Kind::kLars;
  const double decay =
      is_weight || c.decay_batch_norm_and_bias ? c.weight_decay * own.weight_decay : 0.0;
  double rate = learning_rate * own.learning_rate;
  if (lars && is_weight) {
    const double weight_norm = std::sqrt(weight_squares);
    const double gradient_norm = std::sqrt(gradient_squares) * clip;
    if (weight_norm > 0 && gradient_norm > 0)
      rate *= c.trust_coefficient * weight_norm /
              (gradient_norm + decay * weight_norm + c.lars_epsilon);
  }
  // LARS keeps the local rate inside the momentum, so that v is in units of weights.
  return {.gradient = static_cast<float>(lars ? clip * rate : clip),
          .weight_decay = static_cast<float>(lars ? decay * rate : decay),
          .momentum = static_cast<float>(c.momentum),
          .learning_rate = lars ? 1.0f : static_cast<float>(rate),
          .nesterov = c.nesterov,
          .ema = static_cast<float>(1.0 - c.ema_decay)};
}

}  // namespace convoy::ops
