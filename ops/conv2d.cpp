#include "ops/conv2d.h"

#include "ops/shape_checks.h"
#include "ops/start_values.h"

namespace convoy::ops {
namespace {

constexpr int64_t kMostKernel = 512;  // so that no count of weights overflows

}  // namespace

Shape output_shape(const Conv2d& s, const std::vector<Shape>& x) {
  const bool residual = s.batch_norm && s.batch_norm->residual;
  expect_inputs(x, residual ? 2 : 1);
  expect(s.out_channels > 0 && s.kernel > 0 && s.stride > 0 && s.padding >= 0 && s.groups > 0,
         "out_channels {}, kernel {}, stride {}, padding {} and groups {} must be positive "
         "(padding may be 0)",
         s.out_channels, s.kernel, s.stride, s.padding, s.groups);
  expect(s.kernel <= kMostKernel, "kernel {} must not be above {}", s.kernel, kMostKernel);
  check_start_values(s.weight_std, s.bias_init);
  expect(x[0].c % s.groups == 0 && s.out_channels % s.groups == 0,
         "{} input and {} output channels do not divide into {} groups", x[0].c, s.out_channels,
         s.groups);
  const Shape y = {x[0].n, s.out_channels, window_outputs(x[0].h, s.kernel, s.stride, s.padding),
                   window_outputs(x[0].w, s.kernel, s.stride, s.padding)};
  if (residual) expect_same_shapes({y, x[1]});
  return y;
}

std::vector<ParameterSpec> parameters(const Conv2d& s, const std::vector<Shape>& x) {
  const int64_t area = s.kernel * s.kernel;
  const int64_t fan_in = x[0].c / s.groups * area;
  std::vector<ParameterSpec> out;
  if (s.batch_norm) {
    out = parameters(BatchNorm{}, {{1, s.out_channels, 1, 1}});
    for (ParameterSpec& p : out) p.name = "batch_norm." + p.name;
  }
  out.push_back(weight_started({.name = "weight",
                                .dims = {s.out_channels, x[0].c / s.groups, s.kernel, s.kernel},
                                .init = Init::kHeNormal,
                                .fan_in = fan_in,
                                .fan_out = s.out_channels * area},
                               s.weight_std));
  if (s.bias)
    out.push_back(bias_started({.name = "bias",
                                .dims = {s.out_channels},
                                .init = Init::kUniform,
                                .fan_in = fan_in,
                                .is_weight = false},
                               s.bias_init));
  return out;
}

int64_t macs(const Conv2d& s, const std::vector<Shape>& x) {
  return output_shape(s, x).elements() * (x[0].c / s.groups) * s.kernel * s.kernel;
}

}  // namespace convoy::ops
