#include "data_loader/image_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <map>

#include "data_loader/files.h"
#include "data_loader/image.h"
#include "data_loader/listing.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::data {
namespace {

struct ClassFolder {
  std::string name;
  int64_t modified_ns = 0;
  uint64_t files = 0;
};

// What one split's folder holds. `text` has a record "convoy image index 2", one of the folder
// (time, entries skipped, classes), and for each class one of its folder (time, images, name),
// followed by its images' (bytes, name), sorted.
struct Index {
  int64_t modified_ns = 0;
  uint64_t skipped = 0;
  std::vector<ClassFolder> folders;
  std::string text;
  std::vector<uint32_t> images;  // where each one's record begins in `text`

  uint64_t bytes(uint64_t i) const {
    uint64_t bytes = 0;
    record(i, bytes);
    return bytes;
  }
  std::string_view name(uint64_t i) const {
    uint64_t bytes = 0;
    return record(i, bytes);
  }
  // Its name.
  std::string_view record(uint64_t i, uint64_t& bytes) const {
    std::string_view record(text.data() + images[i]);
    take_number(record, bytes);
    return record;
  }
};

constexpr std::string_view kMagic = "convoy image index 2";

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

int64_t modified_ns(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    fail(ExitCode::kIo, "{}: cannot stat: {}", printable(path), errno_text());
  return nanoseconds(status.st_mtim);
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), &::free);
  return real ? real.get() : path;
}

// Finds the links that lead out of a dataset's folder.
class LinkGuard {
 public:
  explicit LinkGuard(const DatasetSpec& spec)
      : follow_(spec.follow_links), root_(spec.path), inside_(real_path(spec.path) + "/") {}

  // To be called with everything that is used and may be a link.
  void see(const std::string& path) {
    if (follow_) return;
    const std::string target = real_path(path) + "/";
    if (target.starts_with(inside_)) return;
    if (outside_++ == 0 || path < first_) {
      first_ = path;
      first_target_ = target.substr(0, target.size() - 1);
    }
  }

  // Throws Error (kBadData) where a link led out.
  void require_none() const {
    if (outside_ > 0)
      fail(
          ExitCode::kBadData,
          "{}: {} link(s) lead out of it, the first: {} -> {}: set data.follow_links: true if that "
          "is meant (convoy verify: --follow-links)",
          printable(root_), outside_, printable(first_), printable(first_target_));
  }

 private:
  const bool follow_;
  const std::string root_, inside_;
  uint64_t outside_ = 0;
  std::string first_, first_target_;
};

// Calls visit(name, status, is_link) for each entry that is not hidden; status follows links and is
// nullptr where there is nothing to follow (a dangling link, a loop).
template <typename Visit>
void for_each_entry(const std::string& path, Visit visit) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), &::closedir);
  if (!folder) fail(ExitCode::kIo, "{}: cannot list: {}", printable(path), errno_text());
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(folder.get());
    if (entry == nullptr && errno != 0)
      fail(ExitCode::kIo, "{}: cannot list: {}", printable(path), errno_text());
    if (entry == nullptr) return;
    if (entry->d_name[0] == '.') continue;
    struct stat status {};
    const bool known = ::fstatat(::dirfd(folder.get()), entry->d_name, &status, 0) == 0;
    struct stat itself {};
    const bool is_link = entry->d_type == DT_LNK || (entry->d_type == DT_UNKNOWN &&
                                                     ::fstatat(::dirfd(folder.get()), entry->d_name,
                                                               &itself, AT_SYMLINK_NOFOLLOW) == 0 &&
                                                     S_ISLNK(itself.st_mode));
    visit(std::string_view(entry->d_name), known ? &status : nullptr, is_link);
  }
}

// The classes of a split's folder, sorted, without their files. Throws Error (kBadData) where a
// link makes one folder two classes. `links` (or nullptr) sees the links among them.
Index list_classes(const std::string& root, LinkGuard* links = nullptr) {
  Index index;
  index.modified_ns = modified_ns(root);
  std::map<std::pair<dev_t, ino_t>, std::string> seen;
  for_each_entry(root, [&](std::string_view entry, const struct stat* status, bool is_link) {
    const std::string name(entry);
    if (status == nullptr || !S_ISDIR(status->st_mode)) {
      ++index.skipped;
      return;
    }
    if (is_link && links != nullptr) links->see(root + "/" + name);
    const auto [first, fresh] = seen.try_emplace({status->st_dev, status->st_ino}, name);
    if (!fresh)
      fail(ExitCode::kBadData, "{}: \"{}\" and \"{}\" are one folder, not two classes: remove one",
           printable(root), printable(std::min(first->second, name)),
           printable(std::max(first->second, name)));
    index.folders.push_back({name, nanoseconds(status->st_mtim)});
  });
  std::sort(index.folders.begin(), index.folders.end(),
            [](const ClassFolder& a, const ClassFolder& b) { return a.name < b.name; });
  return index;
}

// A class folder's images, sorted, as records of the index; how many, the entries skipped, and
// which of the images are links.
struct ClassListing {
  std::string text;
  uint64_t files = 0, skipped = 0;
  std::vector<std::string> links;
};

ClassListing scan_class(const std::string& path) {
  struct File {
    size_t begin, length;
    uint64_t bytes;
  };
  ClassListing listing;
  std::string names;
  std::vector<File> files;
  for_each_entry(path, [&](std::string_view name, const struct stat* status, bool is_link) {
    if (status == nullptr || !S_ISREG(status->st_mode) || !is_image_name(name)) {
      ++listing.skipped;
      return;
    }
    if (is_link) listing.links.push_back(fmt::format("{}/{}", path, name));
    files.push_back({names.size(), name.size(), static_cast<uint64_t>(status->st_size)});
    names += name;
  });
  const auto name_of_file = [&](const File& file) {
    return std::string_view(names).substr(file.begin, file.length);
  };
  std::sort(files.begin(), files.end(),
            [&](const File& a, const File& b) { return name_of_file(a) < name_of_file(b); });
  listing.files = files.size();
  for (const File& file : files)
    fmt::format_to(std::back_inserter(listing.text), "{} {}{}", file.bytes, name_of_file(file),
                   '\0');
  return listing;
}

// Where images' records begin is kept in 32 bits.
void add_image(Index& index, size_t at, const std::string& root) {
  if (at > std::numeric_limits<uint32_t>::max())
    fail(ExitCode::kBadData,
         "{}: the names of its images have more than 4 GiB: pack them into "
         "shards (convoy pack)",
         printable(root));
  index.images.push_back(static_cast<uint32_t>(at));
}

Index scan(const std::string& root, LinkGuard& links) {
  Index index = list_classes(root, &links);
  std::vector<ClassListing> listings(index.folders.size());
  for_each_in_parallel(listings.size(), kListingThreads, [&](size_t i) {
    listings[i] = scan_class(root + "/" + index.folders[i].name);
  });
  size_t bytes = 0, files = 0;
  for (const ClassListing& listing : listings) {
    for (const std::string& link : listing.links) links.see(link);
    index.skipped += listing.skipped;
    bytes += listing.text.size();
    files += listing.files;
  }
  index.images.reserve(files);
  index.text.reserve(bytes + 100 + 300 * listings.size());
  const auto add = std::back_inserter(index.text);
  fmt::format_to(add, "{}{}{} {} {}{}", kMagic, '\0', index.modified_ns, index.skipped,
                 listings.size(), '\0');
  for (size_t i = 0; i < listings.size(); ++i) {
    ClassFolder& folder = index.folders[i];
    folder.files = listings[i].files;
    fmt::format_to(add, "{} {} {}{}", folder.modified_ns, folder.files, folder.name, '\0');
    const std::string text = std::move(listings[i].text);
    for (size_t at = 0; at < text.size(); at = text.find('\0', at) + 1)
      add_image(index, index.text.size() + at, root);
    index.text += text;
  }
  return index;
}

void keep(const std::string& path, const Index& index) {
  int64_t newest = index.modified_ns;
  for (const ClassFolder& folder : index.folders) newest = std::max(newest, folder.modified_ns);
  if (is_settled(newest)) write_cache(path, index.text);
}

// The images of a class out of a kept index, which `text` is the rest of.
bool recall_class(std::string_view& text, ClassFolder& folder, Index& index,
                  const std::string& root) {
  std::string_view record, last;
  for (uint64_t n = folder.files; n > 0; --n) {
    const size_t at = index.text.size() - text.size();
    uint64_t bytes = 0;
    if (!next_record(text, record) || !take_number(record, bytes) || !is_plain_name(record) ||
        !is_image_name(record) || record <= last)
      return false;
    last = record;
    add_image(index, at, root);
  }
  return true;
}

// False where there is no index, a folder has changed since, or it is not as scan() makes it: what
// lies in a cache folder is not trusted more than what lies elsewhere.
bool recall(const std::string& path, const std::string& root, Index& index) {
  index.text = read_cache(path);
  std::string_view text = index.text, record;
  uint64_t folders = 0;
  if (!next_record(text, record) || record != kMagic || !next_record(text, record) ||
      !take_number(record, index.modified_ns) || !take_number(record, index.skipped) ||
      !take_number(record, folders) || modified_ns(root) != index.modified_ns)
    return false;
  for (; folders > 0; --folders) {
    ClassFolder folder;
    if (!next_record(text, record) || !take_number(record, folder.modified_ns) ||
        !take_number(record, folder.files))
      return false;
    folder.name = record;
    if (!is_plain_name(folder.name) ||
        (!index.folders.empty() && index.folders.back().name >= folder.name))
      return false;
    const std::string folder_path = root + "/" + folder.name;
    if (!is_directory(folder_path) || modified_ns(folder_path) != folder.modified_ns) return false;
    if (!recall_class(text, folder, index, root)) return false;
    index.folders.push_back(std::move(folder));
  }
  index.images.shrink_to_fit();
  return text.empty();
}

class ImageFolder final : public Dataset {
 public:
  // `classes`: what the labels count; the folders of the index are among them.
  ImageFolder(std::string root, Index index, std::vector<std::string> classes)
      : root_(std::move(root)), index_(std::move(index)), classes_(std::move(classes)) {
    ListingDigest digest;
    uint64_t i = 0;
    for (const ClassFolder& folder : index_.folders) {
      const auto found = std::find(classes_.begin(), classes_.end(), folder.name);
      const auto label = static_cast<int32_t>(found - classes_.begin());
      first_.push_back(i);
      labels_.push_back(label);
      digest.add_class(static_cast<uint64_t>(label), folder.files, folder.name);
      for (const uint64_t end = i + folder.files; i < end; ++i) {
        uint64_t bytes = 0;
        const std::string_view name = index_.record(i, bytes);
        digest.add_image(bytes, name);
      }
    }
    digest_ = digest.hex();
  }

  uint64_t size() const override { return index_.images.size(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  const std::string& digest() const override { return digest_; }
  int32_t label(uint64_t i) const override { return labels_[folder_of(i)]; }

  std::string name(uint64_t i) const override {
    return fmt::format("{}/{}/{}", root_, index_.folders[folder_of(i)].name, index_.name(i));
  }

  SampleFile file(uint64_t i) const override {
    SampleFile file;
    file.name = index_.record(i, file.bytes);
    return file;
  }

  // Opening alone fetches the inode, which on a network is half of the way.
  void will_read(uint64_t i) const override {
    const OpenFile file = open_regular(name(i));
    ::posix_fadvise(file.fd.get(), 0, 0, POSIX_FADV_WILLNEED);
  }

  void read(uint64_t i, Sample& sample) const override {
    const std::string path = name(i);
    const uint64_t bytes = index_.bytes(i);
    if (bytes > kMaxFileBytes)
      throw BadContent(fmt::format("{}: has {} bytes; an image's file has at most {}",
                                   printable(path), bytes, kMaxFileBytes),
                       Damage::kTooLarge);
    read_file(path, sample.storage);
    if (sample.storage.size() != bytes)
      fail(ExitCode::kBadData,
           "{}: has {} bytes, had {} when the dataset was indexed: start again (touch its folder "
           "first, so that the index is made anew)",
           printable(path), sample.storage.size(), bytes);
    sample.bytes = sample.storage;
    sample.label = label(i);
  }

 private:
  size_t folder_of(uint64_t i) const {
    return static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), i) - first_.begin()) -
           1;
  }

  std::string root_;
  Index index_;
  std::vector<uint64_t> first_;  // of each folder: its first sample
  std::vector<int32_t> labels_;  // of each folder
  std::vector<std::string> classes_;
  std::string digest_;
};

std::vector<std::string> names_of(const Index& index) {
  std::vector<std::string> names;
  for (const ClassFolder& folder : index.folders) names.push_back(folder.name);
  return names;
}

}  // namespace

bool is_image_folder(const std::string& path) {
  return !list_classes(path).folders.empty();
}

FolderEvidence image_folder_evidence(const std::string& path) {
  constexpr size_t kLookInto = 20;
  std::vector<std::string> splits;
  for (const char* name : {"/train", "/val"})
    if (is_directory(path + name)) splits.push_back(path + name);
  const bool flat = splits.empty();
  if (flat) splits.push_back(path);
  size_t classes = 0, seen = 0, with_images = 0;
  for (const std::string& split : splits) {
    const Index index = list_classes(split);
    classes += index.folders.size();
    for (size_t i = 0; i < std::min(kLookInto, index.folders.size()); ++i, ++seen) {
      bool any = false;
      for_each_entry(split + "/" + index.folders[i].name,
                     [&](std::string_view name, const struct stat* status, bool) {
                       any |= status != nullptr && S_ISREG(status->st_mode) && is_image_name(name);
                     });
      with_images += any ? 1 : 0;
    }
  }
  FolderEvidence evidence;
  evidence.any = with_images > 0;
  evidence.certain = with_images > 0 && 2 * with_images >= seen && (!flat || classes > 1);
  evidence.text = fmt::format("{}, {} class folder(s), {} of {} looked into hold images",
                              flat                 ? "no train/ and val/"
                              : splits.size() == 2 ? "train/ and val/"
                                                   : "one of train/ and val/",
                              classes, with_images, seen);
  return evidence;
}

std::unique_ptr<Dataset> open_image_folder(const DatasetSpec& spec, Split split) {
  const std::string train = spec.path + "/train", val = spec.path + "/val";
  const bool flat = !is_directory(train) && !is_directory(val);
  const std::string root = flat ? spec.path : split == Split::kTrain ? train : val;
  if (!is_directory(root))
    fail(ExitCode::kBadData, "{}: no folder {}/ in it, only {}/{}", printable(spec.path),
         name_of(split), split == Split::kTrain ? "val" : "train",
         split == Split::kVal && is_directory(spec.path + "/test")
             ? "; name test/ val/, or link it (ln -s test val)"
             : "");

  LinkGuard links(spec);
  links.see(root);  // train/ itself may be a link
  Index index;
  // An index with links that lead out must not be found by who does not want them.
  const std::string cache = index_path(spec.cache_folder, "images", root,
                                       spec.follow_links ? "links out" : "no links out");
  if (cache.empty() || !recall(cache, root, index)) {
    index = scan(root, links);
    links.require_none();
    if (!cache.empty()) keep(cache, index);
  }
  links.require_none();
  if (index.folders.empty())
    fail(ExitCode::kBadData, "{}: no class folders in it (expected <class>/*.jpg)",
         printable(root));
  std::vector<std::string> empty;
  for (const ClassFolder& folder : index.folders)
    if (folder.files == 0) empty.push_back(folder.name);
  refuse_classes(root, empty, "class folder without images (*.jpg, *.jpeg, *.png)",
                 "fill or remove it");
  if (index.skipped > 0)
    log::info("{}: {} entries skipped that are no images", printable(root), index.skipped);
  if (flat && split == Split::kVal)
    log::info("{}: no train/ and val/ in it, so the same images serve training and evaluation",
              printable(spec.path));

  // Labels count the training classes, also in evaluation.
  std::vector<std::string> classes = names_of(index);
  if (!flat && split == Split::kVal && is_directory(train)) {
    const std::vector<std::string> known = names_of(list_classes(train));
    std::vector<std::string> strangers;
    for (const std::string& name : classes)
      if (!std::binary_search(known.begin(), known.end(), name)) strangers.push_back(name);
    refuse_classes(val, strangers, fmt::format("no class of that name in {}", printable(train)),
                   "add it there or remove it here");
    classes = known;
  }
  if (spec.classes > 0 && classes.size() > static_cast<size_t>(spec.classes))
    fail(ExitCode::kBadData,
         "{}: {} classes, the job says {}: the label of class {} would be {}; set data.classes: 0 "
         "or {}",
         printable(root), classes.size(), spec.classes,
         printable(classes[static_cast<size_t>(spec.classes)]), spec.classes, classes.size());
  return std::make_unique<ImageFolder>(root, std::move(index), std::move(classes));
}

}  // namespace convoy::data
