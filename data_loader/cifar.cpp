#include "data_loader/cifar.h"

#include "data_loader/files.h"
#include "data_loader/raw_pixels.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

constexpr ImageShape kShape{32, 32, 3};

struct Variant {
  const char* folder;
  int classes;
  size_t label_bytes;  // the last of them is the label
  const char* names;
  std::vector<std::string> train, val;
};

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"cifar-10-batches-bin",
       10,
       1,
       "batches.meta.txt",
       {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
        "data_batch_5.bin"},
       {"test_batch.bin"}},
      {"cifar-100-binary", 100, 2, "fine_label_names.txt", {"train.bin"}, {"test.bin"}}};
  return all;
}

struct Place {
  const Variant* variant = nullptr;
  std::string folder;
};

Place find(const std::string& path) {
  for (const Variant& variant : variants())
    for (const std::string& folder : {path, path + "/" + variant.folder})
      if (is_regular_file(folder + "/" + variant.train[0]) ||
          is_regular_file(folder + "/" + variant.val[0]))
        return {&variant, folder};
  return {};
}

std::vector<std::string> class_names(const Place& place) {
  const std::string path = place.folder + "/" + place.variant->names;
  if (!is_regular_file(path)) return numbered_classes(place.variant->classes);
  std::vector<uint8_t> bytes;
  read_file(path, bytes);
  bytes.push_back('\n');
  std::vector<std::string> names;
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size()), line;
  while (next_line(text, line)) {
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (!line.empty()) names.emplace_back(line);
  }
  if (static_cast<int>(names.size()) != place.variant->classes)
    fail(ExitCode::kBadData, "{}: {} class names, expected {}", printable(path), names.size(),
         place.variant->classes);
  return names;
}

}  // namespace

bool is_cifar(const std::string& path) {
  return find(path).variant != nullptr;
}

std::unique_ptr<Dataset> open_cifar(const DatasetSpec& spec, Split split) {
  const Place place = find(spec.path);
  if (place.variant == nullptr)
    fail(
        ExitCode::kBadData,
        "{}: no CIFAR binaries in it (data_batch_1.bin ... test_batch.bin, or train.bin, test.bin)",
        printable(spec.path));
  RawPixels data;
  data.shape = kShape;
  data.classes = class_names(place);
  for (int c = place.variant->classes; c < spec.classes; ++c)
    data.classes.push_back(std::to_string(c));
  if (spec.classes > 0) data.classes.resize(static_cast<size_t>(spec.classes));
  Sha256 digest;
  std::vector<uint8_t> bytes;
  for (const std::string& name :
       split == Split::kTrain ? place.variant->train : place.variant->val) {
    const std::string path = place.folder + "/" + name;
    if (!is_regular_file(path))
      fail(ExitCode::kBadData, "{}: missing (a file of the {} split)", printable(path),
           name_of(split));
    read_file(path, bytes);
    const size_t record = place.variant->label_bytes + kShape.bytes();
    if (bytes.empty() || bytes.size() % record != 0)
      fail(ExitCode::kBadData, "{}: {} bytes are not a whole number of records of {} bytes",
           printable(path), bytes.size(), record);
    digest.update(fmt::format("cifar {}\n", bytes.size())).update(bytes.data(), bytes.size());
    data.files.push_back({path, data.labels.size()});
    for (size_t at = 0; at < bytes.size(); at += record) {
      data.labels.push_back(bytes[at + place.variant->label_bytes - 1]);
      // Planes of red, green and blue become pixels.
      const uint8_t* planes = &bytes[at + place.variant->label_bytes];
      constexpr size_t kPixels = size_t{kShape.height} * kShape.width;
      data.pixels.resize(data.labels.size() * kShape.bytes());
      uint8_t* out = &data.pixels[data.pixels.size() - kShape.bytes()];
      for (size_t p = 0; p < kPixels; ++p)
        for (size_t c = 0; c < 3; ++c) *out++ = planes[c * kPixels + p];
    }
  }
  data.digest = digest.hex();
  return make_raw_dataset(std::move(data));
}

}  // namespace convoy::data
