#include "ops/batch_norm_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

// Two sums per channel over a block of rows, in registers where the row is 1, 2 or 4 vectors long
// and in the (cached) output otherwise. term(row, channel, access, sum0, sum1) adds one vector.
template <int kVectors, typename Term>
CONVOY_INLINE void sum_rows_in_registers(float* sums, int64_t c, int64_t begin, int64_t end,
                                         Term term) {
  Floats s0[kVectors] = {}, s1[kVectors] = {};
  for (int64_t row = begin; row < end; ++row)
    for (int v = 0; v < kVectors; ++v) term(row, v * kLanes, Whole{}, s0[v], s1[v]);
  for (int v = 0; v < kVectors; ++v) {
    store(sums + v * kLanes, s0[v]);
    store(sums + c + v * kLanes, s1[v]);
  }
}

template <typename Term>
CONVOY_INLINE void sum_rows(float* sums, int64_t c, int64_t begin, int64_t end, Term term) {
  if (c == kLanes) return sum_rows_in_registers<1>(sums, c, begin, end, term);
  if (c == 2 * kLanes) return sum_rows_in_registers<2>(sums, c, begin, end, term);
  if (c == 4 * kLanes) return sum_rows_in_registers<4>(sums, c, begin, end, term);
  for (int64_t k = 0; k < 2 * c; ++k) sums[k] = 0.0f;
  for (int64_t row = begin; row < end; ++row)
    for_channels(
        c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          Floats s0 = access.get(sums + k), s1 = access.get(sums + c + k);
          term(row, k, access, s0, s1);
          access.put(sums + k, s0);
          access.put(sums + c + k, s1);
        });
}

// body(row, channel, access, constants(channel, access)) for a block of rows; the constants stay in
// registers where the row is 1, 2 or 4 vectors long.
template <int kVectors, typename Constants, typename Body>
CONVOY_INLINE void for_rows_in_registers(int64_t begin, int64_t end, Constants constants,
                                         Body body) {
  decltype(constants(0, Whole{})) held[kVectors];
  for (int v = 0; v < kVectors; ++v) held[v] = constants(v * kLanes, Whole{});
  for (int64_t row = begin; row < end; ++row)
    for (int v = 0; v < kVectors; ++v) body(row, v * kLanes, Whole{}, held[v]);
}

template <typename Constants, typename Body>
CONVOY_INLINE void for_rows(int64_t c, int64_t begin, int64_t end, Constants constants, Body body) {
  if (c == kLanes) return for_rows_in_registers<1>(begin, end, constants, body);
  if (c == 2 * kLanes) return for_rows_in_registers<2>(begin, end, constants, body);
  if (c == 4 * kLanes) return for_rows_in_registers<4>(begin, end, constants, body);
  for (int64_t row = begin; row < end; ++row)
    for_channels(
        c, [&](int64_t k, auto access)
               __attribute__((always_inline)) { body(row, k, access, constants(k, access)); });
}

CONVOY_INLINE int64_t block_count(int64_t rows) {
  return (rows + kBatchNormRowBlock - 1) / kBatchNormRowBlock;
}

// body(block, first row, end row), blocks shared among threads. Blocks do not depend on the
// threads.
template <typename Body>
CONVOY_INLINE void for_blocks(int64_t rows, int threads, Body body) {
  const int64_t blocks = block_count(rows);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kBatchNormRowBlock;
    const int64_t end = begin + kBatchNormRowBlock < rows ? begin + kBatchNormRowBlock : rows;
    body(block, begin, end);
  }
}

template <typename T>
void statistics(float* partial, const T* x, const float* shift, int64_t rows, int64_t c,
                int threads) {
  for_blocks(rows, threads, [=](int64_t block, int64_t begin, int64_t end) {
    sum_rows(
        partial + block * 2 * c, c, begin, end,
        [=](int64_t row, int64_t k, auto access, Floats& sum, Floats& squares)
            __attribute__((always_inline)) {
              const Floats d = access.get(x + row * c + k) - access.get(shift + k);
              sum += d;
              squares += d * d;
            });
  });
}

template <typename T, bool kRelu, bool kMask, bool kResidual>
void normalise_as(T* y, uint16_t* mask, const T* x, const T* residual, const float* mean,
                  const float* scale, const float* beta, int64_t rows, int64_t c, int threads) {
  const int64_t words = (c + 15) / 16;
  struct Affine {
    Floats mean, scale, beta;
  };
  const auto constants = [=](int64_t k, auto access) __attribute__((always_inline)) {
    return Affine{access.get(mean + k), access.get(scale + k), access.get(beta + k)};
  };
  for_blocks(rows, threads, [=](int64_t, int64_t begin, int64_t end) {
    for_rows(
        c, begin, end, constants,
        [=](int64_t row, int64_t k, auto access, const Affine& affine)
            __attribute__((always_inline)) {
              const int64_t i = row * c + k;
              Floats v = (access.get(x + i) - affine.mean) * affine.scale + affine.beta;
              if constexpr (kResidual) v += access.get(residual + i);
              if constexpr (kMask) put_positive(mask + row * words, k, v);
              if constexpr (kRelu)
                v = v < 0.0f ? Floats{} : v;  // NaN stays NaN, so that it is seen
              access.put(y + i, v);
            });
  });
}

template <typename T>
void normalise(T* y, uint16_t* mask, const T* x, const T* residual, const float* mean,
               const float* scale, const float* beta, int64_t rows, int64_t c, bool relu,
               int threads) {
  const auto run = [&](auto kernel) {
    kernel(y, mask, x, residual, mean, scale, beta, rows, c, threads);
  };
  if (relu && mask)
    residual ? run(normalise_as<T, true, true, true>) : run(normalise_as<T, true, true, false>);
  else if (relu)
    residual ? run(normalise_as<T, true, false, true>) : run(normalise_as<T, true, false, false>);
  else
    residual ? run(normalise_as<T, false, false, true>) : run(normalise_as<T, false, false, false>);
}

template <typename T, bool kMask, bool kTwo, bool kStore>
void backward_sums_as(float* partial, T* g_out, const T* dy0, const T* dy1, const uint16_t* mask,
                      const T* x, const float* mean, int64_t rows, int64_t c, int threads) {
  const int64_t words = (c + 15) / 16;
  for_blocks(rows, threads, [=](int64_t block, int64_t begin, int64_t end) {
    sum_rows(
        partial + block * 2 * c, c, begin, end,
        [=](int64_t row, int64_t k, auto access, Floats& sum, Floats& products)
            __attribute__((always_inline)) {
              const int64_t i = row * c + k;
              Floats g = access.get(dy0 + i);
              if constexpr (kTwo) g += access.get(dy1 + i);
              if constexpr (kMask) g = keep_lanes(g, mask + row * words, k);
              if constexpr (kStore) access.put(g_out + i, g);
              sum += g;
              products += g * (access.get(x + i) - access.get(mean + k));
            });
  });
}

template <typename T>
void backward_sums(float* partial, T* g, const T* dy0, const T* dy1, const uint16_t* mask,
                   const T* x, const float* mean, int64_t rows, int64_t c, int threads) {
  const auto run = [&](auto kernel) {
    kernel(partial, g, dy0, dy1, mask, x, mean, rows, c, threads);
  };
  const int which = (mask ? 4 : 0) + (dy1 ? 2 : 0) + (g ? 1 : 0);
  switch (which) {
    case 0:
      return run(backward_sums_as<T, false, false, false>);
    case 1:
      return run(backward_sums_as<T, false, false, true>);
    case 2:
      return run(backward_sums_as<T, false, true, false>);
    case 3:
      return run(backward_sums_as<T, false, true, true>);
    case 4:
      return run(backward_sums_as<T, true, false, false>);
    case 5:
      return run(backward_sums_as<T, true, false, true>);
    case 6:
      return run(backward_sums_as<T, true, true, false>);
    default:
      return run(backward_sums_as<T, true, true, true>);
  }
}

template <typename T, bool kMask>
void backward_apply_as(T* dx, const T* g_in, const uint16_t* mask, const T* x, const float* mean,
                       const float* a, const float* b, const float* k0, int64_t rows, int64_t c,
                       int threads) {
  const int64_t words = (c + 15) / 16;
  struct Factors {
    Floats mean, a, b, k;
  };
  const auto constants = [=](int64_t k, auto access) __attribute__((always_inline)) {
    return Factors{access.get(mean + k), access.get(a + k), access.get(b + k), access.get(k0 + k)};
  };
  for_blocks(rows, threads, [=](int64_t, int64_t begin, int64_t end) {
    for_rows(
        c, begin, end, constants,
        [=](int64_t row, int64_t k, auto access, const Factors& factors)
            __attribute__((always_inline)) {
              const int64_t i = row * c + k;
              Floats g = access.get(g_in + i);
              if constexpr (kMask) g = keep_lanes(g, mask + row * words, k);
              access.put(dx + i, g * factors.a + (access.get(x + i) - factors.mean) * factors.b +
                                     factors.k);
            });
  });
}

template <typename T>
void backward_apply(T* dx, const T* g, const uint16_t* mask, const T* x, const float* mean,
                    const float* a, const float* b, const float* k, int64_t rows, int64_t c,
                    int threads) {
  mask ? backward_apply_as<T, true>(dx, g, mask, x, mean, a, b, k, rows, c, threads)
       : backward_apply_as<T, false>(dx, g, mask, x, mean, a, b, k, rows, c, threads);
}

template <typename T, bool kMask, bool kTwo>
void scale_gradient_as(T* dx, T* g_out, const T* dy0, const T* dy1, const uint16_t* mask,
                       const float* scale, int64_t rows, int64_t c, int threads) {
  const int64_t words = (c + 15) / 16;
  for_blocks(rows, threads, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for_channels(
          c, [=](int64_t k, auto access) __attribute__((always_inline)) {
            const int64_t i = row * c + k;
            Floats g = access.get(dy0 + i);
            if constexpr (kTwo) g += access.get(dy1 + i);
            if constexpr (kMask) g = keep_lanes(g, mask + row * words, k);
            if (g_out) access.put(g_out + i, g);
            if (dx) access.put(dx + i, g * access.get(scale + k));
          });
  });
}

template <typename T>
void scale_gradient(T* dx, T* g, const T* dy0, const T* dy1, const uint16_t* mask,
                    const float* scale, int64_t rows, int64_t c, int threads) {
  const auto run = [&](auto kernel) { kernel(dx, g, dy0, dy1, mask, scale, rows, c, threads); };
  if (mask)
    dy1 ? run(scale_gradient_as<T, true, true>) : run(scale_gradient_as<T, true, false>);
  else
    dy1 ? run(scale_gradient_as<T, false, true>) : run(scale_gradient_as<T, false, false>);
}

}  // namespace

const BatchNormKernels<float> batch_norm_kernels_fp32 = {
    statistics<float>, normalise<float>, backward_sums<float>, backward_apply<float>,
    scale_gradient<float>};
const BatchNormKernels<Bfloat16> batch_norm_kernels_bf16 = {
    statistics<Bfloat16>, normalise<Bfloat16>, backward_sums<Bfloat16>, backward_apply<Bfloat16>,
    scale_gradient<Bfloat16>};

}  // namespace convoy::ops::CONVOY_ISA
