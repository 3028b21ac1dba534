#include "comm/arithmetic.h"

#include <cstring>

#include "ops/core/denormals.h"

namespace convoy::comm {
namespace {

void add_apart(float* __restrict sum, const float* __restrict left, const float* __restrict right,
               size_t floats) {
  for (size_t i = 0; i < floats; ++i) sum[i] = left[i] + right[i];
}

void add_to(float* __restrict sum, const float* __restrict addend, size_t floats) {
  for (size_t i = 0; i < floats; ++i) sum[i] += addend[i];
}

}  // namespace

// Said to the compiler which of the cases it is, or it would not vectorise. Lanes and the
// communication thread both come here, so denormals are flushed here and not by whoever calls.
void add(float* sum, const float* left, const float* right, size_t floats) {
  const FlushDenormals flush;
  if (sum == left)
    add_to(sum, right, floats);
  else if (sum == right)
    add_to(sum, left, floats);
  else
    add_apart(sum, left, right, floats);
}

void copy(float* to, const float* from, size_t floats) {
  constexpr size_t kPiece = 32;  // a size that compilers expand into moves
  size_t i = 0;
  for (; i + kPiece <= floats; i += kPiece) std::memcpy(to + i, from + i, kPiece * sizeof(float));
  std::memcpy(to + i, from + i, (floats - i) * sizeof(float));
}

}  // namespace convoy::comm
