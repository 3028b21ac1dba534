// The pixels of x that a 1x1 window at a stride sees, side by side: a convolution of them without a
// stride is one of all of x with it. oneDNN gathers them itself, again for every block of channels:
// measured on a Zen 5, ResNet-50's shortcuts take 1.2 times as long that way.
#pragma once

#include <cstddef>
#include <cstring>

#include "ops/core/cache_line.h"
#include "ops/core/tensor.h"

namespace convoy::ops {

class KeptPixels {
 public:
  KeptPixels() = default;  // all of them, where they are
  KeptPixels(const Shape& x, const Shape& y, int64_t stride, DType type, int threads)
      : x_(x),
        y_(y),
        stride_(stride),
        pixel_bytes_(static_cast<size_t>(x.c) * size_of(type)),
        threads_(threads) {}

  // Of scratch memory.
  size_t bytes() const {
    return round_up(static_cast<size_t>(y_.rows()) * pixel_bytes_, kCacheLineBytes);
  }

  // Where the pixels are: in x, or gathered in `scratch`.
  const void* of(const void* x, void* scratch) const {
    if (pixel_bytes_ == 0) return x;
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
    for (int64_t row = 0; row < y_.n * y_.h; ++row) {
      const int64_t first = (row / y_.h * x_.h + row % y_.h * stride_) * x_.w;
      for (int64_t q = 0; q < y_.w; ++q)
        std::memcpy(
            static_cast<char*>(scratch) + static_cast<size_t>(row * y_.w + q) * pixel_bytes_,
            static_cast<const char*>(x) + static_cast<size_t>(first + q * stride_) * pixel_bytes_,
            pixel_bytes_);
    }
    return scratch;
  }

 private:
  Shape x_, y_;
  int64_t stride_ = 1;
  size_t pixel_bytes_ = 0;
  int threads_ = 1;
};

}  // namespace convoy::ops
