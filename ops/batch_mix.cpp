#include "ops/batch_mix.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ops/core/random.h"

namespace convoy::ops {
namespace {

// Independent draws of one batch.
enum class Draw : uint64_t { kChoice, kPlace, kBeta };

Random4 random_words(uint64_t seed, uint64_t step, int worker, Draw draw, uint64_t attempt = 0) {
  return random4(seed, Purpose::kBatchMix, step,
                 static_cast<uint64_t>(worker) | static_cast<uint64_t>(draw) << 32 | attempt << 34);
}

// Two numbers inside (0, 1).
std::array<double, 2> draw_pair(uint64_t seed, uint64_t step, int worker, uint64_t attempt) {
  const Random4 words = random_words(seed, step, worker, Draw::kBeta, attempt);
  return {std::max(uniform_double(words[0], words[1]), 0x1p-54),
          std::max(uniform_double(words[2], words[3]), 0x1p-54)};
}

// Beta(alpha, alpha), alpha <= 1, by Johnk's rejection (1964), in logarithms, so that small powers
// do not vanish. Takes a pair with a probability of at least 1/2.
double small_beta(double alpha, uint64_t seed, uint64_t step, int worker) {
  for (uint64_t attempt = 0;; ++attempt) {
    const auto [u, v] = draw_pair(seed, step, worker, attempt);
    const double log_x = std::log(u) / alpha, log_y = std::log(v) / alpha;
    const double larger = std::max(log_x, log_y);
    const double log_sum = larger + std::log(std::exp(log_x - larger) + std::exp(log_y - larger));
    if (log_sum <= 0) return std::exp(log_x - log_sum);
  }
}

// Beta(alpha, alpha), alpha > 1, by Cheng's algorithm BB (1978). Needs 1.5 pairs at most on
// average.
double large_beta(double alpha, uint64_t seed, uint64_t step, int worker) {
  const double twice = 2 * alpha;
  const double beta = std::sqrt((twice - 2) / (twice * alpha - twice));
  const double gamma = alpha + 1 / beta;
  for (uint64_t attempt = 0;; ++attempt) {
    const auto [u, v] = draw_pair(seed, step, worker, attempt);
    const double logit = beta * std::log(u / (1 - u)), w = alpha * std::exp(logit);
    const double r = gamma * logit - std::log(4.0);
    if (r + twice * std::log(twice / (alpha + w)) >= std::log(u * u * v)) return w / (alpha + w);
  }
}

double draw_beta(double alpha, uint64_t seed, uint64_t step, int worker) {
  return alpha > 1 ? large_beta(alpha, seed, step, worker) : small_beta(alpha, seed, step, worker);
}

// torchvision's box: centre uniform, sides sqrt(1 - share) of the image's, cut at its border.
BatchMix cut(double share, const Random4& place, int64_t height, int64_t width) {
  const auto x = static_cast<int64_t>(uniform_below(place[0], static_cast<uint32_t>(width)));
  const auto y = static_cast<int64_t>(uniform_below(place[1], static_cast<uint32_t>(height)));
  const double half = 0.5 * std::sqrt(1.0 - share);
  const auto half_width = static_cast<int64_t>(half * static_cast<double>(width));
  const auto half_height = static_cast<int64_t>(half * static_cast<double>(height));
  BatchMix mix = {.top = std::max<int64_t>(y - half_height, 0),
                  .bottom = std::min(y + half_height, height),
                  .left = std::max<int64_t>(x - half_width, 0),
                  .right = std::min(x + half_width, width),
                  .image_share = 0.0f,
                  .label_share = 1.0};
  const int64_t area = (mix.bottom - mix.top) * (mix.right - mix.left);
  mix.label_share = 1.0 - static_cast<double>(area) / static_cast<double>(height * width);
  return mix;
}

}  // namespace

BatchMix draw_batch_mix(const BatchMixing& mixing, uint64_t seed, uint64_t step, int worker,
                        int64_t height, int64_t width) {
  if (!mixing.is_on()) return {};
  const bool both = mixing.mixup_alpha > 0 && mixing.cutmix_alpha > 0;
  const bool cuts = both ? random_words(seed, step, worker, Draw::kChoice)[0] >> 31 != 0
                         : mixing.cutmix_alpha > 0;
  const double share =
      draw_beta(cuts ? mixing.cutmix_alpha : mixing.mixup_alpha, seed, step, worker);
  if (cuts) return cut(share, random_words(seed, step, worker, Draw::kPlace), height, width);
  return {.top = 0,
          .bottom = height,
          .left = 0,
          .right = width,
          .image_share = static_cast<float>(share),
          .label_share = share};
}

}  // namespace convoy::ops
