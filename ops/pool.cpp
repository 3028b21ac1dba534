#include "ops/pool.h"

#include "ops/shape_checks.h"

namespace convoy::ops {
namespace {

void check_window(int64_t kernel, int64_t stride, int64_t padding) {
  expect(kernel > 0 && kernel <= 15 && stride > 0,
         "kernel {} must lie in 1..15 and stride {} be positive", kernel, stride);
  expect(padding >= 0 && 2 * padding <= kernel, "padding {} must lie in 0..{}, half of the window",
         padding, kernel / 2);
}

int64_t pooled(int64_t size, const MaxPool& s) {
  const int64_t beyond = s.ceil_mode ? s.stride - 1 : 0;  // by which the last window may hang over
  if (size + beyond + 2 * s.padding < s.kernel || !s.ceil_mode)
    return window_outputs(size, s.kernel, s.stride, s.padding);
  const int64_t outputs = window_outputs(size + beyond, s.kernel, s.stride, s.padding);
  return (outputs - 1) * s.stride < size + s.padding ? outputs : outputs - 1;
}

}  // namespace

Shape output_shape(const MaxPool& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  check_window(s.kernel, s.stride, s.padding);
  return {x[0].n, x[0].c, pooled(x[0].h, s), pooled(x[0].w, s)};
}

Shape output_shape(const AvgPool& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  check_window(s.kernel, s.stride, s.padding);
  return {x[0].n, x[0].c, window_outputs(x[0].h, s.kernel, s.stride, s.padding),
          window_outputs(x[0].w, s.kernel, s.stride, s.padding)};
}

Shape output_shape(const GlobalAvgPool&, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  return {x[0].n, x[0].c};
}

// Of an adaptive pool, along one side.
constexpr int64_t kMostWindows = 4096;

Shape output_shape(const AdaptiveAvgPool& s, const std::vector<Shape>& x) {
  expect_inputs(x, 1);
  expect(s.h > 0 && s.w > 0 && s.h <= kMostWindows && s.w <= kMostWindows,
         "{} x {} windows: height and width must lie in 1 ... {}", s.h, s.w, kMostWindows);
  return {x[0].n, x[0].c, s.h, s.w};
}

}  // namespace convoy::ops
