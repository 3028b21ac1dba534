// FP16's loss scale (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2): gradients are
// computed times a power of two, so that small ones do not vanish, and divided by it before the
// update. Where they overflow the update is skipped (the step still counts) and the scale halved;
// after a while without overflow it is doubled. All ranks see the same sums, so all choose the same
// scale.
#pragma once

#include <cstdint>

namespace convoy::trainer {

struct LossScale {
  static constexpr double kStart = 65536, kLargest = 16777216;  // 2^16, 2^24
  static constexpr uint32_t kStepsToGrow = 2000;

  double scale = kStart;
  uint32_t good_steps = 0;  // since the scale changed

  // After an update (true) or an overflow. False where the scale cannot be lowered any further.
  bool note(bool finite) {
    if (!finite) {
      good_steps = 0;
      if (scale <= 1) return false;
      scale /= 2;
    } else if (++good_steps >= kStepsToGrow) {
      good_steps = 0;
      if (scale < kLargest) scale *= 2;
    }
    return true;
  }
  bool operator==(const LossScale&) const = default;
};

}  // namespace convoy::trainer
