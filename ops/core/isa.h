// Which instruction set this processor offers our kernels, and the choice of a kernel table by it.
//
// The highest level has VBMI and VNNI, too: all processors with AVX512_BF16 do but Cooper Lake,
// which counts as AVX-512.
//
// Files called *_kernels.cpp are compiled once per instruction set (cmake/ConvoyTargets.cmake) and
// define their table in the namespaces isa_baseline, isa_avx2, isa_avx512 and isa_avx512_bf16.
// CONVOY_KERNELS(Table, name) in the header declares the four and a function name() that returns
// the best one.
#pragma once

#include <string>

namespace convoy {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The best of this processor, or a lower one named by CONVOY_MAX_ISA=baseline|avx2|avx512.
// Fixed for the life of the process.
Isa cpu_isa();
const char* name_of(Isa isa);

// True where bf16 convolutions exist: oneDNN needs AVX-512 for them.
bool cpu_supports_bf16();

// For fingerprints: what decides the bits of a CPU result beside the job.
std::string cpu_caches();

}  // namespace convoy

#if defined(__x86_64__)
#define CONVOY_KERNELS(Table, name)   \
  namespace isa_baseline {            \
  extern const Table name;            \
  }                                   \
  namespace isa_avx2 {                \
  extern const Table name;            \
  }                                   \
  namespace isa_avx512 {              \
  extern const Table name;            \
  }                                   \
  namespace isa_avx512_bf16 {         \
  extern const Table name;            \
  }                                   \
  inline const Table& name() {        \
    switch (cpu_isa()) {              \
      case Isa::kAvx512Bf16:          \
        return isa_avx512_bf16::name; \
      case Isa::kAvx512:              \
        return isa_avx512::name;      \
      case Isa::kAvx2:                \
        return isa_avx2::name;        \
      default:                        \
        return isa_baseline::name;    \
    }                                 \
  }
#else
#define CONVOY_KERNELS(Table, name) \
  namespace isa_baseline {          \
  extern const Table name;          \
  }                                 \
  inline const Table& name() {      \
    return isa_baseline::name;      \
  }
#endif
