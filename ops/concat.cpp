#include "ops/concat.h"

#include "ops/shape_checks.h"

namespace convoy::ops {
namespace {

constexpr int64_t kMostChannels = int64_t{1} << 40;

}  // namespace

Shape output_shape(const Concat&, const std::vector<Shape>& x) {
  expect(!x.empty(), "takes at least one input");
  Shape y = x[0];
  y.c = 0;
  for (const Shape& s : x) {
    expect(s.n == y.n && s.h == y.h && s.w == y.w, "inputs of different sizes: {} and {}",
           to_string(x[0]), to_string(s));
    expect(s.c <= kMostChannels - y.c, "more than {} channels", kMostChannels);
    y.c += s.c;
  }
  return y;
}

}  // namespace convoy::ops
