// Batches: the same whatever the threads and the ranks; bad samples; stopping.
#include "data_loader/loader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "data_loader/eval_loader.h"
#include "data_loader/sample_maker.h"
#include "data_loader/sampler.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::TempFolder;

// Small raw images: sample i is filled with the byte i, so pixels tell the sample.
class Numbered : public Dataset {
 public:
  explicit Numbered(uint64_t size, ImageShape shape = {4, 4, 1}) : size_(size), shape_(shape) {
    for (int c = 0; c < 10; ++c) classes_.push_back(std::to_string(c));
  }
  uint64_t size() const override { return size_; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<ImageShape> raw_shape() const override { return shape_; }
  void read(uint64_t i, Sample& sample) const override {
    sample.storage.assign(shape_.bytes(), static_cast<uint8_t>(i));
    sample.bytes = sample.storage;
    sample.label = label(i);
  }
  int32_t label(uint64_t i) const override { return static_cast<int32_t>(i % 10); }
  std::string name(uint64_t i) const override { return fmt::format("numbered {}", i); }
  const std::string& digest() const override { return classes_[0]; }

 private:
  uint64_t size_;
  ImageShape shape_;
  std::vector<std::string> classes_;
};

// Numbered, in shards.
class NumberedShards final : public Numbered {
 public:
  NumberedShards(uint64_t size, ImageShape shape, std::vector<uint64_t> shards)
      : Numbered(size, shape), shards_(std::move(shards)) {}
  std::span<const uint64_t> shard_sizes() const override { return shards_; }

 private:
  const std::vector<uint64_t> shards_;
};

// One grey JPEG, whatever the sample; remembers which files were asked for ahead.
class Announced final : public Dataset {
 public:
  explicit Announced(uint64_t size) : samples_(size) {
    jpeg_ = test::encode_jpeg(test::make_image(16, 16, 1, 1));
  }
  uint64_t size() const override { return samples_.size(); }
  const std::vector<std::string>& classes() const override { return samples_.classes(); }
  std::optional<ImageShape> raw_shape() const override { return std::nullopt; }
  void read(uint64_t i, Sample& sample) const override {
    sample.storage.assign(jpeg_.begin(), jpeg_.end());
    sample.bytes = sample.storage;
    sample.label = label(i);
  }
  int32_t label(uint64_t i) const override { return samples_.label(i); }
  std::string name(uint64_t i) const override { return samples_.name(i); }
  const std::string& digest() const override { return samples_.digest(); }
  void will_read(uint64_t i) const override {
    const std::lock_guard lock(mutex_);
    announced_.insert(i);
  }
  std::multiset<uint64_t> announced() const {
    const std::lock_guard lock(mutex_);
    return announced_;
  }

 private:
  const Numbered samples_;
  std::string jpeg_;
  mutable std::mutex mutex_;
  mutable std::multiset<uint64_t> announced_;
};

// Numbered, but reading sample `stuck` waits until let_go().
class Stuck final : public Dataset {
 public:
  Stuck(uint64_t size, uint64_t stuck) : samples_(size), stuck_(stuck) {}
  uint64_t size() const override { return samples_.size(); }
  const std::vector<std::string>& classes() const override { return samples_.classes(); }
  std::optional<ImageShape> raw_shape() const override { return samples_.raw_shape(); }
  void read(uint64_t i, Sample& sample) const override {
    if (i == stuck_) free_.wait(false);
    samples_.read(i, sample);
  }
  int32_t label(uint64_t i) const override { return samples_.label(i); }
  std::string name(uint64_t i) const override { return samples_.name(i); }
  const std::string& digest() const override { return samples_.digest(); }
  void let_go() {
    free_ = true;
    free_.notify_all();
  }

 private:
  const Numbered samples_;
  const uint64_t stuck_;
  std::atomic<bool> free_ = false;
};

std::unique_ptr<Dataset> open_folder(const std::string& path, Split split = Split::kTrain) {
  DatasetSpec spec;
  spec.path = path;
  return open_dataset(spec, split);
}

std::string hash_of(const Batch& batch) {
  Sha256 digest;
  digest.update(batch.pixels, static_cast<size_t>(batch.size) * batch.shape.bytes());
  digest.update(batch.labels.data(), batch.labels.size() * sizeof batch.labels[0]);
  digest.update(batch.sample_ids.data(), batch.sample_ids.size() * sizeof batch.sample_ids[0]);
  digest.update(batch.epochs.data(), batch.epochs.size() * sizeof batch.epochs[0]);
  return digest.hex();
}

using Hashes = std::map<std::pair<uint64_t, int>, std::string>;

// All batches of workers [config.first_worker, config.end_worker), one lane per worker.
Hashes run(const Dataset& dataset, const LoaderConfig& config) {
  Loader loader(dataset, config);
  Hashes hashes;
  std::mutex mutex;
  {
    std::vector<std::jthread> lanes;
    for (int worker = config.first_worker; worker < config.end_worker; ++worker)
      lanes.emplace_back([&, worker] {
        for (uint64_t step = config.first_step; step < config.end_step; ++step) {
          const Batch& batch = loader.acquire(step, worker);
          EXPECT_EQ(batch.step, step);
          EXPECT_EQ(batch.worker, worker);
          EXPECT_EQ(reinterpret_cast<uintptr_t>(batch.pixels) % 64, 0u);
          std::string hash = hash_of(batch);
          loader.release(batch);
          const std::lock_guard lock(mutex);
          hashes[{step, worker}] = std::move(hash);
        }
      });
  }
  EXPECT_EQ(loader.stats().samples, hashes.size() * static_cast<uint64_t>(config.batch_per_worker));
  EXPECT_GT(loader.stats().work_seconds, 0.0);
  return hashes;
}

LoaderConfig small_config() {
  LoaderConfig config;
  config.transform.size = 16;
  config.batch_per_worker = 5;
  config.workers = config.end_worker = 4;
  config.end_step = 7;
  return config;
}

void expect_same_for_all_splits(const Dataset& dataset, LoaderConfig config) {
  config.threads = 1;
  const Hashes expected = run(dataset, config);
  ASSERT_EQ(expected.size(), 28u);
  std::set<std::string> different;
  for (const auto& [key, hash] : expected) different.insert(hash);
  EXPECT_EQ(different.size(), 28u);
  for (const int threads : {0, 1, 3})
    for (const int ranks : {1, 2, 4}) {
      Hashes all;
      for (int rank = 0; rank < ranks; ++rank) {
        config.threads = threads;
        config.first_worker = rank * 4 / ranks;
        config.end_worker = (rank + 1) * 4 / ranks;
        all.merge(run(dataset, config));
      }
      EXPECT_EQ(all, expected) << threads << " threads, " << ranks << " ranks";
    }
  // A life that starts in the middle.
  config.first_worker = 0;
  config.end_worker = 4;
  config.first_step = 3;
  for (const auto& [key, hash] : run(dataset, config)) EXPECT_EQ(hash, expected.at(key));
}

TEST(Loader, EncodedBatchesDependOnTheJobAlone) {
  const TempFolder root;
  test::make_image_folder(root, 3, 7, 1);
  const auto dataset = open_folder(root.path());
  expect_same_for_all_splits(*dataset, small_config());
}

TEST(Loader, RawBatchesDependOnTheJobAlone) {
  const Numbered dataset(103, {16, 16, 1});
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kPadAndCrop;
  config.batch_per_worker = 70;  // more than one group of images per batch
  expect_same_for_all_splits(dataset, config);
}

TEST(Loader, WindowsOfShardsDependOnTheJobAlone) {
  const Numbered dataset(103, {16, 16, 1});
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kPadAndCrop;
  const Hashes full = run(dataset, config);
  config.window_shards = 2;
  EXPECT_THROW(run(dataset, config), Error) << "no shards";
  const NumberedShards shards(103, {16, 16, 1}, {40, 3, 30, 30});
  expect_same_for_all_splits(shards, config);
  EXPECT_NE(run(shards, config), full);
}

TEST(Loader, SeedAndEpochChangeTheBatches) {
  const TempFolder root;
  test::make_image_folder(root, 2, 5, 1);
  const auto dataset = open_folder(root.path());
  LoaderConfig config = small_config();
  const Hashes one = run(*dataset, config);
  config.seed = 2;
  EXPECT_NE(run(*dataset, config), one);
}

TEST(Loader, EachEpochSeesAnotherCrop) {
  const TempFolder root;
  test::make_image_folder(root, 1, 1, 1);
  const auto dataset = open_folder(root.path());
  const LoaderConfig config = small_config();
  Loader loader(*dataset, config);
  const Batch& batch = loader.acquire(0, 0);  // the one image, five epochs
  std::set<std::string> images;
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(batch.epochs[i], i);
    const uint8_t* image = batch.pixels + i * batch.shape.bytes();
    images.insert(std::string(image, image + batch.shape.bytes()));
  }
  EXPECT_EQ(images.size(), 5u);
}

// Two epochs and a bit over 103 samples in steps of 4 x 6: no step ends with an epoch.
TEST(Loader, EachEpochIsAPermutation) {
  const Numbered dataset(103);
  LoaderConfig config;
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  config.batch_per_worker = 6;
  config.workers = config.end_worker = 4;
  config.end_step = 9;
  config.threads = 2;
  Loader loader(dataset, config);
  EXPECT_EQ(loader.shape(), (ImageShape{4, 4, 1}));
  std::map<uint64_t, std::vector<uint64_t>> epochs;
  std::vector<uint64_t> stream;
  for (uint64_t step = 0; step < 9; ++step)
    for (int worker = 0; worker < 4; ++worker) {
      const Batch& batch = loader.acquire(step, worker);
      for (size_t i = 0; i < 6; ++i) {
        const uint64_t sample = batch.sample_ids[i];
        stream.push_back(sample);
        epochs[batch.epochs[i]].push_back(sample);
        EXPECT_EQ(batch.labels[i], static_cast<int32_t>(sample % 10));
        EXPECT_EQ(batch.pixels[i * 16], sample);
        EXPECT_EQ(batch.pixels[i * 16 + 15], sample);
      }
      loader.release(batch);
    }
  const Sampler sampler(config.seed, 103);
  for (uint64_t position = 0; position < stream.size(); ++position)
    EXPECT_EQ(stream[position], sampler.at(position).sample);
  ASSERT_EQ(epochs.size(), 3u);
  std::vector<uint64_t> all(103);
  for (uint64_t i = 0; i < 103; ++i) all[i] = i;
  EXPECT_NE(epochs[0], epochs[1]);
  for (const uint64_t epoch : {0, 1}) {
    std::sort(epochs[epoch].begin(), epochs[epoch].end());
    EXPECT_EQ(epochs[epoch], all);
  }
  EXPECT_EQ(epochs[2].size(), 10u);
}

// R4: what a thread is stuck in can be said from outside.
TEST(Loader, TheSampleInProgressIsNamed) {
  for (const int threads : {0, 2}) {
    Stuck dataset(40, 7);
    LoaderConfig config = small_config();
    config.threads = threads;
    Loader loader(dataset, config);
    std::jthread lane([&] {
      for (uint64_t step = 0; step < config.end_step; ++step)
        for (int worker = 0; worker < config.workers; ++worker)
          loader.release(loader.acquire(step, worker));
    });
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    std::optional<InProgress> stuck;
    while (std::chrono::steady_clock::now() < end && !(stuck && stuck->seconds > 0.2)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      stuck = loader.in_progress();
    }
    dataset.let_go();
    ASSERT_TRUE(stuck) << threads << " threads";
    EXPECT_EQ(stuck->name, "numbered 7") << threads << " threads";
    lane.join();
    EXPECT_FALSE(loader.in_progress());
  }
}

TEST(Loader, ADatasetSmallerThanABatchWorks) {
  const Numbered dataset(3);
  LoaderConfig config;
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  config.batch_per_worker = 8;
  config.end_step = 2;
  Loader loader(dataset, config);
  const Batch& batch = loader.acquire(0, 0);
  EXPECT_EQ(batch.epochs, (std::vector<uint64_t>{0, 0, 0, 1, 1, 1, 2, 2}));
  loader.release(batch);
}

// A folder of 24 images of which some are broken in several ways, and their names.
std::set<std::string> make_broken_folder(const TempFolder& root) {
  test::make_image_folder(root, 2, 12, 1);
  std::set<std::string> broken;
  const std::string good = test::encode_jpeg(test::make_image(40, 40, 3, 99));
  broken.insert(root.write("train/class_0/image_3.jpg", good.substr(0, good.size() / 2)));
  broken.insert(root.write("train/class_1/image_5.jpg", "this is a text file"));
  broken.insert(root.write("train/class_1/image_9.jpg", ""));
  return broken;
}

TEST(Loader, ABadSampleFailsItsBatchAndIsNamed) {
  const TempFolder root;
  const std::set<std::string> broken = make_broken_folder(root);
  const auto dataset = open_folder(root.path());
  LoaderConfig config = small_config();
  config.batch_per_worker = 24;
  config.workers = config.end_worker = 1;
  config.end_step = 1;
  std::set<std::string> messages;
  for (const int threads : {0, 1, 3}) {
    config.threads = threads;
    for (int repeat = 0; repeat < 5; ++repeat) {
      Loader loader(*dataset, config);
      for (int ask = 0; ask < 2; ++ask) {
        try {
          loader.acquire(0, 0);
          FAIL() << "no error";
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::kBadData);
          messages.insert(error.what());
        }
      }
    }
  }
  // Three bad images in the batch, one message: the first of them, whichever thread was faster.
  ASSERT_EQ(messages.size(), 1u);
  const Sampler sampler(config.seed, dataset->size());
  uint64_t position = 0;
  while (!broken.contains(dataset->name(sampler.at(position).sample))) ++position;
  EXPECT_EQ(messages.begin()->rfind(dataset->name(sampler.at(position).sample), 0), 0u)
      << *messages.begin();
  EXPECT_TRUE(messages.begin()->ends_with("; or set data.bad_sample: SUBSTITUTE"))
      << *messages.begin();
}

TEST(Loader, SubstitutesDependOnTheJobAlone) {
  const TempFolder root;
  const std::set<std::string> broken = make_broken_folder(root);
  const auto dataset = open_folder(root.path());
  log::set_level(log::Level::kError);
  LoaderConfig config = small_config();
  config.bad_sample = BadSample::kSubstitute;
  expect_same_for_all_splits(*dataset, config);

  config.threads = 3;
  Loader loader(*dataset, config);
  std::map<std::pair<uint64_t, uint64_t>, int32_t> labels;
  for (uint64_t step = 0; step < 7; ++step)
    for (int worker = 0; worker < 4; ++worker) {
      const Batch& batch = loader.acquire(step, worker);
      for (size_t i = 0; i < 5; ++i)
        labels[{batch.epochs[i], batch.sample_ids[i]}] = batch.labels[i];
      loader.release(batch);
    }
  log::set_level(log::Level::kInfo);
  const std::vector<Substitution> list = loader.substitutions();
  // 140 positions are 5 whole epochs of 24 and 20 more.
  EXPECT_GE(list.size(), 15u);
  EXPECT_LE(list.size(), 18u);
  EXPECT_EQ(loader.stats().substituted, list.size());
  const Sampler sampler(config.seed, dataset->size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Substitution& s = list[i];
    if (i > 0) {
      EXPECT_LT(list[i - 1].position, s.position);
    }
    EXPECT_EQ(sampler.at(s.position).sample, s.sample);
    EXPECT_EQ(sampler.at(s.position).epoch, s.epoch);
    EXPECT_TRUE(broken.contains(dataset->name(s.sample)));
    EXPECT_FALSE(broken.contains(dataset->name(s.substitute)));
    EXPECT_EQ(labels.at({s.epoch, s.sample}), dataset->label(s.substitute));
    EXPECT_EQ(s.reason.rfind(dataset->name(s.sample), 0), 0u) << s.reason;
  }
}

TEST(Loader, FilesThatCannotBeReadAreNeverSubstituted) {
  const TempFolder root;
  test::make_image_folder(root, 1, 4, 1);
  const auto dataset = open_folder(root.path());
  std::filesystem::remove(dataset->name(2));
  LoaderConfig config = small_config();
  config.bad_sample = BadSample::kSubstitute;
  Loader loader(*dataset, config);
  try {
    loader.acquire(0, 0);  // five positions of four samples
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_NE(std::string(error.what()).find(dataset->name(2)), std::string::npos);
  }
}

TEST(Loader, AllBadEndsWithAnError) {
  const TempFolder root;
  root.write("train/a/1.jpg", "text");
  root.write("train/a/2.jpg", "text");
  const auto dataset = open_folder(root.path());
  LoaderConfig config = small_config();
  config.bad_sample = BadSample::kSubstitute;
  Loader loader(*dataset, config);
  try {
    loader.acquire(0, 0);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what()).find("substitutes"), std::string::npos) << error.what();
  }
}

TEST(Loader, TheDestructorStopsAtAnyMoment) {
  const TempFolder root;
  test::make_image_folder(root, 2, 4, 1);
  const auto dataset = open_folder(root.path());
  LoaderConfig config = small_config();
  config.end_step = 1000000;
  for (const int threads : {0, 1, 3})
    for (int taken = 0; taken < 12; ++taken) {
      config.threads = threads;
      Loader loader(*dataset, config);
      for (int k = 0; k < taken; ++k) {
        const Batch& batch = loader.acquire(static_cast<uint64_t>(k) / 4, k % 4);
        if (k + 1 < taken) loader.release(batch);  // the last one is still held
      }
    }
}

// Waits until the threads have filled the ring: nobody gives a batch back.
LoaderStats stats_of_full_ring(const Loader& loader, uint64_t samples) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (loader.stats().samples < samples && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // for one that would go too far
  return loader.stats();
}

TEST(Loader, TheRingIsBoundedAndItsBytesAreKnownBefore) {
  const Numbered dataset(50, {4, 4, 1});
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  config.batch_per_worker = 32;
  config.end_step = 1000;
  config.lanes = 2;
  const auto slots_with = [&](int threads) {
    config.threads = threads;
    return Loader::ring_bytes(dataset, config) / (32 * 16);
  };
  EXPECT_EQ(slots_with(0), 2u);  // what lanes hold
  EXPECT_EQ(slots_with(1), 4u);
  EXPECT_EQ(slots_with(64), 11u);  // 2 held, 1 next, 256 images under way
  for (const int threads : {1, 5, 64}) {
    config.threads = threads;
    const Loader loader(dataset, config);
    const auto slots = static_cast<uint64_t>(loader.slots());
    EXPECT_EQ(loader.ring_bytes(), Loader::ring_bytes(dataset, config));
    EXPECT_EQ(loader.ring_bytes(), slots * 32 * 16);
    EXPECT_EQ(stats_of_full_ring(loader, slots * 32).samples, slots * 32) << threads;
  }
}

TEST(Loader, ManyThreadsMakeTheSameBatches) {
  const TempFolder root;
  test::make_image_folder(root, 2, 9, 1);
  const auto dataset = open_folder(root.path());
  LoaderConfig config = small_config();
  const Hashes expected = run(*dataset, config);
  config.threads = 64;
  EXPECT_EQ(run(*dataset, config), expected);
}

TEST(Loader, CountsBytesAndBatchesThatLayReady) {
  const TempFolder root;
  test::make_image_folder(root, 2, 5, 1);
  const auto dataset = open_folder(root.path());
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < dataset->size(); ++i)
    bytes += std::filesystem::file_size(dataset->name(i));
  LoaderConfig config = small_config();
  config.workers = config.end_worker = 1;
  config.end_step = 2;  // one epoch, which fits into the ring
  config.threads = 2;
  Loader loader(*dataset, config);
  ASSERT_GE(loader.slots(), 2);
  LoaderStats stats = stats_of_full_ring(loader, 10);
  EXPECT_EQ(stats.bytes, bytes);
  EXPECT_EQ(stats.acquired, 0u);
  loader.release(loader.acquire(0, 0));
  loader.release(loader.acquire(1, 0));
  stats = loader.stats();
  EXPECT_EQ(stats.acquired, 2u);
  EXPECT_EQ(stats.ready, 2u + 1u);
}

TEST(Loader, ProfilesWhereAskedFor) {
  const TempFolder root;
  test::make_image_folder(root, 2, 5, 2);
  const auto dataset = open_folder(root.path());
  for (const bool profile : {false, true})
    for (const int threads : {0, 2}) {
      LoaderConfig config = small_config();
      config.workers = config.end_worker = 1;
      config.threads = threads;
      config.profile = profile;
      Loader loader(*dataset, config);
      for (uint64_t step = 0; step < config.end_step; ++step)
        loader.release(loader.acquire(step, 0));
      const LoaderStats stats = loader.stats();
      const SampleTimes& times = stats.times;
      for (const Spent& part : {times.read, times.decode, times.resize}) {
        EXPECT_EQ(part.seconds > 0, profile) << threads << " threads";
        EXPECT_EQ(part.cpu_seconds > 0, profile) << threads << " threads";
      }
      EXPECT_LT(times.read.seconds + times.decode.seconds + times.resize.seconds,
                stats.work_seconds);
    }
}

// A huge image costs its memory while it is made, not for the rest of the run.
TEST(Loader, TheMemoryOfALargeImageIsGivenBack) {
  const TempFolder root;
  root.write("a/1.jpg", test::encode_jpeg(test::make_image(300, 200, 3, 1)));
  const std::string whole = test::encode_jpeg(test::make_image(2600, 2300, 3, 2));
  root.write("a/2.jpg", whole);
  root.write("a/3.jpg", whole.substr(0, whole.size() / 2));
  const auto dataset = open_folder(root.path());
  const SampleMaker maker(*dataset, {16, 16, 3}, 178956970);
  SampleScratch scratch;
  std::vector<uint8_t> out(16 * 16 * 3);
  const auto make = [&](uint64_t i) {
    maker.make(
        out.data(), i,
        [&](ImageShape image, const std::string& name) {
          return eval_geometry({.resize = 16, .size = 16}, image, {16, 16, 3}, name);
        },
        scratch);
    return scratch.sample.storage.capacity() + scratch.image.pixels.capacity();
  };
  EXPECT_GT(make(0), 300u * 200u * 3u / 2u);
  EXPECT_EQ(make(1), 0u);
  EXPECT_GT(make(0), 0u);
  EXPECT_THROW(make(2), BadContent);  // a bad one likewise
  EXPECT_EQ(scratch.sample.storage.capacity() + scratch.image.pixels.capacity(), 0u);
}

double resident_mebibytes() {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  file >> pages >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1048576;
}

// What is resident after a tenth of the images must be so at the end. By hand with more of them:
// CONVOY_LOADER_IMAGES=50000, and CONVOY_LOADER_DATA naming a folder of real ones.
TEST(Loader, MemoryStaysFlat) {
  const auto variable = [](const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return std::string(value ? value : otherwise);
  };
  const auto images = static_cast<uint64_t>(std::stoull(variable("CONVOY_LOADER_IMAGES", "2000")));
  const std::string data = variable("CONVOY_LOADER_DATA", "");
  const TempFolder root;
  if (data.empty()) test::make_image_folder(root, 4, 10, 1);
  const auto dataset = open_folder(data.empty() ? root.path() : data);
  LoaderConfig config;
  config.transform.size = data.empty() ? 64 : 224;
  config.batch_per_worker = 50;
  config.end_step = images / 50;
  config.threads = 3;
  Loader loader(*dataset, config);
  double tenth = 0, end = 0;
  for (uint64_t step = 0; step < config.end_step; ++step) {
    loader.release(loader.acquire(step, 0));
    end = resident_mebibytes();
    if (step == config.end_step / 10) tenth = end;
  }
  std::printf("resident after %d images: %.1f MiB, after %d: %.1f MiB\n",
              static_cast<int>(images / 10), tenth, static_cast<int>(images), end);
  EXPECT_LT(end, tenth + 0.1 * tenth + 8);
}

TEST(Loader, WrongUseIsAnError) {
  const Numbered dataset(10);
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  for (const int threads : {0, 2}) {
    config.threads = threads;
    Loader loader(dataset, config);
    const Batch& batch = loader.acquire(0, 1);
    EXPECT_THROW(loader.acquire(0, 1), Error);  // held
    loader.release(batch);
    EXPECT_THROW(loader.release(batch), Error);
    EXPECT_THROW(loader.acquire(0, 1), Error);  // over
    EXPECT_THROW(loader.acquire(7, 0), Error);
    EXPECT_THROW(loader.acquire(0, 4), Error);
  }
  config.end_worker = 5;
  EXPECT_THROW(Loader(dataset, config), Error);
  config = small_config();
  config.transform.crop = Crop::kPadAndCrop;
  config.transform.size = 99;
  EXPECT_THROW(Loader(dataset, config), Error);
}

// From the first batch to the last; none when the loader is gone.
TEST(Loader, PixelsArePinnedWhileTheyLive) {
  const Numbered dataset(50, {4, 4, 1});
  std::map<const void*, size_t> pinned;
  const PinMemory pin = [&](void* memory, size_t bytes) {
    pinned[memory] = bytes;
    return std::shared_ptr<void>(memory, [&](void* p) { pinned.erase(p); });
  };
  const auto expect_pinned = [&](const Batch& batch) {
    ASSERT_TRUE(pinned.contains(batch.pixels));
    EXPECT_GE(pinned[batch.pixels], static_cast<size_t>(batch.size) * batch.shape.bytes());
  };
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  config.workers = config.end_worker = 1;
  config.end_step = 9;
  config.pin = pin;
  {
    Loader loader(dataset, config);
    EXPECT_EQ(pinned.size(), static_cast<size_t>(loader.slots()));
    for (uint64_t step = config.first_step; step < config.end_step; ++step) {
      const Batch& batch = loader.acquire(step, config.first_worker);
      expect_pinned(batch);
      loader.release(batch);
    }
  }
  EXPECT_TRUE(pinned.empty());
  EvalLoaderConfig evaluation;
  evaluation.looks.transform = {0, 0};
  evaluation.batch = 20;
  evaluation.slices = {0, 1, 2};
  evaluation.pin = pin;
  {
    EvalLoader loader(dataset, evaluation);
    for (uint64_t n = 0; n < 3; ++n) {
      const Batch& batch = loader.acquire(n);
      expect_pinned(batch);
      loader.release(batch);
    }
  }
  EXPECT_TRUE(pinned.empty());
}

TEST(Loader, PeekShowsWhatAcquireWillGive) {
  const Numbered dataset(50, {4, 4, 1});
  LoaderConfig config = small_config();
  config.transform.crop = Crop::kCenter;
  config.transform.size = config.transform.resize = 0;
  Loader loader(dataset, config);
  EXPECT_EQ(loader.peek(config.end_step, 0), nullptr);
  EXPECT_EQ(loader.peek(6, 0), nullptr);  // beyond the ring
  const Batch* seen = nullptr;
  while (!(seen = loader.peek(0, 1))) std::this_thread::yield();
  EXPECT_EQ(loader.peek(0, 1), seen);
  EXPECT_EQ(&loader.acquire(0, 1), seen);
  EXPECT_EQ(loader.peek(0, 1), nullptr);  // it is held
  loader.release(*seen);
  EXPECT_EQ(loader.peek(0, 1), nullptr);
  while (!loader.peek(1, 0)) std::this_thread::yield();
  EXPECT_EQ(loader.peek(0, config.end_worker), nullptr);  // the place of (1, 0)
  loader.stop(std::make_exception_ptr(Error(ExitCode::kFault, "stopped")));
  EXPECT_EQ(loader.peek(0, 2), nullptr);
}

TEST(EvalLoader, SlicesAreFixedAndTheLastIsPadded) {
  const Numbered dataset(10);
  EXPECT_EQ(EvalLoader::slices(10, 4), 3u);
  EXPECT_EQ(EvalLoader::slices(8, 4), 2u);
  for (const int threads : {0, 1, 3}) {
    EvalLoaderConfig config;
    config.looks.transform = {0, 0};
    config.batch = 4;
    config.slices = {2, 0, 1};
    config.threads = threads;
    EvalLoader loader(dataset, config);
    for (uint64_t n = 0; n < 3; ++n) {
      const Batch& batch = loader.acquire(n);
      const uint64_t slice = config.slices[n];
      EXPECT_EQ(batch.step, slice);
      for (uint64_t i = 0; i < 4; ++i) {
        const uint64_t sample = slice * 4 + i;
        EXPECT_EQ(batch.sample_ids[i], sample);
        EXPECT_EQ(batch.labels[i], sample < 10 ? static_cast<int32_t>(sample) : -1);
        EXPECT_EQ(batch.pixels[i * 16 + 7], sample < 10 ? sample : 0);
      }
      loader.release(batch);
    }
  }
}

TEST(EvalLoader, SlicesAreTheSameInAnyOrderAndNumberOfThreads) {
  const TempFolder root;
  test::make_image_folder(root, 3, 1, 5);
  const auto dataset = open_folder(root.path(), Split::kVal);
  ASSERT_EQ(dataset->size(), 15u);
  const auto hashes = [&](std::vector<uint64_t> slices, int threads) {
    EvalLoaderConfig config;
    config.looks.transform = {20, 16};
    config.batch = 4;
    config.slices = slices;
    config.threads = threads;
    EvalLoader loader(*dataset, config);
    std::map<uint64_t, std::string> out;
    for (uint64_t n = 0; n < slices.size(); ++n) {
      const Batch& batch = loader.acquire(n);
      out[batch.step] = hash_of(batch);
      loader.release(batch);
    }
    return out;
  };
  const auto expected = hashes({0, 1, 2, 3}, 0);
  EXPECT_EQ(hashes({3, 1, 0, 2}, 1), expected);
  EXPECT_EQ(hashes({2, 3, 1, 0}, 3), expected);
  EXPECT_EQ(hashes({1}, 3).at(1), expected.at(1));
}

TEST(EvalLoader, ABadImageIsAnError) {
  const TempFolder root;
  test::make_image_folder(root, 1, 1, 5);
  const std::string file = root.write("val/class_0/image_2.jpg", "text");
  const auto dataset = open_folder(root.path(), Split::kVal);
  EvalLoaderConfig config;
  config.looks.transform = {20, 16};
  config.batch = 2;
  config.slices = {0, 1};
  EvalLoader loader(*dataset, config);
  loader.release(loader.acquire(0));
  try {
    loader.acquire(1);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what()).find(file), std::string::npos);
  }
  config.slices = {3};
  EXPECT_THROW(EvalLoader(*dataset, config), Error);
}

// What comes a whole ring behind slice 0 needs its place, which nobody will release: whoever waits
// for what lies behind gets the error.
TEST(EvalLoader, ABadImageFreesThoseWhoWaitBehindIt) {
  const TempFolder root;
  test::make_image_folder(root, 1, 1, 8);
  root.write("val/class_0/image_0.jpg", "text");
  const auto dataset = open_folder(root.path(), Split::kVal);
  EvalLoaderConfig config;
  config.looks.transform = {20, 16};
  config.batch = 1;
  config.slices = {0};
  for (uint64_t n = 0; n < 50; ++n) config.slices.push_back(1 + n % 7);
  config.lanes = 2;
  EvalLoader loader(*dataset, config);
  const auto ring = static_cast<uint64_t>(loader.slots());
  ASSERT_LT(ring + 3, config.slices.size());
  loader.release(loader.acquire(1));
  loader.release(loader.acquire(3));
  std::jthread other([&] { EXPECT_THROW(loader.acquire(ring + 1), Error); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // so that it waits already
  EXPECT_THROW(loader.acquire(0), Error);
  other.join();
  EXPECT_THROW(loader.acquire(ring + 3), Error);
}

// What was read before it could be asked for is not asked for any more.
TEST(Loader, FilesOfItsOwnSamplesAreAskedForOnce) {
  const auto expect_some_of = [](const Announced& dataset, const std::set<uint64_t>& samples) {
    const std::multiset<uint64_t> announced = dataset.announced();
    EXPECT_FALSE(announced.empty());
    EXPECT_EQ(std::set<uint64_t>(announced.begin(), announced.end()).size(), announced.size());
    for (const uint64_t i : announced) EXPECT_TRUE(samples.contains(i)) << i;
  };
  const auto range = [](uint64_t begin, uint64_t end) {
    std::set<uint64_t> samples;
    for (uint64_t i = begin; i < end; ++i) samples.insert(i);
    return samples;
  };
  EvalLoaderConfig evaluation;
  evaluation.looks.transform = {.resize = 16, .size = 8};
  evaluation.batch = 10;
  evaluation.slices = {1, 5};
  const auto evaluate = [&](const Announced& dataset) {
    EvalLoader loader(dataset, evaluation);
    for (uint64_t n = 0; n < 2; ++n) loader.release(loader.acquire(n));
  };
  const Announced evaluated(60);
  evaluate(evaluated);
  std::set<uint64_t> samples = range(10, 20);
  samples.merge(range(50, 60));
  expect_some_of(evaluated, samples);

  const Announced trained(60);
  LoaderConfig training;
  training.transform.crop = Crop::kRandomResized;
  training.transform.size = 8;
  training.batch_per_worker = 30;
  training.end_step = 2;
  {
    Loader loader(trained, training);
    for (uint64_t step = 0; step < 2; ++step) loader.release(loader.acquire(step, 0));
  }
  expect_some_of(trained, range(0, 60));

  const Announced none(60);
  evaluation.read_ahead = 0;
  evaluate(none);
  EXPECT_TRUE(none.announced().empty());
}

}  // namespace
}  // namespace convoy::data
