#include "ops/subsample.h"

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const Subsample& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  expect(s.stride > 0, "stride is {}, must be positive", s.stride);
  expect(s.out_channels >= x[0].c, "out_channels is {}, must not be less than the input's {}",
         s.out_channels, x[0].c);
  return {x[0].n, s.out_channels, (x[0].h + s.stride - 1) / s.stride,
          (x[0].w + s.stride - 1) / s.stride};
}

}  // namespace convoy::ops
