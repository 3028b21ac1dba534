#include "data_loader/tar_shards.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <numeric>

#include "data_loader/files.h"
#include "data_loader/image.h"
#include "data_loader/listing.h"
#include "data_loader/raw_pixels.h"
#include "data_loader/shard_index.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::data {
namespace {

constexpr std::string_view kCacheMagic = "convoy shards index 1";

struct Shard {
  std::string path;
  ShardIndex index;
};

struct ShardStatus {
  uint64_t bytes = 0;
  int64_t modified_ns = 0;
};

ShardStatus status_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    fail(ExitCode::kIo, "{}: cannot stat: {}", printable(path), errno_text());
  return {static_cast<uint64_t>(status.st_size),
          int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

// The index beside a shard; false where there is none of ours.
bool read_index(const std::string& shard, ShardIndex& index) {
  const std::string path = shard_index_path(shard);
  if (!is_regular_file(path)) return false;
  std::vector<uint8_t> bytes;
  read_file(path, bytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(kShardIndexMagic)) return false;
  constexpr size_t kDigestLine = 65;
  if (text.size() < kDigestLine || sha256_hex(text.substr(0, text.size() - kDigestLine)) !=
                                       text.substr(text.size() - kDigestLine, kDigestLine - 1))
    fail(ExitCode::kBadData,
         "{}: damaged (its digest is another): remove it (the shard's own headers are read then), "
         "or pack again",
         printable(path));
  index = ShardIndex::parse(text.substr(0, text.size() - kDigestLine), path);
  const uint64_t bytes_now = status_of(shard).bytes;
  if (bytes_now != index.shard_bytes)
    fail(ExitCode::kBadData, "{}: has {} bytes, its index says {}: copy or pack it again",
         printable(shard), bytes_now, index.shard_bytes);
  return true;
}

// ---- What is kept of shards without an index ----

void keep(const std::string& path, const std::vector<Shard>& shards,
          const std::vector<size_t>& scanned, const std::vector<ShardStatus>& before) {
  std::string text = fmt::format("{}{}{}{}", kCacheMagic, '\0', scanned.size(), '\0');
  for (size_t k = 0; k < scanned.size(); ++k) {
    const Shard& shard = shards[scanned[k]];
    if (!is_settled(before[k].modified_ns)) return;
    const std::string index = shard.index.to_text();
    text += fmt::format("{} {} {} {}{}", before[k].bytes, before[k].modified_ns, index.size(),
                        shard.path.substr(shard.path.rfind('/') + 1), '\0');
    text += index;
  }
  write_cache(path, text);
}

// False where there is no such cache, or it is of other shards.
bool recall(const std::string& path, std::vector<Shard>& shards, const std::vector<size_t>& scanned,
            const std::vector<ShardStatus>& now) {
  const std::string cached = read_cache(path);
  std::string_view text = cached, record;
  uint64_t count = 0;
  if (!next_record(text, record) || record != kCacheMagic || !next_record(text, record) ||
      !take_number(record, count) || count != scanned.size())
    return false;
  for (size_t k = 0; k < scanned.size(); ++k) {
    Shard& shard = shards[scanned[k]];
    ShardStatus status;
    uint64_t bytes = 0;
    if (!next_record(text, record) || !take_number(record, status.bytes) ||
        !take_number(record, status.modified_ns) || !take_number(record, bytes) ||
        record != shard.path.substr(shard.path.rfind('/') + 1) || bytes > text.size() ||
        status.bytes != now[k].bytes || status.modified_ns != now[k].modified_ns)
      return false;
    try {
      shard.index = ShardIndex::parse(text.substr(0, bytes), path);
    } catch (const Error&) {
      return false;
    }
    if (shard.index.shard_bytes != status.bytes) return false;
    text.remove_prefix(bytes);
  }
  return text.empty();
}

std::vector<Shard> open_shards(const std::string& folder, const std::string& cache_folder) {
  std::vector<Shard> shards;
  for (const std::string& name : list_shards(folder))
    shards.push_back({fmt::format("{}/{}", folder, name), {}});
  std::vector<char> has_index(shards.size());
  for_each_in_parallel(shards.size(), kListingThreads, [&](size_t i) {
    has_index[i] = read_index(shards[i].path, shards[i].index) ? 1 : 0;
  });
  std::vector<size_t> scanned;
  std::vector<ShardStatus> status;
  for (size_t i = 0; i < shards.size(); ++i) {
    if (has_index[i] != 0) continue;
    scanned.push_back(i);
    status.push_back(status_of(shards[i].path));
  }
  if (scanned.empty()) return shards;
  const std::string cache = index_path(cache_folder, "shards", folder);
  if (!cache.empty() && recall(cache, shards, scanned, status)) return shards;
  log::info("{}: {} shard(s) without an index: their headers are read", printable(folder),
            scanned.size());
  for_each_in_parallel(scanned.size(), kListingThreads, [&](size_t k) {
    shards[scanned[k]].index = scan_shard(shards[scanned[k]].path);
  });
  if (!cache.empty()) keep(cache, shards, scanned, status);
  return shards;
}

// ---- Open files ----

// Shards that were read last stay open, as many as a process may well have.
class OpenShards {
 public:
  using Handle = std::shared_ptr<const FileDescriptor>;

  explicit OpenShards(size_t shards) : handles_(shards) {
    rlimit limit{};
    const bool known = ::getrlimit(RLIMIT_NOFILE, &limit) == 0;
    most_ = std::clamp<size_t>(known ? limit.rlim_cur / 4 : 64, 4, 1024);
  }

  Handle get(size_t shard, const std::string& path, uint64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      if (handles_[shard]) return handles_[shard];
    }
    OpenFile file = open_regular(path);
    if (file.bytes != bytes)
      fail(ExitCode::kBadData, "{}: has {} bytes, had {} when the dataset was indexed: start again",
           printable(path), file.bytes, bytes);
    auto handle = std::make_shared<const FileDescriptor>(std::move(file.fd));
    const std::lock_guard lock(mutex_);
    if (!handles_[shard]) {
      if (opened_.size() == most_) {
        handles_[opened_.front()].reset();
        opened_.pop_front();
      }
      opened_.push_back(shard);
      handles_[shard] = handle;
    }
    return handles_[shard];
  }

 private:
  std::mutex mutex_;
  std::vector<Handle> handles_;
  std::list<size_t> opened_;  // the longest open first
  size_t most_ = 0;
};

// ---- The dataset ----

class TarShards final : public Dataset {
 public:
  TarShards(std::vector<Shard> shards, std::vector<std::string> classes, SampleOrder order)
      : shards_(std::move(shards)), classes_(std::move(classes)), open_(shards_.size()) {
    for (const Shard& shard : shards_) {
      first_.push_back(size_);
      sizes_.push_back(shard.index.size());
      size_ += shard.index.size();
    }
    if (order == SampleOrder::kByShard) {
      digest_ = digest_by_shard();
    } else {
      digest_ = order_by_name();
      sizes_.clear();
    }
  }

  uint64_t size() const override { return size_; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  const std::string& digest() const override { return digest_; }
  std::span<const uint64_t> shard_sizes() const override { return sizes_; }
  int32_t label(uint64_t i) const override { return static_cast<int32_t>(image(place(i)).label); }

  std::string name(uint64_t i) const override {
    const Place at = place(i);
    const ShardImage found = image(at);
    return fmt::format("{}, byte {}: {}", shards_[at.shard].path, found.offset, found.name);
  }

  SampleFile file(uint64_t i) const override {
    const ShardImage found = image(place(i));
    std::string scratch;
    return {std::string(original_name(found.name, classes_[found.label], scratch)), found.bytes};
  }

  void read(uint64_t i, Sample& sample) const override {
    const Place at = place(i);
    const Shard& shard = shards_[at.shard];
    const ShardImage found = image(at);
    if (found.bytes > kMaxFileBytes)
      throw BadContent(fmt::format("{}: has {} bytes; an image's file has at most {}",
                                   printable(name(i)), found.bytes, kMaxFileBytes));
    const auto handle = open_.get(at.shard, shard.path, shard.index.shard_bytes);
    sample.storage.resize(found.bytes);
    read_at(handle->get(), shard.path, found.offset, sample.storage.data(), found.bytes);
    if (found.crc32 && *found.crc32 != crc32_of(sample.storage.data(), found.bytes))
      fail(ExitCode::kBadData,
           "{}: damaged: its checksum is not the one it was packed with: copy or "
           "pack the shard again",
           printable(name(i)));
    sample.bytes = sample.storage;
    sample.label = static_cast<int32_t>(found.label);
  }

  void will_read(uint64_t i) const override {
    const Place at = place(i);
    const ShardImage found = image(at);
    const auto handle =
        open_.get(at.shard, shards_[at.shard].path, shards_[at.shard].index.shard_bytes);
    ::posix_fadvise(handle->get(), static_cast<off_t>(found.offset),
                    static_cast<off_t>(found.bytes), POSIX_FADV_WILLNEED);
  }

 private:
  struct Place {
    size_t shard, image;
  };

  // `slot` counts images as they lie in the shards.
  Place place_of_slot(uint64_t slot) const {
    const auto next = std::upper_bound(first_.begin(), first_.end(), slot);
    const auto shard = static_cast<size_t>(next - first_.begin()) - 1;
    return {shard, static_cast<size_t>(slot - first_[shard])};
  }
  Place place(uint64_t i) const { return place_of_slot(by_name_.empty() ? i : by_name_[i]); }
  ShardImage image(Place at) const { return shards_[at.shard].index.image(at.image); }

  // Fills by_name_; returns the digest.
  std::string order_by_name() {
    if (size_ > UINT32_MAX)
      fail(ExitCode::kBadData, "{} images; at most {} are ordered by their names", size_,
           UINT32_MAX);
    // By label, as they come; then the names of each class.
    std::vector<uint32_t> labels;
    labels.reserve(size_);
    std::vector<uint32_t> begins(classes_.size() + 1);
    for (const Shard& shard : shards_)
      for (size_t k = 0; k < shard.index.size(); ++k) {
        labels.push_back(static_cast<uint32_t>(shard.index.image(k).label));
        ++begins[labels.back() + 1];
      }
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    by_name_.resize(size_);
    std::vector<uint32_t> next(begins);
    for (uint32_t slot = 0; slot < labels.size(); ++slot) by_name_[next[labels[slot]]++] = slot;
    ListingDigest digest;
    for (size_t c = 0; c < classes_.size(); ++c)
      order_class(c, std::span(by_name_).subspan(begins[c], begins[c + 1] - begins[c]), digest);
    return digest.hex();
  }

  void order_class(size_t label, std::span<uint32_t> slots, ListingDigest& digest) const {
    struct Named {
      std::string_view name;
      uint64_t bytes;
      uint32_t slot;
    };
    if (slots.empty()) return;
    std::vector<Named> named;
    std::list<std::string> put_together;
    std::string scratch;
    for (const uint32_t slot : slots) {
      const ShardImage found = image(place_of_slot(slot));
      std::string_view name = original_name(found.name, classes_[label], scratch);
      if (name.data() == scratch.data()) name = put_together.emplace_back(scratch);
      named.push_back({name, found.bytes, slot});
    }
    std::sort(named.begin(), named.end(), [](const Named& a, const Named& b) {
      return a.name != b.name ? a.name < b.name : a.slot < b.slot;
    });
    digest.add_class(label, slots.size(), classes_[label]);
    for (size_t k = 0; k < slots.size(); ++k) {
      slots[k] = named[k].slot;
      digest.add_image(named[k].bytes, named[k].name);
    }
  }

  std::string digest_by_shard() const {
    Sha256 digest;
    for (const std::string& name : classes_)
      digest.update(fmt::format("class {}:{}\n", name.size(), name));
    for (const Shard& shard : shards_) {
      std::string text = fmt::format("shard {}\n", shard.index.size());
      for (size_t k = 0; k < shard.index.size(); ++k) {
        const ShardImage found = shard.index.image(k);
        fmt::format_to(std::back_inserter(text), "{} {} {}:{}\n", found.label, found.bytes,
                       found.name.size(), found.name);
      }
      digest.update(text);
    }
    return digest.hex();
  }

  std::vector<Shard> shards_;
  std::vector<std::string> classes_;
  mutable OpenShards open_;
  std::vector<uint64_t> first_;    // of each shard: its first slot
  std::vector<uint64_t> sizes_;    // kByShard: images of each shard
  std::vector<uint32_t> by_name_;  // kByName: the slot of each sample
  uint64_t size_ = 0;
  std::string digest_;
};

// ---- Classes ----

// The lines of classes.txt in the folder, or else in `above`; empty where there is none.
std::vector<std::string> named_classes(const std::string& folder, const std::string& above,
                                       std::string& path) {
  for (const std::string& place : {folder, above}) {
    path = place + "/classes.txt";
    if (!is_regular_file(path)) continue;
    std::vector<uint8_t> bytes;
    read_file(path, bytes);
    std::string text(bytes.begin(), bytes.end());
    if (!text.empty() && text.back() != '\n') text += '\n';
    std::vector<std::string> names;
    std::string_view rest = text, line;
    while (next_line(rest, line))
      names.emplace_back(line.substr(0, line.find_last_not_of('\r') + 1));
    if (names.empty()) fail(ExitCode::kBadData, "{}: no class in it", printable(path));
    return names;
  }
  return {};
}

uint64_t labels_of(const std::vector<Shard>& shards) {
  uint64_t labels = 0;
  for (const Shard& shard : shards)
    for (size_t k = 0; k < shard.index.size(); ++k)
      labels = std::max(labels, shard.index.image(k).label + 1);
  return labels;
}

// Throws Error (kBadData) naming the first image whose label is none of `classes`.
void check_labels(const std::vector<Shard>& shards, uint64_t classes, const std::string& source) {
  for (const Shard& shard : shards)
    for (size_t k = 0; k < shard.index.size(); ++k) {
      const ShardImage image = shard.index.image(k);
      if (image.label >= classes)
        fail(ExitCode::kBadData, "{}, byte {}: {}: label {}, but {} has the classes 0 ... {}",
             printable(shard.path), image.offset, printable(image.name), image.label, source,
             classes - 1);
    }
}

constexpr uint64_t kMaxClasses = uint64_t{1} << 20;

}  // namespace

std::vector<std::string> list_shards(const std::string& folder) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(folder.c_str()), &::closedir);
  if (!listing) return names;
  while (const dirent* entry = ::readdir(listing.get())) {
    const std::string name = entry->d_name;
    if (name[0] != '.' && name.ends_with(".tar") &&
        is_regular_file(fmt::format("{}/{}", folder, name)))
      names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_tar_shards(const std::string& path) {
  return is_regular_file(path + "/" + kUnfinishedPack) || !list_shards(path).empty() ||
         !list_shards(path + "/train").empty() || !list_shards(path + "/val").empty();
}

std::unique_ptr<Dataset> open_tar_shards(const DatasetSpec& spec, Split split) {
  const std::string train = spec.path + "/train", val = spec.path + "/val";
  const bool flat = !is_directory(train) && !is_directory(val);
  if (is_regular_file(spec.path + "/" + kUnfinishedPack))
    fail(ExitCode::kBadData, "{}: convoy pack was not done here: run it again",
         printable(spec.path));
  const std::string root = flat ? spec.path : split == Split::kTrain ? train : val;
  if (!is_directory(root))
    fail(ExitCode::kBadData, "{}: no folder {}/ in it, only {}/", printable(spec.path),
         name_of(split), split == Split::kTrain ? "val" : "train");
  std::vector<Shard> shards = open_shards(root, spec.cache_folder);
  uint64_t images = 0, skipped = 0;
  for (const Shard& shard : shards) {
    images += shard.index.size();
    skipped += shard.index.skipped;
  }
  if (images == 0)
    fail(ExitCode::kBadData, "{}: no images in its {} shard(s) (expected <key>.jpg and <key>.cls)",
         printable(root), shards.size());
  if (skipped > 0) log::info("{}: {} members skipped that are no images", printable(root), skipped);
  if (flat && split == Split::kVal)
    log::info("{}: no train/ and val/ in it, so the same images serve training and evaluation",
              printable(spec.path));

  std::string source;
  std::vector<std::string> classes = named_classes(root, spec.path, source);
  if (!classes.empty()) {
    check_labels(shards, classes.size(), printable(source));
    if (spec.classes > 0 && classes.size() > static_cast<size_t>(spec.classes))
      fail(ExitCode::kBadData, "{}: {} classes, the job says {}; set data.classes: 0 or {}",
           printable(source), classes.size(), spec.classes, classes.size());
  } else {
    uint64_t count = static_cast<uint64_t>(spec.classes);
    // Labels count the training classes, also in evaluation.
    if (count == 0)
      count = !flat && split == Split::kVal && !list_shards(train).empty()
                  ? labels_of(open_shards(train, spec.cache_folder))
                  : labels_of(shards);
    if (count > kMaxClasses)
      fail(ExitCode::kBadData, "{}: {} classes by its largest label; at most {} are known",
           printable(root), count, kMaxClasses);
    check_labels(shards, count, spec.classes > 0 ? "the job" : "the training set");
    classes = numbered_classes(static_cast<int>(count));
  }
  return std::make_unique<TarShards>(std::move(shards), std::move(classes), spec.order);
}

}  // namespace convoy::data
