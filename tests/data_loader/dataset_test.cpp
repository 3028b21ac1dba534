// Formats: what is read, what is detected, and what is said about broken folders.
#include "data_loader/dataset.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::TempFolder;

std::vector<std::string> g_log;

// Collects log lines while it lives.
struct LogCapture {
  LogCapture() {
    g_log.clear();
    log::set_sink([](log::Level, const std::string& line) { g_log.push_back(line); });
  }
  ~LogCapture() { log::set_sink(nullptr); }
  static bool has(const std::string& text) {
    for (const std::string& line : g_log)
      if (line.find(text) != std::string::npos) return true;
    return false;
  }
};

DatasetSpec spec_of(const std::string& path, Format format = Format::kAuto, int classes = 0) {
  DatasetSpec spec;
  spec.path = path;
  spec.format = format;
  spec.classes = classes;
  return spec;
}

// Opening must fail with this code and a message of one line that holds all of `parts`.
void expect_error(const DatasetSpec& spec, Split split, ExitCode code,
                  const std::vector<std::string>& parts) {
  try {
    open_dataset(spec, split);
    ADD_FAILURE() << "no error for " << spec.path;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

std::vector<uint8_t> read(const Dataset& dataset, uint64_t i) {
  Sample sample;
  dataset.read(i, sample);
  EXPECT_EQ(sample.label, dataset.label(i));
  return {sample.bytes.begin(), sample.bytes.end()};
}

const std::vector<uint8_t> kTwelve = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

void write_idx(const TempFolder& root, const std::string& prefix, const std::string& images,
               const std::string& labels, const std::string& suffix = "") {
  root.write(prefix + "-images-idx3-ubyte" + suffix, images);
  root.write(prefix + "-labels-idx1-ubyte" + suffix, labels);
}

TEST(Idx, PlainAndGzippedHoldTheSame) {
  const std::string images = test::encode_idx_images(2, 2, 3, kTwelve);
  const std::string labels = test::encode_idx_labels({4, 1});
  const TempFolder plain, zipped;
  write_idx(plain, "train", images, labels);
  write_idx(zipped, "train", test::gzip(images), test::gzip(labels), ".gz");
  const auto a = open_dataset(spec_of(plain.path()), Split::kTrain);
  const auto b = open_dataset(spec_of(zipped.path()), Split::kTrain);
  for (const Dataset* dataset : {a.get(), b.get()}) {
    EXPECT_EQ(dataset->size(), 2u);
    EXPECT_EQ(dataset->classes().size(), 5u);
    ASSERT_EQ(dataset->raw_shape(), (ImageShape{2, 3, 1}));
    EXPECT_EQ(read(*dataset, 0), (std::vector<uint8_t>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(read(*dataset, 1), (std::vector<uint8_t>{6, 7, 8, 9, 10, 11}));
    EXPECT_EQ(dataset->label(0), 4);
    EXPECT_EQ(dataset->label(1), 1);
  }
  EXPECT_EQ(a->digest(), b->digest());
  EXPECT_EQ(a->name(1), plain.path("train-images-idx3-ubyte") + ", image 1");

  const TempFolder other;
  write_idx(other, "train", images, test::encode_idx_labels({4, 2}));
  EXPECT_NE(open_dataset(spec_of(other.path()), Split::kTrain)->digest(), a->digest());
}

TEST(Idx, ValidationCountsTheTrainingClasses) {
  const TempFolder root;
  write_idx(root, "train", test::encode_idx_images(2, 2, 3, kTwelve),
            test::encode_idx_labels({0, 9}));
  write_idx(root, "t10k", test::encode_idx_images(2, 2, 3, kTwelve),
            test::encode_idx_labels({0, 3}));
  EXPECT_EQ(open_dataset(spec_of(root.path()), Split::kVal)->classes().size(), 10u);
  write_idx(root, "t10k", test::encode_idx_images(2, 2, 3, kTwelve),
            test::encode_idx_labels({0, 10}));
  expect_error(spec_of(root.path()), Split::kVal, ExitCode::kBadData,
               {"t10k-images-idx3-ubyte, image 1", "label 10", "0 ... 9"});
}

TEST(Idx, BrokenFilesAreNamedWithTheirNumbers) {
  const std::string images = test::encode_idx_images(2, 2, 3, kTwelve);
  const std::string labels = test::encode_idx_labels({4, 1});
  const auto expect = [&](const std::string& broken_images, const std::string& broken_labels,
                          const std::string& suffix, const std::vector<std::string>& parts) {
    const TempFolder root;
    write_idx(root, "train", broken_images, broken_labels, suffix);
    expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData, parts);
  };
  const std::string image_file = "train-images-idx3-ubyte";
  expect(images, test::encode_idx_labels({4}), "",
         {"train-labels-idx1-ubyte", "1 labels", "2 images"});
  expect(images.substr(0, images.size() - 1), labels, "", {image_file, "2 x 2 x 3"});
  expect(images + "x", labels, "", {image_file, "12 bytes", "more"});
  expect(images.substr(0, 9), labels, "", {image_file, "9 bytes", "16"});
  expect("", labels, "", {image_file, "0 bytes"});
  expect(test::encode_idx_labels(kTwelve), labels, "", {image_file, "0x00000801", "0x00000803"});
  expect(test::encode_idx_images(0, 2, 3, {}), labels, "", {image_file, "0 x 2 x 3"});
  // 2^32 images must not become 2^44 bytes of memory, zipped or not.
  std::string bomb = images;
  bomb.replace(4, 4, "\xff\xff\xff\xff");
  expect(bomb, labels, "", {image_file, "4294967295 x 2 x 3", "too short"});
  expect(test::gzip(bomb), labels, ".gz", {image_file, "4294967295 x 2 x 3", "too short"});
  bomb.replace(4, 12, std::string(12, '\xff'));
  expect(bomb, labels, "", {image_file, "too short"});
  const std::string zipped = test::gzip(images);
  expect(zipped.substr(0, zipped.size() - 12), labels, ".gz", {image_file});
  std::string damaged = zipped;
  damaged[zipped.size() - 6] ^= 1;  // the checksum
  expect(damaged, labels, ".gz", {image_file, "gzip"});
}

// As gzip itself has it: members follow each other, and what comes after the last is no data.
TEST(Idx, GzippedInPartsOrWithSomethingBehind) {
  const std::string images = test::encode_idx_images(2, 2, 3, kTwelve);
  const std::string labels = test::gzip(test::encode_idx_labels({4, 1}));
  const std::string parts = test::gzip(images.substr(0, 19)) + test::gzip(images.substr(19));
  for (const std::string& zipped : {parts, test::gzip(images) + std::string(512, '\0')}) {
    const TempFolder root;
    write_idx(root, "train", zipped, labels, ".gz");
    const auto dataset = open_dataset(spec_of(root.path()), Split::kTrain);
    EXPECT_EQ(read(*dataset, 0), (std::vector<uint8_t>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(read(*dataset, 1), (std::vector<uint8_t>{6, 7, 8, 9, 10, 11}));
  }
  const TempFolder root;
  write_idx(root, "train", test::gzip(images) + test::gzip("x"), labels, ".gz");
  expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData,
               {"train-images-idx3-ubyte", "12 bytes", "more"});
}

TEST(Idx, LabelsOutsideTheJobsClassesAreAnError) {
  const TempFolder root;
  write_idx(root, "train", test::encode_idx_images(2, 2, 3, kTwelve),
            test::encode_idx_labels({4, 1}));
  expect_error(spec_of(root.path(), Format::kIdx, 4), Split::kTrain, ExitCode::kBadData,
               {"image 0", "label 4", "0 ... 3"});
  EXPECT_EQ(open_dataset(spec_of(root.path(), Format::kIdx, 7), Split::kTrain)->classes().size(),
            7u);
  expect_error(spec_of(root.path()), Split::kVal, ExitCode::kBadData, {"t10k-images-idx3-ubyte"});
}

TEST(Idx, FashionMnistOfTheDebianPackage) {
  const std::string path = "/usr/share/datasets/fashion-mnist";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "SKIPPED LOUDLY: no " << path;
  const auto train = open_dataset(spec_of(path), Split::kTrain);
  const auto val = open_dataset(spec_of(path), Split::kVal);
  EXPECT_EQ(train->size(), 60000u);
  EXPECT_EQ(val->size(), 10000u);
  EXPECT_EQ(train->raw_shape(), (ImageShape{28, 28, 1}));
  EXPECT_EQ(train->classes().size(), 10u);
  std::vector<int> counts(10);
  for (uint64_t i = 0; i < val->size(); ++i) ++counts[static_cast<size_t>(val->label(i))];
  EXPECT_EQ(counts, std::vector<int>(10, 1000));
}

std::string cifar_record(std::vector<uint8_t> labels, uint8_t red, uint8_t green, uint8_t blue) {
  std::string record(labels.begin(), labels.end());
  for (const uint8_t value : {red, green, blue})
    record += std::string(1024, static_cast<char>(value));
  return record;
}

TEST(Cifar, TenClasses) {
  const TempFolder root;
  for (int b = 1; b <= 5; ++b)
    root.write(fmt::format("cifar-10-batches-bin/data_batch_{}.bin", b),
               cifar_record({static_cast<uint8_t>(b)}, 10, 20, 30) +
                   cifar_record({0}, static_cast<uint8_t>(b), 50, 60));
  root.write("cifar-10-batches-bin/test_batch.bin", cifar_record({9}, 1, 2, 3));
  root.write("cifar-10-batches-bin/batches.meta.txt",
             "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
  const auto train = open_dataset(spec_of(root.path()), Split::kTrain);
  const auto val = open_dataset(spec_of(root.path("cifar-10-batches-bin")), Split::kVal);
  EXPECT_EQ(train->size(), 10u);
  EXPECT_EQ(train->classes()[9], "truck");
  EXPECT_EQ(train->label(4), 3);
  const std::vector<uint8_t> pixels = read(*train, 7);
  ASSERT_EQ(pixels.size(), 3072u);
  EXPECT_EQ(pixels[0], 4);
  EXPECT_EQ(pixels[1], 50);
  EXPECT_EQ(pixels[3071], 60);
  EXPECT_EQ(train->name(7), root.path("cifar-10-batches-bin/data_batch_4.bin") + ", image 1");
  EXPECT_EQ(val->label(0), 9);
  EXPECT_NE(train->digest(), val->digest());

  root.write("cifar-10-batches-bin/data_batch_3.bin", cifar_record({1}, 1, 2, 3) + "x");
  expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData,
               {"data_batch_3.bin", "3074", "3073"});
  std::filesystem::remove(root.path("cifar-10-batches-bin/data_batch_3.bin"));
  expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData, {"data_batch_3.bin"});
  root.write("cifar-10-batches-bin/test_batch.bin", cifar_record({10}, 1, 2, 3));
  expect_error(spec_of(root.path()), Split::kVal, ExitCode::kBadData, {"test_batch.bin", "10"});
}

TEST(Cifar, HundredClassesHaveTheirFineLabels) {
  const TempFolder root;
  root.write("train.bin", cifar_record({3, 77}, 1, 2, 3));
  root.write("test.bin", cifar_record({4, 99}, 1, 2, 3));
  EXPECT_EQ(open_dataset(spec_of(root.path()), Split::kTrain)->label(0), 77);
  const auto val = open_dataset(spec_of(root.path()), Split::kVal);
  EXPECT_EQ(val->label(0), 99);
  EXPECT_EQ(val->classes().size(), 100u);
}

TEST(ImageFolder, ListsSortedClassesAndFiles) {
  const TempFolder root;
  for (const char* file : {"train/b/2.JPEG", "train/b/10.jpg", "train/a/x.PnG", "train/Z/1.jpeg",
                           "val/b/v.jpg", "train/b/notes.txt", "train/b/.hidden.jpg",
                           "train/a/noext", "train/b/sub/deep.jpg", "train/README"})
    root.write(file, file);
  const LogCapture capture;
  const auto train = open_dataset(spec_of(root.path()), Split::kTrain);
  EXPECT_EQ(train->classes(), (std::vector<std::string>{"Z", "a", "b"}));
  ASSERT_EQ(train->size(), 4u);
  EXPECT_EQ(train->raw_shape(), std::nullopt);
  std::vector<std::string> names;
  std::vector<int32_t> labels;
  for (uint64_t i = 0; i < 4; ++i) {
    const std::vector<uint8_t> bytes = read(*train, i);
    names.emplace_back(bytes.begin(), bytes.end());
    labels.push_back(train->label(i));
  }
  EXPECT_EQ(names, (std::vector<std::string>{"train/Z/1.jpeg", "train/a/x.PnG", "train/b/10.jpg",
                                             "train/b/2.JPEG"}));
  EXPECT_EQ(labels, (std::vector<int32_t>{0, 1, 2, 2}));
  EXPECT_EQ(train->name(0), root.path("train/Z/1.jpeg"));
  EXPECT_TRUE(LogCapture::has("4 entries skipped"));
  // Labels of the other split count the training classes.
  const auto val = open_dataset(spec_of(root.path()), Split::kVal);
  EXPECT_EQ(val->classes().size(), 3u);
  EXPECT_EQ(val->label(0), 2);
}

TEST(ImageFolder, FlatFolderServesBothSplits) {
  const TempFolder root;
  root.write("cat/1.jpg", "1");
  root.write("dog/2.jpg", "2");
  const LogCapture capture;
  const auto train = open_dataset(spec_of(root.path()), Split::kTrain);
  const auto val = open_dataset(spec_of(root.path()), Split::kVal);
  EXPECT_EQ(train->size(), 2u);
  EXPECT_EQ(train->digest(), val->digest());
  EXPECT_TRUE(LogCapture::has("same images serve training and evaluation"));
}

TEST(ImageFolder, DigestIsOfNamesSizesAndLabels) {
  const auto digest = [](const std::vector<std::pair<std::string, std::string>>& files) {
    const TempFolder root;
    for (const auto& [name, bytes] : files) root.write(name, bytes);
    return open_dataset(spec_of(root.path()), Split::kTrain)->digest();
  };
  const std::string base = digest({{"train/a/1.jpg", "xx"}, {"train/b/2.jpg", "y"}});
  EXPECT_EQ(base, digest({{"train/a/1.jpg", "zz"}, {"train/b/2.jpg", "y"}}));
  EXPECT_NE(base, digest({{"train/a/1.jpg", "xxx"}, {"train/b/2.jpg", "y"}}));
  EXPECT_NE(base, digest({{"train/a/3.jpg", "xx"}, {"train/b/2.jpg", "y"}}));
  EXPECT_NE(base, digest({{"train/a/1.jpg", "xx"}, {"train/c/2.jpg", "y"}}));
}

TEST(ImageFolder, WrongFoldersAreNamed) {
  const TempFolder root;
  const std::string missing = root.path("nowhere");
  expect_error(spec_of(missing), Split::kTrain, ExitCode::kIo, {missing, "No such file"});
  expect_error(spec_of(""), Split::kTrain, ExitCode::kBadData, {"--data"});
  expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData, {root.path(), "empty"});
  expect_error(spec_of(root.path(), Format::kIdx), Split::kTrain, ExitCode::kBadData,
               {root.path(), "train-images-idx3-ubyte"});
  expect_error(spec_of(root.path(), Format::kCifar), Split::kTrain, ExitCode::kBadData,
               {root.path(), "data_batch_1.bin"});
  expect_error(spec_of(root.path(), Format::kImageFolder), Split::kTrain, ExitCode::kBadData,
               {root.path(), "no class folders"});
  const std::string file = root.write("a_file", "x");
  expect_error(spec_of(file), Split::kTrain, ExitCode::kBadData, {file, "not a folder"});

  root.write("train/a/1.jpg", "x");
  expect_error(spec_of(root.path()), Split::kVal, ExitCode::kBadData, {"val/"});
  root.write("val/a/1.jpg", "x");
  root.write("val/stranger/1.jpg", "x");
  expect_error(spec_of(root.path()), Split::kVal, ExitCode::kBadData,
               {"val/stranger", root.path("train")});
  std::filesystem::create_directories(root.path("train/empty\nclass"));
  expect_error(spec_of(root.path()), Split::kTrain, ExitCode::kBadData,
               {"empty\\nclass", "without images"});
  std::filesystem::remove(root.path("train/empty\nclass"));
  root.write("train/b/1.jpg", "x");
  expect_error(spec_of(root.path(), Format::kAuto, 1), Split::kTrain, ExitCode::kBadData,
               {"2 classes", "the job says 1"});
}

TEST(ImageFolder, LinksLoopsAndFifosDoNoHarm) {
  const TempFolder root;
  root.write("train/a/1.jpg", "x");
  root.write("elsewhere/2.jpg", "yy");
  namespace fs = std::filesystem;
  fs::create_symlink(root.path("elsewhere/2.jpg"), root.path("train/a/linked.jpg"));
  fs::create_symlink(root.path("elsewhere"), root.path("train/b"));
  fs::create_symlink(root.path("train/a/loop.jpg"), root.path("train/a/loop.jpg"));
  fs::create_symlink(root.path("train"), root.path("train/a/up"));
  fs::create_symlink("/dev/zero", root.path("train/a/zero.jpg"));
  ASSERT_EQ(::mkfifo(root.path("train/a/fifo.jpg").c_str(), 0600), 0);
  const LogCapture capture;
  const auto train = open_dataset(spec_of(root.path()), Split::kTrain);
  EXPECT_EQ(train->size(), 3u);
  EXPECT_EQ(read(*train, 1).size(), 2u);
  EXPECT_TRUE(LogCapture::has("4 entries skipped"));
  // An image that becomes a FIFO later must not be waited for.
  fs::remove(root.path("train/a/1.jpg"));
  ASSERT_EQ(::mkfifo(root.path("train/a/1.jpg").c_str(), 0600), 0);
  Sample sample;
  EXPECT_THROW(train->read(0, sample), Error);
}

TEST(ImageFolder, FilesThatChangedOrVanishedAreNamed) {
  const TempFolder root;
  const std::string file = root.write("a/1.jpg", "x");
  const auto train = open_dataset(spec_of(root.path()), Split::kTrain);
  Sample sample;
  root.write("a/1.jpg", "longer");
  try {
    train->read(0, sample);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what()).find(file + ": has 6 bytes, had 1"), std::string::npos)
        << error.what();
  }
  std::filesystem::remove(file);
  try {
    train->read(0, sample);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_NE(std::string(error.what()).find(file), std::string::npos) << error.what();
  }
}

// Folders this old may be indexed.
void make_old(const TempFolder& root) {
  namespace fs = std::filesystem;
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(1);
  for (const auto& entry : fs::recursive_directory_iterator(root.path()))
    if (entry.is_directory()) fs::last_write_time(entry.path(), old);
}

std::string only_file(const TempFolder& folder) {
  std::string found;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    EXPECT_TRUE(found.empty()) << "more than one file in the cache";
    found = entry.path().string();
  }
  return found;
}

TEST(ImageFolder, TheIndexIsKeptAndVerified) {
  const TempFolder root, cache;
  root.write("train/a/1.jpg", "x");
  root.write("train/b/2.jpg", "yy");
  DatasetSpec spec = spec_of(root.path());
  spec.cache_folder = cache.path();
  const auto size = [&] { return open_dataset(spec, Split::kTrain)->size(); };
  const std::string digest = open_dataset(spec, Split::kTrain)->digest();
  EXPECT_EQ(only_file(cache), "") << "a folder changed this second must not be indexed";
  make_old(root);
  EXPECT_EQ(size(), 2u);
  const std::string index = only_file(cache);
  ASSERT_NE(index, "");

  // It is really used: a file that came without a trace in its folder's time is not seen.
  namespace fs = std::filesystem;
  const auto time = fs::last_write_time(root.path("train/a"));
  root.write("train/a/3.jpg", "z");
  fs::last_write_time(root.path("train/a"), time);
  EXPECT_EQ(size(), 2u);
  EXPECT_EQ(open_dataset(spec, Split::kTrain)->digest(), digest);
  // With a trace it is.
  fs::last_write_time(root.path("train/a"), time + std::chrono::seconds(1));
  EXPECT_EQ(size(), 3u);
  EXPECT_EQ(size(), 3u);
  root.write("train/c/4.jpg", "z");
  EXPECT_EQ(size(), 4u);
  make_old(root);
  EXPECT_EQ(size(), 4u);

  // A damaged index is made anew.
  const uintmax_t bytes = fs::file_size(index);
  for (const uintmax_t length : {uintmax_t{0}, uintmax_t{10}, bytes - 70, bytes - 1}) {
    fs::resize_file(index, length);
    EXPECT_EQ(size(), 4u);
    EXPECT_EQ(fs::file_size(index), bytes);
  }
  spec.cache_folder = root.path("no/such/folder");
  EXPECT_EQ(size(), 4u);
}

// Whatever stands in a name, and on however many threads the folders are listed.
TEST(ImageFolder, AnIndexedFolderIsTheListedOne) {
  const TempFolder root, cache;
  for (int i = 0; i < 60; ++i) {
    root.write(fmt::format("train/class {}/a\nb {}.jpg", i % 40, i), std::string(size_t(i), 'x'));
    root.write(fmt::format("train/class {}/\xff\x01{}.PNG", i % 40, i), "y");
  }
  root.write("train/new\nline/1.jpg", "z");
  make_old(root);
  DatasetSpec spec = spec_of(root.path());
  const auto listed = open_dataset(spec, Split::kTrain);
  spec.cache_folder = cache.path();
  open_dataset(spec, Split::kTrain);
  EXPECT_NE(only_file(cache), "");
  const auto recalled = open_dataset(spec, Split::kTrain);
  EXPECT_EQ(recalled->digest(), listed->digest());
  EXPECT_EQ(recalled->classes(), listed->classes());
  ASSERT_EQ(recalled->size(), 121u);
  ASSERT_EQ(listed->size(), 121u);
  for (uint64_t i = 0; i < listed->size(); ++i) {
    EXPECT_EQ(recalled->name(i), listed->name(i));
    EXPECT_EQ(recalled->label(i), listed->label(i));
    EXPECT_EQ(read(*recalled, i), read(*listed, i));
  }
}

TEST(Synthetic, IsTheSameEachTime) {
  DatasetSpec spec;
  spec.format = Format::kSynthetic;
  spec.classes = 5;
  spec.synthetic_samples = 12;
  spec.synthetic_shape = {7, 5, 3};
  const auto a = open_dataset(spec, Split::kTrain);
  const auto b = open_dataset(spec, Split::kTrain);
  EXPECT_EQ(a->size(), 12u);
  EXPECT_EQ(a->digest(), b->digest());
  EXPECT_EQ(read(*a, 3), read(*b, 3));
  EXPECT_EQ(read(*a, 3).size(), 105u);
  EXPECT_NE(read(*a, 3), read(*a, 4));
  EXPECT_NE(read(*a, 3), read(*open_dataset(spec, Split::kVal), 3));
  EXPECT_EQ(a->label(7), 2);
  spec.classes = 0;
  expect_error(spec, Split::kTrain, ExitCode::kBadJob, {"data.classes"});
}

}  // namespace
}  // namespace convoy::data
