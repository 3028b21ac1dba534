#include "data_loader/shard_index.h"

#include <libdeflate.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

#include "data_loader/files.h"
#include "data_loader/listing.h"
#include "data_loader/tar.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

constexpr uint64_t kMaxLabel = (uint64_t{1} << 31) - 1;

constexpr std::string_view kNoCrc = "-";

bool take_crc(std::string_view& record, std::optional<uint32_t>& crc) {
  if (record.starts_with("- ")) {
    record.remove_prefix(2);
    return true;
  }
  uint32_t value = 0;
  const auto [end, error] =
      std::from_chars(record.data(), record.data() + std::min<size_t>(record.size(), 8), value, 16);
  if (error != std::errc() || end != record.data() + 8 || record.size() < 10 || *end != ' ')
    return false;
  crc = value;
  record.remove_prefix(9);
  return true;
}

bool take_image(std::string_view record, ShardImage& image) {
  if (!take_number(record, image.offset) || !take_number(record, image.bytes) ||
      !take_number(record, image.label) || !take_crc(record, image.crc32))
    return false;
  image.name = record;
  return true;
}

// What may stand in an index: an image's member that lies in the shard, behind the one before.
bool is_sound(const ShardImage& image, uint64_t from, uint64_t shard_bytes) {
  return image.offset >= from && image.offset % kTarBlock == 0 && image.offset <= shard_bytes &&
         image.bytes <= shard_bytes - image.offset && image.label <= kMaxLabel &&
         is_image_name(image.name);
}

// Makes samples of the members as they come.
class Scan {
 public:
  Scan(const std::string& path, ShardIndex& index) : path_(path), index_(index) {}

  void take(const TarMember& member, const ReadMember& read) {
    const std::string_view key = key_of(member.name);
    if (key != key_) finish();
    key_ = key;
    if (is_image_name(member.name)) {
      if (has_image_)
        refuse(member, fmt::format("a second image of the key \"{}\"", printable(key)));
      has_image_ = true;
      image_ = member;
    } else if (member.name.ends_with(".cls")) {
      if (label_) refuse(member, fmt::format("a second label of the key \"{}\"", printable(key)));
      label_ = label_in(member, read(kMaxDigits));
    } else {
      ++index_.skipped;
    }
  }

  // At the end of the shard, too.
  void finish() {
    if (has_image_ && !label_)
      refuse(image_, fmt::format("the image \"{}\" has no label ({}.cls beside it)",
                                 printable(image_.name), printable(key_)));
    if (has_image_)
      index_.add({.offset = image_.offset,
                  .bytes = image_.bytes,
                  .label = *label_,
                  .crc32 = std::nullopt,
                  .name = image_.name});
    else if (label_)
      ++index_.skipped;
    has_image_ = false;
    label_.reset();
  }

 private:
  static constexpr size_t kMaxDigits = 32;

  [[noreturn]] void refuse(const TarMember& member, const std::string& what) const {
    fail(ExitCode::kBadData, "{}, byte {}: {}", printable(path_), member.header, what);
  }

  uint64_t label_in(const TarMember& member, std::string_view text) const {
    const std::string_view digits = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
    uint64_t label = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), label);
    if (member.bytes > kMaxDigits || error != std::errc() || end != digits.data() + digits.size() ||
        label > kMaxLabel)
      refuse(member, fmt::format("\"{}\" holds \"{}\", which is no label (a number from 0)",
                                 printable(member.name), printable(text)));
    return label;
  }

  const std::string& path_;
  ShardIndex& index_;
  std::string key_;
  TarMember image_;
  bool has_image_ = false;
  std::optional<uint64_t> label_;
};

void refuse_duplicates(const ShardIndex& index, const std::string& path) {
  std::vector<std::string_view> keys(index.size());
  std::vector<uint32_t> order(index.size());
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = key_of(index.image(i).name);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  for (size_t k = 1; k < order.size(); ++k) {
    if (keys[order[k - 1]] != keys[order[k]]) continue;
    const ShardImage first = index.image(order[k - 1]), second = index.image(order[k]);
    fail(ExitCode::kBadData,
         "{}: the key \"{}\" comes twice, its images are at bytes {} and {}: remove one",
         printable(path), printable(key_of(second.name)), first.offset, second.offset);
  }
}

}  // namespace

ShardImage ShardIndex::image(size_t i) const {
  ShardImage image;
  take_image(std::string_view(text_.data() + records_[i]), image);
  return image;
}

void ShardIndex::add(const ShardImage& image) {
  if (text_.size() > std::numeric_limits<uint32_t>::max())
    fail(ExitCode::kBadData, "a shard's index of more than 4 GiB: use smaller shards");
  records_.push_back(static_cast<uint32_t>(text_.size()));
  fmt::format_to(
      std::back_inserter(text_), "{} {} {} {} {}{}", image.offset, image.bytes, image.label,
      image.crc32 ? fmt::format("{:08x}", *image.crc32) : std::string(kNoCrc), image.name, '\0');
}

std::string ShardIndex::to_text() const {
  std::string text =
      fmt::format("{}{}{} {} {} {} {}{}", kShardIndexMagic, '\0', shard_bytes, size(), skipped,
                  left_out.size(), shard_sha256.empty() ? "-" : shard_sha256, '\0');
  text += text_;
  for (const std::string& line : left_out) {
    text += line;
    text += '\0';
  }
  return text;
}

ShardIndex ShardIndex::parse(std::string_view text, const std::string& source) {
  ShardIndex index;
  size_t record_number = 0;
  const auto require = [&](bool holds) {
    if (!holds)
      fail(ExitCode::kBadData,
           "{}: damaged at record {}: remove it (the shard's own headers are read then), or pack "
           "again",
           printable(source), record_number);
  };
  std::string_view record;
  uint64_t images = 0, left_out = 0;
  require(next_record(text, record) && record == kShardIndexMagic);
  ++record_number;
  require(next_record(text, record) && take_number(record, index.shard_bytes) &&
          take_number(record, images) && take_number(record, index.skipped) &&
          take_number(record, left_out) && (record == "-" || record.size() == 64));
  if (record != "-") index.shard_sha256 = record;
  require(images <= text.size() && left_out <= text.size());
  index.records_.reserve(images);
  uint64_t from = 0;
  const char* const begin = text.data();
  for (; images > 0; --images) {
    ++record_number;
    ShardImage image;
    const auto at = static_cast<size_t>(text.data() - begin);
    require(at <= std::numeric_limits<uint32_t>::max() && next_record(text, record) &&
            take_image(record, image) && is_sound(image, from, index.shard_bytes));
    from = image.offset + image.bytes;
    index.records_.push_back(static_cast<uint32_t>(at));
  }
  index.text_.assign(begin, static_cast<size_t>(text.data() - begin));
  for (; left_out > 0; --left_out) {
    ++record_number;
    require(next_record(text, record));
    index.left_out.emplace_back(record);
  }
  require(text.empty());
  return index;
}

std::string shard_index_path(const std::string& shard) {
  return shard + ".index";
}

ShardIndex scan_shard(const std::string& path) {
  const OpenFile file = open_regular(path);
  ShardIndex index;
  index.shard_bytes = file.bytes;
  Scan scan(path, index);
  const TarListing listing =
      list_tar(file.fd.get(), file.bytes, path,
               [&](const TarMember& member, const ReadMember& read) { scan.take(member, read); });
  scan.finish();
  index.skipped += listing.skipped;
  refuse_duplicates(index, path);
  return index;
}

uint32_t crc32_of(const void* data, size_t bytes) {
  return libdeflate_crc32(0, data, bytes);
}

std::string member_name(std::string_view class_name, std::string_view file, bool is_shared) {
  const size_t dot = file.rfind('.');
  std::string key;
  for (const char c : is_shared ? file : file.substr(0, dot))
    if (c == '.')
      key += "%2E";
    else if (c == '%')
      key += "%25";
    else
      key += c;
  return fmt::format("{}/{}{}{}", class_name, key, is_shared ? "%" : "", file.substr(dot));
}

std::string_view original_name(std::string_view member, std::string_view class_name,
                               std::string& scratch) {
  if (member.size() > class_name.size() && member[class_name.size()] == '/' &&
      member.starts_with(class_name))
    member.remove_prefix(class_name.size() + 1);
  if (member.find('%') == std::string_view::npos) return member;
  const size_t dot = member.rfind('.');
  std::string_view key = member.substr(0, dot);
  const bool is_whole = key.ends_with('%');
  if (is_whole) key.remove_suffix(1);
  scratch.clear();
  for (size_t i = 0; i < key.size(); ++i) {
    const std::string_view escape = key.substr(i, 3);
    if (escape == "%2E" || escape == "%25") {
      scratch += escape == "%2E" ? '.' : '%';
      i += 2;
    } else {
      scratch += key[i];
    }
  }
  if (!is_whole) scratch += member.substr(dot);
  return scratch;
}

std::string_view key_of(std::string_view member) {
  const size_t slash = member.rfind('/');
  return member.substr(0, member.find('.', slash == std::string_view::npos ? 0 : slash));
}

}  // namespace convoy::data
