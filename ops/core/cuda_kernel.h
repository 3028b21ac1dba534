// How our CUDA kernels are written, for every .cu file: launching, numbers, vectors.
//
// Every .cu file is compiled twice: by nvcc, and by the host's compiler for the emulated GPU of the
// tests (tests/support/emulated_gpu/), which runs the same kernels thread by thread. So a kernel is
// started with launch(), knows threadIdx, blockIdx, blockDim and gridDim, shares memory with
// __shared__ arrays of fixed size or dynamic_shared() and meets at __syncthreads(). Atomics are not
// used: sums are taken in a fixed order (law 1), which depends on shapes alone, never on the GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/core/cuda_handle.h"
#include "ops/core/error.h"
#include "ops/core/tensor.h"

namespace convoy::cuda {

inline constexpr int kThreads = 256;  // of a block, where nothing speaks for another number

// Memory that a block shares, as much as it is launched with; aligned to 16 bytes.
__device__ inline char* dynamic_shared() {
#ifdef CONVOY_EMULATED_GPU
  return emulated_gpu::dynamic_shared();
#else
  extern __shared__ uint4 convoy_dynamic_shared[];
  return reinterpret_cast<char*>(convoy_dynamic_shared);
#endif
}

// Enqueues kernel(arguments...) for a line of blocks, each with so many bytes of dynamic_shared();
// then the kernel has no __shared__ arrays beside it.
template <typename... Parameters, typename... Arguments>
void launch_sharing(size_t bytes, void (*kernel)(Parameters...), int64_t blocks, int threads,
                    cudaStream_t stream, Arguments... arguments) {
  if (blocks <= 0) return;
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::launch(blocks, threads, bytes, stream, [=] { kernel(arguments...); });
#else
  if (bytes > 0) {
    // A kernel may have more than it has unasked: as much as there is, whoever launches it last
    // before a graph is made. And as many blocks run as have room.
    const auto* function = reinterpret_cast<const void*>(kernel);
    int device = 0, most = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    check(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared));
  }
  const auto launch_with = [&](Parameters... parameters) {
    void* pointers[] = {&parameters...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                           dim3(static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(threads)), pointers, bytes, stream));
  };
  launch_with(arguments...);
#endif
}
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
            Arguments... arguments) {
  launch_sharing(0, kernel, blocks, threads, stream, arguments...);
}

// Blocks of kThreads for n threads; kernels that loop over what is left take at most this many.
inline int64_t blocks_for(int64_t n) {
  constexpr int64_t kMost = 132 * 16;  // enough to fill an H200
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return blocks < kMost ? blocks : kMost;
}

// for (i : this thread's share of [0, n)) body(i): loops over the grid.
template <typename Body>
__device__ void for_each(int64_t n, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    body(i);
}

// ---- Numbers: all arithmetic is in fp32, memory is fp32, bf16 or fp16.

__device__ inline float load(const float* p) {
  return *p;
}
__device__ inline void store(float* p, float v) {
  *p = v;
}
__device__ inline float load(const uint8_t* p) {
  return *p;
}
#ifdef CONVOY_EMULATED_GPU
inline float load(const Bfloat16* p) {
  return to_float(*p);
}
inline void store(Bfloat16* p, float v) {
  *p = to_bfloat16(v);
}
inline float load(const Float16* p) {
  return to_float(*p);
}
inline void store(Float16* p, float v) {
  *p = to_float16(v);
}
#else
__device__ inline float load(const Bfloat16* p) {
  return __uint_as_float(uint32_t{p->bits} << 16);
}
__device__ inline void store(Bfloat16* p, float v) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
__device__ inline float load(const Float16* p) {
  return __half2float(__ushort_as_half(p->bits));
}
__device__ inline void store(Float16* p, float v) {
  p->bits = __half_as_ushort(__float2half_rn(v));
}
#endif

// As it is when it has been stored.
template <typename T>
__device__ float rounded(float value) {
  T stored;
  store(&stored, value);
  return load(&stored);
}

// ---- Vectors: kWide consecutive elements, 16 bytes of a 16-bit type, in one or two accesses.

inline constexpr int kWide = 8;

struct Floats8 {
  float v[kWide];
};

template <typename T>
struct alignas(sizeof(T) == 1 ? 8 : 16) Bits8 {
  T v[kWide];
};

// As memory holds them. p must be aligned to its bytes, 16 at most; the emulated GPU looks.
template <typename T>
__device__ Bits8<T> read8(const T* p) {
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::expect_aligned(p, alignof(Bits8<T>));
#endif
  return *reinterpret_cast<const Bits8<T>*>(p);
}
template <typename T>
__device__ Floats8 load8(const T* p) {
  const Bits8<T> bits = read8(p);
  Floats8 out;
  for (int i = 0; i < kWide; ++i) out.v[i] = load(&bits.v[i]);
  return out;
}
// kWide elements that are not read again soon: first to leave the L2 cache (ld.global.cs).
template <typename T>
__device__ Bits8<T> load_last(const T* p) {
#ifdef CONVOY_EMULATED_GPU
  return read8(p);
#else
  static_assert(sizeof(Bits8<T>) % sizeof(uint4) == 0);
  uint4 words[sizeof(Bits8<T>) / sizeof(uint4)];
  for (size_t i = 0; i < sizeof(words) / sizeof(uint4); ++i)
    words[i] = __ldcs(reinterpret_cast<const uint4*>(p) + i);
  Bits8<T> out;
  memcpy(&out, words, sizeof(out));
  return out;
#endif
}
// Vector is uint4, float4 or, of eight bytes, uint2. Left to the compiler, a vector in an unrolled
// loop may become four stores.
template <typename Vector>
__device__ void store_vector(void* p, Vector v) {
#ifdef CONVOY_EMULATED_GPU
  emulated_gpu::expect_aligned(p, sizeof(Vector));
  *static_cast<Vector*>(p) = v;
#else
  __stwb(static_cast<Vector*>(p), v);
#endif
}
template <typename T>
__device__ void store8(T* p, const Floats8& values) {
  uint32_t words[kWide / 2];
  for (int i = 0; i < kWide / 2; ++i) {
    T low, high;
    store(&low, values.v[2 * i]);
    store(&high, values.v[2 * i + 1]);
    words[i] = low.bits | static_cast<uint32_t>(high.bits) << 16;
  }
  store_vector(p, uint4{words[0], words[1], words[2], words[3]});
}
__device__ inline void store8(float* p, const Floats8& values) {
  const float* v = values.v;
  store_vector(p, float4{v[0], v[1], v[2], v[3]});
  store_vector(p + 4, float4{v[4], v[5], v[6], v[7]});
}

// True where n elements from each of these addresses are whole vectors; null pointers do not count.
template <typename... Pointers>
bool are_wide(int64_t n, const Pointers*... pointers) {
  return n % kWide == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// body(std::bool_constant) of a flag that a kernel knows when it is compiled.
template <typename Body>
void with_flag(bool flag, Body body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// Calls body with a null pointer of the element type that `type` names.
template <typename Body>
auto with_cuda_type(DType type, Body body) {
  if (type == DType::kFloat32) return body(static_cast<float*>(nullptr));
  if (type == DType::kBfloat16) return body(static_cast<Bfloat16*>(nullptr));
  if (type == DType::kFloat16) return body(static_cast<Float16*>(nullptr));
  fail(ExitCode::kBadJob, "a GPU computes in fp32, bf16 and fp16, not in {}", name_of(type));
}

}  // namespace convoy::cuda
