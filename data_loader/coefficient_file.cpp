#include "data_loader/coefficient_file.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "data_loader/coefficient_kernels.h"
#include "data_loader/jpeg_pixels.h"

namespace convoy::data {
namespace {

constexpr size_t kFixedBytes = kCoefficientMagic.size() + 8;

uint32_t little_endian(const uint8_t* p, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= uint32_t{p[i]} << 8 * i;
  return value;
}

class CoefficientCodec final : public ImageCodec, private BlockSource {
 public:
  ImageShape open(std::span<const uint8_t> bytes, const std::string& name,
                  uint64_t max_pixels) override {
    name_ = name;
    bytes_ = bytes;
    if (bytes.size() < kFixedBytes) broken(Damage::kTruncated);
    const uint8_t* const head = bytes.data() + kCoefficientMagic.size();
    frame_.width = static_cast<int>(little_endian(head, 2));
    frame_.height = static_cast<int>(little_endian(head + 2, 2));
    const size_t n = head[4];
    if (n != 1 && n != 3) broken(Damage::kDamaged);
    frame_.components.assign(n, {});
    frame_.components[0].h = head[5];
    frame_.components[0].v = head[6];
    if (!is_supported(frame_)) broken(Damage::kDamaged);
    check_pixels(static_cast<uint64_t>(frame_.width), static_cast<uint64_t>(frame_.height),
                 max_pixels, name);
    read_tables(n);
    return {frame_.height, frame_.width, 3};
  }

  bool can_shrink() const override { return true; }

  void decode(const Region& region, int denominator, Image& out) override {
    pixels_.begin(frame_, region, denominator);
    if (!pixels_.decode(*this, out, times_)) broken(Damage::kDamaged);
  }

  void profile(SampleTimes* times) override { times_ = times; }

 private:
  void read_tables(size_t n) {
    const JpegFrame::Component& luma = frame_.components[0];
    rows_per_mcu_ = static_cast<size_t>(luma.v) + n - 1;
    const int mcu_height = 8 * luma.v;
    const size_t rows =
        static_cast<size_t>((frame_.height + mcu_height - 1) / mcu_height) * rows_per_mcu_;
    const size_t tables = kFixedBytes, table_bytes = n * kBlock * 2;
    if (bytes_.size() < tables + table_bytes + 4 * rows) broken(Damage::kTruncated);
    for (size_t c = 0; c < n; ++c) {
      for (size_t k = 0; k < kBlock; ++k) {
        const uint32_t value = little_endian(&bytes_[tables + (c * kBlock + k) * 2], 2);
        if (value > kMaxQuantisation) broken(Damage::kDamaged);
        quantisation_[c][kBlockPlaces.zigzag[k]] = static_cast<uint16_t>(value);
      }
      frame_.components[c].quantisation = quantisation_[c].data();
    }
    const uint8_t* const lengths = bytes_.data() + tables + table_bytes;
    uint64_t at = tables + table_bytes + 4 * rows;
    row_begins_.clear();
    for (size_t i = 0; i < rows; ++i) {
      row_begins_.push_back(at);
      at += little_endian(lengths + 4 * i, 4);
    }
    row_begins_.push_back(at);
    if (at != bytes_.size()) broken(at > bytes_.size() ? Damage::kTruncated : Damage::kDamaged);
  }

  bool read(int row, int first, int end, int16_t* coefficients, uint8_t* last) override {
    CoefficientRow blocks{.step = pixels_.blocks_per_mcu()};
    size_t at = static_cast<size_t>(row) * rows_per_mcu_;
    int block = 0;
    for (size_t c = 0; c < frame_.components.size(); ++c) {
      const JpegFrame::Component& component = frame_.components[c];
      blocks.h = component.h;
      blocks.blocks = pixels_.mcus_per_row() * component.h;
      blocks.first = first * component.h;
      blocks.last = end * component.h;
      blocks.dc_only = pixels_.is_dc_only(c);
      first_ones_.resize(static_cast<size_t>(blocks.blocks + kGroup));
      blocks.first_ones = first_ones_.data();
      for (int v = 0; v < component.v; ++v, block += component.h) {
        const std::span<const uint8_t> bytes = readable(at++);
        blocks.begin = bytes.data();
        blocks.end = bytes.data() + bytes.size();
        blocks.out = coefficients + static_cast<ptrdiff_t>(block) * kBlock;
        blocks.is_more = last + block;
        const uint8_t* const rest = kernels_.decode(blocks);
        if (rest == nullptr || (blocks.last == blocks.blocks && rest != blocks.end)) return false;
      }
    }
    return true;
  }

  // The i-th row of blocks, with kCoefficientPadding bytes behind it.
  std::span<const uint8_t> readable(size_t i) {
    const size_t from = row_begins_[i], bytes = row_begins_[i + 1] - from;
    if (bytes_.size() - row_begins_[i + 1] >= kCoefficientPadding)
      return bytes_.subspan(from, bytes);
    padded_.assign(bytes + kCoefficientPadding, 0);
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(from), bytes, padded_.begin());
    return std::span(padded_).first(bytes);
  }

  [[noreturn]] void broken(Damage damage) const {
    throw BadContent(
        fmt::format("{}: {} file of coefficients (convoy pack --coefficients): pack it again",
                    printable(name_), damage == Damage::kTruncated ? "cut off" : "damaged"),
        damage);
  }

  const CoefficientKernels& kernels_ = coefficient_kernels();
  SampleTimes* times_ = nullptr;
  std::string name_;
  std::span<const uint8_t> bytes_;
  JpegFrame frame_;
  std::array<std::array<uint16_t, kBlock>, 3> quantisation_{};
  size_t rows_per_mcu_ = 0;           // of blocks
  std::vector<uint64_t> row_begins_;  // of blocks; and where the last one ends
  std::vector<uint8_t> padded_;
  std::vector<int16_t> first_ones_;
  JpegPixels pixels_;
};

}  // namespace

bool is_coefficient_file(std::span<const uint8_t> file) {
  return file.size() >= kCoefficientMagic.size() &&
         std::memcmp(file.data(), kCoefficientMagic.data(), kCoefficientMagic.size()) == 0;
}

int coefficient_file_orientation(std::span<const uint8_t> file) {
  if (file.size() < kFixedBytes) return 1;
  const int value = file[kCoefficientMagic.size() + 7];
  return value >= 1 && value <= 8 ? value : 1;
}

int coefficient_file_components(std::span<const uint8_t> file) {
  return file[kCoefficientMagic.size() + 4];
}

std::unique_ptr<ImageCodec> make_coefficient_codec() {
  return std::make_unique<CoefficientCodec>();
}

}  // namespace convoy::data
