// The limit that JPEG loaders are measured against: libjpeg-turbo's entropy decoding alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "data_loader/sample_times.h"

namespace convoy::data {

// Decodes JPEGs to quantised coefficients and throws them away: jpeg_read_header() and
// jpeg_read_coefficients() of the whole image; no inverse DCT, no colour, no pixels. What a loader
// that uses libjpeg-turbo cannot be faster than while it looks at all of a file. Keeps its memory
// from one image to the next. Not thread-safe: one per thread.
class EntropyDecoder {
 public:
  EntropyDecoder();
  ~EntropyDecoder();
  EntropyDecoder(const EntropyDecoder&) = delete;
  EntropyDecoder& operator=(const EntropyDecoder&) = delete;

  // What it took; nullopt: no JPEG, or one that libjpeg refuses. Damage that libjpeg only warns of
  // does not count.
  std::optional<Spent> decode(std::span<const uint8_t> bytes);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::data
