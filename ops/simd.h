// Vectors for the *_kernels.cpp files, with GCC's vector extensions: +, -, *, comparisons and ?:
// work on them as on numbers. They are as wide as the target's registers, 16 floats on AVX-512 and
// 8 elsewhere. Nothing is contracted, and no result may depend on the width: sums run down a
// column, or over 16 partial sums in a fixed order (CPU tables are compared bit for bit by a test).
//
// Everything is in the target's own namespace: an inline function compiled for AVX-512 must never
// be the one that the linker keeps for a machine without it. For the same reason kernel files use
// no standard library (tests/ops/check_kernel_symbols.cmake looks).
#pragma once

#ifndef CONVOY_ISA
#error "simd.h is for files that cmake/ConvoyTargets.cmake compiles once per instruction set"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "ops/core/tensor.h"

#define CONVOY_INLINE [[gnu::always_inline]] static inline
#define CONVOY_INLINE_MEMBER [[gnu::always_inline]] inline

namespace convoy::ops::CONVOY_ISA {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

CONVOY_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

CONVOY_INLINE int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}

CONVOY_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

CONVOY_INLINE Floats splat(float value) {
  return value - Floats{};
}

// a * b + c, rounded once: for kernels that have no table for processors without it.
#if defined(__AVX512F__)
CONVOY_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return reinterpret_cast<Floats>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}
#elif defined(__FMA__)
CONVOY_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return reinterpret_cast<Floats>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}
#endif

// memcpy is how unaligned vectors are read without undefined behaviour; it becomes one instruction.
CONVOY_INLINE Floats load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

CONVOY_INLINE void store(float* p, Floats v) {
  __builtin_memcpy(p, &v, sizeof v);
}

CONVOY_INLINE Floats load(const Bfloat16* p) {
  Halves half;
  __builtin_memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)  // GCC's conversion takes five instructions
  // With a mask, as GCC 12 warns of an uninitialised value in the one without.
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half));
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(words) << 16);
#else
  return reinterpret_cast<Floats>(__builtin_convertvector(half, Words) << 16);
#endif
}

// Round to nearest, ties to even; NaN stays NaN, denormals become zero: the same bits as
// to_bfloat16.
CONVOY_INLINE void store(Bfloat16* p, Floats v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  __builtin_memcpy(p, &half, sizeof half);
#else
  const Words word = reinterpret_cast<Words>(v);
  const Words rounded = word + 0x7fffu + ((word >> 16) & 1u);
  const Words number = (word & 0x7f800000u) == 0u ? word & 0x80000000u : rounded;
  const Words chosen = (word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : number;
  const Halves half = __builtin_convertvector(chosen >> 16, Halves);
  __builtin_memcpy(p, &half, sizeof half);
#endif
}

CONVOY_INLINE Floats load(const uint8_t* p) {
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  // In three widenings: asked for one, GCC converts element by element.
  const Halves halves = __builtin_convertvector(bytes, Halves);
  return __builtin_convertvector(__builtin_convertvector(halves, Ints), Floats);
}

// One element at a time, for the ends of rows; the same arithmetic as the vectors'.
CONVOY_INLINE float get(const float* p) {
  return *p;
}
CONVOY_INLINE float get(const Bfloat16* p) {
  const uint32_t word = uint32_t{p->bits} << 16;
  float out;
  __builtin_memcpy(&out, &word, sizeof out);
  return out;
}
CONVOY_INLINE float get(const uint8_t* p) {
  return static_cast<float>(*p);
}
CONVOY_INLINE void put(float* p, float v) {
  *p = v;
}
CONVOY_INLINE void put(Bfloat16* p, float v) {
  uint32_t word;
  __builtin_memcpy(&word, &v, sizeof word);
  uint32_t chosen = word + 0x7fffu + ((word >> 16) & 1u);
  if ((word & 0x7f800000u) == 0) chosen = word & 0x80000000u;
  if ((word & 0x7fffffffu) > 0x7f800000u) chosen = word | 0x400000u;
  p->bits = static_cast<uint16_t>(chosen >> 16);
}

// Fewer elements: the first `count` lanes, the others zero; and back.
template <typename T>
CONVOY_INLINE Floats load_part(const T* p, int64_t count) {
  Floats v{};
  for (int64_t i = 0; i < count; ++i) v[i] = get(p + i);
  return v;
}
template <typename T>
CONVOY_INLINE void store_part(T* p, Floats v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) put(p + i, v[i]);
}

// rows[i][j] becomes rows[j][i].
CONVOY_INLINE void transpose(Floats (&rows)[kLanes]) {
#if defined(__AVX512F__)
  // Squares of `step` rows and columns change places across the diagonal, those of 1, 2, 4, 8.
  constexpr int32_t kRows = kLanes;
#pragma GCC unroll 4
  for (int32_t step = 1; step < kRows; step *= 2) {
    Ints first, second;  // lanes of two rows: where a lane of the new ones comes from
    for (int32_t i = 0; i < kRows; ++i) {
      first[i] = (i & step) != 0 ? kRows + i - step : i;
      second[i] = (i & step) != 0 ? kRows + i : i + step;
    }
#pragma GCC unroll 16
    for (int32_t i = 0; i < kRows; ++i) {
      if ((i & step) != 0) continue;
      const auto a = reinterpret_cast<__m512>(rows[i]),
                 b = reinterpret_cast<__m512>(rows[i + step]);
      rows[i] =
          reinterpret_cast<Floats>(_mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(first), b));
      rows[i + step] =
          reinterpret_cast<Floats>(_mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(second), b));
    }
  }
#else
  for (int64_t i = 0; i < kLanes; ++i)
    for (int64_t j = 0; j < i; ++j) {
      const float element = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = element;
    }
#endif
}

// Memory that comes near while something else is computed: a line for each turn of a loop.
struct Ahead {
  static constexpr int64_t kLine = 64;  // bytes
  const char *at, *end;

  template <typename T>
  CONVOY_INLINE_MEMBER Ahead(const T* begin, const T* end_in)
      : at(reinterpret_cast<const char*>(begin)), end(reinterpret_cast<const char*>(end_in)) {}

  // Where the lines of the next `turns` begin; `near`, of which a fetch costs nothing, once all
  // have come.
  CONVOY_INLINE_MEMBER const char* take(int64_t turns, const void* near) {
    if (at >= end) return static_cast<const char*>(near);
    const char* from = at;
    at += turns * kLine;
    return from;
  }
};
CONVOY_INLINE void fetch(const char*& line) {
  __builtin_prefetch(line, 0, 2);
  line += Ahead::kLine;
}

// A mask has a bit per element, 16 elements a word; element i of a row that starts at `words` is
// bit i % 16 of word i / 16. Lanes of a vector that starts at element `i`, a multiple of kLanes:
// which are greater than zero, written into the mask;
CONVOY_INLINE void put_positive(uint16_t* words, int64_t i, Floats v) {
#if defined(__AVX512F__)
  words[i / 16] = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_setzero_ps(), _CMP_GT_OQ);
#else
#if defined(__AVX2__)
  const int bits = _mm256_movemask_ps(
      _mm256_cmp_ps(reinterpret_cast<__m256>(v), _mm256_setzero_ps(), _CMP_GT_OQ));
#else
  int bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (v[lane] > 0.0f) << lane;
#endif
  // The first half of a word clears the other, so that the end of a row leaves no stale bits.
  words[i / 16] = static_cast<uint16_t>(i % 16 == 0 ? bits : words[i / 16] | bits << 8);
#endif
}

// those whose bit is set keep their value, the others become zero.
CONVOY_INLINE Floats keep_lanes(Floats v, const uint16_t* words, int64_t i) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_maskz_mov_ps(words[i / 16], reinterpret_cast<__m512>(v)));
#else
  const int32_t bits = words[i / 16] >> (i % 16);
  const Ints lane = {1, 2, 4, 8, 16, 32, 64, 128};
  const Ints keep = (lane & bits) != 0;
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(v) & keep);
#endif
}

// The two ways to touch memory: kLanes elements, or the few at the end of a row.
struct Whole {
  template <typename T>
  CONVOY_INLINE_MEMBER Floats get(const T* p) const {
    return load(p);
  }
  template <typename T>
  CONVOY_INLINE_MEMBER void put(T* p, Floats v) const {
    store(p, v);
  }
  CONVOY_INLINE_MEMBER void put_bytes(uint8_t* p, Ints v) const {
    const Bytes bytes = __builtin_convertvector(v, Bytes);
    __builtin_memcpy(p, &bytes, sizeof bytes);
  }
};
struct Part {
  int64_t count;
  template <typename T>
  CONVOY_INLINE_MEMBER Floats get(const T* p) const {
    return load_part(p, count);
  }
  template <typename T>
  CONVOY_INLINE_MEMBER void put(T* p, Floats v) const {
    store_part(p, v, count);
  }
  CONVOY_INLINE_MEMBER void put_bytes(uint8_t* p, Ints v) const {
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(v[i]);
  }
};

// body(k, access) for every kLanes elements of 0..c, so that a body is written once for rows of any
// length.
template <typename Body>
CONVOY_INLINE void for_channels(int64_t c, Body body) {
  int64_t k = 0;
  for (; k + kLanes <= c; k += kLanes) body(k, Whole{});
  if (k < c) body(k, Part{c - k});
}

}  // namespace convoy::ops::CONVOY_ISA
