// What benchmarks say of many measurements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace convoy::trainer {

// The value below which the share of the others lies; 0.5 is the median. There must be one.
inline double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

}  // namespace convoy::trainer
