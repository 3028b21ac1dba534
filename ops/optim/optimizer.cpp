#include "ops/optim/optimizer.h"

namespace convoy::ops {

void update_running_statistics(const ParameterLayout& layout, float* running, const float* batch) {
  for (const ParameterLayout::Statistics& s : layout.statistics) {
    const auto m = static_cast<float>(s.momentum);
    const size_t end = s.offset + 2 * static_cast<size_t>(s.channels);
    for (size_t i = s.offset; i < end; ++i) running[i] = (1.0f - m) * running[i] + m * batch[i];
  }
}

}  // namespace convoy::ops
