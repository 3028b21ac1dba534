// Where the pixels of an image lie in its compact form (compact() in ops/core/tensor.h), for
// ops/*_cuda.cu.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/core/cuda_kernel.h"

namespace convoy::ops {

// Division of numbers below 2^31 by what is known before a kernel starts: a product and a shift.
// (2^s + e = m d with 0 < e <= d <= 2^(s - 31), so n m / 2^s is less than 1 / d above n / d.)
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor_(static_cast<uint32_t>(divisor)) {
    while (int64_t{1} << (shift_ - 31) < divisor) ++shift_;
    multiplier_ = static_cast<uint32_t>((int64_t{1} << shift_) / divisor + 1);
  }
  __device__ uint32_t value() const { return divisor_; }
  __device__ uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * multiplier_) >> shift_);
  }

 private:
  uint32_t divisor_ = 1, multiplier_ = 0;
  int shift_ = 31;
};

// The pixels of images [n, h, w], of which lines and columns that are multiples of a stride are
// there. Counts in 32 bits, without a branch.
class CompactPixels {
 public:
  CompactPixels() = default;
  // Throws Error (kBadJob) where there are 2^31 pixels.
  CompactPixels(const Shape& x, int64_t stride)
      : height_(x.h), width_(x.w), stride_(std::min(stride, kMost)) {
    if (x.rows() > kMost)
      fail(ExitCode::kBadJob, "a tensor {} has too many pixels; use a smaller batch_per_worker",
           to_string(x));
    const Shape stored = compact(x, stride);
    lines_ = static_cast<uint32_t>(stored.h);
    columns_ = static_cast<uint32_t>(stored.w);
  }
  // The row of the compact tensor that holds this one; -1: none does.
  __device__ int find(uint32_t row) const {
    const uint32_t line = width_.quotient(row), image = height_.quotient(line);
    const uint32_t i = line - image * height_.value(), j = row - line * width_.value();
    const uint32_t p = stride_.quotient(i), q = stride_.quotient(j);
    const bool is_there = p * stride_.value() == i && q * stride_.value() == j;
    return is_there ? static_cast<int>((image * lines_ + p) * columns_ + q) : -1;
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  Divisor height_, width_, stride_;
  uint32_t lines_ = 0, columns_ = 0;
};

}  // namespace convoy::ops
