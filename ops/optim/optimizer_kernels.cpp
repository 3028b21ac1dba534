#include "ops/optim/optimizer_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

template <bool kNesterov, bool kEma>
void sgd_as(float* w, float* v, float* ema, const float* g, const SgdFactors& f, int64_t n) {
  for_channels(
      n, [ =, &f ](int64_t i, auto access) __attribute__((always_inline)) {
        const Floats weight = access.get(w + i);
        const Floats gradient = access.get(g + i) * f.gradient + weight * f.weight_decay;
        const Floats velocity = access.get(v + i) * f.momentum + gradient;
        access.put(v + i, velocity);
        const Floats direction = kNesterov ? gradient + velocity * f.momentum : velocity;
        const Floats updated = weight - direction * f.learning_rate;
        access.put(w + i, updated);
        if constexpr (kEma) {
          const Floats average = access.get(ema + i);
          access.put(ema + i, average + (updated - average) * f.ema);
        }
      });
}

void sgd(float* w, float* v, float* ema, const float* g, const SgdFactors& f, int64_t n) {
  if (f.nesterov)
    ema ? sgd_as<true, true>(w, v, ema, g, f, n) : sgd_as<true, false>(w, v, ema, g, f, n);
  else
    ema ? sgd_as<false, true>(w, v, ema, g, f, n) : sgd_as<false, false>(w, v, ema, g, f, n);
}

// Sixteen partial sums on every target, so that the bits are the same.
float squares(const float* x, int64_t n) {
  constexpr int64_t kVectors = 16 / kLanes;
  Floats sums[kVectors] = {};
  for_channels(
      n, [&](int64_t i, auto access) __attribute__((always_inline)) {
        const Floats v = access.get(x + i);
        sums[i / kLanes % kVectors] += v * v;
      });
  float total = 0;
  for (const Floats& sum : sums)
    for (int64_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

}  // namespace

const OptimizerKernels optimizer_kernels = {sgd, squares};

}  // namespace convoy::ops::CONVOY_ISA
