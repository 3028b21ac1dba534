#include "ops/local_response_norm_kernels.h"

#include "ops/simd_math.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

// What one thread keeps of a row: squares and products stand between zeros, so that a sum that is
// cut at the first or the last channel needs no other loop.
struct Row {
  const ChannelWindow& w;
  float *squares, *products, *kept;

  CONVOY_INLINE_MEMBER Row(float* scratch, const ChannelWindow& window)
      : w(window),
        squares(scratch),
        products(squares + padded_channels(w.c) + padded_channels(w.before + w.behind)),
        kept(products + padded_channels(w.c) + padded_channels(w.before + w.behind)) {
    for (float* p = squares; p < kept; ++p) *p = 0.0f;
  }

  // Of the window of channel k ... when `values` are the first channel's.
  CONVOY_INLINE_MEMBER Floats window_sum(const float* values) const {
    Floats sum = load(values);
    for (int64_t d = 1; d <= w.before + w.behind; ++d) sum += load(values + d);
    return sum;
  }
  template <typename T>
  CONVOY_INLINE_MEMBER void square(const T* x) {
    for_channels(
        w.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          const Floats v = access.get(x + k);
          store(squares + w.before + k, v * v);
        });
  }
  CONVOY_INLINE_MEMBER Floats norm(int64_t k) const {
    return window_sum(squares + k) * w.scale + w.k;
  }
  CONVOY_INLINE_MEMBER Floats power(Floats s) const { return exponential(logarithm(s) * -w.beta); }
};

// body(row number, row) for each row, a contiguous part of them on each thread.
template <typename Body>
CONVOY_INLINE void for_rows(int64_t rows, float* scratch, const ChannelWindow& w, int threads,
                            Body body) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < threads; ++t) {
    Row row(scratch + t * local_response_norm_scratch(w), w);
    for (int64_t i = rows * t / threads; i < rows * (t + 1) / threads; ++i) body(i, row);
  }
}

template <typename T>
void forward(T* y, float* scratch, const T* x, const ChannelWindow& w, int64_t rows, int threads) {
  for_rows(rows, scratch, w, threads, [=](int64_t i, Row& row) {
    const T* in = x + i * row.w.c;
    T* out = y + i * row.w.c;
    row.square(in);
    for_channels(
        row.w.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          access.put(out + k, access.get(in + k) * row.power(row.norm(k)));
        });
  });
}

template <typename T>
void backward(T* dx, float* scratch, const T* dy, const T* x, const ChannelWindow& w, int64_t rows,
              int threads) {
  for_rows(rows, scratch, w, threads, [=](int64_t i, Row& row) {
    const int64_t c = row.w.c, first = i * c;
    row.square(x + first);
    for_channels(
        c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          const Floats s = row.norm(k);
          const Floats g = access.get(dy + first + k) * row.power(s);
          store(row.kept + k, g);
          store(row.products + row.w.behind + k, g * access.get(x + first + k) / s);
        });
    const float factor = 2.0f * row.w.scale * row.w.beta;
    for_channels(
        c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          const Floats sum = row.window_sum(row.products + k) * factor;
          access.put(dx + first + k, load(row.kept + k) - access.get(x + first + k) * sum);
        });
  });
}

}  // namespace

const LocalResponseNormKernels<float> local_response_norm_kernels_fp32 = {forward<float>,
                                                                          backward<float>};
const LocalResponseNormKernels<Bfloat16> local_response_norm_kernels_bf16 = {forward<Bfloat16>,
                                                                             backward<Bfloat16>};

}  // namespace convoy::ops::CONVOY_ISA
