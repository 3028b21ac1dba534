// The transforms of Winograd's kernels (winograd_kernels.h) in one dimension, on vectors of
// channels; for files that are compiled once per instruction set, as simd.h is.
#pragma once

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {

#if defined(__FMA__)

CONVOY_INLINE Floats axpy(float a, Floats x, Floats y) {
  return fma(splat(a), x, y);
}

// F(kTile, 3) interpolates at 0 (if kZero), at pairs p and -p, and at infinity; vectors have the
// elements in this order.

struct Four {
  static constexpr int64_t kTile = 4, kPairs = 2;
  static constexpr bool kZero = true;
  static constexpr double kPoints[] = {0.75, 1.5};
};
struct Seven {
  static constexpr int64_t kTile = 7, kPairs = 4;
  static constexpr bool kZero = false;
  static constexpr double kPoints[] = {0.25, 0.625, 1.125, 2.0};
};

// All are exact but the scales.
template <typename Points>
struct Constants {
  static constexpr int64_t kPairs = Points::kPairs, kTile = Points::kTile;
  // Coefficients of x^2k in the product of (x^2 - q^2) over the pairs q: over all, and over all but
  // the i-th.
  float all[kPairs + 1] = {}, others[kPairs][kPairs] = {};
  float powers[kPairs][kTile] = {};  // p^r
  // Of the rows of G: for 0, for p; for -p the same where there is a 0, else with the other sign.
  float zero_scale = 0, scales[kPairs] = {};

  constexpr Constants() {
    double at_zero = 1;
    for (int64_t i = 0; i < kPairs; ++i) {
      const double p = Points::kPoints[i];
      double power = 1, at_p = Points::kZero ? 2 * p * p : 2 * p;
      for (int64_t r = 0; r < kTile; ++r, power *= p) powers[i][r] = exact(power);
      for (int64_t j = 0; j < kPairs; ++j)
        if (j != i) at_p *= p * p - square(j);
      scales[i] = static_cast<float>(1 / at_p);
      at_zero *= -p * p;
      multiply_out(others[i], i);
    }
    zero_scale = static_cast<float>(1 / at_zero);
    multiply_out(all, kPairs);
  }

 private:
  // No constant where it is not.
  static constexpr float exact(double value) {
    const auto rounded = static_cast<float>(value);
    if (static_cast<double>(rounded) != value) __builtin_unreachable();
    return rounded;
  }
  static constexpr double square(int64_t i) { return Points::kPoints[i] * Points::kPoints[i]; }
  template <int64_t kCount>
  static constexpr void multiply_out(float (&coefficients)[kCount], int64_t but) {
    double product[kCount + 1] = {1};
    for (int64_t j = 0; j < kPairs; ++j) {
      if (j == but) continue;
      for (int64_t k = kCount; k >= 0; --k)
        product[k] = (k > 0 ? product[k - 1] : 0) - square(j) * product[k];
    }
    for (int64_t k = 0; k < kCount; ++k) coefficients[k] = exact(product[k]);
  }
};

template <typename Points>
struct Transform {
  static constexpr int64_t kTile = Points::kTile, kPatch = kTile + 2, kPairs = Points::kPairs;
  static constexpr bool kZero = Points::kZero;
  static constexpr int64_t kFirst = kZero ? 1 : 0;  // element of the first p; of -p: one more
  static_assert(kPatch == kFirst + 2 * kPairs + 1);
  static constexpr Constants<Points> kOf{};

  // B^T d.
  CONVOY_INLINE_MEMBER static void of_input(Floats (&v)[kPatch], const Floats (&d)[kPatch]) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
      Floats low = d[kFirst + 2 * kPairs - 2], high = d[kFirst + 2 * kPairs - 1];
#pragma GCC unroll 4
      for (int64_t k = kPairs - 2; k >= 0; --k) {
        low = axpy(kOf.others[i][k], d[kFirst + 2 * k], low);
        high = axpy(kOf.others[i][k], d[kFirst + 2 * k + 1], high);
      }
      put_pair(v, i, high, low);
    }
    const auto whole = [&](int64_t first) __attribute__((always_inline)) {
      Floats sum = d[first + 2 * kPairs];
#pragma GCC unroll 4
      for (int64_t k = kPairs - 1; k >= 0; --k) sum = axpy(kOf.all[k], d[first + 2 * k], sum);
      return sum;
    };
    if (kZero) v[0] = whole(0);
    v[kPatch - 1] = whole(kFirst);
  }

  // A^T m.
  CONVOY_INLINE_MEMBER static void of_output(Floats (&y)[kTile], const Floats (&m)[kPatch]) {
    Floats even[kPairs], odd[kPairs];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
      even[i] = m[kFirst + 2 * i] + m[kFirst + 2 * i + 1];
      odd[i] = m[kFirst + 2 * i] - m[kFirst + 2 * i + 1];
    }
    y[0] = kZero ? m[0] + even[0] : even[0];
#pragma GCC unroll 4
    for (int64_t i = 1; i < kPairs; ++i) y[0] += even[i];
    sum_powers(y, even, odd, m[kPatch - 1]);
  }

  // A dy.
  CONVOY_INLINE_MEMBER static void of_gradient(Floats (&z)[kPatch], const Floats (&dy)[kTile]) {
    constexpr int64_t kEven = (kTile - 1) / 2 * 2, kOdd = kTile / 2 * 2 - 1;  // the last ones
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
      Floats even = dy[kEven], odd = dy[kOdd];
#pragma GCC unroll 4
      for (int64_t r = kEven - 2; r >= 0; r -= 2) even = axpy(kOf.powers[i][2], even, dy[r]);
#pragma GCC unroll 4
      for (int64_t r = kOdd - 2; r >= 0; r -= 2) odd = axpy(kOf.powers[i][2], odd, dy[r]);
      put_pair(z, i, even, odd);
    }
    if (kZero) z[0] = dy[0];
    z[kPatch - 1] = dy[kTile - 1];
  }

  // G g.
  CONVOY_INLINE_MEMBER static void of_weights(Floats (&u)[kPatch], const Floats (&g)[3]) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
      put_pair(u, i, axpy(kOf.powers[i][2], g[2], g[0]), g[1]);
      u[kFirst + 2 * i] *= kOf.scales[i];
      u[kFirst + 2 * i + 1] *= kZero ? kOf.scales[i] : -kOf.scales[i];
    }
    if (kZero) u[0] = kOf.zero_scale * g[0];
    u[kPatch - 1] = g[2];
  }

  // G^T du.
  CONVOY_INLINE_MEMBER static void of_weight_gradient(Floats (&g)[3], const Floats (&du)[kPatch]) {
    Floats even[kPairs], odd[kPairs];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPairs; ++i) {
      const Floats sum = kOf.scales[i] * (du[kFirst + 2 * i] + du[kFirst + 2 * i + 1]);
      const Floats difference = kOf.scales[i] * (du[kFirst + 2 * i] - du[kFirst + 2 * i + 1]);
      even[i] = kZero ? sum : difference;
      odd[i] = kZero ? difference : sum;
    }
    g[0] = even[0];
#pragma GCC unroll 4
    for (int64_t i = 1; i < kPairs; ++i) g[0] += even[i];
    if (kZero) g[0] = axpy(kOf.zero_scale, du[0], g[0]);
    sum_powers(g, even, odd, du[kPatch - 1]);
  }

 private:
  // The elements of p and -p of a polynomial with these even and odd parts (the odd one over p).
  CONVOY_INLINE_MEMBER static void put_pair(Floats (&v)[kPatch], int64_t i, Floats even,
                                            Floats odd) {
    v[kFirst + 2 * i] = axpy(kOf.powers[i][1], odd, even);
    v[kFirst + 2 * i + 1] = axpy(-kOf.powers[i][1], odd, even);
  }
  // out[r] from r = 1 on: p^r times the even or the odd part, whichever r is, summed over the
  // pairs; the last has infinity's element, too.
  template <int64_t kCount>
  CONVOY_INLINE_MEMBER static void sum_powers(Floats (&out)[kCount], const Floats (&even)[kPairs],
                                              const Floats (&odd)[kPairs], Floats at_infinity) {
#pragma GCC unroll 8
    for (int64_t r = 1; r < kCount; ++r) {
      const Floats* part = r % 2 == 0 ? even : odd;
      constexpr int64_t kLast = kPairs - 1;
      out[r] = r == kCount - 1 ? axpy(kOf.powers[kLast][r], part[kLast], at_infinity)
                               : kOf.powers[kLast][r] * part[kLast];
#pragma GCC unroll 4
      for (int64_t i = kLast - 1; i >= 0; --i) out[r] = axpy(kOf.powers[i][r], part[i], out[r]);
    }
  }
};

#endif

}  // namespace convoy::ops::CONVOY_ISA
