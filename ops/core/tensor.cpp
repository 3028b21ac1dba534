#include "ops/core/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "ops/core/cache_line.h"
#include "ops/core/error.h"

namespace convoy {

size_t size_of(DType type) {
  switch (type) {
    case DType::kFloat32:
      return 4;
    case DType::kBfloat16:
      return 2;
    case DType::kFloat16:
      return 2;
    case DType::kUint8:
      return 1;
    case DType::kInt32:
      return 4;
  }
  return 0;
}

const char* name_of(DType type) {
  switch (type) {
    case DType::kFloat32:
      return "fp32";
    case DType::kBfloat16:
      return "bf16";
    case DType::kFloat16:
      return "fp16";
    case DType::kUint8:
      return "uint8";
    case DType::kInt32:
      return "int32";
  }
  return "?";
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}, {}, {}, {}]", shape.n, shape.c, shape.h, shape.w);
}

AlignedBuffer::AlignedBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLineBytes;
  const size_t rounded = round_up(bytes, alignment);
  void* memory = std::aligned_alloc(alignment, rounded);
  if (!memory)
    fail(ExitCode::kFault,
         "out of memory: {} bytes refused; use a smaller batch or fewer workers at once", bytes);
  if (bytes >= kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
  std::memset(memory, 0, rounded);
  data_.reset(memory);
}

void AlignedBuffer::Free::operator()(void* p) const {
  std::free(p);
}

}  // namespace convoy
