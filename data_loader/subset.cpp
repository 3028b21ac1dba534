#include "data_loader/subset.h"

#include <algorithm>
#include <utility>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::data {
namespace {

constexpr int32_t kLeftOut = -1;

// Of each label of the whole dataset the one that it has here, or kLeftOut.
std::vector<int32_t> new_labels(const Dataset& whole, const std::vector<uint32_t>& classes) {
  const size_t known = whole.classes().size();
  std::vector<int32_t> labels(known, classes.empty() ? 0 : kLeftOut);
  for (size_t c = 0; classes.empty() && c < known; ++c) labels[c] = static_cast<int32_t>(c);
  for (size_t c = 0; c < classes.size(); ++c) {
    if (classes[c] >= known)
      fail(ExitCode::kBadJob, "data.only_classes: there is no class {}: the dataset has 0 to {}",
           classes[c], known - 1);
    labels[classes[c]] = static_cast<int32_t>(c);
  }
  return labels;
}

// The places in a class, 0 to `size`, of the `wanted` least draws.
std::vector<uint64_t> draw(uint64_t seed, uint64_t label, uint64_t size, uint64_t wanted) {
  std::vector<std::pair<uint64_t, uint64_t>> draws;
  for (uint64_t place = 0; place < size; ++place) {
    const Random4 words = random4(seed, Purpose::kSubset, label, place);
    draws.emplace_back(uint64_t{words[0]} << 32 | words[1], place);
  }
  const auto end = draws.begin() + static_cast<ptrdiff_t>(wanted);
  std::nth_element(draws.begin(), end, draws.end());
  std::vector<uint64_t> places;
  for (auto each = draws.begin(); each != end; ++each) places.push_back(each->second);
  return places;
}

class Subset final : public Dataset {
 public:
  Subset(std::unique_ptr<Dataset> whole, const SubsetSpec& spec)
      : whole_(std::move(whole)), labels_(new_labels(*whole_, spec.classes)) {
    for (const uint32_t c : spec.classes) classes_.push_back(whole_->classes()[c]);
    if (spec.classes.empty()) classes_ = whole_->classes();
    choose(spec);
    if (samples_.empty())
      fail(ExitCode::kBadData, "data.only_classes: the dataset has no image of these classes");
    count_shards();
    Sha256 sha;
    sha.update("subset of ").update(whole_->digest());
    for (const uint32_t c : spec.classes) sha.update(fmt::format(" {}", c));
    for (const uint64_t i : samples_) sha.update(fmt::format("\n{}", i));
    digest_ = sha.hex();
  }

  uint64_t size() const override { return samples_.size(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return whole_->raw_shape(); }
  void read(uint64_t i, Sample& sample) const override {
    whole_->read(samples_[i], sample);
    sample.label = new_label(sample.label);
  }
  int32_t label(uint64_t i) const override { return new_label(whole_->label(samples_[i])); }
  std::string name(uint64_t i) const override { return whole_->name(samples_[i]); }
  const std::string& digest() const override { return digest_; }
  SampleFile file(uint64_t i) const override { return whole_->file(samples_[i]); }
  std::span<const uint64_t> shard_sizes() const override { return shard_sizes_; }
  void will_read(uint64_t i) const override { whole_->will_read(samples_[i]); }

 private:
  int32_t new_label(int32_t label) const { return labels_[static_cast<size_t>(label)]; }

  void choose(const SubsetSpec& spec) {
    std::vector<std::vector<uint64_t>> of_class(labels_.size());
    for (uint64_t i = 0; i < whole_->size(); ++i)
      if (const int32_t label = whole_->label(i); new_label(label) != kLeftOut)
        of_class[static_cast<size_t>(label)].push_back(i);
    for (size_t c = 0; c < of_class.size(); ++c) {
      const uint64_t size = of_class[c].size(), wanted = spec.images_per_class;
      if (labels_[c] == kLeftOut) continue;
      if (size < wanted)
        fail(ExitCode::kBadData,
             "data.images_per_class is {}, but class \"{}\" has {} images; lower it, or leave the "
             "class out (data.only_classes)",
             wanted, printable(whole_->classes()[c]), size);
      if (wanted == 0)
        samples_.insert(samples_.end(), of_class[c].begin(), of_class[c].end());
      else
        for (const uint64_t place : draw(spec.seed, c, size, wanted))
          samples_.push_back(of_class[c][place]);
    }
    std::sort(samples_.begin(), samples_.end());
  }

  // Shards of which nothing is left are none.
  void count_shards() {
    uint64_t end = 0;
    auto sample = samples_.begin();
    for (const uint64_t size : whole_->shard_sizes()) {
      end += size;
      const auto next = std::lower_bound(sample, samples_.end(), end);
      if (next != sample) shard_sizes_.push_back(static_cast<uint64_t>(next - sample));
      sample = next;
    }
  }

  std::unique_ptr<Dataset> whole_;
  std::vector<int32_t> labels_;  // of the whole dataset's
  std::vector<std::string> classes_;
  std::vector<uint64_t> samples_;  // of the whole dataset, rising
  std::vector<uint64_t> shard_sizes_;
  std::string digest_;
};

}  // namespace

std::unique_ptr<Dataset> make_subset(std::unique_ptr<Dataset> whole, const SubsetSpec& spec) {
  return std::make_unique<Subset>(std::move(whole), spec);
}

}  // namespace convoy::data
