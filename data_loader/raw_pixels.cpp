#include "data_loader/raw_pixels.h"

#include "ops/core/error.h"

namespace convoy::data {
namespace {

class RawDataset final : public Dataset {
 public:
  explicit RawDataset(RawPixels data) : data_(std::move(data)) {
    for (uint64_t i = 0; i < size(); ++i)
      if (label(i) < 0 || static_cast<size_t>(label(i)) >= data_.classes.size())
        fail(ExitCode::kBadData,
             "{}: label {} is outside 0 ... {}: correct the label, or set data.classes to 0 or to "
             "more",
             printable(name(i)), label(i), data_.classes.size() - 1);
  }

  uint64_t size() const override { return data_.labels.size(); }
  const std::vector<std::string>& classes() const override { return data_.classes; }
  std::optional<ImageShape> raw_shape() const override { return data_.shape; }
  const std::string& digest() const override { return data_.digest; }
  int32_t label(uint64_t i) const override { return data_.labels[i]; }

  void read(uint64_t i, Sample& sample) const override {
    const size_t bytes = data_.shape.bytes();
    sample.bytes = std::span(data_.pixels).subspan(i * bytes, bytes);
    sample.label = label(i);
  }

  std::string name(uint64_t i) const override {
    size_t file = data_.files.size() - 1;
    while (data_.files[file].first_sample > i) --file;
    return fmt::format("{}, image {}", data_.files[file].path, i - data_.files[file].first_sample);
  }

 private:
  RawPixels data_;
};

}  // namespace

std::unique_ptr<Dataset> make_raw_dataset(RawPixels data) {
  return std::make_unique<RawDataset>(std::move(data));
}

std::vector<std::string> numbered_classes(int n) {
  std::vector<std::string> names;
  for (int i = 0; i < n; ++i) names.push_back(std::to_string(i));
  return names;
}

}  // namespace convoy::data
