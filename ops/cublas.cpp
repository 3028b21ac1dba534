#include "ops/cublas.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <source_location>
#include <span>
#include <utility>
#include <vector>

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

// The knobs of an algorithm, and how many bytes a value of each has.
struct Knob {
  cublasLtMatmulAlgoConfigAttributes_t what;
  size_t bytes;
};
constexpr std::array kKnobs = {
    Knob{CUBLASLT_ALGO_CONFIG_TILE_ID, 4},          Knob{CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4},
    Knob{CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4}, Knob{CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4},
    Knob{CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4},    Knob{CUBLASLT_ALGO_CONFIG_STAGES_ID, 4},
    Knob{CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2},   Knob{CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2}};

Choice choice_of(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t id = 0;
  size_t written = 0;
  check(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id,
                                             &written));
  Choice choice{.engine = id, .knobs = {}};
  for (const Knob& knob : kKnobs) {
    uint32_t value = 0;  // little-endian: two bytes are the lower ones
    if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, knob.what, &value, knob.bytes, &written) ==
        CUBLAS_STATUS_SUCCESS)
      choice.knobs.emplace_back(knob.what, value);
  }
  return choice;
}

// False where a sum's pieces would not be added in fp32 and in order.
bool is_allowed(const Choice& choice) {
  return std::ranges::all_of(choice.knobs, [](const auto& knob) {
    return knob.first != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME ||
           knob.second == CUBLASLT_REDUCTION_SCHEME_NONE ||
           knob.second == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  });
}

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

std::string to_text(const ProductShape& s) {
  return fmt::format("product [{}, {}{}] x [{}, {}{}] in {} with result in {}", s.m, s.k,
                     s.a_transposed ? " transposed" : "", s.k, s.n,
                     s.b_transposed ? " transposed" : "",
                     s.tf32 && s.in == DType::kFloat32 ? "tf32" : name_of(s.in), name_of(s.out));
}

// d^T = b^T a^T is what cuBLAS computes: its first factor is our b.
struct Product::Plan {
  Plan(const Handle& h, const ProductShape& s, Decisions& decisions)
      : handle(h.get()),
        shape(s),
        compute(s.tf32 && s.in == DType::kFloat32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                  : CUBLAS_COMPUTE_32F),
        a(s.a_transposed ? make_layout(s.in, s.k, s.m) : make_layout(s.in, s.m, s.k)),
        b(s.b_transposed ? make_layout(s.in, s.n, s.k) : make_layout(s.in, s.k, s.n)),
        d(make_layout(s.out, s.m, s.n)) {
    cublasLtMatmulDesc_t m = nullptr;
    check(cublasLtMatmulDescCreate(&m, compute, CUDA_R_32F));
    matmul = Matmul(m);
    const cublasOperation_t first = s.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = s.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(m, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    check(cublasLtMatmulDescSetAttribute(m, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    wide = find(kWideAlignment, kWideAlignment, decisions);
    if (!s.aligned) narrow = find(size_of(s.in), size_of(s.out), decisions);
    if (!wide) wide = narrow;
  }

  // The prescribed algorithm, else the library's choice.
  std::optional<Algorithm> find(size_t in_alignment, size_t out_alignment,
                                Decisions& decisions) const {
    const std::string name =
        fmt::format("{} aligned to {}, {}", to_text(shape), in_alignment, out_alignment);
    const Choice* prescribed = decisions.prescribed(name);
    if (prescribed && prescribed->engine == Choice::kNone) {
      decisions.decide(name, {});
      return std::nullopt;
    }
    if (prescribed) {
      std::string why;
      const Choice choice = *prescribed;
      if (const auto algorithm = make(choice, why)) {
        decisions.decide(name, choice);
        return algorithm;
      }
      decisions.refuse(name, version(), why);
    }
    return choose(name, in_alignment, out_alignment, decisions);
  }

  // Exactly this one, or nothing with the library's reason.
  std::optional<Algorithm> make(const Choice& choice, std::string& why) const {
    const auto refused = [&](cublasStatus_t status) {
      if (status != CUBLAS_STATUS_SUCCESS) why = cublasLtGetStatusName(status);
      return status != CUBLAS_STATUS_SUCCESS;
    };
    if (choice.engine > std::numeric_limits<int>::max() || !is_allowed(choice)) {
      why = "it is no algorithm that sums in fp32 and in a fixed order";
      return std::nullopt;
    }
    const cudaDataType_t in = to_cuda(shape.in), out = to_cuda(shape.out);
    Algorithm made{};
    if (refused(cublasLtMatmulAlgoInit(handle, compute, CUDA_R_32F, in, in, out, out,
                                       static_cast<int>(choice.engine), &made.algorithm)))
      return std::nullopt;
    for (const auto& [what, value] : choice.knobs) {
      const auto* knob = std::ranges::find(kKnobs, what, &Knob::what);
      if (knob == kKnobs.end() || value >= int64_t{1} << (8 * knob->bytes)) {
        why = fmt::format("it has no knob {}={}", what, value);
        return std::nullopt;
      }
      const auto set = static_cast<uint32_t>(value);
      if (refused(
              cublasLtMatmulAlgoConfigSetAttribute(&made.algorithm, knob->what, &set, knob->bytes)))
        return std::nullopt;
    }
    cublasLtMatmulHeuristicResult_t result{};
    if (refused(cublasLtMatmulAlgoCheck(handle, matmul.get(), b.get(), a.get(), d.get(), d.get(),
                                        &made.algorithm, &result)))
      return std::nullopt;
    if (result.workspaceSize > kMostWorkspace) {
      why = fmt::format("it wants {} MiB of workspace, more than {}", result.workspaceSize >> 20,
                        kMostWorkspace >> 20);
      return std::nullopt;
    }
    made.workspace_bytes = result.workspaceSize;
    return made;
  }

  // The best that the library recommends and that can be made again from its text: what is computed
  // with is made so, that all lives of a run have the same bits. Better without a record than not
  // at all.
  std::optional<Algorithm> choose(const std::string& name, size_t in_alignment,
                                  size_t out_alignment, Decisions& decisions) const {
    const std::vector<Algorithm> all = recommended(in_alignment, out_alignment);
    std::string why;
    for (const Algorithm& each : all) {
      const Choice choice = choice_of(each.algorithm);
      const auto made = make(choice, why);
      if (!made) continue;
      decisions.decide(name, choice);
      return made;
    }
    if (all.empty()) {
      decisions.decide(name, {});
      return std::nullopt;
    }
    log::warning(
        "{} does not make its own algorithm {} for the {} ({}): it is not recorded, and every rank "
        "and life of a run takes what the library recommends to it",
        version(), convoy::to_text(choice_of(all.front().algorithm)), name, why);
    return all.front();
  }

  // The best first.
  std::vector<Algorithm> recommended(size_t in_alignment, size_t out_alignment) const {
    constexpr int kMost = 8;
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
    std::array<cublasLtMatmulHeuristicResult_t, kMost> results{};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, matmul.get(), b.get(), a.get(), d.get(), d.get(), p, kMost, results.data(), &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
    check(status);
    std::vector<Algorithm> all;
    for (const cublasLtMatmulHeuristicResult_t& result :
         std::span(results).first(static_cast<size_t>(found)))
      if (result.state == CUBLAS_STATUS_SUCCESS) all.push_back({result.algo, result.workspaceSize});
    return all;
  }

  cublasLtHandle_t handle;
  ProductShape shape;
  cublasComputeType_t compute;
  Layout a, b, d;
  Matmul matmul;
  std::optional<Algorithm> wide, narrow;
};

Product::Product() = default;
Product::Product(const Handle& handle, const ProductShape& shape, Decisions& decisions)
    : plan_(std::make_unique<Plan>(handle, shape, decisions)) {
  if (!plan_->wide)
    fail(ExitCode::kFault, "{} has no algorithm for the {}", version(), to_text(shape));
}
Product Product::make_if_any(const Handle& handle, const ProductShape& shape,
                             Decisions& decisions) {
  Product product;
  auto plan = std::make_unique<Plan>(handle, shape, decisions);
  if (plan->wide) product.plan_ = std::move(plan);
  return product;
}
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
    fail(ExitCode::kFault, "{} has no algorithm for unaligned matrices of the {}", version(),
         to_text(plan_->shape));
  char* aligned = nullptr;
  if (algorithm->workspace_bytes > 0)
    aligned = static_cast<char*>(workspace) + (0 - address(workspace)) % kWorkspaceAlignment;
  const float alpha = 1, beta = add ? 1 : 0;
  check(cublasLtMatmul(plan_->handle, plan_->matmul.get(), &alpha, b, plan_->b.get(), a,
                       plan_->a.get(), &beta, d, plan_->d.get(), d, plan_->d.get(),
                       &algorithm->algorithm, aligned, algorithm->workspace_bytes, stream));
}

}  // namespace convoy::ops::cublas
