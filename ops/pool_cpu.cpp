// Pooling on the CPU. Global average pooling is average pooling whose window is the image.
#include <cstring>
#include <vector>

#include "ops/cpu_device.h"
#include "ops/pool.h"
#include "ops/pool_kernels.h"

namespace convoy::ops {
namespace {

PoolGeometry geometry(const OpConfig& c, int64_t kernel, int64_t stride, int64_t padding) {
  return {.n = c.x[0].n,
          .c = c.x[0].c,
          .h = c.x[0].h,
          .w = c.x[0].w,
          .p = c.y.h,
          .q = c.y.w,
          .kernel = kernel,
          .stride = stride,
          .padding = padding};
}

template <typename T>
class MaxPoolCpu final : public Op {
 public:
  MaxPoolCpu(int threads, const MaxPool& s, const OpConfig& c)
      : threads_(threads),
        geometry_(geometry(c, s.kernel, s.stride, s.padding)),
        saved_(c.training ? ops::saved_bytes(s, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    pool_kernels<T>().max_forward(static_cast<T*>(m.y),
                                  saved_ ? static_cast<uint8_t*>(m.saved) : nullptr,
                                  static_cast<const T*>(m.x[0]), geometry_, threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    pool_kernels<T>().max_backward(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                                   static_cast<const uint8_t*>(m.saved), geometry_, threads_);
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  int threads_;
  PoolGeometry geometry_;
  size_t saved_;
};

template <typename T>
class AvgPoolCpu final : public Op {
 public:
  AvgPoolCpu(int threads, const PoolGeometry& g, bool include_pad)
      : threads_(threads), geometry_(g), include_pad_(include_pad) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    pool_kernels<T>().avg_forward(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]), geometry_,
                                  include_pad_, threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    pool_kernels<T>().avg_backward(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                                   geometry_, include_pad_, threads_);
  }

 private:
  int threads_;
  PoolGeometry geometry_;
  bool include_pad_;
};

// One over the pixels of each of `windows` windows of a side.
std::vector<float> inverse_sizes(int64_t pixels, int64_t windows) {
  std::vector<float> out;
  for (int64_t o = 0; o < windows; ++o) {
    const int64_t begin = o * pixels / windows, end = ((o + 1) * pixels + windows - 1) / windows;
    out.push_back(1.0f / static_cast<float>(end - begin));
  }
  return out;
}

template <typename T>
class AdaptiveAvgPoolCpu final : public Op {
 public:
  AdaptiveAvgPoolCpu(int threads, const OpConfig& c)
      : threads_(threads),
        geometry_(geometry(c, 1, 1, 0)),
        per_row_(inverse_sizes(c.x[0].h, c.y.h)),
        per_column_(inverse_sizes(c.x[0].w, c.y.w)),
        same_bytes_(c.x[0] == c.y ? static_cast<size_t>(c.y.elements()) * sizeof(T) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (same_bytes_ > 0)
      std::memcpy(m.y, m.x[0], same_bytes_);
    else
      pool_kernels<T>().adaptive_forward(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]),
                                         per_row_.data(), per_column_.data(), geometry_, threads_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    if (same_bytes_ > 0)
      std::memcpy(m.dx[0], m.dy[0], same_bytes_);
    else
      pool_kernels<T>().adaptive_backward(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                                          per_row_.data(), per_column_.data(), geometry_, threads_);
  }

 private:
  int threads_;
  PoolGeometry geometry_;
  std::vector<float> per_row_, per_column_;
  size_t same_bytes_;  // above 0: the identity
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const MaxPool& s, const OpConfig& c) {
  return make_for_type<MaxPoolCpu>(c.type, device.threads(), s, c);
}

std::unique_ptr<Op> make_op(CpuDevice& device, const AvgPool& s, const OpConfig& c) {
  return make_for_type<AvgPoolCpu>(c.type, device.threads(),
                                   geometry(c, s.kernel, s.stride, s.padding), s.count_include_pad);
}

std::unique_ptr<Op> make_op(CpuDevice& device, const GlobalAvgPool&, const OpConfig& c) {
  // A window as large as the longer side, cut at the image's border.
  const int64_t side = c.x[0].h > c.x[0].w ? c.x[0].h : c.x[0].w;
  return make_for_type<AvgPoolCpu>(c.type, device.threads(), geometry(c, side, side, 0), false);
}

std::unique_ptr<Op> make_op(CpuDevice& device, const AdaptiveAvgPool&, const OpConfig& c) {
  return make_for_type<AdaptiveAvgPoolCpu>(c.type, device.threads(), c);
}

}  // namespace convoy::ops
