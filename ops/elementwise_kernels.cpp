#include "ops/elementwise_kernels.h"

#include "ops/simd_math.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

// body(first element, access) for every kLanes of n elements, in pieces shared among threads.
template <typename Body>
CONVOY_INLINE void for_elements(int64_t n, int threads, Body body) {
  constexpr int64_t kPiece = 16384;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = piece * kPiece;
    const int64_t count = begin + kPiece < n ? kPiece : n - begin;
    for_channels(
        count, [=](int64_t k, auto access)
                   __attribute__((always_inline)) { body(begin + k, access); });
  }
}

template <typename T>
void relu(T* y, uint16_t* mask, const T* x, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        const Floats v = access.get(x + i);
        if (mask) put_positive(mask, i, v);
        access.put(y + i, v < 0.0f ? Floats{} : v);
      });
}

template <typename T>
void keep(T* y, const T* x, const uint16_t* mask, float scale, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        access.put(y + i, keep_lanes(access.get(x + i), mask, i) * scale);
      });
}

template <typename T>
void add(T* y, const T* a, const T* b, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        access.put(y + i, access.get(a + i) + access.get(b + i));
      });
}

template <typename T>
void multiply(T* y, const T* a, const T* b, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        access.put(y + i, access.get(a + i) * access.get(b + i));
      });
}

template <typename T>
void sigmoid(T* y, const T* x, float sign, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        access.put(y + i, logistic(access.get(x + i) * sign));
      });
}

template <typename T>
void sigmoid_backward(T* dx, const T* dy, const T* y, float sign, int64_t n, int threads) {
  for_elements(
      n, threads, [=](int64_t i, auto access) __attribute__((always_inline)) {
        const Floats v = access.get(y + i);
        access.put(dx + i, access.get(dy + i) * (v * (1.0f - v)) * sign);
      });
}

template <typename T>
void normalise(T* y, const uint8_t* pixels, const float* mean, const float* inv_std, int64_t n,
               int64_t plane, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t image = 0; image < n; ++image) {
    const int64_t base = image * plane;
    for_channels(
        plane, [=](int64_t k, auto access) __attribute__((always_inline)) {
          access.put(y + base + k, (access.get(pixels + base + k) - access.get(mean + k)) *
                                       access.get(inv_std + k));
        });
  }
}

template <typename T>
void normalise_mixed(T* y, const uint8_t* pixels, const uint8_t* other, const float* mean,
                     const float* inv_std, float share, int64_t n) {
  for_channels(
      n, [=](int64_t k, auto access) __attribute__((always_inline)) {
        const auto m = access.get(mean + k), s = access.get(inv_std + k);
        access.put(y + k, (access.get(pixels + k) - m) * s * share +
                              (access.get(other + k) - m) * s * (1 - share));
      });
}

}  // namespace

const ElementwiseKernels<float> elementwise_kernels_fp32 = {
    relu<float>,      keep<float>,           add<float>,
    multiply<float>,  sigmoid<float>,        sigmoid_backward<float>,
    normalise<float>, normalise_mixed<float>};
const ElementwiseKernels<Bfloat16> elementwise_kernels_bf16 = {
    relu<Bfloat16>,      keep<Bfloat16>,           add<Bfloat16>,
    multiply<Bfloat16>,  sigmoid<Bfloat16>,        sigmoid_backward<Bfloat16>,
    normalise<Bfloat16>, normalise_mixed<Bfloat16>};

}  // namespace convoy::ops::CONVOY_ISA
