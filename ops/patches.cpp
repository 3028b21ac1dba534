#include "ops/patches.h"

#include <cstring>

#include "ops/shape_checks.h"

namespace convoy::ops {

Shape Patches::shape() const {
  return {image.n, (values() + 7) / 8 * 8, window_outputs(image.h, kernel, stride, padding),
          window_outputs(image.w, kernel, stride, padding)};
}

Shape Patches::unpadded_shape() const {
  Shape unpadded = shape();
  unpadded.c = values();
  return unpadded;
}

Patches patches_of(const Conv2d& reader, const Shape& image) {
  return {
      .image = image, .kernel = reader.kernel, .stride = reader.stride, .padding = reader.padding};
}

Conv2d over_patches(Conv2d reader) {
  reader.kernel = reader.stride = 1;
  reader.padding = 0;
  return reader;
}

void gather_patches(const Patches& patches, const void* image, void* out, size_t element_bytes) {
  const Shape &in = patches.image, shape = patches.shape();
  auto* to = static_cast<char*>(out);
  for (int64_t n = 0; n < shape.n; ++n)
    for (int64_t p = 0; p < shape.h; ++p)
      for (int64_t q = 0; q < shape.w; ++q, to += static_cast<size_t>(shape.c) * element_bytes) {
        std::memset(to, 0, static_cast<size_t>(shape.c) * element_bytes);
        char* value = to;
        for (int64_t c = 0; c < in.c; ++c)
          for (int64_t r = 0; r < patches.kernel; ++r)
            for (int64_t s = 0; s < patches.kernel; ++s, value += element_bytes) {
              const int64_t y = p * patches.stride - patches.padding + r,
                            x = q * patches.stride - patches.padding + s;
              if (y < 0 || y >= in.h || x < 0 || x >= in.w) continue;
              const auto place = static_cast<size_t>(((n * in.h + y) * in.w + x) * in.c + c);
              std::memcpy(value, static_cast<const char*>(image) + place * element_bytes,
                          element_bytes);
            }
      }
}

}  // namespace convoy::ops
