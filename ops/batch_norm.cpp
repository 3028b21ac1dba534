#include "ops/batch_norm.h"

#include <utility>

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const BatchNorm& s, const std::vector<Shape>& x) {
  expect_inputs(x, s.residual ? 2 : 1);
  expect_same_shapes(x);
  expect(s.epsilon > 0, "epsilon is {}, must be positive", s.epsilon);
  expect(s.momentum >= 0 && s.momentum <= 1, "momentum is {}, must lie in [0, 1]", s.momentum);
  return s.pool ? output_shape(*s.pool, {x[0]}) : x[0];
}

std::vector<ParameterSpec> parameters(const BatchNorm& s, const std::vector<Shape>& x) {
  std::vector<ParameterSpec> all = {
      {.name = "weight",
       .dims = {x[0].c},
       .init = s.zero_init ? Init::kZeros : Init::kOnes,
       .is_weight = false},
      {.name = "bias", .dims = {x[0].c}, .init = Init::kZeros, .is_weight = false}};
  if (s.shortcut)
    for (ParameterSpec p : parameters(BatchNorm{}, {x[1]})) {
      p.name = "shortcut." + p.name;
      all.push_back(std::move(p));
    }
  return all;
}

size_t saved_bytes(const BatchNorm& s, const Shape& y) {
  if (s.pool) return saved_bytes(*s.pool, y);
  if (!s.relu) return 0;
  return static_cast<size_t>(y.rows() * ((y.c + 15) / 16)) * sizeof(uint16_t);
}

void expect_variance(const OpConfig& c) {
  const Shape& x = c.x[0];
  if (c.batch * x.h * x.w < 2)
    fail(ExitCode::kBadJob,
         "batch_norm \"{}\": one value per channel ({}) has no variance; use a larger "
         "batch_per_worker or image",
         c.name, to_string(x));
}

}  // namespace convoy::ops
