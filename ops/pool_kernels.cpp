#include "ops/pool_kernels.h"

#include "ops/simd.h"

namespace convoy::ops::CONVOY_ISA {
namespace {

// The pixels [begin, end) of one side that the window of output `o` covers inside the image.
struct Span {
  int64_t begin, end;
};
CONVOY_INLINE Span pixels_of(int64_t o, const PoolGeometry& g, int64_t size) {
  const int64_t start = o * g.stride - g.padding;
  return {most(start, 0), least(start + g.kernel, size)};
}
// The outputs [begin, end) whose windows cover pixel `i`.
CONVOY_INLINE Span outputs_of(int64_t i, const PoolGeometry& g, int64_t outputs) {
  const int64_t from = i + g.padding - g.kernel + 1;
  return {from <= 0 ? 0 : (from + g.stride - 1) / g.stride,
          least((i + g.padding) / g.stride + 1, outputs)};
}

CONVOY_INLINE Floats inverse_area(const PoolGeometry& g, bool include_pad, Span rows,
                                  Span columns) {
  const int64_t area =
      include_pad ? g.kernel * g.kernel : (rows.end - rows.begin) * (columns.end - columns.begin);
  return splat(1.0f / static_cast<float>(area));
}

// body(image and row, image, row) for each of n * rows, shared among threads.
template <typename Body>
CONVOY_INLINE void for_rows(int64_t n, int64_t rows, int threads, Body body) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n * rows; ++i) body(i, i / rows, i % rows);
}

// body(geometry): of the usual windows with constants, so that nothing is divided and loops can be
// unrolled.
template <typename Body>
CONVOY_INLINE void with_constants(const PoolGeometry& g, Body body) {
  const auto run = [&](int64_t kernel, int64_t stride) __attribute__((always_inline)) {
    PoolGeometry known = g;
    known.kernel = kernel;
    known.stride = stride;
    body(known);
  };
  if (g.kernel == 3 && g.stride == 2) return run(3, 2);
  if (g.kernel == 3 && g.stride == 1) return run(3, 1);
  if (g.kernel == 2 && g.stride == 2) return run(2, 2);
  run(g.kernel, g.stride);
}

// v where the byte is `here`, else zero.
template <typename Access>
CONVOY_INLINE Floats keep_at(Floats v, const uint8_t* place, int32_t here, Access access) {
  return access.get(place) == static_cast<float>(here) ? v : Floats{};
}
#if defined(__AVX512BW__) && defined(__AVX512VL__)  // bytes, not converted to floats
CONVOY_INLINE Floats keep_at(Floats v, const uint8_t* place, int32_t here, Whole) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(place));
  const __mmask16 at = _mm_cmpeq_epi8_mask(bytes, _mm_set1_epi8(static_cast<char>(here)));
  return reinterpret_cast<Floats>(_mm512_maskz_mov_ps(at, reinterpret_cast<__m512>(v)));
}
#endif

// Row p of the outputs of an image; y and place: of that row.
template <typename T>
CONVOY_INLINE void max_forward_row(T* y, uint8_t* place, const T* x, int64_t p,
                                   const PoolGeometry& g) {
  const Span rows = pixels_of(p, g, g.h);
  for (int64_t q = 0; q < g.q; ++q) {
    const Span columns = pixels_of(q, g, g.w);
    const int64_t top = p * g.stride - g.padding, left = q * g.stride - g.padding;
    const auto first = static_cast<int32_t>((rows.begin - top) * g.kernel + (columns.begin - left));
    for_channels(
        g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          Floats best = splat(-__builtin_inff());
          Ints where = first - Ints{};  // also where nothing is above minus infinity
          for (int64_t i = rows.begin; i < rows.end; ++i)
            for (int64_t j = columns.begin; j < columns.end; ++j) {
              const Floats v = access.get(x + (i * g.w + j) * g.c + k);
              // NaN wins, so that it is seen.
              const Ints wins = (v > best) | (v != v);  // NOLINT(misc-redundant-expression)
              const auto here = static_cast<int32_t>((i - top) * g.kernel + (j - left));
              best = wins ? v : best;
              where = wins ? here - Ints{} : where;
            }
          access.put(y + q * g.c + k, best);
          if (place) access.put_bytes(place + q * g.c + k, where);
        });
  }
}

template <typename T>
void max_forward(T* y, uint8_t* place, const T* x, const PoolGeometry& geometry, int threads) {
  for_rows(geometry.n, geometry.p, threads, [=, &geometry](int64_t row, int64_t image, int64_t p) {
    with_constants(
        geometry, [&](const PoolGeometry& g) __attribute__((always_inline)) {
          const int64_t at = row * g.q * g.c;
          max_forward_row(y + at, place ? place + at : nullptr, x + image * g.h * g.w * g.c, p, g);
        });
  });
}

// Row i of the pixels of an image: each asks the windows that cover it, so every element is written
// once.
template <typename T>
CONVOY_INLINE void max_backward_row(T* dx, const T* dy, const uint8_t* place, int64_t i,
                                    const PoolGeometry& g) {
  const Span rows = outputs_of(i, g, g.p);
  for (int64_t j = 0; j < g.w; ++j) {
    const Span columns = outputs_of(j, g, g.q);
    for_channels(
        g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
          Floats sum = {};
          for (int64_t p = rows.begin; p < rows.end; ++p)
            for (int64_t q = columns.begin; q < columns.end; ++q) {
              const int64_t out = (p * g.q + q) * g.c + k;
              const auto here = static_cast<int32_t>((i - (p * g.stride - g.padding)) * g.kernel +
                                                     (j - (q * g.stride - g.padding)));
              sum += keep_at(access.get(dy + out), place + out, here, access);
            }
          access.put(dx + j * g.c + k, sum);
        });
  }
}

template <typename T>
void max_backward(T* dx, const T* dy, const uint8_t* place, const PoolGeometry& geometry,
                  int threads) {
  for_rows(geometry.n, geometry.h, threads, [=, &geometry](int64_t row, int64_t image, int64_t i) {
    with_constants(
        geometry, [&](const PoolGeometry& g) __attribute__((always_inline)) {
          const int64_t at = image * g.p * g.q * g.c;
          max_backward_row(dx + row * g.w * g.c, dy + at, place + at, i, g);
        });
  });
}

template <typename T>
void avg_forward(T* y, const T* x, const PoolGeometry& g, bool include_pad, int threads) {
  for_rows(g.n, g.p, threads, [=, &g](int64_t out_row, int64_t image, int64_t p) {
    const Span rows = pixels_of(p, g, g.h);
    for (int64_t q = 0; q < g.q; ++q) {
      const Span columns = pixels_of(q, g, g.w);
      const Floats scale = inverse_area(g, include_pad, rows, columns);
      for_channels(
          g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
            Floats sum = {};
            for (int64_t i = rows.begin; i < rows.end; ++i)
              for (int64_t j = columns.begin; j < columns.end; ++j)
                sum += access.get(x + ((image * g.h + i) * g.w + j) * g.c + k);
            access.put(y + (out_row * g.q + q) * g.c + k, sum * scale);
          });
    }
  });
}

template <typename T>
void avg_backward(T* dx, const T* dy, const PoolGeometry& g, bool include_pad, int threads) {
  for_rows(g.n, g.h, threads, [=, &g](int64_t in_row, int64_t image, int64_t i) {
    const Span rows = outputs_of(i, g, g.p);
    for (int64_t j = 0; j < g.w; ++j) {
      const Span columns = outputs_of(j, g, g.q);
      for_channels(
          g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
            Floats sum = {};
            for (int64_t p = rows.begin; p < rows.end; ++p)
              for (int64_t q = columns.begin; q < columns.end; ++q)
                sum += access.get(dy + ((image * g.p + p) * g.q + q) * g.c + k) *
                       inverse_area(g, include_pad, pixels_of(p, g, g.h), pixels_of(q, g, g.w));
            access.put(dx + (in_row * g.w + j) * g.c + k, sum);
          });
    }
  });
}

// The pixels [begin, end) of a side of `size` that window `o` of `windows` covers; and, since the
// rule is its own inverse, the windows out of `size` that cover pixel `o` of `windows`.
CONVOY_INLINE Span grid_span(int64_t o, int64_t windows, int64_t size) {
  return {o * size / windows, ((o + 1) * size + windows - 1) / windows};
}

template <typename T>
void adaptive_forward(T* y, const T* x, const float* per_row, const float* per_column,
                      const PoolGeometry& g, int threads) {
  for_rows(g.n, g.p, threads, [=, &g](int64_t out_row, int64_t image, int64_t p) {
    const Span rows = grid_span(p, g.p, g.h);
    for (int64_t q = 0; q < g.q; ++q) {
      const Span columns = grid_span(q, g.q, g.w);
      const float scale = per_row[p] * per_column[q];
      for_channels(
          g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
            Floats sum = {};
            for (int64_t i = rows.begin; i < rows.end; ++i)
              for (int64_t j = columns.begin; j < columns.end; ++j)
                sum += access.get(x + ((image * g.h + i) * g.w + j) * g.c + k);
            access.put(y + (out_row * g.q + q) * g.c + k, sum * scale);
          });
    }
  });
}

template <typename T>
void adaptive_backward(T* dx, const T* dy, const float* per_row, const float* per_column,
                       const PoolGeometry& g, int threads) {
  for_rows(g.n, g.h, threads, [=, &g](int64_t in_row, int64_t image, int64_t i) {
    const Span rows = grid_span(i, g.h, g.p);
    for (int64_t j = 0; j < g.w; ++j) {
      const Span columns = grid_span(j, g.w, g.q);
      for_channels(
          g.c, [&](int64_t k, auto access) __attribute__((always_inline)) {
            Floats sum = {};
            for (int64_t p = rows.begin; p < rows.end; ++p)
              for (int64_t q = columns.begin; q < columns.end; ++q)
                sum += access.get(dy + ((image * g.p + p) * g.q + q) * g.c + k) *
                       (per_row[p] * per_column[q]);
            access.put(dx + (in_row * g.w + j) * g.c + k, sum);
          });
    }
  });
}

}  // namespace

const PoolKernels<float> pool_kernels_fp32 = {max_forward<float>,      max_backward<float>,
                                              avg_forward<float>,      avg_backward<float>,
                                              adaptive_forward<float>, adaptive_backward<float>};
const PoolKernels<Bfloat16> pool_kernels_bf16 = {
    max_forward<Bfloat16>,  max_backward<Bfloat16>,     avg_forward<Bfloat16>,
    avg_backward<Bfloat16>, adaptive_forward<Bfloat16>, adaptive_backward<Bfloat16>};

}  // namespace convoy::ops::CONVOY_ISA
