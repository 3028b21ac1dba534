// What the kernels of local response normalisation know of its spec. Includes no standard library
// (ops/simd.h says why).
#pragma once

#include <cstdint>

namespace convoy::ops {

struct LocalResponseNorm;

// For images of c channels, in fp32: sums over `before` channels in front of one and `behind`
// behind it.
struct ChannelWindow {
  int64_t c, before, behind;
  float scale, beta, k;  // scale: alpha / size
};
ChannelWindow channel_window(const LocalResponseNorm& spec, int64_t c);

}  // namespace convoy::ops
