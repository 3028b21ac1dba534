#include "data_loader/jpeg_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace convoy::data {
namespace {

using Bytes = std::span<const uint8_t>;

bool starts_with(Bytes bytes, std::string_view text) {
  return bytes.size() >= text.size() &&
         std::equal(text.begin(), text.end(), bytes.begin(),
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

// The caller has seen that the bytes are there.
uint32_t big_endian(Bytes bytes, size_t at, size_t count) {
  uint32_t value = 0;
  for (size_t i = 0; i < count; ++i) value = value << 8 | bytes[at + i];
  return value;
}

bool is_frame(uint8_t marker) {
  return marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
}

// The segments between SOI and the first scan, one at a time.
class Segments {
 public:
  explicit Segments(Bytes file)
      : file_(file), at_(starts_with(file, "\xff\xd8") ? 2 : file.size()) {}

  // False at the first scan, at the end, and where a segment is cut off.
  bool next(uint8_t& marker, Bytes& body) {
    for (;;) {
      while (at_ < file_.size() && file_[at_] != 0xff) ++at_;  // decoders skip such bytes, too
      while (at_ < file_.size() && file_[at_] == 0xff) ++at_;
      if (at_ >= file_.size()) return false;
      marker = file_[at_++];
      const bool alone = marker <= 0x01 || (marker >= 0xd0 && marker <= 0xd8);
      if (!alone) break;
    }
    if (marker == 0xd9 || marker == 0xda || file_.size() - at_ < 2) return false;
    const size_t length = big_endian(file_, at_, 2);
    if (length < 2 || length > file_.size() - at_) return false;
    body = file_.subspan(at_ + 2, length - 2);
    at_ += length;
    return true;
  }

 private:
  const Bytes file_;
  size_t at_;
};

}  // namespace

int exif_orientation(Bytes tiff) {
  if (tiff.size() < 8) return 1;
  const bool little = starts_with(tiff, std::string_view("II*\0", 4));
  if (!little && !starts_with(tiff, std::string_view("MM\0*", 4))) return 1;
  const auto number = [&](size_t at, size_t count) {
    uint32_t value = 0;
    for (size_t i = 0; i < count; ++i)
      value |= uint32_t{tiff[at + i]} << 8 * (little ? i : count - 1 - i);
    return value;
  };
  constexpr size_t kEntry = 12;
  constexpr uint32_t kOrientation = 0x112, kShort = 3, kLong = 4;
  const size_t directory = number(4, 4);
  if (directory > tiff.size() - 2) return 1;
  const size_t first = directory + 2;
  const size_t entries = std::min<size_t>(number(directory, 2), (tiff.size() - first) / kEntry);
  for (size_t at = first; at < first + entries * kEntry; at += kEntry) {
    if (number(at, 2) != kOrientation) continue;
    const uint32_t type = number(at + 2, 2);
    if ((type != kShort && type != kLong) || number(at + 4, 4) != 1) return 1;
    const uint32_t value = number(at + 8, type == kShort ? 2 : 4);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

JpegFacts jpeg_facts(Bytes file) {
  JpegFacts facts;
  Segments segments(file);
  uint8_t marker = 0;
  Bytes body;
  for (bool exif = false; segments.next(marker, body);) {
    constexpr std::string_view kExif("Exif\0\0", 6);
    if (marker == 0xe1 && !exif && starts_with(body, kExif)) {
      exif = true;
      facts.orientation = exif_orientation(body.subspan(kExif.size()));
    }
    if (!is_frame(marker) || facts.process >= 0 || body.size() < 6) continue;
    facts.process = marker - 0xc0;
    facts.precision = body[0];
    facts.height = static_cast<int>(big_endian(body, 1, 2));
    facts.width = static_cast<int>(big_endian(body, 3, 2));
    facts.components = body[5];
    // Three bytes for each: number, sampling factors, table.
    facts.has_half_chroma = facts.components >= 3 && body.size() >= 12 && body[7] != body[10];
  }
  return facts;
}

std::string unsupported(const JpegFacts& facts) {
  if (facts.process > 8) return "arithmetic coding";
  if (facts.process == 3) return "lossless coding";
  if (facts.process > 3) return "hierarchical coding";
  if (facts.process >= 0 && facts.precision != 8)
    return fmt::format("precision {}, bits of a value, not 8", facts.precision);
  return "";
}

}  // namespace convoy::data
