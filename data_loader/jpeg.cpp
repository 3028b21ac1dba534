#include "data_loader/jpeg.h"

#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <cstring>

#include "data_loader/baseline_jpeg.h"

namespace convoy::data {
namespace {

// A progressive file of a few bytes per scan can ask for endless work: each of its scans visits all
// pixels. Encoders use about ten. Small images may have more; together they are worth one decode of
// a large one.
constexpr uint64_t kMaxScans = 500, kMinScans = 20, kMaxScanPixels = uint64_t{1} << 30;

// Coefficients of images with several scans: enough for data.max_pixels' default where chroma is
// halved both ways.
constexpr long kMaxMemoryBytes = 600'000'000;

class LibjpegCodec final : public ImageCodec {
 public:
  explicit LibjpegCodec(Reading reading) : reading_(reading) {
    jpeg_.err = jpeg_std_error(&errors_);
    errors_.error_exit = &on_error;
    errors_.emit_message = &on_message;
    progress_.progress_monitor = &on_progress;
    create();
  }
  ~LibjpegCodec() override { jpeg_destroy_decompress(&jpeg_); }
  LibjpegCodec(const LibjpegCodec&) = delete;
  LibjpegCodec& operator=(const LibjpegCodec&) = delete;

  ImageShape open(std::span<const uint8_t> bytes, const std::string& name,
                  uint64_t max_pixels) override {
    name_ = name;
    in_header_ = true;
    // A decompressor keeps the tables of one file for the next, which may lack its own: then its
    // pixels would depend on what this thread decoded before.
    jpeg_destroy_decompress(&jpeg_);
    create();
    const bool good = guarded([this, bytes] {
      jpeg_mem_src(&jpeg_, bytes.data(), bytes.size());
      jpeg_read_header(&jpeg_, TRUE);
      in_header_ = false;
      scan_ = {jpeg_.src->next_input_byte, jpeg_.src->bytes_in_buffer};
      is_cmyk_ = jpeg_.jpeg_color_space == JCS_CMYK || jpeg_.jpeg_color_space == JCS_YCCK;
      jpeg_.out_color_space = is_cmyk_ ? JCS_CMYK : JCS_RGB;
    });
    if (!good) throw_broken();
    check_pixels(jpeg_.image_width, jpeg_.image_height, max_pixels, name);
    return {static_cast<int>(jpeg_.image_height), static_cast<int>(jpeg_.image_width), 3};
  }

  bool can_shrink() const override { return true; }

  void decode(const Region& region, int denominator, Image& out) override {
    const bool started = guarded([this, denominator] {
      jpeg_.scale_num = 1;
      jpeg_.scale_denom = static_cast<unsigned>(denominator);
      jpeg_start_decompress(&jpeg_);
    });
    if (!started) throw_broken();
    const int width = static_cast<int>(jpeg_.output_width);
    const int height = static_cast<int>(jpeg_.output_height);
    out.shape = {height, width, 3};
    // Smooth chroma upsampling reads one neighbour: two columns more on each side make the wanted
    // ones equal to those of a whole decode. libjpeg widens the range to whole blocks.
    JDIMENSION left = static_cast<JDIMENSION>(std::max(region.x - 2, 0));
    JDIMENSION columns =
        static_cast<JDIMENSION>(std::min(region.x + region.width + 2, width)) - left;
    if (columns < jpeg_.output_width &&
        !guarded([this, &left, &columns] { jpeg_crop_scanline(&jpeg_, &left, &columns); }))
      throw_broken();
    out.region = {static_cast<int>(left), region.y, static_cast<int>(columns), region.height};
    out.stride = size_t{columns} * 3;
    out.pixels.resize(out.stride * static_cast<size_t>(region.height));
    row_.resize(size_t{columns} * 4);
    const bool may_stop = reading_ == Reading::kRegion && !jpeg_has_multiple_scans(&jpeg_) &&
                          plainly_whole_scan(scan_) != 0;
    const bool decoded = guarded([this, &region, &out, height, may_stop] {
      if (region.y > 0) jpeg_skip_scanlines(&jpeg_, static_cast<JDIMENSION>(region.y));
      for (int y = 0; y < region.height; ++y) {
        uint8_t* row = out.pixels.data() + out.stride * static_cast<size_t>(y);
        read_row(is_cmyk_ ? row_.data() : row);
        if (is_cmyk_) cmyk_to_rgb(row, row_.data(), out.stride / 3);
      }
      if (may_stop) {
        jpeg_abort_decompress(&jpeg_);
        return;
      }
      // The rest passes the entropy decoder only. jpeg_skip_scanlines() to the end would not look
      // at it at all, so the last row is read.
      const int left_over = height - region.y - region.height;
      if (left_over > 1) jpeg_skip_scanlines(&jpeg_, static_cast<JDIMENSION>(left_over - 1));
      if (left_over > 0) read_row(row_.data());
      jpeg_finish_decompress(&jpeg_);
    });
    if (!decoded) throw_broken();
  }

 private:
  void create() {
    jpeg_.client_data = this;
    if (!guarded([this] { jpeg_create_decompress(&jpeg_); }))
      fail(ExitCode::kFault, "libjpeg: {}", text_);
    jpeg_.mem->max_memory_to_use = kMaxMemoryBytes;
    jpeg_.progress = &progress_;
  }

  // Runs calls of libjpeg; false when one of them failed, with its message in text_. `body` owns
  // nothing: libjpeg leaves it by longjmp.
  template <typename Body>
  bool guarded(Body body) {
    if (setjmp(jump_) != 0) return false;
    body();
    return true;
  }

  void read_row(uint8_t* row) {
    JSAMPROW rows[1] = {row};
    jpeg_read_scanlines(&jpeg_, rows, 1);
  }

  // Adobe's writers store CMYK inverted, and mark it.
  void cmyk_to_rgb(uint8_t* rgb, const uint8_t* cmyk, size_t pixels) const {
    const int flip = jpeg_.saw_Adobe_marker ? 0 : 255;
    for (size_t i = 0; i < pixels; ++i)
      for (size_t c = 0; c < 3; ++c)
        rgb[3 * i + c] =
            static_cast<uint8_t>(((cmyk[4 * i + c] ^ flip) * (cmyk[4 * i + 3] ^ flip) + 127) / 255);
  }

  [[noreturn]] void throw_broken() {
    jpeg_abort_decompress(&jpeg_);
    throw BadContent(fmt::format("{}: damaged or unsupported JPEG ({}): replace or remove the "
                                 "file",
                                 printable(name_), text_),
                     errors_.msg_code == JWRN_JPEG_EOF ? Damage::kTruncated : Damage::kDamaged);
  }

  static LibjpegCodec& self(j_common_ptr jpeg) {
    return *static_cast<LibjpegCodec*>(jpeg->client_data);
  }

  [[noreturn]] static void on_error(j_common_ptr jpeg) {
    (*jpeg->err->format_message)(jpeg, self(jpeg).text_);
    if (jpeg->err->msg_code == JERR_NO_BACKING_STORE)
      std::snprintf(self(jpeg).text_, sizeof self(jpeg).text_,
                    "more than %ld bytes of coefficients", kMaxMemoryBytes);
    std::longjmp(self(jpeg).jump_, 1);
  }

  // Called for warnings (level -1) and traces.
  static void on_message(j_common_ptr jpeg, int level) {
    if (level >= 0) return;
    switch (jpeg->err->msg_code) {
      case JWRN_ADOBE_XFORM:  // oddities of encoders that cost no pixel
      case JWRN_JFIF_MAJOR:
      case JWRN_BOGUS_PROGRESSION:
      case JWRN_NOT_SEQUENTIAL:
        return;
      case JWRN_EXTRANEOUS_DATA:  // padding between markers of the header
        if (self(jpeg).in_header_) return;
        break;
      default:
        break;
    }
    on_error(jpeg);
  }

  static void on_progress(j_common_ptr jpeg) {
    LibjpegCodec& codec = self(jpeg);
    const uint64_t pixels = uint64_t{codec.jpeg_.image_width} * codec.jpeg_.image_height;
    const uint64_t most =
        std::clamp(kMaxScanPixels / std::max<uint64_t>(pixels, 1), kMinScans, kMaxScans);
    if (static_cast<uint64_t>(codec.jpeg_.input_scan_number) <= most) return;
    std::snprintf(codec.text_, sizeof codec.text_, "more than %d scans", static_cast<int>(most));
    std::longjmp(codec.jump_, 1);
  }

  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char text_[JMSG_LENGTH_MAX] = "";
  std::string name_;
  const Reading reading_;
  std::span<const uint8_t> scan_;  // from the first scan's data to the end of the file
  bool in_header_ = false;
  bool is_cmyk_ = false;
  std::vector<uint8_t> row_;
};

// Our decoder, and libjpeg's where it declines: at the header or on the way.
class FastestCodec final : public ImageCodec {
 public:
  ImageShape open(std::span<const uint8_t> bytes, const std::string& name,
                  uint64_t max_pixels) override {
    ImageShape shape;
    is_baseline_ = baseline_.open(bytes, shape);
    if (!is_baseline_) return libjpeg_.open(bytes, name, max_pixels);
    bytes_ = bytes;
    name_ = name;
    max_pixels_ = max_pixels;
    check_pixels(static_cast<uint64_t>(shape.width), static_cast<uint64_t>(shape.height),
                 max_pixels, name);
    return shape;
  }

  bool can_shrink() const override { return true; }

  void decode(const Region& region, int denominator, Image& out) override {
    if (is_baseline_) {
      if (baseline_.decode(region, denominator, out)) return;
      libjpeg_.open(bytes_, name_, max_pixels_);
    }
    libjpeg_.decode(region, denominator, out);
  }

  void profile(SampleTimes* times) override { baseline_.profile(times); }

 private:
  BaselineJpeg baseline_;
  LibjpegCodec libjpeg_{Reading::kRegion};
  bool is_baseline_ = false;
  std::span<const uint8_t> bytes_;
  std::string name_;
  uint64_t max_pixels_ = 0;
};

}  // namespace

std::unique_ptr<ImageCodec> make_libjpeg_codec(Reading reading) {
  return std::make_unique<LibjpegCodec>(reading);
}

std::unique_ptr<ImageCodec> make_jpeg_codec(Reading reading) {
  if (reading == Reading::kAll) return make_libjpeg_codec(reading);
  return std::make_unique<FastestCodec>();
}

size_t plainly_whole_scan(std::span<const uint8_t> scan) {
  const uint8_t* const end = scan.data() + scan.size();
  for (const uint8_t* at = scan.data(); end - at >= 2; at += 2) {
    at = static_cast<const uint8_t*>(std::memchr(at, 0xff, static_cast<size_t>(end - at - 1)));
    if (at == nullptr) return 0;
    const uint8_t code = at[1];
    if (code == 0 || (code & 0xf8) == 0xd0) continue;  // a stuffed byte, a restart marker
    const bool whole = code == 0xd9 && static_cast<size_t>(end - at - 2) <= kMaxTrailingBytes;
    return whole ? static_cast<size_t>(at - scan.data()) : 0;
  }
  return 0;
}

}  // namespace convoy::data
