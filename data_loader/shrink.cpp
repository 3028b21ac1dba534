#include "data_loader/shrink.h"

#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jpeglib.h>

#include <algorithm>
#include <cstdlib>

#include "data_loader/jpeg_facts.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

// One axis of a whole image, scaled.
AxisMap whole_axis(int from, int to) {
  return {.low = 0,
          .high = from,
          .origin = 0,
          .scale = static_cast<double>(from) / to,
          .first = 0,
          .count = to};
}

bool is_grey(const std::vector<uint8_t>& rgb) {
  for (size_t i = 0; i < rgb.size(); i += 3)
    if (rgb[i] != rgb[i + 1] || rgb[i] != rgb[i + 2]) return false;
  return true;
}

// libjpeg's compressor; its errors leave by longjmp.
class Encoder {
 public:
  Encoder() {
    jpeg_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr jpeg) {
      std::longjmp(static_cast<Encoder*>(jpeg->client_data)->jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr, int) {};
    jpeg_create_compress(&jpeg_);
    jpeg_.client_data = this;
  }
  ~Encoder() {
    jpeg_destroy_compress(&jpeg_);
    std::free(bytes_);
  }
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  void encode(const std::vector<uint8_t>& pixels, int width, int height, int channels, int quality,
              bool half_chroma, std::vector<uint8_t>& out) {
    if (setjmp(jump_) != 0) {
      char text[JMSG_LENGTH_MAX] = "";
      (*errors_.format_message)(reinterpret_cast<j_common_ptr>(&jpeg_), text);
      jpeg_abort_compress(&jpeg_);
      fail(ExitCode::kFault, "libjpeg: {}", text);
    }
    write(pixels, width, height, channels, quality, half_chroma);
    out.assign(bytes_, bytes_ + size_);
  }

 private:
  void write(const std::vector<uint8_t>& pixels, int width, int height, int channels, int quality,
             bool half_chroma) {
    std::free(bytes_);
    bytes_ = nullptr;
    size_ = 0;
    jpeg_mem_dest(&jpeg_, &bytes_, &size_);
    jpeg_.image_width = static_cast<JDIMENSION>(width);
    jpeg_.image_height = static_cast<JDIMENSION>(height);
    jpeg_.input_components = channels;
    jpeg_.in_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&jpeg_);
    jpeg_set_quality(&jpeg_, quality, TRUE);
    jpeg_.optimize_coding = TRUE;
    jpeg_.comp_info[0].h_samp_factor = half_chroma ? 2 : 1;
    jpeg_.comp_info[0].v_samp_factor = half_chroma ? 2 : 1;
    jpeg_start_compress(&jpeg_, TRUE);
    const size_t stride = static_cast<size_t>(width) * static_cast<size_t>(channels);
    while (jpeg_.next_scanline < jpeg_.image_height) {
      JSAMPROW row = const_cast<uint8_t*>(&pixels[stride * jpeg_.next_scanline]);
      jpeg_write_scanlines(&jpeg_, &row, 1);
    }
    jpeg_finish_compress(&jpeg_);
  }

  jpeg_compress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  std::jmp_buf jump_;
  unsigned char* bytes_ = nullptr;
  unsigned long size_ = 0;
};

}  // namespace

class Shrinker::Impl {
 public:
  explicit Impl(const ShrinkSettings& settings) : settings_(settings) {}

  bool shrink(std::span<const uint8_t> image, const std::string& name, std::vector<uint8_t>& out) {
    ImageShape shape;
    ImageCodec& codec = decoder_.open(image, name, settings_.max_pixels, shape);
    const int shorter = std::min(shape.width, shape.height);
    const int to = settings_.short_side;
    if (to <= 0 || shorter <= to) {
      check(codec, shape);
      return false;
    }
    codec.decode({0, 0, shape.width, shape.height}, 1, image_);
    const auto longer = [&](int side) { return static_cast<int>(int64_t{side} * to / shorter); };
    const int width = shape.width == shorter ? to : longer(shape.width);
    const int height = shape.height == shorter ? to : longer(shape.height);
    pixels_.resize(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
    apply(pixels_.data(),
          {.x = whole_axis(shape.width, width), .y = whole_axis(shape.height, height)},
          image_.view(), scratch_);
    const bool grey = is_grey(pixels_);
    if (grey) {
      for (size_t i = 0; i < pixels_.size() / 3; ++i) pixels_[i] = pixels_[3 * i];
      pixels_.resize(pixels_.size() / 3);
    }
    const bool half = !grey && (settings_.half_chroma || jpeg_facts(image).has_half_chroma);
    encoder_.encode(pixels_, width, height, grey ? 1 : 3, settings_.quality, half, out);
    return true;
  }

 private:
  // Damage is found wherever it is; the pixels are not needed.
  void check(ImageCodec& codec, ImageShape shape) {
    const int by = codec.can_shrink() ? 8 : 1;
    codec.decode({0, 0, (shape.width + by - 1) / by, (shape.height + by - 1) / by}, by, image_);
  }

  const ShrinkSettings settings_;
  ImageDecoder decoder_{Reading::kAll};
  Image image_;
  ResizeScratch scratch_;
  std::vector<uint8_t> pixels_;
  Encoder encoder_;
};

Shrinker::Shrinker(const ShrinkSettings& settings) : impl_(std::make_unique<Impl>(settings)) {}
Shrinker::~Shrinker() = default;
bool Shrinker::shrink(std::span<const uint8_t> image, const std::string& name,
                      std::vector<uint8_t>& out) {
  return impl_->shrink(image, name, out);
}

}  // namespace convoy::data
