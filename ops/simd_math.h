// Exponential and logarithm on the vectors of simd.h: polynomials of additions and products alone,
// each rounded by itself, so that every instruction set gives the same bits. Relative errors below
// 2e-7; constants and reduction as in Cephes (Moshier 1984, expf and logf), two terms at a time, so
// that fewer operations wait for another.
#pragma once

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

// e^x; 0 below -87, infinite above 88. NaN stays NaN.
CONVOY_INLINE Floats exponential(Floats x) {
  Floats v = x < -87.0f ? splat(-87.0f) : x;
  v = v > 88.0f ? splat(88.0f) : v;
  // x = n ln 2 + r, |r| <= ln 2 / 2: added to 1.5 * 2^23, a number is rounded to an integer, which
  // the lowest bits then hold.
  const Floats shifted = v * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = v - n * 0.693359375f - n * -2.12194440e-4f;
  const Floats square = r * r;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * square + (r * 8.3334519073e-3f + 4.1665795894e-2f);
  p = p * square + (r * 1.6666665459e-1f + 5.0000001201e-1f);
  p = p * square + r + 1.0f;
  const Words power = (reinterpret_cast<Words>(shifted) + 127u) << 23;  // 2^n
  const Floats out = p * reinterpret_cast<Floats>(power);
  return x < -87.0f ? Floats{} : x > 88.0f ? splat(__builtin_inff()) : out;
}

// ln x of a number that is not denormal and above 0; infinity and NaN stay what they are.
CONVOY_INLINE Floats logarithm(Floats x) {
  // x = 2^n m, sqrt(1/2) <= m < sqrt(2): taken off the bits of sqrt(1/2), the exponent counts from
  // there.
  const Words word = reinterpret_cast<Words>(x) - 0x3f3504f3u;
  const Ints exponent = reinterpret_cast<Ints>(word) >> 23;
  const Floats n = __builtin_convertvector(exponent, Floats);
  const Words mantissa = (word & 0x7fffffu) + 0x3f3504f3u;
  const Floats r = reinterpret_cast<Floats>(mantissa) - 1.0f;
  const Floats square = r * r;
  Floats p = square * 7.0376836292e-2f + (r * -1.1514610310e-1f + 1.1676998740e-1f);
  p = p * square + (r * -1.2420140846e-1f + 1.4249322787e-1f);
  p = p * square + (r * -1.6668057665e-1f + 2.0000714765e-1f);
  p = p * square + (r * -2.4999993993e-1f + 3.3333331174e-1f);
  const Floats tail = p * r * square + n * -2.12194440e-4f - square * 0.5f;
  const Floats out = r + tail + n * 0.693359375f;
  return x < __builtin_inff() ? out : x;
}

// 1 / (1 + e^-x): e^-|x| never overflows.
CONVOY_INLINE Floats logistic(Floats x) {
  const Floats e = exponential(reinterpret_cast<Floats>(reinterpret_cast<Words>(x) | 0x80000000u));
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

}  // namespace convoy::ops::CONVOY_ISA
