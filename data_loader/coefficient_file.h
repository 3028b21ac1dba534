// JPEGs in another code: the same quantised coefficients, so the same pixels, in about 1.2 times
// the bytes, without Huffman codes. Rows of blocks are found by a table, blocks that are not wanted
// are passed over by their widths, and eight coefficients at a time are unpacked by a shuffle, a
// multiplication and a shift (data_loader/coefficient_kernels.h has that part of the format).
//
// A file, all numbers in little-endian order:
//   8 bytes   kCoefficientMagic
//   uint16    width, height
//   uint8     components (1: grey, 3: Y, Cb, Cr), sampling factors h and v of the first one,
//             EXIF's orientation (1 to 8)
//   uint16    [components][64] quantisation, in zigzag order
//   uint32    [rows of MCUs][v of each component] bytes of a row of blocks
//   the rows of blocks in that order
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data_loader/image.h"

namespace convoy::data {

// Ends in the version; the line ends show a transfer as text, as PNG's do.
constexpr std::string_view kCoefficientMagic =
    "\x8a"
    "CVC\r\n\x1a\x01";
constexpr const char* kCoefficientSuffix = ".cvc";

bool is_coefficient_file(std::span<const uint8_t> file);
// What it says of EXIF's orientation; 1 where it is cut off before that or says nonsense.
int coefficient_file_orientation(std::span<const uint8_t> file);
// Components of one that has been opened.
int coefficient_file_components(std::span<const uint8_t> file);

std::unique_ptr<ImageCodec> make_coefficient_codec();

// Makes such files. Not thread-safe: one per thread. The same bytes on every machine.
class CoefficientEncoder {
 public:
  explicit CoefficientEncoder(uint64_t max_pixels);
  ~CoefficientEncoder();

  // False where the image is to stay as it is: no JPEG, or one (CMYK, RGB, odd sampling) whose
  // pixels would not be libjpeg's. What is written has been decoded at every scale and compared
  // with those. `name` is for messages. Throws BadContent for a damaged JPEG and one of more than
  // max_pixels.
  bool encode(std::span<const uint8_t> image, const std::string& name, std::vector<uint8_t>& out);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::data
