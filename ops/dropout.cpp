#include "ops/dropout.h"

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape output_shape(const Dropout& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  expect(s.rate >= 0 && s.rate < 1, "rate is {}, must lie in [0, 1)", s.rate);
  return x[0];
}

size_t saved_bytes(const Dropout&, const Shape& y) {
  return static_cast<size_t>((y.elements() + 15) / 16) * sizeof(uint16_t);
}

// FNV-1a of the name.
uint64_t dropout_key(const std::string& node) {
  uint32_t hash = 2166136261u;
  for (const char c : node) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return uint64_t{hash} << 32;
}

}  // namespace convoy::ops
