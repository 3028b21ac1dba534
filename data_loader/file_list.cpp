#include "data_loader/file_list.h"

#include <fcntl.h>

#include <algorithm>
#include <filesystem>

#include "data_loader/files.h"
#include "data_loader/listing.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

namespace fs = std::filesystem;

class FileList final : public Dataset {
 public:
  explicit FileList(std::vector<std::string> paths) : paths_(std::move(paths)) {
    Sha256 sha;
    for (const std::string& path : paths_) sha.update(path).update(std::string_view("\0", 1));
    digest_ = sha.hex();
  }

  uint64_t size() const override { return paths_.size(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  void read(uint64_t i, Sample& sample) const override {
    read_file(paths_[i], sample.storage);
    sample.bytes = sample.storage;
    sample.label = 0;
  }
  // Opening alone fetches the inode, which on a network is half of the way.
  void will_read(uint64_t i) const override {
    const OpenFile file = open_regular(paths_[i]);
    ::posix_fadvise(file.fd.get(), 0, 0, POSIX_FADV_WILLNEED);
  }
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t i) const override { return paths_[i]; }
  const std::string& digest() const override { return digest_; }

 private:
  std::vector<std::string> paths_;
  std::vector<std::string> classes_ = {"unknown"};
  std::string digest_;
};

}  // namespace

std::unique_ptr<Dataset> make_file_list(std::vector<std::string> paths) {
  return std::make_unique<FileList>(std::move(paths));
}

std::vector<std::string> image_files(const std::string& path) {
  if (!is_directory(path)) return {path};
  std::vector<std::string> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(path, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code unknown;
    if (!is_plain_name(name))
      entry.disable_recursion_pending();
    else if (is_image_name(name) && !entry->is_directory(unknown))
      files.push_back(entry->path().string());
  }
  if (error) fail(ExitCode::kIo, "{}: cannot list: {}", printable(path), error.message());
  if (files.empty())
    fail(ExitCode::kBadData, "{}: holds no images (*.jpg, *.jpeg, *.png)", printable(path));
  std::ranges::sort(files);
  return files;
}

}  // namespace convoy::data
