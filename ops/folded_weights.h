// The weights of a convolution with a batch norm folded in (ops/conv2d.h), for any kernel.
#pragma once

#include <string>
#include <vector>

#include "ops/conv2d.h"

namespace convoy::ops {

struct FoldedWeights {
  AlignedBuffer weights;    // as parameters are kept, fp32
  std::vector<float> bias;  // [K]
};

// filter: weights of one output channel. Reads the parameters and running statistics of `m`. Throws
// Error (kBadData) naming the node where a folded weight or bias is not finite: a ReLU behind it
// may make zeros of NaN (oneDNN's does), and the network's output would look sound.
FoldedWeights fold_batch_norm(const std::string& node, const Conv2d& spec, const NodeMemory& m,
                              int64_t filter);

}  // namespace convoy::ops
