// MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of one
// worker's batch with itself, rolled by one image as torchvision's references do: image i and its
// label meet image and label i - 1, the first those of the last.
#pragma once

#include <cstdint>

namespace convoy::ops {

// Parameters of the Beta distributions; 0: off. Where both are on, a draw decides for each step and
// worker, half to half.
struct BatchMixing {
  double mixup_alpha = 0.0;
  double cutmix_alpha = 0.0;

  bool is_on() const { return mixup_alpha > 0 || cutmix_alpha > 0; }
  bool operator==(const BatchMixing&) const = default;
};

// How one batch is mixed. Pixels [top, bottom) x [left, right) become
// image_share * own + (1 - image_share) * other, all others stay; the target becomes
// label_share * own + (1 - label_share) * other. As it is made: nothing is mixed.
struct BatchMix {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  float image_share = 1.0f;
  double label_share = 1.0;

  bool is_on() const { return top < bottom && left < right; }
  bool operator==(const BatchMix&) const = default;
};

// A function of its arguments alone, for images of height x width.
BatchMix draw_batch_mix(const BatchMixing& mixing, uint64_t seed, uint64_t step, int worker,
                        int64_t height, int64_t width);

}  // namespace convoy::ops
