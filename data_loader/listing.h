// What listings of many files have in common: which names are images, the digest over names, sizes
// and labels, where an index is kept, and its lines.
//
// An index is one text. Its records end in a zero byte, which no name can hold; it serves as memory
// of the names, too, so that a million files take the memory of their names.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/digest.h"

namespace convoy::data {

// "*.jpg", "*.jpeg", "*.png" or "*.cvc", in any case. What an image really is its content says.
bool is_image_name(std::string_view name);

// A name that stays in its folder, and is not hidden.
bool is_plain_name(std::string_view name);

// Takes the next record off `text`, without its zero byte; false where none is left.
bool next_record(std::string_view& text, std::string_view& record);

// Takes "NUMBER " off the record.
bool take_number(std::string_view& record, uint64_t& value);
bool take_number(std::string_view& record, int64_t& value);

// "<cache folder>/<kind>-<hash of the folder's real path and `terms`>.index"; "" without a cache
// folder. `terms`: what else the index depends on.
std::string index_path(const std::string& cache_folder, std::string_view kind,
                       const std::string& root, std::string_view terms = "");

// Whether what changed last at this time can be trusted to change its time with its next change:
// within a tick of the clock it would not.
bool is_settled(int64_t modified_ns);

// The digest of a dataset of images: SHA-256 over each class that has any (label, number of images,
// name), in the order of the labels, followed by its images' sizes and names, sorted. The same for
// a folder and for shards of it.
class ListingDigest {
 public:
  void add_class(uint64_t label, uint64_t images, std::string_view name);
  void add_image(uint64_t bytes, std::string_view name);
  // 64 hexadecimal digits; the last call.
  std::string hex();

 private:
  void flush();

  Sha256 sha_;
  std::string pending_;  // many small pieces make one update
};

// Throws Error (kBadData) that names all of these classes at once; nothing where there are none.
void refuse_classes(const std::string& root, const std::vector<std::string>& names,
                    const std::string& what, const std::string& remedy);

// More than cores: a thread that lists waits most of its time, on a network for milliseconds.
constexpr size_t kListingThreads = 16;

// Calls body(i) for i in [0, n), on at most so many threads, the caller's among them. Throws the
// error of the lowest i that failed.
void for_each_in_parallel(size_t n, size_t threads, const std::function<void(size_t)>& body);

}  // namespace convoy::data
