#include "ops/linear.h"

#include "ops/shape_checks.h"
#include "ops/start_values.h"

namespace convoy::ops {

Shape output_shape(const Linear& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  expect(s.out_features > 0, "out_features is {}, must be positive", s.out_features);
  check_start_values(s.weight_std, s.bias_init);
  return {x[0].n, s.out_features};
}

std::vector<ParameterSpec> parameters(const Linear& s, const std::vector<Shape>& x) {
  const int64_t in_features = x[0].c * x[0].h * x[0].w;
  std::vector<ParameterSpec> out = {weight_started({.name = "weight",
                                                    .dims = {s.out_features, in_features},
                                                    .init = Init::kUniform,
                                                    .fan_in = in_features,
                                                    .fan_out = s.out_features},
                                                   s.weight_std)};
  if (s.bias)
    out.push_back(bias_started({.name = "bias",
                                .dims = {s.out_features},
                                .init = Init::kUniform,
                                .fan_in = in_features,
                                .is_weight = false},
                               s.bias_init));
  return out;
}

int64_t macs(const Linear& s, const std::vector<Shape>& x) {
  return x[0].elements() * s.out_features;
}

}  // namespace convoy::ops
