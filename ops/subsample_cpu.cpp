// Sub-sampling on the CPU: copies of whole pixels.
#include <cstring>

#include "ops/cpu_device.h"
#include "ops/subsample.h"

namespace convoy::ops {
namespace {

class SubsampleCpu final : public Op {
 public:
  SubsampleCpu(const Subsample& s, const OpConfig& c)
      : stride_(s.stride),
        x_(c.x[0]),
        y_(c.y),
        x_bytes_(static_cast<size_t>(x_.c) * size_of(c.type)),
        y_bytes_(static_cast<size_t>(y_.c) * size_of(c.type)),
        front_bytes_(static_cast<size_t>((y_.c - x_.c) / 2) * size_of(c.type)) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    std::memset(m.y, 0, static_cast<size_t>(y_.rows()) * y_bytes_);
    for_pixels([&](size_t from, size_t to) {
      std::memcpy(static_cast<char*>(m.y) + to * y_bytes_ + front_bytes_,
                  static_cast<const char*>(m.x[0]) + from * x_bytes_, x_bytes_);
    });
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    std::memset(m.dx[0], 0, static_cast<size_t>(x_.rows()) * x_bytes_);
    for_pixels([&](size_t from, size_t to) {
      std::memcpy(static_cast<char*>(m.dx[0]) + from * x_bytes_,
                  static_cast<const char*>(m.dy[0]) + to * y_bytes_ + front_bytes_, x_bytes_);
    });
  }

 private:
  // body(row of x, row of y) for every pixel that is kept.
  template <typename Body>
  void for_pixels(Body body) const {
    for (int64_t n = 0; n < y_.n; ++n)
      for (int64_t p = 0; p < y_.h; ++p)
        for (int64_t q = 0; q < y_.w; ++q)
          body(static_cast<size_t>((n * x_.h + p * stride_) * x_.w + q * stride_),
               static_cast<size_t>((n * y_.h + p) * y_.w + q));
  }

  int64_t stride_;
  Shape x_, y_;
  size_t x_bytes_, y_bytes_, front_bytes_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice&, const Subsample& spec, const OpConfig& config) {
  return std::make_unique<SubsampleCpu>(spec, config);
}

}  // namespace convoy::ops
