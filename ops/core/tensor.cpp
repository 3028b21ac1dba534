#include "ops/core/tensor.h"

#include <sys/mman.h>

#include <cmath>
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

float to_float(Float16 value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  float size;
  if (exponent == 31)
    size = fraction == 0 ? HUGE_VALF : std::nanf("");
  else if (exponent == 0)
    size = std::ldexp(static_cast<float>(fraction), -24);
  else
    size = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return std::copysign(size, value.bits >> 15 ? -1.0f : 1.0f);
}

Float16 to_float16(float value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  int bits = 0x7e00;       // NaN
  if (size >= 65520.0f) {  // halfway to the number behind the largest
    bits = 0x7c00;
  } else if (size < 0x1p-14f) {  // steps of 2^-24, zero and the smallest normal included
    bits = static_cast<int>(std::nearbyint(size * 0x1p24f));
  } else if (!std::isnan(size)) {
    const int exponent = std::ilogb(size);
    bits = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent))) +
           ((exponent + 14) << 10);  // a carry goes up into the exponent
  }
  return {static_cast<uint16_t>(sign | bits)};
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
    fail(ExitCode::kIo,
         "out of memory: {} bytes refused; lower batch_per_worker or run fewer workers at once",
         bytes);
  if (bytes >= kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
  std::memset(memory, 0, rounded);
  data_.reset(memory);
}

void AlignedBuffer::Free::operator()(void* p) const {
  std::free(p);
}

}  // namespace convoy
