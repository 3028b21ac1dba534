#include "data_loader/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>

namespace convoy::data {
namespace {

class PngCodec final : public ImageCodec {
 public:
  ~PngCodec() override { close(); }

  ImageShape open(std::span<const uint8_t> bytes, const std::string& name,
                  uint64_t max_pixels) override {
    close();
    rest_ = bytes;
    name_ = name;
    truncated_ = false;
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, &on_error, &on_warning);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) fail(ExitCode::kFault, "libpng: out of memory");
    const bool good = guarded([this] {
      png_set_read_fn(png_, this, &on_read);
      // Text, profiles and times are stepped over: unpacked, each may take megabytes.
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
      png_set_user_limits(png_, 0x7fffffff, 0x7fffffff);  // check_pixels() says it better
      png_read_info(png_, info_);
    });
    if (!good) throw_broken();
    const uint64_t width = png_get_image_width(png_, info_);
    const uint64_t height = png_get_image_height(png_, info_);
    check_pixels(width, height, max_pixels, name);
    return {static_cast<int>(height), static_cast<int>(width), 3};
  }

  bool can_shrink() const override { return false; }

  void decode(const Region& region, int, Image& out) override {
    const size_t width = png_get_image_width(png_, info_);
    const size_t height = png_get_image_height(png_, info_);
    out.shape = {static_cast<int>(height), static_cast<int>(width), 3};
    out.region = {0, region.y, static_cast<int>(width), region.height};
    out.stride = width * 3;
    // Interlaced images visit all rows several times; the others need one row outside the region.
    const bool interlaced = png_get_interlace_type(png_, info_) != PNG_INTERLACE_NONE;
    if (interlaced) out.region = {0, 0, static_cast<int>(width), static_cast<int>(height)};
    out.pixels.resize(out.stride * static_cast<size_t>(out.region.height));
    row_.resize(out.stride);
    const bool good = guarded([this, &out, height] {
      png_set_expand(png_);
      png_set_strip_16(png_);
      png_set_strip_alpha(png_);
      png_set_gray_to_rgb(png_);
      const int passes = png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
      if (png_get_rowbytes(png_, info_) != out.stride) png_error(png_, "unexpected row size");
      const size_t first = static_cast<size_t>(out.region.y);
      const size_t end = first + static_cast<size_t>(out.region.height);
      for (int pass = 0; pass < passes; ++pass)
        for (size_t y = 0; y < height; ++y)
          png_read_row(
              png_,
              y >= first && y < end ? out.pixels.data() + (y - first) * out.stride : row_.data(),
              nullptr);
      png_read_end(png_, nullptr);
    });
    if (!good) throw_broken();
    close();
  }

 private:
  // As in jpeg.cpp: false when libpng left `body` by longjmp.
  template <typename Body>
  bool guarded(Body body) {
    if (setjmp(jump_) != 0) return false;
    body();
    return true;
  }

  void close() {
    png_destroy_read_struct(&png_, &info_, nullptr);
    png_ = nullptr;
    info_ = nullptr;
  }

  [[noreturn]] void throw_broken() {
    close();
    throw BadContent(fmt::format("{}: damaged or unsupported PNG ({}): replace or remove the file",
                                 printable(name_), printable(text_)),
                     truncated_ ? Damage::kTruncated : Damage::kDamaged);
  }

  [[noreturn]] static void on_error(png_structp png, png_const_charp text) {
    PngCodec& self = *static_cast<PngCodec*>(png_get_error_ptr(png));
    std::strncpy(self.text_, text, sizeof self.text_ - 1);
    std::longjmp(self.jump_, 1);
  }

  static void on_warning(png_structp, png_const_charp) {}  // chunks that carry no pixel

  static void on_read(png_structp png, png_bytep out, size_t bytes) {
    PngCodec& self = *static_cast<PngCodec*>(png_get_io_ptr(png));
    self.truncated_ = bytes > self.rest_.size();
    if (self.truncated_) png_error(png, "premature end of file");
    std::memcpy(out, self.rest_.data(), bytes);
    self.rest_ = self.rest_.subspan(bytes);
  }

  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::jmp_buf jump_;
  char text_[200] = "";
  bool truncated_ = false;
  std::span<const uint8_t> rest_;
  std::string name_;
  std::vector<uint8_t> row_;
};

}  // namespace

std::unique_ptr<ImageCodec> make_png_codec() {
  return std::make_unique<PngCodec>();
}

std::string encode_png(const std::vector<uint8_t>& pixels, int width, int height) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width);
  image.height = static_cast<png_uint_32>(height);
  image.format = PNG_FORMAT_RGB;
  std::string file;
  png_alloc_size_t bytes = 0;
  const auto write = [&](void* memory) {
    if (png_image_write_to_memory(&image, memory, &bytes, 0, pixels.data(), 0, nullptr) == 0)
      fail(ExitCode::kFault, "libpng: {}", image.message);
  };
  write(nullptr);  // how many bytes
  file.resize(bytes);
  write(file.data());
  file.resize(bytes);
  return file;
}

}  // namespace convoy::data
