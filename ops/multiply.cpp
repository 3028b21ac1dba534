#include "ops/multiply.h"

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const Multiply&, const std::vector<Shape>& x) {
  expect_inputs(x, 2);
  expect_same_shapes(x);
  return x[0];
}

}  // namespace convoy::ops
