// Training: each element is set to zero with probability `rate`, the others are divided by 1 - rate
// (Srivastava et al. 2014). Which ones is a function of (seed, step, worker, node, element).
// Inference: y = x.
#pragma once

#include "ops/core/random.h"
#include "ops/op.h"

namespace convoy::ops {

class CpuDevice;
class CudaDevice;

struct Dropout {
  double rate = 0.5;
};

Shape output_shape(const Dropout& spec, const std::vector<Shape>& x);
inline std::vector<ParameterSpec> parameters(const Dropout&, const std::vector<Shape>&) {
  return {};
}
inline int64_t macs(const Dropout&, const std::vector<Shape>&) {
  return 0;
}
inline BackwardNeeds backward_needs(const Dropout&) {
  return {.dx_in_place = 0};
}
size_t saved_bytes(const Dropout& spec, const Shape& y);

// Tells the nodes of a network apart: stable under fusion.
uint64_t dropout_key(const std::string& node);

// Which of the 16 elements of word number `word` of a batch are kept, a bit each. A sample begins
// with a word of its own.
CONVOY_HOST_DEVICE inline uint16_t dropout_bits(const StepInfo& step, uint64_t key, uint64_t word,
                                                float rate) {
  const uint64_t draw = (step.step << 16) | static_cast<uint64_t>(step.worker & 0xffff);
  unsigned bits = 0;
  for (unsigned quarter = 0; quarter < 4; ++quarter) {
    const Random4 words = random4(step.seed, Purpose::kDropout, draw, key + word * 4 + quarter);
    for (unsigned i = 0; i < 4; ++i)
      bits |= static_cast<unsigned>(uniform_float(words[i]) >= rate) << (4 * quarter + i);
  }
  return static_cast<uint16_t>(bits);
}

std::unique_ptr<Op> make_op(CpuDevice& device, const Dropout& spec, const OpConfig& config);
std::unique_ptr<Op> make_op(CudaDevice& device, const Dropout& spec, const OpConfig& config);

}  // namespace convoy::ops
