// Some classes and some images of a dataset: which ones, under which labels, and the digest.
#include "data_loader/subset.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "ops/core/error.h"

namespace convoy::data {
namespace {

// Sample i has the label i % 5 and the pixel i, in shards of 20.
class Numbers final : public Dataset {
 public:
  explicit Numbers(const std::string& digest = "whole",
                   const std::vector<std::string>& classes = {"a", "b", "c", "d", "e"})
      : classes_(classes), digest_(digest) {}
  uint64_t size() const override { return 103; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return ImageShape{1, 1, 1}; }
  void read(uint64_t i, Sample& sample) const override {
    sample.storage = {static_cast<uint8_t>(i)};
    sample.bytes = sample.storage;
    sample.label = label(i);
  }
  int32_t label(uint64_t i) const override { return static_cast<int32_t>(i % 5); }
  std::string name(uint64_t i) const override { return "number " + std::to_string(i); }
  const std::string& digest() const override { return digest_; }
  SampleFile file(uint64_t i) const override { return {"file " + std::to_string(i), i}; }
  std::span<const uint64_t> shard_sizes() const override { return shards_; }

 private:
  std::vector<std::string> classes_;
  std::vector<uint64_t> shards_ = {20, 1, 1, 20, 20, 41};
  std::string digest_;
};

std::unique_ptr<Dataset> subset(const SubsetSpec& spec) {
  return make_subset(std::make_unique<Numbers>(), spec);
}

std::set<uint64_t> samples_of(const Dataset& dataset) {
  std::set<uint64_t> out;
  for (uint64_t i = 0; i < dataset.size(); ++i) {
    Sample sample;
    dataset.read(i, sample);
    EXPECT_EQ(sample.label, dataset.label(i));
    EXPECT_EQ(dataset.name(i), "number " + std::to_string(sample.bytes[0]));
    EXPECT_EQ(dataset.file(i).name, "file " + std::to_string(sample.bytes[0]));
    out.insert(sample.bytes[0]);
  }
  return out;
}

TEST(Subset, ClassesAreCountedAnewInTheirOrder) {
  const auto some = subset({.classes = {4, 1}});
  EXPECT_EQ(some->classes(), (std::vector<std::string>{"e", "b"}));
  EXPECT_EQ(some->raw_shape(), (ImageShape{1, 1, 1}));
  EXPECT_EQ(some->size(), 20u + 21u);
  uint64_t before = 0;
  for (uint64_t i = 0; i < some->size(); ++i) {
    Sample sample;
    some->read(i, sample);
    EXPECT_EQ(sample.label, sample.bytes[0] % 5 == 4 ? 0 : 1);
    if (i > 0) {
      EXPECT_GT(sample.bytes[0], before);  // in the dataset's order
    }
    before = sample.bytes[0];
  }
}

TEST(Subset, FewerImagesAreAmongMore) {
  const auto ten = subset({.images_per_class = 10, .seed = 3}),
             three = subset({.images_per_class = 3, .seed = 3});
  const std::set<uint64_t> more = samples_of(*ten), fewer = samples_of(*three);
  EXPECT_EQ(more.size(), 50u);
  EXPECT_EQ(fewer.size(), 15u);
  for (const uint64_t sample : fewer) EXPECT_TRUE(more.contains(sample)) << sample;
  std::map<uint64_t, std::set<uint64_t>> places;  // in a class, by label
  for (const uint64_t sample : fewer) places[sample % 5].insert(sample / 5);
  for (uint64_t c = 0; c < 5; ++c) EXPECT_EQ(places[c].size(), 3u);
  // Each class has its own draws, not the first images of all.
  EXPECT_GT((std::set{places[0], places[1], places[2], places[3], places[4]}).size(), 3u);
  EXPECT_EQ(samples_of(*subset({.images_per_class = 3, .seed = 3})), fewer);
  EXPECT_NE(samples_of(*subset({.images_per_class = 3, .seed = 4})), fewer);
  // Which images of a class does not depend on the other classes.
  for (const uint64_t sample :
       samples_of(*subset({.classes = {2}, .images_per_class = 3, .seed = 3})))
    EXPECT_TRUE(fewer.contains(sample)) << sample;
}

TEST(Subset, TheDigestSaysWhichSamples) {
  const std::set<std::string> digests = {subset({.classes = {1, 2}})->digest(),
                                         subset({.classes = {2, 1}})->digest(),
                                         subset({.images_per_class = 3, .seed = 1})->digest(),
                                         subset({.images_per_class = 3, .seed = 2})->digest(),
                                         subset({.images_per_class = 4, .seed = 1})->digest(),
                                         "whole"};
  EXPECT_EQ(digests.size(), 6u);
  EXPECT_TRUE(digests.contains(subset({.images_per_class = 4, .seed = 1})->digest()));
  const auto other = make_subset(std::make_unique<Numbers>("other"), {.classes = {1, 2}});
  EXPECT_FALSE(digests.contains(other->digest()));
}

TEST(Subset, ShardsKeepWhatIsLeftOfThem) {
  const auto some = subset({.classes = {1, 3}});
  uint64_t sum = 0;
  for (const uint64_t size : some->shard_sizes()) {
    EXPECT_GT(size, 0u);
    sum += size;
  }
  EXPECT_EQ(sum, some->size());
  EXPECT_EQ(some->shard_sizes().size(), 5u);  // sample 20 has label 0, 21 has label 1
  EXPECT_EQ(some->shard_sizes()[0], 8u);
}

TEST(Subset, WhatIsNotThereIsNamed) {
  const auto expect = [](const SubsetSpec& spec, ExitCode code, const std::string& part) {
    try {
      make_subset(std::make_unique<Numbers>(
                      "whole", std::vector<std::string>{"a", "b", "c", "d", "e", "empty"}),
                  spec);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code);
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  expect({.classes = {1, 6}}, ExitCode::kBadJob, "there is no class 6: the dataset has 0 to 5");
  expect({.classes = {5}}, ExitCode::kBadData, "has no image of these classes");
  expect({.images_per_class = 21}, ExitCode::kBadData, "class \"d\" has 20 images");
  EXPECT_EQ(subset({.classes = {0, 1, 2}, .images_per_class = 21})->size(), 63u);
}

}  // namespace
}  // namespace convoy::data
