#include "data_loader/synthetic.h"

#include <algorithm>
#include <cstring>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::data {
namespace {

class Synthetic final : public Dataset {
 public:
  Synthetic(const DatasetSpec& spec, Split split)
      : samples_(spec.synthetic_samples), shape_(spec.synthetic_shape), split_(split) {
    const bool shaped = shape_.bytes() > 0 && (shape_.channels == 1 || shape_.channels == 3);
    if (samples_ == 0 || !shaped || spec.classes <= 0)
      fail(ExitCode::kBadJob,
           "synthetic data: {} samples of {} in {} classes; set data.synthetic_samples, "
           "data.classes "
           "and data.train.size",
           samples_, to_string(shape_), spec.classes);
    for (int c = 0; c < spec.classes; ++c) classes_.push_back(std::to_string(c));
    digest_ = sha256_hex(fmt::format("synthetic {} {} {} {}", name_of(split), samples_,
                                     to_string(shape_), spec.classes));
  }

  uint64_t size() const override { return samples_; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return shape_; }
  const std::string& digest() const override { return digest_; }
  int32_t label(uint64_t i) const override { return static_cast<int32_t>(i % classes_.size()); }
  std::string name(uint64_t i) const override { return fmt::format("synthetic image {}", i); }

  void read(uint64_t i, Sample& sample) const override {
    sample.storage.resize(shape_.bytes());
    uint8_t* out = sample.storage.data();
    for (size_t at = 0; at < shape_.bytes(); at += sizeof(Random4)) {
      const Random4 words =
          random4(static_cast<uint64_t>(split_), Purpose::kSyntheticData, i, at / sizeof(Random4));
      std::memcpy(out + at, &words, std::min(sizeof words, shape_.bytes() - at));
    }
    sample.bytes = sample.storage;
    sample.label = label(i);
  }

 private:
  uint64_t samples_;
  ImageShape shape_;
  Split split_;
  std::vector<std::string> classes_;
  std::string digest_;
};

}  // namespace

std::unique_ptr<Dataset> open_synthetic(const DatasetSpec& spec, Split split) {
  return std::make_unique<Synthetic>(spec, split);
}

}  // namespace convoy::data
