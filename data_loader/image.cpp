#include "data_loader/image.h"

#include <algorithm>

#include "data_loader/coefficient_file.h"
#include "data_loader/jpeg.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/png.h"

namespace convoy::data {

ImageDecoder::ImageDecoder(Reading reading) : reading_(reading) {}
ImageDecoder::~ImageDecoder() = default;

void ImageDecoder::release() {
  jpeg_.reset();
  png_.reset();
  coefficients_.reset();
}

ImageCodec& ImageDecoder::open(std::span<const uint8_t> bytes, const std::string& name,
                               uint64_t max_pixels, ImageShape& shape) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  ImageCodec* codec = nullptr;
  if (start.starts_with("\xff\xd8\xff")) {
    if (const std::string why = unsupported(jpeg_facts(bytes)); !why.empty())
      throw BadContent(fmt::format("{}: a JPEG with {} is not read: store it anew as baseline or "
                                   "progressive JPEG with Huffman coding and 8 bits, or remove it",
                                   printable(name), why),
                       Damage::kUnsupported);
    if (!jpeg_) jpeg_ = make_jpeg_codec(reading_);
    codec = jpeg_.get();
  } else if (start.starts_with("\x89PNG\r\n\x1a\n")) {
    if (!png_) png_ = make_png_codec();
    codec = png_.get();
  } else if (is_coefficient_file(bytes)) {
    if (!coefficients_) coefficients_ = make_coefficient_codec();
    codec = coefficients_.get();
  } else if (bytes.empty()) {
    throw BadContent(fmt::format("{}: not an image (the file is empty)", printable(name)),
                     Damage::kEmpty);
  } else {
    throw BadContent(fmt::format("{}: not an image (starts with \"{}\"); JPEG and PNG are read",
                                 printable(name), printable(start.substr(0, 16))),
                     Damage::kNotAnImage);
  }
  codec->profile(times_);
  shape = codec->open(bytes, name, max_pixels);
  return *codec;
}

void check_pixels(uint64_t width, uint64_t height, uint64_t max_pixels, const std::string& name) {
  if (width * height > max_pixels)
    throw BadContent(fmt::format("{}: {} x {} pixels are more than data.max_pixels = {}",
                                 printable(name), width, height, max_pixels),
                     Damage::kTooLarge);
}

int stored_orientation(std::span<const uint8_t> bytes) {
  return is_coefficient_file(bytes) ? coefficient_file_orientation(bytes)
                                    : jpeg_facts(bytes).orientation;
}

void turn_upright(const Image& image, int orientation, Image& out) {
  const int width = image.shape.width, height = image.shape.height;
  const bool sideways = orientation >= 5;
  out.shape = {sideways ? width : height, sideways ? height : width, 3};
  out.region = {0, 0, out.shape.width, out.shape.height};
  out.stride = static_cast<size_t>(out.shape.width) * 3;
  out.pixels.resize(out.stride * static_cast<size_t>(out.shape.height));
  // Where the source's column and row come from: 5 is the transpose, the others mirror one or both.
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  uint8_t* to = out.pixels.data();
  for (int y = 0; y < out.shape.height; ++y)
    for (int x = 0; x < out.shape.width; ++x, to += 3) {
      const int column = sideways ? y : x, row = sideways ? x : y;
      const int from_x = (from_right ? width - 1 - column : column) - image.region.x;
      const int from_y = (from_below ? height - 1 - row : row) - image.region.y;
      std::copy_n(image.pixels.data() + static_cast<size_t>(from_y) * image.stride +
                      static_cast<size_t>(from_x) * 3,
                  3, to);
    }
}

}  // namespace convoy::data
