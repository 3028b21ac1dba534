#include "ops/softmax_cross_entropy.h"

#include "ops/core/error.h"

namespace convoy::ops {

void check_labels(const SoftmaxCrossEntropy& s, const int32_t* labels) {
  for (int64_t row = 0; row < s.n; ++row)
    if (labels[row] >= s.classes)
      fail(ExitCode::kBadData, "label {} of batch row {}: the network has only {} classes",
           labels[row], row, s.classes);
}

}  // namespace convoy::ops
