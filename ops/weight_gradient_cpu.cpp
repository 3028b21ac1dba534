#include "ops/weight_gradient_cpu.h"

#include <limits>

#include "ops/onednn.h"

namespace convoy::ops {
namespace {

// WeightGradientShape::offsets.
std::vector<int32_t> window_offsets(const Conv2d& s, const Shape& x, const Shape& y) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < s.kernel * s.kernel; ++i)
    for (int64_t pixel = 0; pixel < y.h * y.w; ++pixel) {
      const int64_t h = pixel / y.w * s.stride + i / s.kernel - s.padding;
      const int64_t w = pixel % y.w * s.stride + i % s.kernel - s.padding;
      const bool inside = h >= 0 && h < x.h && w >= 0 && w < x.w;
      offsets.push_back(inside ? static_cast<int32_t>((h * x.w + w) * x.c) : -1);
    }
  return offsets;
}

}  // namespace

bool weight_gradient_wins(const Conv2d& s, const OpConfig& c) {
  const Shape &x = c.x[0], &y = c.y;
  // By name, not "at least": where there is AMX, oneDNN uses it.
  const bool computes = cpu_isa() == Isa::kAvx512Bf16 &&
                        onednn::instruction_set() == "avx512_core_bf16" &&
                        c.type == DType::kBfloat16 && s.groups == 1 && !s.bias &&
                        x.c % kWeightGradientChannels == 0 && y.c % kWeightGradientChannels == 0 &&
                        x.h * x.w * x.c <= std::numeric_limits<int32_t>::max();
  // Measured on a Zen 5 beside oneDNN 2.6.3, whose time is 1.2 to 1.6 times ours at strides, 1.1
  // times at small images with a window, 1 to 1.15 times in 1x1 layers. Packing costs as much as
  // some ten channels.
  const bool small_image = s.kernel > 1 && y.h * y.w <= 64;
  return computes && y.c >= 32 && (s.stride > 1 || s.kernel == 1 || small_image);
}

WeightGradientCpu::WeightGradientCpu(int threads, const Conv2d& s, const OpConfig& c)
    : kernels_(weight_gradient_kernels_bf16()),
      threads_(threads),
      offsets_(window_offsets(s, c.x[0], c.y)),
      shape_({.pixels = c.y.rows(),
              .image_pixels = c.y.h * c.y.w,
              .image_x = c.x[0].elements() / c.x[0].n,
              .c = c.x[0].c,
              .k = c.y.c,
              .window = s.kernel * s.kernel,
              .offsets = offsets_.data()}) {
  if (shape_.window > 1)
    sum_ = AlignedBuffer(static_cast<size_t>(shape_.k * shape_.window * shape_.c) * sizeof(float));
}

void WeightGradientCpu::add(const NodeMemory& m) {
  float* sum = shape_.window > 1 ? sum_.as<float>() : m.gradients[0];
  kernels_.add(sum, static_cast<const Bfloat16*>(m.x[0]), static_cast<const Bfloat16*>(m.dy[0]),
               shape_, m.slice.first, m.scratch, threads_);
  if (m.slice.last && shape_.window > 1) kernels_.unpack(m.gradients[0], sum, shape_, threads_);
}

size_t WeightGradientCpu::scratch_bytes() const {
  return kernels_.scratch_bytes(shape_, threads_);
}

}  // namespace convoy::ops
