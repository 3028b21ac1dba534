#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jpeglib.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "data_loader/coefficient_file.h"
#include "data_loader/coefficient_kernels.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/jpeg_pixels.h"

namespace convoy::data {
namespace {

using Block = std::array<int, kBlock>;  // in zigzag order, the first one as a difference

// 8 v + u of each zigzag index.
constexpr std::array<uint8_t, kBlock> make_zigzag() {
  std::array<uint8_t, kBlock> out{};
  for (uint8_t i = 0; i < kBlock; ++i)
    for (size_t k = 0; k < kBlock; ++k)
      if (kBlockPlaces.zigzag[k] == kBlockPlaces.natural[i]) out[k] = i;
  return out;
}
constexpr std::array<uint8_t, kBlock> kZigzag = make_zigzag();

// Bits of numbers in two's complement, as they are stored; 16: too many.
int width_of(std::span<const int> numbers) {
  int low = 0, high = 0;
  for (const int x : numbers) {
    low = std::min(low, x);
    high = std::max(high, x);
  }
  int w = 0;
  if (low < 0 || high > 0)
    for (w = 1; low < -(1 << (w - 1)) || high >= 1 << (w - 1);) ++w;
  if (w == 11) w = 12;
  return is_width(w) ? w : 16;
}

void put_number(std::vector<uint8_t>& out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(value >> 8 * i));
}

// Up to 8 numbers of w bits.
void put_group(std::vector<uint8_t>& out, std::span<const int> numbers, int w) {
  const size_t begin = out.size();
  out.resize(begin + static_cast<size_t>(w));
  for (size_t i = 0; i < numbers.size(); ++i)
    for (int bit = 0; bit < w; ++bit) {
      const size_t at = i * static_cast<size_t>(w) + static_cast<size_t>(bit);
      const uint32_t value = static_cast<uint32_t>(numbers[i]) >> bit & 1;
      out[begin + at / 8] = static_cast<uint8_t>(out[begin + at / 8] | value << at % 8);
    }
}

// A row of blocks; false where a number has too many bits.
bool put_row(std::vector<uint8_t>& out, const std::vector<Block>& blocks) {
  for (size_t i = 0; i < blocks.size(); i += kGroup) {
    std::array<int, kGroup> first{};
    for (size_t k = 0; k < kGroup && i + k < blocks.size(); ++k) first[k] = blocks[i + k][0];
    const int w = width_of(first);
    if (w == 16) return false;
    out.push_back(static_cast<uint8_t>(w));
    put_group(out, first, w);
  }
  for (const Block& block : blocks) {
    const auto group = [&block](size_t g) {
      const size_t begin = 1 + g * kGroup;
      return std::span(block).subspan(begin, std::min<size_t>(kGroup, kBlock - begin));
    };
    size_t groups = 0;
    std::array<int, kMaxGroups> widths{};
    for (size_t g = 0; g < kMaxGroups; ++g) {
      widths[g] = width_of(group(g));
      if (widths[g] == 16) return false;
      if (widths[g] > 0) groups = g + 1;
    }
    uint64_t header = groups;
    for (size_t g = 0; g < groups; ++g) header |= static_cast<uint64_t>(widths[g]) << 4 * (1 + g);
    put_number(out, header, 1 + groups / 2);
    for (size_t g = 0; g < groups; ++g) put_group(out, group(g), widths[g]);
  }
  return true;
}

// The coefficients of a JPEG, by libjpeg. What it warns of is the caller's to find.
class Coefficients {
 public:
  Coefficients() {
    jpeg_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr jpeg) {
      std::longjmp(static_cast<Coefficients*>(jpeg->client_data)->jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr, int) {};
    jpeg_create_decompress(&jpeg_);
    jpeg_.client_data = this;
  }
  ~Coefficients() { jpeg_destroy_decompress(&jpeg_); }
  Coefficients(const Coefficients&) = delete;
  Coefficients& operator=(const Coefficients&) = delete;

  bool read(std::span<const uint8_t> image) {
    if (setjmp(jump_) != 0) return false;
    jpeg_abort_decompress(&jpeg_);
    jpeg_mem_src(&jpeg_, image.data(), image.size());
    jpeg_read_header(&jpeg_, TRUE);
    arrays_ = jpeg_read_coefficients(&jpeg_);
    return true;
  }

  // With the tables in zigzag order; false where pixels of this kind are not made from blocks here.
  bool frame(JpegFrame& frame, std::array<std::array<uint16_t, kBlock>, 3>& tables) const {
    if (jpeg_.jpeg_color_space != JCS_GRAYSCALE && jpeg_.jpeg_color_space != JCS_YCbCr)
      return false;
    frame.width = static_cast<int>(jpeg_.image_width);
    frame.height = static_cast<int>(jpeg_.image_height);
    frame.components.assign(static_cast<size_t>(jpeg_.num_components), {});
    if (frame.components.size() > tables.size()) return false;
    for (size_t c = 0; c < frame.components.size(); ++c) {
      const jpeg_component_info& info = jpeg_.comp_info[c];
      if (frame.components.size() > 1)
        frame.components[c] = {info.h_samp_factor, info.v_samp_factor, nullptr};
      if (info.quant_table == nullptr) return false;
      for (size_t k = 0; k < kBlock; ++k) {
        tables[c][k] = info.quant_table->quantval[kZigzag[k]];
        if (tables[c][k] > kMaxQuantisation) return false;
      }
    }
    return is_supported(frame);
  }

  // Blocks [0, count) of row y of component c; 0 beyond what the file has. False where libjpeg
  // fails.
  bool row(size_t c, int y, std::vector<Block>& blocks) {
    for (Block& block : blocks) block.fill(0);
    const jpeg_component_info& info = jpeg_.comp_info[c];
    if (y >= static_cast<int>(info.height_in_blocks)) return true;
    if (setjmp(jump_) != 0) return false;
    const auto* const all =
        (*jpeg_.mem->access_virt_barray)(reinterpret_cast<j_common_ptr>(&jpeg_), arrays_[c],
                                         static_cast<JDIMENSION>(y), 1, FALSE)[0];
    const size_t there = std::min<size_t>(blocks.size(), info.width_in_blocks);
    int before = 0;
    for (size_t i = 0; i < there; ++i) {
      for (size_t k = 0; k < kBlock; ++k) blocks[i][k] = all[i][kZigzag[k]];
      blocks[i][0] -= before;
      before += blocks[i][0];
    }
    return true;
  }

 private:
  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  jvirt_barray_ptr* arrays_ = nullptr;
  std::jmp_buf jump_;
};

}  // namespace

class CoefficientEncoder::Impl {
 public:
  explicit Impl(uint64_t max_pixels) : max_pixels_(max_pixels) {}

  bool encode(std::span<const uint8_t> image, const std::string& name, std::vector<uint8_t>& out) {
    ImageShape shape;
    if (!reference_.open(image, name, max_pixels_, shape).can_shrink()) return false;  // a PNG
    // First of all: this is what refuses damage and endless scans.
    decode_reference(image, name, 1);
    out.clear();
    if (!coefficients_.read(image) || !write(image, out) || !has_same_pixels(out, name, 1))
      return false;
    for (const int by : {2, 4, 8}) {
      decode_reference(image, name, by);
      if (!has_same_pixels(out, name, by)) return false;
    }
    return true;
  }

 private:
  static Region whole(const ImageShape& shape, int by) {
    return {0, 0, (shape.width + by - 1) / by, (shape.height + by - 1) / by};
  }

  // Into theirs_.
  void decode_reference(std::span<const uint8_t> image, const std::string& name, int by) {
    ImageShape shape;
    ImageCodec& codec = reference_.open(image, name, max_pixels_, shape);
    codec.decode(whole(shape, by), by, theirs_);
  }

  bool has_same_pixels(std::span<const uint8_t> file, const std::string& name, int by) {
    try {
      const ImageShape shape = ours_codec_->open(file, name, max_pixels_);
      ours_codec_->decode(whole(shape, by), by, ours_);
    } catch (const BadContent&) {
      return false;
    }
    const size_t bytes = static_cast<size_t>(ours_.shape.width) * 3;
    for (int y = 0; y < ours_.shape.height; ++y)
      if (std::memcmp(&ours_.pixels[ours_.stride * static_cast<size_t>(y)],
                      &theirs_.pixels[theirs_.stride * static_cast<size_t>(y)], bytes) != 0)
        return false;
    return true;
  }

  bool write(std::span<const uint8_t> image, std::vector<uint8_t>& out) {
    JpegFrame frame;
    std::array<std::array<uint16_t, kBlock>, 3> tables;
    if (!coefficients_.frame(frame, tables)) return false;
    const JpegFrame::Component& luma = frame.components[0];
    const int mcus = (frame.width + 8 * luma.h - 1) / (8 * luma.h);
    const int mcu_rows = (frame.height + 8 * luma.v - 1) / (8 * luma.v);
    rows_.clear();
    std::vector<size_t> row_bytes;
    std::vector<Block> blocks;
    for (int row = 0; row < mcu_rows; ++row)
      for (size_t c = 0; c < frame.components.size(); ++c)
        for (int v = 0; v < frame.components[c].v; ++v) {
          blocks.resize(static_cast<size_t>(mcus * frame.components[c].h));
          const size_t before = rows_.size();
          if (!coefficients_.row(c, row * frame.components[c].v + v, blocks)) return false;
          if (!put_row(rows_, blocks)) return false;
          row_bytes.push_back(rows_.size() - before);
        }
    out.assign(kCoefficientMagic.begin(), kCoefficientMagic.end());
    put_number(out, static_cast<uint64_t>(frame.width), 2);
    put_number(out, static_cast<uint64_t>(frame.height), 2);
    put_number(out, frame.components.size(), 1);
    put_number(out, static_cast<uint64_t>(luma.h), 1);
    put_number(out, static_cast<uint64_t>(luma.v), 1);
    put_number(out, static_cast<uint64_t>(jpeg_facts(image).orientation), 1);
    for (size_t c = 0; c < frame.components.size(); ++c)
      for (const uint16_t value : tables[c]) put_number(out, value, 2);
    for (const size_t bytes : row_bytes) put_number(out, bytes, 4);
    out.insert(out.end(), rows_.begin(), rows_.end());
    return true;
  }

  const uint64_t max_pixels_;
  ImageDecoder reference_{Reading::kAll};
  std::unique_ptr<ImageCodec> ours_codec_ = make_coefficient_codec();
  Coefficients coefficients_;
  std::vector<uint8_t> rows_;
  Image ours_, theirs_;
};

CoefficientEncoder::CoefficientEncoder(uint64_t max_pixels)
    : impl_(std::make_unique<Impl>(max_pixels)) {}
CoefficientEncoder::~CoefficientEncoder() = default;
bool CoefficientEncoder::encode(std::span<const uint8_t> image, const std::string& name,
                                std::vector<uint8_t>& out) {
  return impl_->encode(image, name, out);
}

}  // namespace convoy::data
