#include "ops/relu.h"

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const Relu&, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  return x[0];
}

size_t saved_bytes(const Relu&, const Shape& y) {
  return static_cast<size_t>((y.elements() + 15) / 16) * sizeof(uint16_t);
}

}  // namespace convoy::ops
