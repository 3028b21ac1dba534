// Element types, shapes, and memory: AlignedBuffer owns, TensorView borrows.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace convoy {

enum class DType : uint8_t { kFloat32, kBfloat16, kFloat16, kUint8, kInt32 };

size_t size_of(DType type);
const char* name_of(DType type);

// A batch of images or of feature vectors: n samples of c channels, h x w. Memory is NHWC:
// element (n, c, h, w) is at ((n * H + h) * W + w) * C + c. A feature vector has h = w = 1.
struct Shape {
  int64_t n = 0, c = 0, h = 1, w = 1;

  int64_t elements() const { return n * c * h * w; }
  int64_t rows() const { return n * h * w; }  // of c channels each
  bool operator==(const Shape&) const = default;
};

// A tensor that is zero but where line and column are multiples of `stride`, stored without the
// rest: those pixels alone, in their order.
inline Shape compact(const Shape& x, int64_t stride) {
  return {x.n, x.c, (x.h + stride - 1) / stride, (x.w + stride - 1) / stride};
}

// "[32, 64, 56, 56]": N, C, H, W as users of torchvision read it.
std::string to_string(const Shape& shape);

// Borrows memory on a device; whoever made it keeps the memory alive.
struct TensorView {
  void* data = nullptr;
  Shape shape;
  DType type = DType::kFloat32;

  size_t bytes() const { return static_cast<size_t>(shape.elements()) * size_of(type); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// bf16 as its bits: the upper half of an fp32.
struct Bfloat16 {
  uint16_t bits;
};

inline float to_float(Bfloat16 value) {
  const uint32_t word = uint32_t{value.bits} << 16;
  float out;
  __builtin_memcpy(&out, &word, sizeof out);
  return out;
}

// Round to nearest, ties to even; NaN stays NaN, denormals become zero: as processors' instructions
// for it do.
inline Bfloat16 to_bfloat16(float value) {
  uint32_t word;
  __builtin_memcpy(&word, &value, sizeof word);
  if ((word & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((word >> 16) | 0x40u)};
  if ((word & 0x7f800000u) == 0) return {static_cast<uint16_t>((word & 0x80000000u) >> 16)};
  return {static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}

// IEEE 754 binary16 as its bits.
struct Float16 {
  uint16_t bits;
};

float to_float(Float16 value);
// Round to nearest, ties to even; too large becomes infinite, NaN stays NaN.
Float16 to_float16(float value);

// Host memory, aligned to 64 bytes and zeroed; more than 2 MiB asks for huge pages. Move only.
// Throws Error (kFault) when memory is exhausted.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);

  void* data() const { return data_.get(); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  size_t size() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace convoy
