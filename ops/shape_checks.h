// The checks that shape inference of several ops shares.
#pragma once

#include <vector>

#include "ops/core/error.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

// Throws Error (kBadJob) unless the condition holds.
template <typename... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) fail(ExitCode::kBadJob, format, std::forward<Args>(args)...);
}

inline void expect_inputs(const std::vector<Shape>& x, size_t count) {
  expect(x.size() == count, "takes {} input(s), got {}", count, x.size());
}

inline void expect_same_shapes(const std::vector<Shape>& x) {
  for (const Shape& s : x)
    expect(s == x[0], "inputs of different shapes: {} and {}", to_string(x[0]), to_string(s));
}

// How many windows fit along one side.
inline int64_t window_outputs(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  expect(size + 2 * padding >= kernel,
         "a {}-pixel window does not fit into {} pixels with padding {}; use a larger image",
         kernel, size, padding);
  return (size + 2 * padding - kernel) / stride + 1;
}

}  // namespace convoy::ops
