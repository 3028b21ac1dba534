#include "ops/sigmoid.h"

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const Sigmoid&, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  return x[0];
}

}  // namespace convoy::ops
