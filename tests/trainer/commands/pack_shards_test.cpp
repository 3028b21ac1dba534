// convoy pack: shards hold what the folder held, whatever the threads and however often it died.
#include "trainer/commands/pack_shards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "data_loader/image.h"
#include "data_loader/loader.h"
#include "data_loader/shard_index.h"
#include "data_loader/tar_shards.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/mounts.h"
#include "tests/support/tiny_images.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using test::encode_jpeg;
using test::encode_png;
using test::make_image;
using test::TempFolder;

struct QuietLog {
  QuietLog() {
    log::set_sink([](log::Level, const std::string&) {});
  }
  ~QuietLog() { log::set_sink(nullptr); }
};

// A folder with what is odd about names.
void make_source(const TempFolder& root) {
  test::make_image_folder(root, 3, 9, 3);
  root.write("train/class_0/two.dots.jpg", encode_jpeg(make_image(30, 20, 3, 1)));
  root.write("train/class_0/same.jpg", encode_jpeg(make_image(31, 20, 3, 2)));
  root.write("train/class_0/same.k.jpg", encode_jpeg(make_image(32, 20, 3, 3)));
  root.write("train/class_0/same.png", encode_png(make_image(33, 20, 3, 4)));
  root.write("train/class_1/50% off.JPEG", encode_jpeg(make_image(34, 20, 1, 5)));
  root.write("train/class_1/" + std::string(180, 'n') + ".jpg",
             encode_jpeg(make_image(35, 20, 3, 6)));
}

PackConfig config_of(const std::string& source, const std::string& target, int threads = 2) {
  PackConfig config;
  config.source = source;
  config.target = target;
  config.shard_bytes = 12000;  // several shards
  config.threads = threads;
  return config;
}

std::unique_ptr<data::Dataset> open(const std::string& path,
                                    data::Split split = data::Split::kTrain,
                                    data::SampleOrder order = data::SampleOrder::kByName) {
  return data::open_dataset({.path = path, .order = order}, split);
}

std::string bytes_of(const data::Dataset& dataset, uint64_t i) {
  data::Sample sample;
  dataset.read(i, sample);
  return {sample.bytes.begin(), sample.bytes.end()};
}

// Every file below the folder with its bytes.
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[fs::relative(entry.path(), folder).string()] = test::read_file(entry.path().string());
  return files;
}

void expect_same_data(const data::Dataset& folder, const data::Dataset& shards) {
  EXPECT_EQ(shards.digest(), folder.digest());
  EXPECT_EQ(shards.classes(), folder.classes());
  ASSERT_EQ(shards.size(), folder.size());
  for (uint64_t i = 0; i < folder.size(); ++i) {
    EXPECT_EQ(shards.file(i).name, folder.file(i).name);
    EXPECT_EQ(shards.file(i).bytes, folder.file(i).bytes);
    EXPECT_EQ(shards.label(i), folder.label(i));
    EXPECT_EQ(bytes_of(shards, i), bytes_of(folder, i)) << folder.name(i);
  }
}

// All that two epochs hold.
std::string hash_of_batches(const data::Dataset& dataset, int threads) {
  data::LoaderConfig config;
  config.transform.size = 16;
  config.batch_per_worker = 4;
  config.workers = config.end_worker = 2;
  config.end_step = dataset.size() / 4;
  config.threads = threads;
  config.lanes = 1;
  data::Loader loader(dataset, config);
  Sha256 sha;
  for (uint64_t step = 0; step < config.end_step; ++step)
    for (int worker = 0; worker < 2; ++worker) {
      const data::Batch& batch = loader.acquire(step, worker);
      sha.update(batch.pixels, 4 * batch.shape.bytes());
      sha.update(batch.labels.data(), batch.labels.size() * sizeof(int32_t));
      sha.update(batch.sample_ids.data(), batch.sample_ids.size() * sizeof(uint64_t));
      loader.release(batch);
    }
  return sha.hex();
}

TEST(Pack, AFolderAndItsShardsAreOneDataset) {
  const QuietLog quiet;
  const TempFolder source, out;
  make_source(source);
  const std::vector<PackedSplit> packed = pack(config_of(source.path(), out.path("t")));
  ASSERT_EQ(packed.size(), 2u);
  EXPECT_EQ(packed[0].name, "train");
  EXPECT_EQ(packed[0].images, 33u);
  EXPECT_GT(packed[0].shards, 2u);
  EXPECT_EQ(packed[0].image_bytes, packed[0].source_bytes);
  EXPECT_TRUE(fs::exists(out.path("t/train/train-000000.tar")));
  EXPECT_FALSE(fs::exists(out.path("t/pack.unfinished")));
  for (const data::Split split : {data::Split::kTrain, data::Split::kVal}) {
    const auto folder = open(source.path(), split), shards = open(out.path("t"), split);
    expect_same_data(*folder, *shards);
    for (const int threads : {0, 1, 3})
      EXPECT_EQ(hash_of_batches(*shards, threads), hash_of_batches(*folder, 1));
  }
  EXPECT_EQ(packed[0].digest, open(source.path())->digest());
  // No two images have the same key, also where files differ in their endings alone.
  std::set<std::string> keys;
  const auto shards = open(out.path("t"));
  for (uint64_t i = 0; i < shards->size(); ++i) {
    const std::string name = shards->name(i);
    keys.emplace(data::key_of(name.substr(name.rfind(": ") + 2)));
  }
  EXPECT_EQ(keys.size(), shards->size());
  // In the shards the classes are mixed.
  const auto by_shard = open(out.path("t"), data::Split::kTrain, data::SampleOrder::kByShard);
  std::vector<int32_t> labels;
  for (uint64_t i = 0; i < by_shard->size(); ++i) labels.push_back(by_shard->label(i));
  EXPECT_FALSE(std::is_sorted(labels.begin(), labels.end()));

  // Without the indexes the headers say the same, but for the checksums.
  for (const auto& entry : fs::recursive_directory_iterator(out.path("t")))
    if (entry.path().extension() == ".index") fs::remove(entry.path());
  expect_same_data(*open(source.path()), *open(out.path("t")));
}

TEST(Pack, AFlatFolderBecomesFlatShards) {
  const QuietLog quiet;
  const TempFolder source, out;
  source.write("cat/1.jpg", encode_jpeg(make_image(20, 20, 3, 1)));
  source.write("dog.s/2.jpg", encode_jpeg(make_image(20, 20, 3, 2)));
  pack(config_of(source.path(), out.path()));
  expect_same_data(*open(source.path()), *open(out.path()));
  expect_same_data(*open(source.path()), *open(out.path(), data::Split::kVal));
  EXPECT_EQ(test::read_file(out.path("classes.txt")), "cat\ndog.s\n");
  // Shards can be packed again.
  const TempFolder again;
  pack(config_of(out.path(), again.path()));
  EXPECT_EQ(files_of(again.path()), files_of(out.path()));
}

TEST(Pack, TarUnpacksIt) {
  const QuietLog quiet;
  const TempFolder source, out;
  test::make_image_folder(source, 2, 3, 1);
  pack(config_of(source.path(), out.path("t")));
  const std::string command =
      fmt::format("mkdir {0} && cd {0} && for t in {1}/train/*.tar; do tar -xf $t || exit 1; done",
                  out.path("x"), out.path("t"));
  ASSERT_EQ(std::system(command.c_str()), 0);
  std::map<std::string, std::string> files = files_of(out.path("x"));
  EXPECT_EQ(files.at("class_1/image_0.cls"), "1");
  std::erase_if(files, [](const auto& file) { return file.first.ends_with(".cls"); });
  EXPECT_EQ(files, files_of(source.path("train")));
}

TEST(Pack, ThreadsDoNotMatter) {
  const QuietLog quiet;
  const TempFolder source, out;
  make_source(source);
  for (const int short_side : {0, 16}) {
    std::map<std::string, std::string> expected;
    for (const int threads : {1, 2, 5}) {
      const std::string target = out.path(fmt::format("{}-{}", short_side, threads));
      PackConfig config = config_of(source.path(), target, threads);
      config.shrink.short_side = short_side;
      pack(config);
      if (threads == 1) expected = files_of(target);
      EXPECT_EQ(files_of(target), expected);
    }
    EXPECT_GT(expected.size(), 5u);
  }
}

// The n-th write fails, for every n that is far enough apart: what is there then is refused as a
// dataset, and the same command makes of it what it would have made at once.
TEST(Pack, GoesOnWhereItDied) {
  const QuietLog quiet;
  const TempFolder source, whole, out;
  make_source(source);
  pack(config_of(source.path(), whole.path("t"), 1));
  const auto expected = files_of(whole.path("t"));
  uint64_t kept = 0;
  int died = 0;
  for (uint64_t call = 1;; call += 17, ++died) {
    const std::string target = out.path(std::to_string(call));
    FailingCalls fault({.error = EIO, .call = call, .path_has = fmt::format("/{}", call)});
    bool failed = false;
    set_file_hook(&fault);
    try {
      pack(config_of(source.path(), target, 1));
    } catch (const Error& error) {
      failed = true;
      EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
    }
    set_file_hook(nullptr);
    if (!failed) break;
    if (fs::exists(target + "/pack.unfinished")) {
      EXPECT_THROW(open(target), Error);
    }
    for (const PackedSplit& split : pack(config_of(source.path(), target, 3)))
      kept += split.kept_shards;
    EXPECT_EQ(files_of(target), expected) << call;
  }
  EXPECT_GT(died, 5);
  EXPECT_GT(kept, 5u);
}

TEST(Pack, AnUnfinishedShardThatIsDamagedIsPackedAgain) {
  const QuietLog quiet;
  const TempFolder source, out;
  make_source(source);
  pack(config_of(source.path(), out.path("t")));
  const auto expected = files_of(out.path("t"));
  // As if it had died before its end, and something had gone wrong with what was done.
  const TempFolder died;
  FailingCalls fault({.error = EIO, .call = 1, .path_has = "classes.txt"});
  set_file_hook(&fault);
  EXPECT_THROW(pack(config_of(source.path(), died.path("t"))), Error);
  set_file_hook(nullptr);
  std::string bytes = test::read_file(died.path("t/train/train-000000.tar"));
  bytes[700] ^= 1;
  died.write("t/train/train-000000.tar", bytes);
  died.write("t/train/train-000001.tar.index", "rubbish");
  fs::remove(died.path("t/train/train-000002.tar"));
  const std::vector<PackedSplit> packed = pack(config_of(source.path(), died.path("t")));
  EXPECT_EQ(packed[0].kept_shards, packed[0].shards - 3);
  EXPECT_EQ(packed[1].kept_shards, packed[1].shards);
  EXPECT_EQ(files_of(died.path("t")), expected);
}

// The error's text.
std::string error_of(const PackConfig& config, ExitCode code) {
  try {
    pack(config);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
}

TEST(Pack, ADiskThatIsTooSmallIsRefusedAtOnce) {
  if (const std::string reason = test::why_no_mounts(); !reason.empty())
    GTEST_SKIP() << "not root: " << reason;
  const QuietLog quiet;
  const TempFolder source, disk;
  test::make_image_folder(source, 3, 40, 3);
  const test::Mount small(disk.path(), 64 * 1024);
  const uint64_t before = small.used();
  try {
    pack(config_of(source.path(), disk.path()));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_NE(std::string(error.what()).find("there is room for 0.00 GB"), std::string::npos)
        << error.what();
  }
  EXPECT_LE(small.used(), before + 8192);  // no shard was begun
  small.resize(4 << 20);
  EXPECT_EQ(pack(config_of(source.path(), disk.path())).front().images, 120u);
}

TEST(Pack, TargetsOfOthersAreLeftAlone) {
  const QuietLog quiet;
  const TempFolder source, out;
  make_source(source);
  out.write("full/notes.txt", "x");
  expect_has(error_of(config_of(source.path(), out.path("full")), ExitCode::kUsage),
             "is not empty");
  for (const char* inside : {".", "train/..", "new/shards"})
    expect_has(error_of(config_of(source.path(), source.path(inside)), ExitCode::kUsage),
               "would then no longer be a dataset");
  EXPECT_FALSE(fs::exists(source.path("new")));
  FailingCalls fault({.error = EIO, .call = 1, .path_has = "classes.txt"});
  set_file_hook(&fault);
  error_of(config_of(source.path(), out.path("t")), ExitCode::kIo);
  set_file_hook(nullptr);
  PackConfig other = config_of(source.path(), out.path("t"));
  other.shrink.short_side = 10;
  expect_has(error_of(other, ExitCode::kUsage),
             "an unfinished pack of another source or with other");
  pack(config_of(source.path(), out.path("t")));
  expect_has(error_of(config_of(source.path(), out.path("t")), ExitCode::kUsage), "is not empty");
}

TEST(Pack, RawPixelsAreRefused) {
  const TempFolder source, out;
  source.write("train-images-idx3-ubyte", test::encode_idx_images(1, 1, 1, {7}));
  source.write("train-labels-idx1-ubyte", test::encode_idx_labels({0}));
  expect_has(error_of(config_of(source.path(), out.path("t")), ExitCode::kUsage), "raw pixels");
  EXPECT_FALSE(fs::exists(out.path("t")));
}

TEST(Pack, BadImagesAreNamedOrLeftOut) {
  const QuietLog quiet;
  const TempFolder source, out;
  test::make_image_folder(source, 2, 6, 2);
  const std::string file = encode_jpeg(make_image(60, 50, 3, 1));
  source.write("train/class_0/cut.jpg", file.substr(0, file.size() / 2));
  source.write("train/class_1/page.jpg", "<html>");
  PackConfig config = config_of(source.path(), out.path("t"), 1);
  expect_has(error_of(config, ExitCode::kBadData), "--skip-bad");
  // As the message says: the same target, and back again.
  config.skip_bad = true;
  FailingCalls last({.error = EIO, .call = 1, .path_has = "classes.txt"});
  set_file_hook(&last);
  EXPECT_THROW(pack(config), Error);
  set_file_hook(nullptr);
  config.skip_bad = false;
  expect_has(error_of(config, ExitCode::kBadData), "--skip-bad");
  config.check = false;
  config.target = out.path("unchecked");
  EXPECT_EQ(pack(config)[0].images, 14u);
  for (const int short_side : {0, 16}) {
    PackConfig skipping = config_of(source.path(), out.path(fmt::format("s{}", short_side)));
    skipping.skip_bad = true;
    skipping.shrink.short_side = short_side;
    // The list is whole after a restart, too.
    FailingCalls fault({.error = EIO, .call = 1, .path_has = "classes.txt"});
    set_file_hook(&fault);
    EXPECT_THROW(pack(skipping), Error);
    set_file_hook(nullptr);
    PackedSplit packed = pack(skipping)[0];
    EXPECT_EQ(packed.images, 12u);
    EXPECT_EQ(packed.kept_shards, packed.shards);
    ASSERT_EQ(packed.left_out.size(), 2u);
    std::sort(packed.left_out.begin(), packed.left_out.end());
    expect_has(packed.left_out[0], "class_0/cut.jpg");
    expect_has(packed.left_out[1], "class_1/page.jpg: not an image");
    EXPECT_EQ(open(skipping.target)->size(), 12u);
  }
}

data::Image decode(const std::string& bytes) {
  static data::ImageDecoder decoder;
  data::ImageShape shape;
  data::ImageCodec& codec = decoder.open(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "image", 1 << 24, shape);
  data::Image image;
  codec.decode({0, 0, shape.width, shape.height}, 1, image);
  return image;
}

// Sampling factors of the first component, and the components, of a baseline JPEG.
std::pair<int, int> frame_of(const std::string& jpeg) {
  const size_t frame = jpeg.find("\xff\xc0");
  EXPECT_NE(frame, std::string::npos);
  return {jpeg[frame + 11], jpeg[frame + 9]};
}

TEST(Pack, ShortSideMakesSmallerImages) {
  const QuietLog quiet;
  const TempFolder source;
  const auto wide = make_image(90, 60, 3, 1);
  source.write("a/1.jpg", encode_jpeg(wide, {.quality = 95}));
  source.write("a/2.jpg", encode_jpeg(wide, {.quality = 95, .chroma_x = 1, .chroma_y = 1}));
  source.write("a/3.png", encode_png(wide));
  source.write("a/4.jpg", encode_jpeg(make_image(60, 91, 1, 2), {.quality = 95}));
  source.write("a/5.jpg", encode_jpeg(make_image(30, 500, 3, 3)));  // not larger
  source.write("a/6.PNG", encode_png(make_image(25, 29, 3, 4)));
  for (const bool half : {false, true}) {
    const TempFolder out;
    PackConfig config = config_of(source.path(), out.path("t"));
    config.shrink = {.short_side = 30, .quality = 90, .half_chroma = half};
    const PackedSplit packed = pack(config)[0];
    EXPECT_LT(packed.image_bytes, packed.source_bytes);
    const auto dataset = open(out.path("t"));
    ASSERT_EQ(dataset->size(), 6u);
    std::vector<std::string> bytes;
    for (uint64_t i = 0; i < 6; ++i) bytes.push_back(bytes_of(*dataset, i));
    EXPECT_EQ(frame_of(bytes[0]), (std::pair{0x22, 3}));
    EXPECT_EQ(frame_of(bytes[1]), (std::pair{half ? 0x22 : 0x11, 3}));
    EXPECT_EQ(frame_of(bytes[2]), (std::pair{half ? 0x22 : 0x11, 3}));
    EXPECT_EQ(frame_of(bytes[3]), (std::pair{0x11, 1}));
    const data::Image small = decode(bytes[2]), tall = decode(bytes[3]);
    EXPECT_EQ(small.shape, (data::ImageShape{30, 45, 3}));
    EXPECT_EQ(tall.shape, (data::ImageShape{45, 30, 3}));
    // The picture is the same: means of blocks of 2 x 2 pixels.
    double difference = 0;
    for (int y = 0; y < 30; ++y)
      for (int x = 0; x < 45; ++x)
        for (int c = 0; c < 3; ++c) {
          const double mean = (wide.at(2 * x, 2 * y, c) + wide.at(2 * x + 1, 2 * y, c) +
                               wide.at(2 * x, 2 * y + 1, c) + wide.at(2 * x + 1, 2 * y + 1, c)) /
                              4.0;
          difference += std::abs(
              mean -
              small.pixels[static_cast<size_t>(y) * small.stride + static_cast<size_t>(3 * x + c)]);
        }
    EXPECT_LT(difference / (30 * 45 * 3), 6);
    const auto before = open(source.path());
    EXPECT_EQ(bytes[4], bytes_of(*before, 4));
    EXPECT_EQ(bytes[5], bytes_of(*before, 5));
    // What was a PNG and is a JPEG is called one, and keeps its name in our order.
    EXPECT_EQ(dataset->file(2).name, "3.png");
    EXPECT_TRUE(dataset->name(2).ends_with(".jpg")) << dataset->name(2);
    EXPECT_TRUE(dataset->name(5).ends_with("6.PNG")) << dataset->name(5);
  }
}

TEST(Pack, AFlippedBitIsNamedWhenItIsRead) {
  const QuietLog quiet;
  const TempFolder source, out;
  source.write("a/1.jpg", encode_jpeg(make_image(90, 60, 3, 1)));
  pack(config_of(source.path(), out.path("t")));
  const std::string shard = out.path("t/images-000000.tar");
  std::string bytes = test::read_file(shard);
  bytes[1400] ^= 4;
  test::write_file(shard, bytes);
  const auto dataset = open(out.path("t"));
  try {
    bytes_of(*dataset, 0);
    FAIL() << "no error";
  } catch (const data::BadContent&) {
    FAIL() << "another sample would take its place";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    expect_has(error.what(), "images-000000.tar, byte 512: a/1.jpg: damaged");
  }
  // A shard of another length, or a damaged index, is found at once.
  test::write_file(shard, bytes + "x");
  EXPECT_THROW(open(out.path("t")), Error);
  test::write_file(shard, bytes);
  std::string index = test::read_file(shard + ".index");
  index[30] ^= 1;
  test::write_file(shard + ".index", index);
  EXPECT_THROW(open(out.path("t")), Error);
}

}  // namespace
}  // namespace convoy::trainer
