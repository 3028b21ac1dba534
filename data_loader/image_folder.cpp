#include "data_loader/image_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <map>

#include "data_loader/files.h"
#include "data_loader/image.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::data {
namespace {

struct ImageFile {
  std::string name;  // within its class's folder
  uint64_t bytes = 0;
  bool operator<(const ImageFile& other) const { return name < other.name; }
};

struct ClassFolder {
  std::string name;
  int64_t modified_ns = 0;
  std::vector<ImageFile> files;
};

// What one split's folder holds.
struct Index {
  int64_t modified_ns = 0;
  uint64_t skipped = 0;
  std::vector<ClassFolder> folders;
};

constexpr std::string_view kMagic = "convoy image index 1";

bool is_image_name(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return false;
  std::string extension(name.substr(dot + 1));
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return extension == "jpg" || extension == "jpeg" || extension == "png";
}

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
    visit(std::string(entry->d_name), known ? &status : nullptr, is_link);
  }
}

// The classes of a split's folder, sorted, without their files. Throws Error (kBadData) where a
// link makes one folder two classes. `links` (or nullptr) sees the links among them.
Index list_classes(const std::string& root, LinkGuard* links = nullptr) {
  Index index;
  index.modified_ns = modified_ns(root);
  std::map<std::pair<dev_t, ino_t>, std::string> seen;
  for_each_entry(root, [&](const std::string& name, const struct stat* status, bool is_link) {
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
    index.folders.push_back({name, nanoseconds(status->st_mtim), {}});
  });
  std::sort(index.folders.begin(), index.folders.end(),
            [](const ClassFolder& a, const ClassFolder& b) { return a.name < b.name; });
  return index;
}

Index scan(const std::string& root, LinkGuard& links) {
  Index index = list_classes(root, &links);
  for (ClassFolder& folder : index.folders) {
    const std::string path = fmt::format("{}/{}", root, folder.name);
    for_each_entry(path, [&](std::string name, const struct stat* status, bool is_link) {
      if (status == nullptr || !S_ISREG(status->st_mode) || !is_image_name(name)) {
        ++index.skipped;
        return;
      }
      if (is_link) links.see(fmt::format("{}/{}", path, name));
      folder.files.push_back({std::move(name), static_cast<uint64_t>(status->st_size)});
    });
    std::sort(folder.files.begin(), folder.files.end());
  }
  return index;
}

std::string cache_path(const DatasetSpec& spec, const std::string& root) {
  // An index with links that lead out must not be found by who does not want them.
  const std::string key = real_path(root) + (spec.follow_links ? "\nlinks out" : "\nno links out");
  return fmt::format("{}/images-{}.index", spec.cache_folder, sha256_hex(key).substr(0, 16));
}

void keep(const std::string& path, const Index& index) {
  std::string text =
      fmt::format("{}\n{} {} {}\n", kMagic, index.modified_ns, index.skipped, index.folders.size());
  int64_t newest = index.modified_ns;
  for (const ClassFolder& folder : index.folders) {
    newest = std::max(newest, folder.modified_ns);
    text += fmt::format("{} {} {}\n", folder.modified_ns, folder.files.size(), folder.name);
    for (const ImageFile& file : folder.files) {
      // One name per line; a name of several lines is too rare to be worth more.
      if (file.name.find('\n') != std::string::npos) return;
      text += fmt::format("{} {}\n", file.bytes, file.name);
    }
    if (folder.name.find('\n') != std::string::npos) return;
  }
  // A folder changed in the last seconds may change again within the same tick of its clock.
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  if (std::chrono::nanoseconds(now).count() - newest < 2'000'000'000) return;
  write_cache(path, std::move(text));
}

// Takes "NUMBER " off the line.
template <typename T>
bool take_number(std::string_view& line, T& value) {
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc()) return false;
  line.remove_prefix(static_cast<size_t>(end - line.data()));
  if (!line.empty()) line.remove_prefix(1);
  return true;
}

// A name that scan() could have found: it stays in its folder.
bool is_inside(std::string_view name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string_view::npos;
}

// False where there is no index, a folder has changed since, or it is not as keep() writes it: what
// lies in a cache folder is not trusted more than what lies elsewhere.
bool recall(const std::string& path, const std::string& root, Index& index) {
  const std::string cached = read_cache(path);
  std::string_view text = cached, line;
  size_t folders = 0;
  if (!next_line(text, line) || line != kMagic || !next_line(text, line) ||
      !take_number(line, index.modified_ns) || !take_number(line, index.skipped) ||
      !take_number(line, folders) || modified_ns(root) != index.modified_ns)
    return false;
  for (; folders > 0; --folders) {
    ClassFolder folder;
    size_t files = 0;
    if (!next_line(text, line) || !take_number(line, folder.modified_ns) ||
        !take_number(line, files))
      return false;
    folder.name = line;
    if (!is_inside(folder.name) ||
        (!index.folders.empty() && index.folders.back().name >= folder.name))
      return false;
    const std::string folder_path = root + "/" + folder.name;
    if (!is_directory(folder_path) || modified_ns(folder_path) != folder.modified_ns) return false;
    for (; files > 0; --files) {
      ImageFile file;
      if (!next_line(text, line) || !take_number(line, file.bytes)) return false;
      file.name = line;
      if (!is_inside(file.name) || !is_image_name(file.name) ||
          (!folder.files.empty() && folder.files.back().name >= file.name))
        return false;
      folder.files.push_back(std::move(file));
    }
    index.folders.push_back(std::move(folder));
  }
  return text.empty();
}

class ImageFolder final : public Dataset {
 public:
  // `classes`: what the labels count; the folders of the index are among them.
  ImageFolder(std::string root, Index index, std::vector<std::string> classes)
      : root_(std::move(root)), folders_(std::move(index.folders)), classes_(std::move(classes)) {
    Sha256 digest;
    for (const ClassFolder& folder : folders_) {
      const auto found = std::find(classes_.begin(), classes_.end(), folder.name);
      const auto label = static_cast<int32_t>(found - classes_.begin());
      first_.push_back(size_);
      labels_.push_back(label);
      size_ += folder.files.size();
      digest.update(fmt::format("class {} {} {}:{}\n", label, folder.files.size(),
                                folder.name.size(), folder.name));
      for (const ImageFile& file : folder.files)
        digest.update(fmt::format("{} {}:{}\n", file.bytes, file.name.size(), file.name));
    }
    digest_ = digest.hex();
  }

  uint64_t size() const override { return size_; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  const std::string& digest() const override { return digest_; }
  int32_t label(uint64_t i) const override { return labels_[folder_of(i)]; }

  std::string name(uint64_t i) const override {
    const size_t folder = folder_of(i);
    return root_ + "/" + folders_[folder].name + "/" +
           folders_[folder].files[i - first_[folder]].name;
  }

  void read(uint64_t i, Sample& sample) const override {
    const size_t folder = folder_of(i);
    const ImageFile& file = folders_[folder].files[i - first_[folder]];
    const std::string path = name(i);
    if (file.bytes > kMaxFileBytes)
      throw BadContent(fmt::format("{}: has {} bytes; an image's file has at most {}",
                                   printable(path), file.bytes, kMaxFileBytes),
                       Damage::kTooLarge);
    read_file(path, sample.storage);
    if (sample.storage.size() != file.bytes)
      fail(ExitCode::kBadData,
           "{}: has {} bytes, had {} when the dataset was indexed: start again (touch its folder "
           "first, so that the index is made anew)",
           printable(path), sample.storage.size(), file.bytes);
    sample.bytes = sample.storage;
    sample.label = labels_[folder];
  }

 private:
  size_t folder_of(uint64_t i) const {
    return static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), i) - first_.begin()) -
           1;
  }

  std::string root_;
  std::vector<ClassFolder> folders_;
  std::vector<uint64_t> first_;  // of each folder: its first sample
  std::vector<int32_t> labels_;  // of each folder
  std::vector<std::string> classes_;
  uint64_t size_ = 0;
  std::string digest_;
};

std::vector<std::string> names_of(const Index& index) {
  std::vector<std::string> names;
  for (const ClassFolder& folder : index.folders) names.push_back(folder.name);
  return names;
}

// Throws Error (kBadData) that names all of these classes at once; nothing where there are none.
void refuse_classes(const std::string& root, const std::vector<std::string>& names,
                    const std::string& what, const std::string& remedy) {
  constexpr size_t kMostSaid = 20;
  if (names.empty()) return;
  if (names.size() == 1)
    fail(ExitCode::kBadData, "{}/{}: {}: {}", printable(root), printable(names[0]), what, remedy);
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kMostSaid); ++i)
    list += fmt::format("{}\"{}\"", i == 0 ? "" : ", ", printable(names[i]));
  if (names.size() > kMostSaid) list += fmt::format(" and {} more", names.size() - kMostSaid);
  fail(ExitCode::kBadData, "{}: {} classes: {}: {}; {}", printable(root), names.size(), list, what,
       remedy);
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
                     [&](const std::string& name, const struct stat* status, bool) {
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
    fail(ExitCode::kBadData, "{}: no folder {}/ in it, only {}/", printable(spec.path),
         name_of(split), split == Split::kTrain ? "val" : "train");

  LinkGuard links(spec);
  links.see(root);  // train/ itself may be a link
  Index index;
  const std::string cache = spec.cache_folder.empty() ? std::string() : cache_path(spec, root);
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
    if (folder.files.empty()) empty.push_back(folder.name);
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
