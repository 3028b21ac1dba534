// Products of small matrices by the tensor cores, and what feeds them, for .cu files: what all 32
// threads of a warp do together, on 16-bit types with sums in fp32 (PTX ISA, "Matrix
// Multiply-Accumulate Operation", mma.m16n8k16 and ldmatrix; sm_80 and newer). All threads of a
// warp call these at once.
//
// With g = lane / 4 and q = lane % 4, and two values in each 32-bit word, the first in its low
// half, a thread holds
//   of a [16, 16]    words 0 to 3: row g, columns 2q and 2q + 1; row g + 8; columns 2q + 8, rows so
//   of b [16, 8]     words 0 and 1: column g, rows 2q and 2q + 1; rows 2q + 8
//   of sums [16, 8]  row g, columns 2q and 2q + 1; row g + 8, likewise
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "ops/core/cuda_kernel.h"
#include "ops/core/tensor.h"

namespace convoy::cuda {

inline constexpr int kWarp = 32;

// Four matrices of 8 rows of eight 16-bit values: lane l gives the address of row l % 8 of matrix
// l / 8, aligned to 16 bytes, in shared memory. Word i: of matrix i, row g, columns 2q and 2q + 1;
// turned: column g, rows 2q and 2q + 1.
template <bool kTurned>
__device__ void load_matrices(uint32_t (&words)[4], const uint16_t* row) {
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::expect_aligned(row, 16);
  const auto* rows = static_cast<const uint16_t* const*>(emulated_gpu::meet_warp(&row, sizeof row));
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const uint16_t* const* of = rows + 8 * i;
    const uint16_t low = kTurned ? of[2 * q][g] : of[g][2 * q];
    const uint16_t high = kTurned ? of[2 * q + 1][g] : of[g][2 * q + 1];
    words[i] = low | static_cast<uint32_t>(high) << 16;
  }
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTurned)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
#endif
}

// Copies so many bytes to shared memory, zeros where `is_there` is false, without a register or a
// wait: the calling thread's are there after wait_for_copies(), and others see them after the next
// __syncthreads().
template <int kBytes>
__device__ void copy_ahead(void* to, const void* from, bool is_there) {
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::expect_aligned(to, kBytes);
  emulated_gpu::expect_aligned(from, kBytes);
  emulated_gpu::copy_later(to, from, kBytes, is_there);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(address), "l"(from), "n"(kBytes), "r"(is_there ? kBytes : 0)
                 : "memory");
#endif
}
__device__ inline void wait_for_copies() {
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::wait_for_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// sums += a b; T is Float16 or Bfloat16.
template <typename T>
__device__ void add_product(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CONVOY_EMULATED_GPU
  struct Held {
    uint32_t a[4], b[2];
  } own = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* all = static_cast<const Held*>(emulated_gpu::meet_warp(&own, sizeof own));
  const auto half = [](uint32_t word, unsigned which) {
    T value;
    value.bits = static_cast<uint16_t>(word >> 16 * which);
    return load(&value);
  };
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned column = 2 * q + i % 2, pair = k % 8 / 2, far = k / 8;
      sums[i] += half(all[4 * g + pair].a[2 * far + i / 2], k % 2) *
                 half(all[4 * column + pair].b[far], k % 2);
    }
#else
  if constexpr (std::is_same_v<T, Float16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace convoy::cuda
