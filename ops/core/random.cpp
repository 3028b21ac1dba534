#include "ops/core/random.h"

#include <cmath>
#include <numbers>

namespace convoy {

std::array<double, 2> normal2(const Random4& words) {
  // 1 - u lies in (0, 1], so the logarithm is finite.
  const double u = 1.0 - uniform_double(words[0], words[1]);
  const double angle = 2.0 * std::numbers::pi * uniform_double(words[2], words[3]);
  const double radius = std::sqrt(-2.0 * std::log(u));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace convoy
