// Pooling over windows: y [N,C,P,Q] from x [N,C,H,W], NHWC, the same window for every channel.
//   MaxPool: the largest; padding never wins. Backward goes to the first largest of each window.
//   AvgPool: the sum divided by the window's size, or by the part of it inside the image.
//   GlobalAvgPool: the mean over H and W; y [N,C,1,1].
//   AdaptiveAvgPool: the mean over a grid of h x w windows, y [N,C,h,w], as
//     torch.nn.AdaptiveAvgPool2d: row p of y has the rows floor(p H / h) up to, not including,
//     ceil((p + 1) H / h) of x, columns likewise; windows may share a row. The identity where the
//     sizes are x's.
#pragma once

#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct MaxPool {
  int64_t kernel = 3;  // at most 15
  int64_t stride = 2;
  int64_t padding = 1;
  bool ceil_mode =
      false;  // a last window that starts inside and ends outside counts, as in PyTorch
};

struct AvgPool {
  int64_t kernel = 2;
  int64_t stride = 2;
  int64_t padding = 0;
  bool count_include_pad = true;
};

struct GlobalAvgPool {};

struct AdaptiveAvgPool {
  int64_t h = 1, w = 1;
};

Shape output_shape(const MaxPool& spec, const std::vector<Shape>& x);
Shape output_shape(const AvgPool& spec, const std::vector<Shape>& x);
Shape output_shape(const GlobalAvgPool& spec, const std::vector<Shape>& x);
Shape output_shape(const AdaptiveAvgPool& spec, const std::vector<Shape>& x);

inline std::vector<ParameterSpec> parameters(const MaxPool&, const std::vector<Shape>&) {
  return {};
}
inline std::vector<ParameterSpec> parameters(const AvgPool&, const std::vector<Shape>&) {
  return {};
}
inline std::vector<ParameterSpec> parameters(const GlobalAvgPool&, const std::vector<Shape>&) {
  return {};
}
inline std::vector<ParameterSpec> parameters(const AdaptiveAvgPool&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const MaxPool&, const std::vector<Shape>&) {
  return 0;
}
inline int64_t macs(const AvgPool&, const std::vector<Shape>&) {
  return 0;
}
inline int64_t macs(const GlobalAvgPool&, const std::vector<Shape>&) {
  return 0;
}
inline int64_t macs(const AdaptiveAvgPool&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const MaxPool&) {
  return {};
}
inline BackwardNeeds backward_needs(const AvgPool&) {
  return {};
}
inline BackwardNeeds backward_needs(const GlobalAvgPool&) {
  return {};
}
inline BackwardNeeds backward_needs(const AdaptiveAvgPool&) {
  return {};
}
// MaxPool keeps the winner's place in its window, a byte per output.
inline size_t saved_bytes(const MaxPool&, const Shape& y) {
  return static_cast<size_t>(y.elements());
}
inline size_t saved_bytes(const AvgPool&, const Shape&) {
  return 0;
}
inline size_t saved_bytes(const GlobalAvgPool&, const Shape&) {
  return 0;
}
inline size_t saved_bytes(const AdaptiveAvgPool&, const Shape&) {
  return 0;
}

std::unique_ptr<Op> make_op(CpuDevice& device, const MaxPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const MaxPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CpuDevice& device, const AvgPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const AvgPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CpuDevice& device, const GlobalAvgPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const GlobalAvgPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CpuDevice& device, const AdaptiveAvgPool& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const AdaptiveAvgPool& spec,
                            const OpConfig& config);

}  // namespace convoy::ops
