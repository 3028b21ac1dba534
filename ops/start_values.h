// How the weights and the bias of a convolution or a linear layer start where its spec says so.
#pragma once

#include <cmath>
#include <optional>

#include "ops/op.h"
#include "ops/shape_checks.h"

namespace convoy::ops {

// Throws Error (kBadJob) for values that no parameter can start from.
inline void check_start_values(double weight_std, const std::optional<double>& bias_init) {
  expect(std::isfinite(weight_std) && weight_std >= 0,
         "weight_std is {}, must be positive, or 0 for the usual start", weight_std);
  expect(std::isfinite(bias_init.value_or(0)), "bias_init is {}, must be a finite number",
         bias_init.value_or(0));
}

// The parameter as it is, or with the start that the spec gives it.
inline ParameterSpec weight_started(ParameterSpec weight, double weight_std) {
  if (weight_std == 0) return weight;
  weight.init = Init::kNormal;
  weight.value = weight_std;
  return weight;
}
inline ParameterSpec bias_started(ParameterSpec bias, const std::optional<double>& bias_init) {
  if (!bias_init) return bias;
  bias.init = Init::kConstant;
  bias.value = *bias_init;
  return bias;
}

}  // namespace convoy::ops
