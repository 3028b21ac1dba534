// Linear on oneDNN's inner product.
#include "ops/cpu_device.h"
#include "ops/linear.h"
#include "ops/onednn.h"
#include "ops/weighted_op_cpu.h"

namespace convoy::ops {

std::unique_ptr<Op> make_op(CpuDevice& device, const Linear& s, const OpConfig& c) {
  const onednn::LinearShape shape = {.name = c.name,
                                     .x = c.x[0],
                                     .out_features = s.out_features,
                                     .bias = s.bias,
                                     .type = c.type,
                                     .y_type = c.y_type};
  auto op = std::make_unique<WeightedOpCpu>(device.threads(), c, onednn::parameter_layout(shape),
                                            s.bias, make_linear_forward(shape));
  if (c.training && c.wants_dx[0]) op->add_backward_data(make_linear_backward_data(shape));
  if (c.training && c.wants_gradients)
    op->add_backward_weights(make_linear_backward_weights(shape));
  return op;
}

}  // namespace convoy::ops
