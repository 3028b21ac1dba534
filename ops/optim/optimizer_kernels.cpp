#include "ops/optim/optimizer_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

template <bool kNesterov, bool kEma>
void sgd_as(float* w, float* v, float* ema, const float* g, const SgdFactors& f, int64_t n) {
  for_channels(
      n, [ =, &f ](int64_t i, auto access) __attribute__((always_inline)) {
        const F32x16 weight = access.get(w + i);
        const F32x16 gradient = access.get(g + i) * f.gradient + weight * f.weight_decay;
        const F32x16 velocity = access.get(v + i) * f.momentum + gradient;
        access.put(v + i, velocity);
        const F32x16 direction = kNesterov ? gradient + velocity * f.momentum : velocity;
        const F32x16 updated = weight - direction * f.learning_rate;
        access.put(w + i, updated);
        if constexpr (kEma) {
          const F32x16 average = access.get(ema + i);
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

float squares(const float* x, int64_t n) {
  F32x16 sum = {};
  for_channels(
      n, [&](int64_t i, auto access) __attribute__((always_inline)) {
        const F32x16 v = access.get(x + i);
        sum += v * v;
      });
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

}  // namespace

const OptimizerKernels optimizer_kernels = {sgd, squares};

}  // namespace convoy::ops::CONVOY_ISA
