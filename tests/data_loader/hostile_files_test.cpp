// R32-R36, R38, R40 and R41: files and folders that are damaged, enormous, strange or changing end
// in samples, in a substitute or in one clear error; never in a crash, a wait or all of the memory.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <ctime>
#include <filesystem>

#include "data_loader/coefficient_file.h"
#include "data_loader/dataset.h"
#include "data_loader/eval_loader.h"
#include "data_loader/image.h"
#include "data_loader/loader.h"
#include "data_loader/sample_maker.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

namespace fs = std::filesystem;
using test::encode_jpeg;
using test::encode_png;
using test::kSanitized;
using test::make_image;
using test::TempFolder;
using test::TestImage;

constexpr uint64_t kDefaultMaxPixels = 178956970;

// No log lines while it lives, but for what was said.
struct QuietLog {
  QuietLog() {
    lines().clear();
    log::set_sink([](log::Level, const std::string& line) { lines() += line + "\n"; });
  }
  ~QuietLog() { log::set_sink(nullptr); }
  static std::string& lines() {
    static std::string text;
    return text;
  }
};

// Grows by what a body takes at most (MiB), as far as the process had not taken it before; 0 under
// sanitizers, which keep what is freed.
template <typename Body>
double peak_growth_mib(const Body& body) {
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) / 1024;
  };
  const double before = peak();
  body();
  return kSanitized ? 0 : peak() - before;
}

// Of the processor: a loaded machine does not count.
template <typename Body>
double cpu_seconds(const Body& body) {
  const std::clock_t start = std::clock();
  body();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / (kSanitized ? 10 : 1);
}

std::unique_ptr<Dataset> open_folder(const std::string& path, Split split = Split::kTrain) {
  return open_dataset({.format = Format::kImageFolder, .path = path}, split);
}

// The text of the error, of one line; empty where there is none.
template <typename Body>
std::string error_of(ExitCode code, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), code) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  return "";
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
}

// Pixels of a whole image.
TestImage decode(const std::string& file, uint64_t max_pixels = kDefaultMaxPixels) {
  ImageDecoder decoder;
  ImageShape shape;
  ImageCodec& codec = decoder.open({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                                   "image", max_pixels, shape);
  Image image;
  codec.decode({0, 0, shape.width, shape.height}, 1, image);
  return {shape.width, shape.height, 3, image.pixels};
}

std::string damage_of(const std::string& file, uint64_t max_pixels = kDefaultMaxPixels) {
  return error_of(ExitCode::kBadData, [&] { decode(file, max_pixels); });
}

// ---- R32: damaged JPEGs ----

// One epoch over the folder with substitutes for what is bad.
std::vector<Substitution> substitutions(const Dataset& dataset) {
  LoaderConfig config;
  config.transform.size = 16;
  config.batch_per_worker = 1;
  config.end_step = dataset.size();
  config.bad_sample = BadSample::kSubstitute;
  Loader loader(dataset, config);
  for (uint64_t step = 0; step < config.end_step; ++step) loader.release(loader.acquire(step, 0));
  EXPECT_EQ(loader.stats().substituted, loader.substitutions().size());
  return loader.substitutions();
}

TEST(HostileFiles, R32CutAnywhereAJpegIsReplacedAndCounted) {
  const QuietLog quiet;
  const TempFolder root;
  int cut = 0;
  for (const bool progressive : {false, true}) {
    const std::string file = encode_jpeg(make_image(70, 50, 3, 1), {.progressive = progressive});
    for (size_t i = 0; i < 64; ++i, ++cut)
      root.write(fmt::format("a/cut-{}.jpg", cut), file.substr(0, file.size() * i / 64));
    for (int i = 0; i < 64; ++i)
      root.write(fmt::format("a/whole-{}-{}.jpg", progressive, i), file + std::string(100, 'x'));
  }
  const std::vector<Substitution> list = substitutions(*open_folder(root.path()));
  EXPECT_EQ(list.size(), 128u);
  for (const Substitution& s : list) expect_has(s.reason, "/cut-");
}

TEST(HostileFiles, R32WrongHuffmanTables) {
  const std::string file = encode_jpeg(make_image(48, 40, 3, 2));
  size_t tables = 0;
  for (size_t at = file.find("\xff\xc4"); at != std::string::npos;
       at = file.find("\xff\xc4", at + 1), ++tables) {
    std::string oversubscribed = file;
    oversubscribed.replace(at + 5, 3, "\x02\x04\x08");  // more codes than there are
    expect_has(damage_of(oversubscribed), "damaged or unsupported JPEG");
    // Any other byte ends in pixels or in an error.
    const size_t end = at + 2 + (static_cast<size_t>(static_cast<uint8_t>(file[at + 2])) << 8) +
                       static_cast<uint8_t>(file[at + 3]);
    for (size_t i = at + 2; i < end; ++i) {
      std::string changed = file;
      changed[i] = static_cast<char>(changed[i] ^ 0x15);
      damage_of(changed);
    }
  }
  EXPECT_GE(tables, 4u);
}

// ---- R33: kinds of JPEG (grey, CMYK, YCCK and progressive are in image_test.cpp) ----

TEST(HostileFiles, R33ArithmeticCodingIsRefused) {
  const TestImage image = make_image(45, 37, 3, 3);
  expect_has(damage_of(encode_jpeg(image, {.arithmetic = true})), "arithmetic coding");
  expect_has(damage_of(encode_jpeg(image, {.progressive = true, .arithmetic = true})),
             "arithmetic coding");
}

TEST(HostileFiles, R33TwelveBitsAreRefused) {
  std::string file = encode_jpeg(make_image(16, 16, 3, 4));
  file[file.find("\xff\xc0") + 4] = 12;
  expect_has(damage_of(file), "precision 12");
}

TEST(HostileFiles, R33ThinnestImagesPassTheWholePath) {
  const QuietLog quiet;
  const TempFolder root;
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 20000}, {20000, 1}, {2, 3}}) {
    const TestImage image = make_image(width, height, 3, 5);
    root.write(fmt::format("a/{}x{}.jpg", width, height), encode_jpeg(image));
    root.write(fmt::format("a/{}x{}.png", width, height), encode_png(image));
  }
  const auto dataset = open_folder(root.path());
  EXPECT_EQ(dataset->size(), 8u);
  EXPECT_TRUE(substitutions(*dataset).empty());
  EvalLoader loader(
      *dataset, {.looks = {.transform = {.resize = 20, .size = 16}}, .batch = 8, .slices = {0}});
  const Batch& batch = loader.acquire(0);
  EXPECT_TRUE(
      std::any_of(batch.pixels, batch.pixels + 16 * 16 * 3, [](uint8_t p) { return p > 0; }));
  loader.release(batch);
}

TEST(HostileFiles, R33OrientationAndProfilesAreIgnored) {
  const TestImage image = make_image(24, 16, 3, 6);
  const std::string file = encode_jpeg(image);
  const std::vector<uint8_t> expected = decode(file).pixels;
  const auto with_segment = [&](char marker, const std::string& body) {
    const size_t length = body.size() + 2;
    const std::string segment = std::string{'\xff', marker, static_cast<char>(length >> 8),
                                            static_cast<char>(length & 0xff)} +
                                body;
    return file.substr(0, 2) + segment + file.substr(2);
  };
  for (char orientation = 1; orientation <= 8; ++orientation) {
    const std::string exif = std::string("Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0", 25) +
                             orientation + std::string(6, '\0');
    const TestImage decoded = decode(with_segment('\xe1', exif));
    EXPECT_EQ(decoded.width, 24);
    EXPECT_EQ(decoded.pixels, expected);
  }
  const std::string profile = std::string("ICC_PROFILE\0\1\1", 14) + std::string(500, '\xee');
  EXPECT_EQ(decode(with_segment('\xe2', profile)).pixels, expected);
}

// ---- R34: bombs ----

std::string with_frame(std::string file, const char* marker, uint32_t width, uint32_t height) {
  const size_t frame = file.find(marker);
  EXPECT_NE(frame, std::string::npos);
  const std::string size{static_cast<char>(height >> 8), static_cast<char>(height & 0xff),
                         static_cast<char>(width >> 8), static_cast<char>(width & 0xff)};
  return file.replace(frame + 5, 4, size);
}

TEST(HostileFiles, R34HeadersThatClaimMuchTakeNoMemory) {
  const std::string jpeg = encode_jpeg(make_image(32, 32, 3, 7));
  std::string png = encode_png(make_image(32, 32, 3, 7));
  const double growth = peak_growth_mib([&] {
    expect_has(damage_of(with_frame(jpeg, "\xff\xc0", 65500, 65500)), "65500 x 65500");
    expect_has(damage_of(with_frame(jpeg, "\xff\xc0", 16384, 16384)), "data.max_pixels");
    // Within the limit of pixels: the part that is asked for is all that is kept.
    ImageDecoder decoder;
    const std::string wide = with_frame(jpeg, "\xff\xc0", 65500, 2700);
    ImageShape shape;
    ImageCodec& codec = decoder.open({reinterpret_cast<const uint8_t*>(wide.data()), wide.size()},
                                     "image", kDefaultMaxPixels, shape);
    Image image;
    EXPECT_THROW(codec.decode({100, 100, 224, 224}, 1, image), BadContent);
    // Coefficients of several scans are kept whole: no more than 600 MB of them.
    const std::string scans =
        encode_jpeg(make_image(32, 32, 3, 7), {.progressive = true, .chroma_x = 1, .chroma_y = 1});
    expect_has(damage_of(with_frame(scans, "\xff\xc2", 65500, 2700)),
               "more than 600000000 bytes of coefficients");
    png.replace(16, 8, "\x7f\xff\xff\xff\x7f\xff\xff\xff");
    EXPECT_NE(damage_of(png), "");
  });
  EXPECT_LT(growth, 100);
}

// The first scan of a progressive file `scans` times more.
std::string with_scans(std::string file, int scans) {
  const size_t scan = file.find("\xff\xda");
  size_t end = scan + 2;
  while (file[end] != '\xff' || file[end + 1] == '\0') ++end;
  const std::string first = file.substr(scan, end - scan);
  file.resize(file.size() - 2);
  for (int i = 0; i < scans; ++i) file += first;
  return file + "\xff\xd9";
}

TEST(HostileFiles, R34ScansAreBoundedByTheirWork) {
  const std::string small = encode_jpeg(make_image(64, 64, 3, 8), {.progressive = true});
  const std::string large =
      encode_jpeg({4096, 1024, 1, std::vector<uint8_t>(4096 * 1024, 90)}, {.progressive = true});
  const double seconds = cpu_seconds([&] {
    expect_has(damage_of(with_scans(small, 10000)), "more than 500 scans");
    expect_has(damage_of(with_scans(large, 10000)), "more than 256 scans");  // 2^30 / 2^22
    const std::string many = with_scans(large, 10000);
    std::vector<uint8_t> out;
    EXPECT_THROW(CoefficientEncoder(1u << 24).encode(
                     {reinterpret_cast<const uint8_t*>(many.data()), many.size()}, "x", out),
                 BadContent);
  });
  EXPECT_LT(seconds, 2);
  EXPECT_EQ(damage_of(small), "");
  EXPECT_EQ(damage_of(large), "");
}

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

std::string png_chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  const auto sum =
      crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body +
         big_endian(static_cast<uint32_t>(sum));
}

TEST(HostileFiles, R34TextOfAPngIsNotUnpacked) {
  const TestImage image = make_image(20, 10, 3, 9);
  const std::string png = encode_png(image);
  const std::string text(7'000'000, 'x');
  std::vector<Bytef> packed(compressBound(text.size()));
  uLongf length = packed.size();
  ASSERT_EQ(
      compress(packed.data(), &length, reinterpret_cast<const Bytef*>(text.data()), text.size()),
      Z_OK);
  const std::string chunk =
      png_chunk("zTXt", std::string("key\0\0", 5) +
                            std::string(reinterpret_cast<char*>(packed.data()), length));
  std::string file = png.substr(0, 33);  // signature and IHDR
  for (int i = 0; i < 50; ++i) file += chunk;
  file += png.substr(33);
  const double growth = peak_growth_mib([&] { EXPECT_EQ(decode(file).pixels, image.pixels); });
  EXPECT_LT(growth, 100);
}

TEST(HostileFiles, R34FilesThatAreTooLargeAreNotRead) {
  const QuietLog quiet;
  const TempFolder root;
  root.write("images/a/huge.jpg", "x");
  root.write("images/a/1.jpg", encode_jpeg(make_image(20, 20, 3, 10)));
  root.write("cifar/train.bin", "x");
  const uint64_t bytes = uint64_t{3074} << 28;  // whole records, no blocks on the disk
  std::error_code error;
  fs::resize_file(root.path("cifar/train.bin"), bytes, error);
  if (error) GTEST_SKIP() << "SKIPPED LOUDLY: no sparse files here: " << error.message();
  fs::resize_file(root.path("images/a/huge.jpg"), bytes);
  const double growth = peak_growth_mib([&] {
    const std::vector<Substitution> list = substitutions(*open_folder(root.path("images")));
    ASSERT_EQ(list.size(), 1u);
    expect_has(list[0].reason, "huge.jpg: has 825170591744 bytes");
    expect_has(error_of(ExitCode::kBadData,
                        [&] {
                          open_dataset({.format = Format::kCifar, .path = root.path("cifar")},
                                       Split::kTrain);
                        }),
               "train.bin: has 825170591744 bytes");
  });
  EXPECT_LT(growth, 100);
}

TEST(HostileFiles, R34AGzippedHeaderThatClaimsMuchTakesNoMemory) {
  const TempFolder root;
  // Its header says 1,000,000,000 bytes, within what two million packed ones could hold.
  std::string packed = test::gzip(big_endian(0x803) + big_endian(1000000) + big_endian(20) +
                                  big_endian(50) + std::string(1000, 'x'));
  packed.resize(2'000'000, 'y');
  root.write("train-images-idx3-ubyte.gz", packed);
  root.write("train-labels-idx1-ubyte", test::encode_idx_labels({1}));
  const double growth = peak_growth_mib([&] {
    expect_has(
        error_of(
            ExitCode::kBadData,
            [&] { open_dataset({.format = Format::kIdx, .path = root.path()}, Split::kTrain); }),
        "1000000 x 20 x 50 = 1000000000 bytes");
  });
  EXPECT_LT(growth, 100);
}

// ---- R35: what a name says and what a file is ----

TEST(HostileFiles, R35ContentDecidesAndOtherKindsAreReplaced) {
  const QuietLog quiet;
  const TempFolder root;
  const TestImage image = make_image(20, 20, 3, 11);
  root.write("a/png.JPEG", encode_png(image));
  root.write("a/jpeg.png", encode_jpeg(image));
  root.write("a/JPEG.JPG", encode_jpeg(image));
  for (const auto& [name, bytes] : {std::pair<const char*, std::string>{"gif", "GIF89a\x01\x01"},
                                    {"webp", "RIFF\x24WEBPVP8 "},
                                    {"html", "<!DOCTYPE html>"},
                                    {"bmp", "BM6"},
                                    {"tiff", "II*"}})
    root.write(fmt::format("b/{}.jpg", name), bytes);
  root.write("b/Thumbs.db", "x");
  root.write("b/.DS_Store.jpg", "x");
  root.write("b/desktop.ini", "x");
  root.write(".git/1.jpg", "x");
  const auto dataset = open_folder(root.path());
  EXPECT_EQ(dataset->size(), 8u);
  EXPECT_EQ(dataset->classes(), (std::vector<std::string>{"a", "b"}));
  expect_has(QuietLog::lines(), "2 entries skipped");
  const std::vector<Substitution> list = substitutions(*dataset);
  EXPECT_EQ(list.size(), 5u);
  for (const Substitution& s : list) expect_has(s.reason, "not an image (starts with");
}

// ---- R36: folders ----

TEST(HostileFiles, R36AllEmptyClassesAreNamedAtOnce) {
  const TempFolder root;
  root.write("train/good/1.jpg", "x");
  root.write("train/nested/deep/1.jpg", "x");
  fs::create_directories(root.path("train/empty"));
  fs::create_directories(root.path("train/line\nfeed \xff"));
  const std::string text = error_of(ExitCode::kBadData, [&] { open_folder(root.path()); });
  expect_has(text, "3 classes: \"empty\", \"line\\nfeed \\xff\", \"nested\"");
  expect_has(text, "without images");
  for (int i = 0; i < 1000; ++i) fs::create_directories(root.path(fmt::format("train/e{}", i)));
  const std::string many = error_of(ExitCode::kBadData, [&] { open_folder(root.path()); });
  expect_has(many, "and 983 more");
  EXPECT_LT(many.size(), 1000u);
}

TEST(HostileFiles, R36AllClassesThatTrainingLacksAreNamedAtOnce) {
  const TempFolder root;
  root.write("train/a/1.jpg", "x");
  for (const char* name : {"a", "b", "c"}) root.write(fmt::format("val/{}/1.jpg", name), "x");
  const std::string text =
      error_of(ExitCode::kBadData, [&] { open_folder(root.path(), Split::kVal); });
  expect_has(text, "2 classes: \"b\", \"c\": no class of that name in " + root.path("train"));
}

TEST(HostileFiles, R36OneFolderUnderTwoNamesIsRefused) {
  const TempFolder root;
  root.write("train/cat/1.jpg", "x");
  fs::create_directory_symlink("cat", root.path("train/kitty"));
  expect_has(error_of(ExitCode::kBadData, [&] { open_folder(root.path()); }),
             "\"cat\" and \"kitty\" are one folder");
}

TEST(HostileFiles, R36StrangeNamesWorkAndAreEscapedInMessages) {
  const QuietLog quiet;
  const TempFolder root, cache;
  const std::string name = "cl\xff\xfe\nass/im\x1b[31m\nage.jpg";
  root.write(name, encode_jpeg(make_image(20, 20, 3, 12)));
  root.write("b/2.jpg", "no image\x07");
  for (int time = 0; time < 2; ++time) {
    const auto dataset =
        open_dataset({.path = root.path(), .cache_folder = cache.path()}, Split::kTrain);
    EXPECT_EQ(dataset->name(1), root.path(name));
    const std::vector<Substitution> list = substitutions(*dataset);
    ASSERT_EQ(list.size(), 1u);
    EXPECT_EQ(std::count_if(list[0].reason.begin(), list[0].reason.end(),
                            [](char c) { return static_cast<unsigned char>(c) < 0x20; }),
              0);
  }
  root.write(name, encode_jpeg(make_image(20, 20, 3, 12)).substr(0, 300));
  const auto dataset = open_folder(root.path());
  SampleScratch scratch;
  std::vector<uint8_t> out(16 * 16 * 3);
  const SampleMaker maker(*dataset, {16, 16, 3}, kDefaultMaxPixels);
  expect_has(error_of(ExitCode::kBadData,
                      [&] {
                        maker.make(
                            out.data(), 1,
                            [](ImageShape shape, const std::string& image) {
                              return eval_geometry({16, 16}, shape, {16, 16, 3}, image);
                            },
                            scratch);
                      }),
             "cl\\xff\\xfe\\nass/im\\x1b[31m\\nage.jpg");
}

// ---- R38: changes during a run and between lives ----

TEST(HostileFiles, R38ChangesNeverShiftTheSamplesOfAnOpenDataset) {
  const TempFolder root;
  for (const char* name : {"a/2.jpg", "a/4.jpg", "b/1.jpg"}) root.write(name, name);
  const auto dataset = open_folder(root.path());
  const std::string digest = dataset->digest();
  root.write("a/1.jpg", "added");
  root.write("a/3.jpg", "added");
  root.write("0/1.jpg", "added");
  fs::remove(root.path("a/4.jpg"));
  ASSERT_EQ(dataset->size(), 3u);
  EXPECT_EQ(dataset->name(0), root.path("a/2.jpg"));
  EXPECT_EQ(dataset->name(2), root.path("b/1.jpg"));
  EXPECT_EQ(dataset->label(2), 1);
  Sample sample;
  dataset->read(2, sample);
  EXPECT_EQ(std::string(sample.bytes.begin(), sample.bytes.end()), "b/1.jpg");
  expect_has(error_of(ExitCode::kIo, [&] { dataset->read(1, sample); }), root.path("a/4.jpg"));
  root.write("a/2.jpg", "replaced");
  expect_has(error_of(ExitCode::kBadData, [&] { dataset->read(0, sample); }),
             "had 7 when the dataset was indexed");
  // The next life sees another dataset; its checkpoint knows the old one's digest.
  const auto next = open_folder(root.path());
  EXPECT_EQ(next->size(), 5u);
  EXPECT_NE(next->digest(), digest);
}

// ---- R40: links, devices, what cannot be read ----

TEST(HostileFiles, R40LinksUpwardsAreFollowedOnceAndFifosAreNoClasses) {
  const QuietLog quiet;
  const TempFolder root;
  root.write("train/a/1.jpg", "x");
  fs::create_directory_symlink("..", root.path("train/a/up"));
  fs::create_symlink("nowhere", root.path("train/dangling"));
  fs::create_symlink("loop", root.path("train/loop"));
  fs::create_symlink("/dev/zero", root.path("train/zero"));
  ASSERT_EQ(::mkfifo(root.path("train/fifo").c_str(), 0600), 0);
  ASSERT_EQ(::mkfifo(root.path("train/a/fifo.jpg").c_str(), 0600), 0);
  EXPECT_EQ(open_folder(root.path())->size(), 1u);
  expect_has(QuietLog::lines(), "6 entries skipped");
  // A class that is the folder above: its images would be those of all classes.
  fs::create_directory_symlink(".", root.path("train/self"));
  expect_has(error_of(ExitCode::kBadData, [&] { open_folder(root.path()); }), "train/self");
}

TEST(HostileFiles, R40LinksThatLeadOutNeedTheFlag) {
  const QuietLog quiet;
  const TempFolder root, elsewhere, cache;
  root.write("train/a/1.jpg", "x");
  fs::create_symlink("1.jpg", root.path("train/a/2.jpg"));  // inside
  elsewhere.write("c/1.jpg", "y");
  elsewhere.write("c/2.jpg", "z");
  const auto size = [&](bool follow) {
    const DatasetSpec spec{
        .path = root.path(), .cache_folder = cache.path(), .follow_links = follow};
    return open_dataset(spec, Split::kTrain)->size();
  };
  EXPECT_EQ(size(false), 2u);
  fs::create_symlink(elsewhere.path("c/1.jpg"), root.path("train/a/4.jpg"));
  fs::create_symlink(elsewhere.path("c/2.jpg"), root.path("train/a/3.jpg"));
  fs::create_directory_symlink(elsewhere.path("c"), root.path("train/c"));
  // Twice: an index that was kept for one is not taken for the other.
  for (int time = 0; time < 2; ++time) {
    const std::string text = error_of(ExitCode::kBadData, [&] { size(false); });
    expect_has(text, "3 link(s) lead out of it, the first: " + root.path("train/a/3.jpg") + " -> " +
                         elsewhere.path("c/2.jpg"));
    expect_has(text, "data.follow_links: true");
    for (const char* folder : {"train", "train/a"})  // old enough for an index to be kept
      fs::last_write_time(root.path(folder),
                          fs::file_time_type::clock::now() - std::chrono::hours(1));
    fs::last_write_time(elsewhere.path("c"),
                        fs::file_time_type::clock::now() - std::chrono::hours(1));
    EXPECT_EQ(size(true), 6u);
  }
  EXPECT_FALSE(fs::is_empty(cache.path()));
}

TEST(HostileFiles, R40TheFolderItselfMayBeALinkAndItsSplitsNot) {
  const QuietLog quiet;
  const TempFolder root, elsewhere;
  elsewhere.write("data/train/a/1.jpg", "x");
  elsewhere.write("data/train/b/1.jpg", "x");
  fs::create_directory_symlink(elsewhere.path("data"), root.path("link"));
  EXPECT_EQ(open_folder(root.path("link"))->size(), 2u);
  EXPECT_EQ(open_folder(root.path("link/"))->size(), 2u);
  fs::create_directories(root.path("mine"));
  fs::create_directory_symlink(elsewhere.path("data/train"), root.path("mine/train"));
  expect_has(error_of(ExitCode::kBadData, [&] { open_folder(root.path("mine")); }),
             "1 link(s) lead out of it, the first: " + root.path("mine/train"));
  // A folder whose name begins like the dataset's is not inside it.
  fs::create_directories(root.path("min/train"));
  fs::create_directory_symlink(root.path("mine"), root.path("min/train/a"));
  expect_has(error_of(ExitCode::kBadData, [&] { open_folder(root.path("min")); }),
             "min/train/a -> " + root.path("mine"));
}

TEST(HostileFiles, R40FormatsOfOneFileDoNotWaitForAFifo) {
  const TempFolder root;
  ASSERT_EQ(::mkfifo(root.path("train-images-idx3-ubyte").c_str(), 0600), 0);
  root.write("train-labels-idx1-ubyte", test::encode_idx_labels({1}));
  EXPECT_NE(
      error_of(ExitCode::kBadData,
               [&] { open_dataset({.format = Format::kIdx, .path = root.path()}, Split::kTrain); }),
      "");
  ASSERT_EQ(::mkfifo(root.path("train.bin").c_str(), 0600), 0);
  EXPECT_NE(error_of(ExitCode::kBadData,
                     [&] {
                       open_dataset({.format = Format::kCifar, .path = root.path()}, Split::kTrain);
                     }),
            "");
}

// Nobody else's rights for a while: root may read everything.
struct AsNobody {
  AsNobody() {
    if (::geteuid() == 0) was_root = ::seteuid(65534) == 0;
  }
  ~AsNobody() {
    if (was_root && ::seteuid(0) != 0) std::abort();
  }
  bool was_root = false;
};

TEST(HostileFiles, R40WhatMayNotBeReadIsAnIoErrorThatNamesIt) {
  const TempFolder root;
  const std::string file = root.write("train/a/1.jpg", "x");
  const std::string folder = root.path("train/b");
  root.write("train/b/2.jpg", "x");
  for (const std::string& path : {root.path(), root.path("train"), root.path("train/a")})
    fs::permissions(path, fs::perms(0755));
  fs::permissions(file, fs::perms::none);
  const AsNobody nobody;
  const auto dataset = open_folder(root.path());
  Sample sample;
  expect_has(error_of(ExitCode::kIo, [&] { dataset->read(0, sample); }),
             file + ": cannot open: Permission denied");
  if (nobody.was_root) {
    EXPECT_EQ(::seteuid(0), 0);
    fs::permissions(folder, fs::perms::none);
    EXPECT_EQ(::seteuid(65534), 0);
  } else {
    fs::permissions(folder, fs::perms::none);
  }
  expect_has(error_of(ExitCode::kIo, [&] { open_folder(root.path()); }), folder + ": cannot list");
  if (!nobody.was_root) fs::permissions(folder, fs::perms(0755));
}

// ---- R41: very few samples ----

TEST(HostileFiles, R41OneImageFillsBatches) {
  const TempFolder root;
  root.write("a/1.jpg", encode_jpeg(make_image(20, 20, 3, 13)));
  const auto dataset = open_folder(root.path());
  LoaderConfig config;
  config.transform.size = 16;
  config.batch_per_worker = 3;
  config.end_step = 2;
  Loader loader(*dataset, config);
  for (uint64_t step = 0; step < 2; ++step) {
    const Batch& batch = loader.acquire(step, 0);
    EXPECT_EQ(batch.sample_ids, (std::vector<uint64_t>(3, 0)));
    EXPECT_EQ(batch.epochs, (std::vector<uint64_t>{3 * step, 3 * step + 1, 3 * step + 2}));
    loader.release(batch);
  }
  EvalLoader eval(*dataset, {.looks = {.transform = {20, 16}}, .batch = 4, .slices = {0}});
  const Batch& batch = eval.acquire(0);
  EXPECT_EQ(batch.labels, (std::vector<int32_t>{0, -1, -1, -1}));
  eval.release(batch);
}

TEST(HostileFiles, R41NoImageIsAnError) {
  const TempFolder root;
  fs::create_directories(root.path("train/a"));
  expect_has(error_of(ExitCode::kBadData, [&] { open_folder(root.path()); }), "without images");
  const TempFolder idx;
  idx.write("train-images-idx3-ubyte", test::encode_idx_images(0, 2, 2, {}));
  idx.write("train-labels-idx1-ubyte", test::encode_idx_labels({}));
  expect_has(
      error_of(ExitCode::kBadData,
               [&] { open_dataset({.format = Format::kIdx, .path = idx.path()}, Split::kTrain); }),
      "empty");
}

}  // namespace
}  // namespace convoy::data
