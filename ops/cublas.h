// Matrix products on the GPU: the only cuBLASLt plumbing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "ops/core/cuda_handle.h"
#include "ops/core/tensor.h"
#include "ops/decisions.h"

struct cublasLtContext;

namespace convoy::ops::cublas {

void destroy(cublasLtContext* handle);
using Handle = cuda::UniqueHandle<cublasLtContext*, &destroy>;
Handle make_handle();   // of the calling thread's current GPU
std::string version();  // "cuBLASLt 13.1.0"

// d [m, n] = a [m, k] b [k, n], row by row without gaps.
struct ProductShape {
  int64_t m = 0, n = 0, k = 0;
  bool a_transposed = false, b_transposed = false;  // memory holds a^T [k, m], b^T [n, k]
  DType in = DType::kFloat32;                       // of a and b
  DType out = DType::kFloat32;                      // of d: as `in`, or fp32
  bool tf32 = false;     // fp32 factors may be rounded to tf32 (10 bits) on their way in
  bool aligned = false;  // all pointers will be, to 16 bytes: nothing is decided for others
};

// One line, for messages and as the name of a decision, without what its pointers are aligned to.
std::string to_text(const ProductShape& shape);

// A product whose algorithm is chosen when it is made: the prescribed one, else the heuristic's
// best for the shape, sums in fp32. Long sums may be cut into pieces only where these are added in
// a step of its own, in fp32 and in order: bits repeat. There is one choice for pointers that are
// all aligned to 16 bytes, and one for others.
class Product {
 public:
  Product();  // none
  // Throws Error (kFault) if the library has nothing for the shape, PlanRefused if it does not do
  // what is prescribed.
  Product(const Handle& handle, const ProductShape& shape, Decisions& decisions);
  Product(Product&&) noexcept;
  Product& operator=(Product&&) noexcept;
  ~Product();

  // As the constructor, but none where the library has nothing.
  static Product make_if_any(const Handle& handle, const ProductShape& shape, Decisions& decisions);

  explicit operator bool() const { return plan_ != nullptr; }
  size_t workspace_bytes() const;
  // Enqueues d = a b or, to add, d += a b.
  void run(void* d, const void* a, const void* b, bool add, void* workspace,
           cudaStream_t stream) const;

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace convoy::ops::cublas
