// What a tar shard holds and where: `convoy pack` writes it beside the shard (SHARD.tar.index), for
// shards made by others it comes from their headers.
//
// Members follow WebDataset's convention: a sample is the members of one key (the name up to the
// first dot behind the last slash) that follow each other, KEY.jpg (.jpeg, .png, .cvc) and KEY.cls,
// the label in decimal digits; other members of a key are left alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::data {

// An image in a shard. Views are of the index.
struct ShardImage {
  uint64_t offset = 0, bytes = 0;  // of its data in the shard
  uint64_t label = 0;
  std::optional<uint32_t> crc32;  // of its data, as gzip computes it
  std::string_view name;          // of the member
};

// One text with a record for each image, in the order of the shard: "OFFSET BYTES LABEL CRC NAME".
class ShardIndex {
 public:
  uint64_t shard_bytes = 0;
  uint64_t skipped = 0;               // members that are no image and no label
  std::string shard_sha256;           // "": not known
  std::vector<std::string> left_out;  // by `convoy pack --skip-bad`: "FILE: what is wrong"

  size_t size() const { return records_.size(); }
  ShardImage image(size_t i) const;
  void add(const ShardImage& image);

  // As a file holds it, but for the digest at its end.
  std::string to_text() const;
  // Throws Error (kBadData) where it is not as to_text() writes it. `source` is for messages.
  static ShardIndex parse(std::string_view text, const std::string& source);

 private:
  std::string text_;               // records, each with a zero byte at its end
  std::vector<uint32_t> records_;  // where each begins
};

constexpr std::string_view kShardIndexMagic = "convoy shard index 1";

// "SHARD.tar.index"
std::string shard_index_path(const std::string& shard);

// By the shard's headers and its labels' members. Throws Error as list_tar(), and kBadData with the
// place where an image has no label or two, or a name comes twice.
ShardIndex scan_shard(const std::string& path);

// SHA-256 of bytes fed piece by piece and the CRC are the caller's; this one is of a piece.
uint32_t crc32_of(const void* data, size_t bytes);

// ---- The names of members ----

// The member of an image that is called `file` (with its extension) in its class: "CLASS/STEM.jpg".
// A key has no dots, so a stem has its own written as %2E (and % as %25); where another file of the
// class has the same stem (`is_shared`), all of `file` is the stem, with a % behind it.
std::string member_name(std::string_view class_name, std::string_view file, bool is_shared);
// The file's name that member_name() was given. `scratch` holds it where it had to be put together.
std::string_view original_name(std::string_view member, std::string_view class_name,
                               std::string& scratch);
// "CLASS/STEM" of "CLASS/STEM.jpg": up to the first dot behind the last slash.
std::string_view key_of(std::string_view member);

}  // namespace convoy::data
