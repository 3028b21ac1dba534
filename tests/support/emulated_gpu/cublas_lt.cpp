// What we use of cuBLASLt, on the host: products by plain loops, summed in fp32. It knows no more
// than that, and holds callers to what they said: an algorithm that was recommended runs only the
// product and with the alignment that it was chosen for, and what lies in its workspace is lost.
//
// CONVOY_EMULATED_CUBLAS_PREFERS and _REFUSES name an algorithm (66, 67) that is recommended first,
// or that does not work; with _FORGETS none is made from its number.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "ops/core/tensor.h"
#include "tests/support/emulated_gpu/emulated_gpu.h"

struct cublasLtContext {};

namespace convoy::emulated_gpu {
namespace {

struct Matmul {
  cublasComputeType_t compute;
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
  bool operator==(const Matmul&) const = default;
};
struct Layout {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t ld;
  bool operator==(const Layout&) const = default;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

// What the 64 bytes of an algorithm hold: which one it is, the product that it was chosen for (0:
// made from its number, for any), and what its memory must be. Knobs are kept and mean nothing.
struct Algorithm {
  uint64_t product;
  uint32_t alignment[4];
  int32_t id;
  uint32_t knobs[CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID];
};
// Their sums go in different orders.
constexpr int32_t kForward = 66, kReversed = 67;
constexpr uint64_t kWorkspace = 1000;

// An environment variable that names an algorithm; 0: none.
int32_t named_by(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : 0;
}
bool is_known(int32_t id) {
  return (id == kForward || id == kReversed) && id != named_by("CONVOY_EMULATED_CUBLAS_REFUSES");
}
uint32_t knob_bytes(cublasLtMatmulAlgoConfigAttributes_t what) {
  return what >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID ? 2 : 4;
}
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

Matmul& of(cublasLtMatmulDesc_t m) {
  return *reinterpret_cast<Matmul*>(m);
}
Layout& of(cublasLtMatrixLayout_t l) {
  return *reinterpret_cast<Layout*>(l);
}
Preference& of(cublasLtMatmulPreference_t p) {
  return *reinterpret_cast<Preference*>(p);
}

uint64_t number_of(const Matmul& m, const Layout& a, const Layout& b, const Layout& d) {
  uint64_t number = 14695981039346656037u;  // FNV-1a
  const auto add = [&](auto v) { number = (number ^ static_cast<uint64_t>(v)) * 1099511628211u; };
  add(m.compute);
  add(m.a);
  add(m.b);
  for (const Layout* l : {&a, &b, &d}) {
    add(l->type);
    add(l->rows);
    add(l->columns);
    add(l->ld);
  }
  return number;
}

bool is_16_bit(cudaDataType_t t) {
  return t == CUDA_R_16F || t == CUDA_R_16BF;
}

// True for what the product of A and B may be called.
bool fits(const Matmul& m, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  const uint64_t a_rows = m.a == CUBLAS_OP_N ? a.rows : a.columns;
  const uint64_t a_columns = m.a == CUBLAS_OP_N ? a.columns : a.rows;
  const uint64_t b_rows = m.b == CUBLAS_OP_N ? b.rows : b.columns;
  const uint64_t b_columns = m.b == CUBLAS_OP_N ? b.columns : b.rows;
  const bool types = a.type == b.type && (d.type == a.type || d.type == CUDA_R_32F) &&
                     !(m.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && is_16_bit(a.type));
  return types && a_columns == b_rows && d.rows == a_rows && d.columns == b_columns && c == d;
}

float load(const void* p, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_16F) return to_float(static_cast<const Float16*>(p)[i]);
  if (type == CUDA_R_16BF) return to_float(static_cast<const Bfloat16*>(p)[i]);
  return static_cast<const float*>(p)[i];
}
void store(void* p, cudaDataType_t type, int64_t i, float v) {
  if (type == CUDA_R_16F)
    static_cast<Float16*>(p)[i] = to_float16(v);
  else if (type == CUDA_R_16BF)
    static_cast<Bfloat16*>(p)[i] = to_bfloat16(v);
  else
    static_cast<float*>(p)[i] = v;
}

// Ten bits of the mantissa.
float to_tf32(float v) {
  const auto bits = std::bit_cast<uint32_t>(v);
  return (bits & 0x7f800000u) == 0x7f800000u ? v
                                             : std::bit_cast<float>((bits + 0x1000u) & ~0x1fffu);
}

template <typename To>
cublasStatus_t assign(To& to, const void* from, size_t bytes) {
  if (!from || bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, sizeof to);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace convoy::emulated_gpu

using namespace convoy::emulated_gpu;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* out) {
  *out = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion() {
  return CUBLAS_VERSION;
}
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS";
  }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* out, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (scale != CUDA_R_32F ||
      (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_FAST_TF32))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  *out = reinterpret_cast<cublasLtMatmulDesc_t>(new Matmul{.compute = compute});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmul) {
  delete &of(matmul);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmul,
                                              cublasLtMatmulDescAttributes_t what, const void* from,
                                              size_t bytes) {
  if (what == CUBLASLT_MATMUL_DESC_TRANSA) return assign(of(matmul).a, from, bytes);
  if (what == CUBLASLT_MATMUL_DESC_TRANSB) return assign(of(matmul).b, from, bytes);
  return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* out, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  if (type != CUDA_R_32F && !is_16_bit(type)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (rows == 0 || columns == 0 || ld < static_cast<int64_t>(rows))
    return CUBLAS_STATUS_INVALID_VALUE;
  *out = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, rows, columns, ld});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &of(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* out) {
  *out = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete &of(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void* from, size_t bytes) {
  Preference& p = of(preference);
  switch (what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(p.workspace, from, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return assign(p.reductions, from, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(p.alignment[what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], from, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

// Two algorithms, which need a workspace. Sums in pieces whose order is not fixed are refused.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t matmul,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* returned) {
  const Preference& p = of(preference);
  if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (!fits(of(matmul), of(a), of(b), of(c), of(d)) || p.workspace < kWorkspace ||
      (p.reductions & ~uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}) != 0)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  int32_t ids[] = {kForward, kReversed};
  if (named_by("CONVOY_EMULATED_CUBLAS_PREFERS") == kReversed) std::swap(ids[0], ids[1]);
  *returned = 0;
  for (const int32_t id : ids) {
    if (!is_known(id) || *returned == requested) continue;
    Algorithm algorithm{.product = number_of(of(matmul), of(a), of(b), of(d)),
                        .alignment = {},
                        .id = id,
                        .knobs = {20, 1}};
    std::copy_n(p.alignment, 4, algorithm.alignment);
    cublasLtMatmulHeuristicResult_t& result = results[(*returned)++] = {};
    std::memcpy(&result.algo, &algorithm, sizeof algorithm);
    result.workspaceSize = kWorkspace;
    result.state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t, cublasComputeType_t, cudaDataType_t,
                                      cudaDataType_t, cudaDataType_t, cudaDataType_t,
                                      cudaDataType_t, int id, cublasLtMatmulAlgo_t* out) {
  if (!is_known(id) || std::getenv("CONVOY_EMULATED_CUBLAS_FORGETS"))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const Algorithm algorithm{.product = 0, .alignment = {1, 1, 1, 1}, .id = id, .knobs = {}};
  *out = {};
  std::memcpy(out, &algorithm, sizeof algorithm);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t what,
                                                    void* out, size_t bytes, size_t* written) {
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  if (bytes != knob_bytes(what)) return CUBLAS_STATUS_INVALID_VALUE;
  *written = bytes;
  std::memcpy(out,
              what == CUBLASLT_ALGO_CONFIG_ID ? static_cast<const void*>(&algorithm.id)
                                              : &algorithm.knobs[what - 1],
              bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t what,
                                                    const void* from, size_t bytes) {
  if (what == CUBLASLT_ALGO_CONFIG_ID || bytes != knob_bytes(what))
    return CUBLAS_STATUS_INVALID_VALUE;
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  std::memcpy(&algorithm.knobs[what - 1], from, bytes);
  std::memcpy(algo, &algorithm, sizeof algorithm);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t matmul,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  if (!fits(of(matmul), of(a), of(b), of(c), of(d)) || !is_known(algorithm.id))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  result->workspaceSize = kWorkspace;
  result->state = CUBLAS_STATUS_SUCCESS;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t matmul, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (!algo) return CUBLAS_STATUS_NOT_SUPPORTED;
  Algorithm algorithm;
  std::memcpy(&algorithm, algo, sizeof algorithm);
  const Matmul m = of(matmul);
  const Layout la = of(a_layout), lb = of(b_layout), ld = of(d_layout);
  const bool chosen_for_it =
      algorithm.product == 0 || algorithm.product == number_of(m, la, lb, ld);
  if (!(of(c_layout) == ld) || !chosen_for_it || workspace_bytes < kWorkspace)
    return CUBLAS_STATUS_INVALID_VALUE;
  const void* pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!pointers[i] || reinterpret_cast<uintptr_t>(pointers[i]) % algorithm.alignment[i] != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  if (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
    return CUBLAS_STATUS_INVALID_VALUE;
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  enqueue(stream, [=] {
    std::memset(workspace, 0xcd, workspace_bytes);  // a and b do not lie there,
    const auto factor = [&](const void* p, const Layout& l, cublasOperation_t op, int64_t row,
                            int64_t column) {
      const float v =
          load(p, l.type, op == CUBLAS_OP_N ? row + column * l.ld : column + row * l.ld);
      return m.compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? to_tf32(v) : v;
    };
    const auto k = static_cast<int64_t>(m.a == CUBLAS_OP_N ? la.columns : la.rows);
    for (int64_t column = 0; column < static_cast<int64_t>(ld.columns); ++column)
      for (int64_t row = 0; row < static_cast<int64_t>(ld.rows); ++row) {
        float sum = 0;
        for (int64_t n = 0; n < k; ++n) {
          const int64_t i = algorithm.id == kReversed ? k - 1 - n : n;
          sum += factor(a, la, m.a, row, i) * factor(b, lb, m.b, i, column);
        }
        const int64_t at = row + column * ld.ld;
        // As BLAS has it, what is kept zero times is not read.
        store(d, ld.type, at, keep == 0 ? scale * sum : scale * sum + keep * load(c, ld.type, at));
      }
    std::memset(workspace, 0xcd, workspace_bytes);  // nor does d
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
