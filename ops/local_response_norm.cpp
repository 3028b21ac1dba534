#include "ops/local_response_norm.h"

#include <algorithm>
#include <cmath>

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const LocalResponseNorm& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  expect(s.size > 0, "size is {}, must be positive", s.size);
  // So that s is a positive number and s^-beta finite, also in fp32, whatever x is.
  const auto within = [](double v, double least, double most) { return v >= least && v <= most; };
  expect(within(s.k, 1e-6, 1e6), "k is {}, must lie in 1e-6 ... 1e6", s.k);
  expect(within(s.alpha, 0, 1e6), "alpha is {}, must lie in 0 ... 1e6", s.alpha);
  expect(within(s.beta, 0, 10), "beta is {}, must lie in 0 ... 10", s.beta);
  expect(std::pow(s.k, -s.beta) <= 1e30, "k^-beta is {}, must be at most 1e30 (k {}, beta {})",
         std::pow(s.k, -s.beta), s.k, s.beta);
  return x[0];
}

ChannelWindow channel_window(const LocalResponseNorm& s, int64_t c) {
  return {.c = c,
          .before = std::min(s.size / 2, c - 1),
          .behind = std::min((s.size - 1) / 2, c - 1),
          .scale = static_cast<float>(s.alpha / static_cast<double>(s.size)),
          .beta = static_cast<float>(s.beta),
          .k = static_cast<float>(s.k)};
}

}  // namespace convoy::ops
