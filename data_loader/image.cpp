#include "data_loader/image.h"

#include "data_loader/jpeg.h"
#include "data_loader/png.h"

namespace convoy::data {

ImageDecoder::ImageDecoder() = default;
ImageDecoder::~ImageDecoder() = default;

void ImageDecoder::release() {
  jpeg_.reset();
  png_.reset();
}

ImageCodec& ImageDecoder::open(std::span<const uint8_t> bytes, const std::string& name,
                               uint64_t max_pixels, ImageShape& shape) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  ImageCodec* codec = nullptr;
  if (start.starts_with("\xff\xd8\xff")) {
    if (!jpeg_) jpeg_ = make_jpeg_codec();
    codec = jpeg_.get();
  } else if (start.starts_with("\x89PNG\r\n\x1a\n")) {
    if (!png_) png_ = make_png_codec();
    codec = png_.get();
  } else if (bytes.empty()) {
    throw BadContent(fmt::format("{}: not an image (the file is empty)", printable(name)));
  } else {
    throw BadContent(fmt::format("{}: not an image (starts with \"{}\"); JPEG and PNG are read",
                                 printable(name), printable(start.substr(0, 16))));
  }
  shape = codec->open(bytes, name, max_pixels);
  return *codec;
}

void check_pixels(uint64_t width, uint64_t height, uint64_t max_pixels, const std::string& name) {
  if (width * height > max_pixels)
    throw BadContent(fmt::format("{}: {} x {} pixels are more than data.max_pixels = {}",
                                 printable(name), width, height, max_pixels));
}

}  // namespace convoy::data
