// Batches of several looks at each image, images of files, and the shapes of images.
#include "data_loader/eval_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>
#include <numeric>

#include "data_loader/file_list.h"
#include "data_loader/image.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

using test::make_image;
using test::TempFolder;
using test::TestImage;

// Four files, of which number 2 is none.
std::vector<std::string> make_files(const TempFolder& folder) {
  return {folder.write("a.jpg", test::encode_jpeg(make_image(40, 30, 3, 1))),
          folder.write("b.png", test::encode_png(make_image(30, 50, 3, 2))),
          folder.write("c.jpg", "no image"),
          folder.write("d.jpg", test::encode_jpeg(make_image(33, 33, 1, 4)))};
}

std::vector<uint8_t> decoded(const Dataset& dataset, uint64_t i, ImageShape& shape, Image& image) {
  Sample sample;
  dataset.read(i, sample);
  ImageDecoder decoder;
  ImageCodec& codec = decoder.open(sample.bytes, "image", 1u << 20, shape);
  codec.decode({0, 0, shape.width, shape.height}, 1, image);
  return image.pixels;
}

std::vector<uint8_t> looked_at(const Image& image, const Geometry& geometry) {
  std::vector<uint8_t> out(static_cast<size_t>(geometry.x.count * geometry.y.count * 3));
  ResizeScratch scratch;
  apply(out.data(), geometry, image.view(), scratch);
  return out;
}

TEST(EvalLoader, ImagesInAnyOrderEachWithItsTenCrops) {
  const TempFolder folder;
  const auto dataset = make_file_list(make_files(folder));
  for (const int threads : {0, 1, 3}) {
    EvalLoaderConfig config{.looks = {.kind = Looks::Kind::kTenCrops, .transform = {20, 16}},
                            .shape = {16, 16, 3},
                            .batch = 2,
                            .images = {3, 0, 1},
                            .slices = {1, 0},
                            .threads = threads,
                            .class_of_label = {5}};
    EvalLoader loader(*dataset, config);
    for (uint64_t n = 0; n < 2; ++n) {
      const Batch& batch = loader.acquire(n);
      EXPECT_EQ(batch.step, config.slices[n]);
      for (size_t i = 0; i < 2; ++i) {
        const size_t place = batch.step * 2 + i;
        const size_t bytes = config.shape.bytes();
        const uint8_t* pixels = batch.pixels + i * 10 * bytes;
        if (place == 3) {
          EXPECT_EQ(batch.labels[i], -1);
          EXPECT_EQ(batch.sample_ids[i], kNoSubstitute);
          EXPECT_TRUE(std::all_of(pixels, pixels + 10 * bytes, [](uint8_t v) { return v == 0; }));
          continue;
        }
        EXPECT_EQ(batch.sample_ids[i], config.images[place]);
        EXPECT_EQ(batch.labels[i], 5);
        ImageShape shape;
        Image image;
        decoded(*dataset, config.images[place], shape, image);
        for (int crop = 0; crop < 10; ++crop) {
          const std::vector<uint8_t> expected = looked_at(
              image, ten_crop_geometry(config.looks.transform, crop, shape, config.shape, "x"));
          EXPECT_TRUE(std::equal(expected.begin(), expected.end(),
                                 pixels + static_cast<size_t>(crop) * bytes))
              << "image " << config.images[place] << ", crop " << crop;
        }
      }
      loader.release(batch);
    }
  }
}

// What no list and no shape say is the dataset's order and the transform's output.
TEST(EvalLoader, AllOfTheDatasetIsTheListOfAllOfIt) {
  const TempFolder folder;
  std::vector<std::string> files = make_files(folder);
  files.erase(files.begin() + 2);
  const auto dataset = make_file_list(files);
  EvalLoader listed(*dataset, {.looks = {.transform = {20, 16}},
                               .shape = {16, 16, 3},
                               .batch = 3,
                               .images = {0, 1, 2},
                               .slices = {0}});
  EvalLoader all(*dataset, {.looks = {.transform = {20, 16}}, .batch = 3, .slices = {0}});
  const Batch &a = listed.acquire(0), &b = all.acquire(0);
  EXPECT_TRUE(std::equal(a.pixels, a.pixels + 3 * a.shape.bytes(), b.pixels));
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_EQ(b.sample_ids, (std::vector<uint64_t>{0, 1, 2}));
  ImageShape shape;
  Image image;
  decoded(*dataset, 1, shape, image);
  const std::vector<uint8_t> expected =
      looked_at(image, eval_geometry({20, 16}, shape, {16, 16, 3}, "x"));
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), b.pixels + b.shape.bytes()));
}

TEST(EvalLoader, ABadImageIsToldAndTheOthersGoOn) {
  const TempFolder folder;
  std::vector<std::string> files = make_files(folder);
  files.push_back(folder.path("missing.jpg"));
  const auto dataset = make_file_list(files);
  for (const int threads : {0, 2}) {
    std::mutex mutex;
    std::map<uint64_t, std::string> bad;
    EvalLoaderConfig config{.looks = {.transform = {20, 16}},
                            .shape = {16, 16, 3},
                            .batch = 5,
                            .images = {0, 1, 2, 3, 4},
                            .slices = {0},
                            .threads = threads};
    EXPECT_THROW(EvalLoader(*dataset, config).acquire(0), Error);
    config.bad = [&](uint64_t image, const Error& error) {
      const std::lock_guard lock(mutex);
      bad[image] = error.what();
    };
    EvalLoader loader(*dataset, config);
    const Batch& batch = loader.acquire(0);
    EXPECT_EQ(batch.labels, (std::vector<int32_t>{0, 0, -1, 0, -1}));
    ASSERT_EQ(bad.size(), 2u);
    EXPECT_NE(bad[2].find(files[2]), std::string::npos) << bad[2];
    EXPECT_NE(bad[4].find(files[4]), std::string::npos) << bad[4];
  }
}

// Pillow 12: Image.new("RGB", ...).convert("L"), L = (19595 R + 38470 G + 7471 B + 2^15) >> 16.
TEST(EvalLoader, ColoursBecomeGreyForANetworkOfOneChannel) {
  const TempFolder folder;
  TestImage image{4, 1, 3, {255, 0, 0, 0, 255, 0, 0, 0, 255, 200, 100, 50}};
  const auto dataset = make_file_list({folder.write("x.png", test::encode_png(image))});
  EvalLoader loader(
      *dataset, {.looks = {.transform = {0, 0}}, .shape = {1, 4, 1}, .images = {0}, .slices = {0}});
  const Batch& batch = loader.acquire(0);
  EXPECT_EQ(std::vector<uint8_t>(batch.pixels, batch.pixels + 4),
            (std::vector<uint8_t>{76, 150, 29, 124}));
}

TEST(EvalLoader, WholeImagesOfOneShape) {
  const TempFolder folder;
  const auto dataset =
      make_file_list({folder.write("a.jpg", test::encode_jpeg(make_image(81, 50, 3, 1)))});
  ImageShape shape;
  Image image;
  decoded(*dataset, 0, shape, image);
  const ImageShape dense = dense_shape(shape, 64);  // 81 x 50 -> 103 x 64 -> 96 x 64
  EXPECT_EQ(dense, (ImageShape{64, 96, 3}));
  EvalLoader loader(*dataset, {.looks = {.kind = Looks::Kind::kWhole, .transform = {}, .scale = 64},
                               .shape = dense,
                               .images = {0},
                               .slices = {0}});
  const std::vector<uint8_t> expected = looked_at(image, dense_geometry(shape, 64));
  const Batch& batch = loader.acquire(0);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), batch.pixels));
}

TEST(ImageShapes, AreReadFromHeaders) {
  const TempFolder folder;
  std::vector<std::string> files = make_files(folder);
  const auto dataset = make_file_list(files);
  const uint64_t images[] = {3, 0, 1};
  for (const int threads : {1, 3})
    EXPECT_EQ(image_shapes(*dataset, images, threads, 1u << 20, false),
              (std::vector<ImageShape>{{33, 33, 3}, {30, 40, 3}, {50, 30, 3}}));
  const uint64_t bad[] = {0, 2};
  EXPECT_THROW(image_shapes(*dataset, bad, 2, 1u << 20, false), Error);
}

TEST(ImageFiles, AreFoundBelowAFolderInOrder) {
  const TempFolder folder;
  for (const char* name : {"set/b/2.JPG", "set/b/1.png", "set/a.jpeg", "set/c/d/e.jpg",
                           "set/.hidden.jpg", "set/.more/x.jpg", "set/notes.txt"})
    folder.write(name, "x");
  // A link back to the top must not go round.
  std::filesystem::create_directory_symlink(folder.path("set"), folder.path("set/c/loop.jpg"));
  const auto path = [&](const char* name) { return folder.path(name); };
  EXPECT_EQ(image_files(folder.path("set")),
            (std::vector<std::string>{path("set/a.jpeg"), path("set/b/1.png"), path("set/b/2.JPG"),
                                      path("set/c/d/e.jpg")}));
  EXPECT_EQ(image_files(path("set/notes.txt")), std::vector<std::string>{path("set/notes.txt")});
  EXPECT_EQ(image_files(path("nothing")), std::vector<std::string>{path("nothing")});
  folder.write("empty/notes.txt", "x");
  EXPECT_THROW(image_files(path("empty")), Error);
}

}  // namespace
}  // namespace convoy::data
