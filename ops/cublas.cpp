#include "ops/cublas.h"

#include <cublasLt.h>

#include <algorithm>
#include <optional>
#include <source_location>

#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::ops::cublas {
namespace {

// What an algorithm may ask for; more than the 32 MiB that NVIDIA recommends on Hopper gains
// nothing.
constexpr size_t kMostWorkspace = size_t{32} << 20;
constexpr size_t kWorkspaceAlignment = 256, kWideAlignment = 16;

void check(cublasStatus_t status, std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ExitCode::kFault, "cuBLASLt: {} in {} ({}:{})", cublasLtGetStatusName(status),
       where.function_name(), where.file_name(), where.line());
}

void destroy_matmul(cublasLtMatmulDesc_t d) {
  cublasLtMatmulDescDestroy(d);
}
void destroy_layout(cublasLtMatrixLayout_t l) {
  cublasLtMatrixLayoutDestroy(l);
}
void destroy_preference(cublasLtMatmulPreference_t p) {
  cublasLtMatmulPreferenceDestroy(p);
}
using Matmul = cuda::UniqueHandle<cublasLtMatmulDesc_t, &destroy_matmul>;
using Layout = cuda::UniqueHandle<cublasLtMatrixLayout_t, &destroy_layout>;
using Preference = cuda::UniqueHandle<cublasLtMatmulPreference_t, &destroy_preference>;

cudaDataType_t to_cuda(DType type) {
  if (type == DType::kFloat32) return CUDA_R_32F;
  if (type == DType::kBfloat16) return CUDA_R_16BF;
  if (type == DType::kFloat16) return CUDA_R_16F;
  fail(ExitCode::kBadJob, "a GPU multiplies in fp32, bf16 and fp16, not in {}", name_of(type));
}

// Rows without gaps are cuBLAS's columns: memory of [rows, columns] is its [columns, rows].
Layout make_layout(DType type, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, to_cuda(type), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), columns));
  return Layout(layout);
}

template <typename Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t what, Value value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), what, &value, sizeof value));
}

struct Algorithm {
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace_bytes;
};

}  // namespace

void destroy(cublasLtContext* handle) {
  if (cublasLtDestroy(handle) != CUBLAS_STATUS_SUCCESS)
    log::error("cuBLASLt: an error while freeing its handle");
}

Handle make_handle() {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle));
  return Handle(handle);
}

std::string version() {
  const size_t v = cublasLtGetVersion();
  return fmt::format("cuBLASLt {}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

// d^T = b^T a^T is what cuBLAS computes: its first factor is our b.
struct Product::Plan {
  Plan(const Handle& h, const ProductShape& s)
      : handle(h.get()),
        shape(s),
        a(s.a_transposed ? make_layout(s.in, s.k, s.m) : make_layout(s.in, s.m, s.k)),
        b(s.b_transposed ? make_layout(s.in, s.n, s.k) : make_layout(s.in, s.k, s.n)),
        d(make_layout(s.out, s.m, s.n)) {
    cublasLtMatmulDesc_t m = nullptr;
    check(cublasLtMatmulDescCreate(
        &m, s.tf32 && s.in == DType::kFloat32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
        CUDA_R_32F));
    matmul = Matmul(m);
    const cublasOperation_t first = s.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = s.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(m, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    check(cublasLtMatmulDescSetAttribute(m, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    wide = choose(kWideAlignment, kWideAlignment);
    narrow = choose(size_of(s.in), size_of(s.out));
    if (!wide) wide = narrow;
    if (!wide)
      fail(ExitCode::kFault, "{} has no algorithm for the product {}", version(), describe());
  }

  std::optional<Algorithm> choose(size_t in_alignment, size_t out_alignment) const {
    cublasLtMatmulPreference_t p = nullptr;
    check(cublasLtMatmulPreferenceCreate(&p));
    const Preference preference(p);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kMostWorkspace});
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    for (const auto which :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES})
      set(preference, which, static_cast<uint32_t>(in_alignment));
    for (const auto which :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(preference, which, static_cast<uint32_t>(out_alignment));
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, matmul.get(), b.get(), a.get(), d.get(), d.get(), p, 1, &result, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
    check(status);
    if (found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    return Algorithm{result.algo, result.workspaceSize};
  }

  std::string describe() const {
    return fmt::format("[{}, {}] x [{}, {}] in {} with result in {}", shape.m, shape.k, shape.k,
                       shape.n, name_of(shape.in), name_of(shape.out));
  }

  cublasLtHandle_t handle;
  ProductShape shape;
  Layout a, b, d;
  Matmul matmul;
  std::optional<Algorithm> wide, narrow;
};

Product::Product() = default;
Product::Product(const Handle& handle, const ProductShape& shape)
    : plan_(std::make_unique<Plan>(handle, shape)) {}
Product::Product(Product&&) noexcept = default;
Product& Product::operator=(Product&&) noexcept = default;
Product::~Product() = default;

size_t Product::workspace_bytes() const {
  size_t most = 0;
  if (plan_)
    for (const auto& algorithm : {plan_->wide, plan_->narrow})
      if (algorithm) most = std::max(most, algorithm->workspace_bytes);
  return most > 0 ? most + kWorkspaceAlignment : 0;
}

void Product::run(void* d, const void* a, const void* b, bool add, void* workspace,
                  cudaStream_t stream) const {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool is_wide = (address(d) | address(a) | address(b)) % kWideAlignment == 0;
  const auto& algorithm = is_wide ? plan_->wide : plan_->narrow;
  if (!algorithm)
    fail(ExitCode::kFault, "{} has no algorithm for unaligned matrices of the product {}",
         version(), plan_->describe());
  char* aligned = nullptr;
  if (algorithm->workspace_bytes > 0)
    aligned = static_cast<char*>(workspace) + (0 - address(workspace)) % kWorkspaceAlignment;
  const float alpha = 1, beta = add ? 1 : 0;
  check(cublasLtMatmul(plan_->handle, plan_->matmul.get(), &alpha, b, plan_->b.get(), a,
                       plan_->a.get(), &beta, d, plan_->d.get(), d, plan_->d.get(),
                       &algorithm->algorithm, aligned, algorithm->workspace_bytes, stream));
}

}  // namespace convoy::ops::cublas
