#include "data_loader/dataset.h"

#include "data_loader/cifar.h"
#include "data_loader/files.h"
#include "data_loader/idx.h"
#include "data_loader/image_folder.h"
#include "data_loader/synthetic.h"
#include "data_loader/tar_shards.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

// The table of formats, in the order in which kAuto tries them.
struct FormatRow {
  Format format;
  const char* name;  // as data.format has it, in lower case
  const char* what;
  bool (*is_at)(const std::string& path);  // nullptr: kAuto never chooses it
  std::unique_ptr<Dataset> (*open)(const DatasetSpec& spec, Split split);
};

constexpr FormatRow kFormats[] = {
    {Format::kIdx, "idx", "IDX files (train-images-idx3-ubyte[.gz] ...)", &is_idx, &open_idx},
    {Format::kCifar, "cifar", "CIFAR binaries (data_batch_1.bin ... or train.bin)", &is_cifar,
     &open_cifar},
    {Format::kTarShards, "tar_shards", "tar shards (train/*.tar and val/*.tar, or *.tar)",
     &is_tar_shards, &open_tar_shards},
    {Format::kImageFolder, "image_folder",
     "an image folder (train/<class>/* and val/<class>/*, or <class>/*)", &is_image_folder,
     &open_image_folder},
    {Format::kSynthetic, "synthetic", "", nullptr, &open_synthetic},
};

}  // namespace

const char* name_of(Split split) {
  return split == Split::kTrain ? "train" : "val";
}

std::string to_string(const ImageShape& shape) {
  return fmt::format("{}x{}x{}", shape.height, shape.width, shape.channels);
}

SampleFile Dataset::file(uint64_t i) const {
  fail(ExitCode::kFault, "{}: its dataset has no files", printable(name(i)));
}

std::vector<Recognised> recognise(const std::string& path) {
  require_directory(path);
  std::vector<Recognised> found;
  for (const FormatRow& row : kFormats) {
    if (row.is_at == nullptr || !row.is_at(path)) continue;
    Recognised entry{row.format, row.name, row.what, true};
    // Any folder with folders in it could be one; every other format has names of its own.
    if (row.format == Format::kImageFolder) {
      const FolderEvidence evidence = image_folder_evidence(path);
      entry.because = evidence.text;
      entry.certain = evidence.certain;
      if (!evidence.any || (!evidence.certain && !found.empty())) continue;
    }
    found.push_back(std::move(entry));
  }
  return found;
}

std::string format_names() {
  std::string names;
  for (const FormatRow& row : kFormats)
    if (row.is_at != nullptr) names += fmt::format("{}{}", names.empty() ? "" : ", ", row.name);
  return names;
}

std::optional<Format> format_of(std::string_view name) {
  for (const FormatRow& row : kFormats)
    if (row.is_at != nullptr && name == row.name) return row.format;
  return std::nullopt;
}

std::unique_ptr<Dataset> open_dataset(const DatasetSpec& spec, Split split) {
  if (spec.format != Format::kSynthetic) require_directory(spec.path);
  for (const FormatRow& row : kFormats) {
    if (spec.format == Format::kAuto ? row.is_at != nullptr && row.is_at(spec.path)
                                     : row.format == spec.format) {
      if (spec.order == SampleOrder::kByShard && row.format != Format::kTarShards)
        fail(ExitCode::kBadJob,
             "data.shuffle: WINDOW needs tar shards, and {} holds none: pack it (convoy pack) or "
             "leave data.shuffle out",
             printable(spec.path));
      return row.open(spec, split);
    }
  }
  std::string formats;
  for (const FormatRow& row : kFormats)
    if (row.is_at != nullptr) formats += fmt::format("{}{}", formats.empty() ? "" : ", ", row.what);
  fail(ExitCode::kBadData, "dataset folder {} is empty or of no known format; known: {}",
       printable(spec.path), formats);
}

}  // namespace convoy::data
