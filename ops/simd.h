// Vectors of 16 floats for the *_kernels.cpp files, with GCC's vector extensions: +, -, *,
// comparisons and ?: work on them as on numbers, and the compiler lowers them to whatever the
// target has. The width is the same on every target, and nothing is contracted, so sums have the
// same bits too.
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

constexpr int64_t kLanes = 16;

typedef float F32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

CONVOY_INLINE F32x16 splat(float value) {
  return value - F32x16{};
}

// memcpy is how unaligned vectors are read without undefined behaviour; it becomes one instruction.
CONVOY_INLINE F32x16 load(const float* p) {
  F32x16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

CONVOY_INLINE void store(float* p, F32x16 v) {
  __builtin_memcpy(p, &v, sizeof v);
}

CONVOY_INLINE F32x16 load(const Bfloat16* p) {
  U16x16 half;
  __builtin_memcpy(&half, p, sizeof half);
  return reinterpret_cast<F32x16>(__builtin_convertvector(half, U32x16) << 16);
}

// Round to nearest, ties to even; NaN stays NaN: the same bits as to_bfloat16.
CONVOY_INLINE void store(Bfloat16* p, F32x16 v) {
  const U32x16 word = reinterpret_cast<U32x16>(v);
  const U32x16 rounded = word + 0x7fffu + ((word >> 16) & 1u);
  const U32x16 chosen = (word & 0x7fffffffu) > 0x7f800000u ? word | 0x400000u : rounded;
  const U16x16 half = __builtin_convertvector(chosen >> 16, U16x16);
  __builtin_memcpy(p, &half, sizeof half);
}

CONVOY_INLINE F32x16 load(const uint8_t* p) {
  U8x16 bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  // In three widenings: asked for one, GCC converts element by element.
  const U16x16 halves = __builtin_convertvector(bytes, U16x16);
  return __builtin_convertvector(__builtin_convertvector(halves, I32x16), F32x16);
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
  p->bits = static_cast<uint16_t>((word & 0x7fffffffu) > 0x7f800000u
                                      ? (word | 0x400000u) >> 16
                                      : (word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

// Up to 16 elements: the first `count` lanes, the others zero; and back.
template <typename T>
CONVOY_INLINE F32x16 load_part(const T* p, int64_t count) {
  F32x16 v{};
  for (int64_t i = 0; i < count; ++i) v[i] = get(p + i);
  return v;
}
template <typename T>
CONVOY_INLINE void store_part(T* p, F32x16 v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) put(p + i, v[i]);
}

// Bit i: lane i is greater than zero.
CONVOY_INLINE uint16_t positive_lanes(F32x16 v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_setzero_ps(), _CMP_GT_OQ);
#else
  const I32x16 bits = (v > 0.0f) & I32x16{1,   2,   4,    8,    16,   32,   64,    128,
                                          256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum |= bits[i];
  return static_cast<uint16_t>(sum);
#endif
}

// Lanes whose bit is set keep their value, the others become zero.
CONVOY_INLINE F32x16 keep_lanes(F32x16 v, uint16_t bits) {
#if defined(__AVX512F__)
  return reinterpret_cast<F32x16>(_mm512_maskz_mov_ps(bits, reinterpret_cast<__m512>(v)));
#else
  const I32x16 lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const I32x16 keep = ((lane & static_cast<int32_t>(bits)) != 0);
  return reinterpret_cast<F32x16>(reinterpret_cast<I32x16>(v) & keep);
#endif
}

// The two ways to touch memory: 16 elements, or the few at the end of a row.
struct Whole {
  template <typename T>
  CONVOY_INLINE_MEMBER F32x16 get(const T* p) const {
    return load(p);
  }
  template <typename T>
  CONVOY_INLINE_MEMBER void put(T* p, F32x16 v) const {
    store(p, v);
  }
  CONVOY_INLINE_MEMBER void put_bytes(uint8_t* p, I32x16 v) const {
    const U8x16 bytes = __builtin_convertvector(v, U8x16);
    __builtin_memcpy(p, &bytes, sizeof bytes);
  }
};
struct Part {
  int64_t count;
  template <typename T>
  CONVOY_INLINE_MEMBER F32x16 get(const T* p) const {
    return load_part(p, count);
  }
  template <typename T>
  CONVOY_INLINE_MEMBER void put(T* p, F32x16 v) const {
    store_part(p, v, count);
  }
  CONVOY_INLINE_MEMBER void put_bytes(uint8_t* p, I32x16 v) const {
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(v[i]);
  }
};

// body(k, access) for every 16 elements of 0..c, so that a body is written once for rows of any
// length.
template <typename Body>
CONVOY_INLINE void for_channels(int64_t c, Body body) {
  int64_t k = 0;
  for (; k + kLanes <= c; k += kLanes) body(k, Whole{});
  if (k < c) body(k, Part{c - k});
}

}  // namespace convoy::ops::CONVOY_ISA
