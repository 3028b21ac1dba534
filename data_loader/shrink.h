// Smaller JPEGs of images: what `convoy pack --short-side` stores in their place.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data_loader/image.h"

namespace convoy::data {

struct ShrinkSettings {
  int short_side = 0;  // pixels; images whose shorter side is no longer than that stay as they are
  int quality = 90;    // libjpeg's, 1 to 100
  bool half_chroma = false;  // 4:2:0 for all; else only where the image's own chroma is subsampled
  uint64_t max_pixels = 178956970;
};

// Not thread-safe: one per thread. The same bytes on every machine.
class Shrinker {
 public:
  explicit Shrinker(const ShrinkSettings& settings);
  ~Shrinker();

  // Decodes all of the image. Writes its smaller JPEG to `out`: every pixel decoded, Pillow's
  // antialiased BILINEAR to the short side (torchvision's sizes), baseline with Huffman tables of
  // its own; grey where all pixels are. False where the image is to stay as it is. `name` is for
  // messages. Throws BadContent.
  bool shrink(std::span<const uint8_t> image, const std::string& name, std::vector<uint8_t>& out);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::data
