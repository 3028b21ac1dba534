// Convolution: Winograd's kernels where they win, else oneDNN. Weights are packed once per step;
// gradients come back to OIHW in fp32.
#include <algorithm>

#include "ops/conv2d.h"
#include "ops/cpu_device.h"
#include "ops/onednn.h"
#include "ops/weighted_op_cpu.h"
#include "ops/winograd_cpu.h"

namespace convoy::ops {

std::unique_ptr<Op> make_op(CpuDevice& device, const Conv2d& s, const OpConfig& c) {
  if (winograd_wins(s, c)) return make_winograd_op(device.threads(), s, c);
  const onednn::ConvolutionShape shape = {.name = c.name,
                                          .x = c.x[0],
                                          .y = c.y,
                                          .kernel_h = s.kernel,
                                          .kernel_w = s.kernel,
                                          .stride = s.stride,
                                          .padding = s.padding,
                                          .groups = s.groups,
                                          .bias = s.bias,
                                          .type = c.type};
  return make_weighted_op(
      device.threads(), onednn::parameter_layout(shape), s.bias, c,
      [&] { return make_convolution_forward(shape); },
      [&] { return make_convolution_backward_data(shape); },
      [&] { return make_convolution_backward_weights(shape); });
}

}  // namespace convoy::ops
