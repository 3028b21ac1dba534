// verify_split(): every kind of bad and odd sample is found and named, at any number of threads.
#include "data_loader/verify.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <set>

#include "tests/support/sanitized.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

namespace fs = std::filesystem;
using test::encode_jpeg;
using test::encode_png;
using test::make_image;
using test::TempFolder;

std::string odd_file(const std::string& name) {
  return test::read_file(std::string(CONVOY_SOURCE_DIR) + "/tests/data_loader/odd_files/files/" +
                         name);
}

// A folder with one file of each kind; what is to be said of each of them.
std::map<std::string, std::set<Finding>> make_zoo(const TempFolder& root) {
  const std::string good = encode_jpeg(make_image(60, 50, 3, 1));
  std::string damaged = good;
  const size_t scan = damaged.find("\xff\xda");
  damaged.replace(scan + 20, 2, "\xff\xc4");
  std::map<std::string, std::set<Finding>> expected;
  const auto add = [&](const std::string& name, const std::string& bytes,
                       const std::set<Finding>& findings) {
    root.write("train/a/" + name, bytes);
    expected["train/a/" + name] = findings;
  };
  add("good.jpg", good, {});
  add("empty.jpg", "", {Finding::kEmpty});
  add("text.jpg", "GIF89a...", {Finding::kNotAnImage});
  add("cut.jpg", good.substr(0, good.size() / 2), {Finding::kTruncated});
  add("without_end.jpg", good.substr(0, good.size() - 2), {Finding::kTruncated});
  add("cut.png", encode_png(make_image(40, 40, 3, 2)).substr(0, 900), {Finding::kTruncated});
  add("damaged.jpg", damaged, {Finding::kDamaged});
  add("arithmetic.jpg", odd_file("arithmetic.jpg"), {Finding::kArithmetic});
  add("twelve.jpg", odd_file("12_bit.jpg"), {Finding::kTwelveBit});
  add("lossless.jpg", odd_file("lossless.jpg"), {Finding::kUnsupported});
  add("large.jpg", encode_jpeg(make_image(200, 60, 3, 3)), {Finding::kTooLarge});
  add("grey.jpg", encode_jpeg(make_image(40, 40, 1, 4)), {Finding::kGrey});
  add("grey.png", encode_png(make_image(40, 40, 1, 4)), {Finding::kGrey});
  add("cmyk.jpg", encode_jpeg(make_image(40, 40, 4, 5)), {Finding::kCmyk});
  add("png.JPEG", encode_png(make_image(40, 40, 3, 6)), {Finding::kMisnamed});
  add("jpeg.png", encode_jpeg(make_image(40, 40, 3, 7)), {Finding::kMisnamed});
  add("turned.jpg", odd_file("orientation_6.jpg"), {Finding::kOrientation, Finding::kSmall});
  add("progressive.jpg", encode_jpeg(make_image(40, 40, 3, 8), {.progressive = true}),
      {Finding::kProgressive});
  return expected;
}

VerifyConfig config_of(int threads) {
  return {.threads = threads, .max_pixels = 10'000};
}

std::unique_ptr<Dataset> open(const TempFolder& root, Split split = Split::kTrain) {
  return open_dataset({.format = Format::kImageFolder, .path = root.path()}, split);
}

bool operator==(const SampleFinding& a, const SampleFinding& b) {
  return a.sample == b.sample && a.finding == b.finding && a.detail == b.detail;
}

TEST(Verify, NamesEveryKindOfBadAndOddSample) {
  const TempFolder root;
  const auto expected = make_zoo(root);
  const auto dataset = open(root);
  const SplitReport report = verify_split(*dataset, config_of(2));
  std::map<std::string, std::set<Finding>> found;
  for (uint64_t i = 0; i < dataset->size(); ++i)
    found[dataset->name(i).substr(root.path().size() + 1)] = {};
  for (const SampleFinding& f : report.findings) {
    const std::string name = dataset->name(f.sample);
    found[name.substr(root.path().size() + 1)].insert(f.finding);
    if (is_bad(f.finding)) {
      EXPECT_NE(f.detail.find(name), std::string::npos) << f.detail;
    }
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(report.bad, 10u);
  EXPECT_EQ(report.odd, 7u);
  for (size_t k = 0; k < kFindings; ++k) {
    EXPECT_STRNE(name_of(static_cast<Finding>(k)), "");
    EXPECT_STRNE(explain(static_cast<Finding>(k)), "");
  }
}

TEST(Verify, HugeImagesAreOdd) {
  const TempFolder root;
  root.write("a/huge.jpg", encode_jpeg({5001, 5000, 1, std::vector<uint8_t>(5001 * 5000, 90)}));
  const auto dataset = open(root);
  const SplitReport report = verify_split(*dataset, {});
  ASSERT_EQ(report.findings.size(), 2u);
  EXPECT_EQ(report.findings[0].finding, Finding::kGrey);
  EXPECT_EQ(report.findings[1].finding, Finding::kHuge);
  EXPECT_EQ(report.findings[1].detail, "5001 x 5000");
}

TEST(Verify, TheReportDoesNotDependOnThreads) {
  const TempFolder root;
  make_zoo(root);
  for (uint64_t i = 0; i < 60; ++i)
    root.write(fmt::format("train/b/{}.jpg", i), encode_jpeg(make_image(33, 40, 3, i % 50)));
  const auto dataset = open(root);
  const SplitReport one = verify_split(*dataset, config_of(1));
  ASSERT_GT(one.findings.size(), 17u);
  for (const int threads : {2, 3, 8}) {
    uint64_t last = 0;
    VerifyConfig config = config_of(threads);
    config.progress = [&](uint64_t done, uint64_t) {
      EXPECT_GT(done, last);
      last = done;
    };
    const SplitReport many = verify_split(*dataset, config);
    EXPECT_TRUE(many.findings.size() == one.findings.size() &&
                std::equal(many.findings.begin(), many.findings.end(), one.findings.begin(),
                           [](const auto& a, const auto& b) { return a == b; }))
        << threads;
    EXPECT_EQ(many.checksums, one.checksums);
    EXPECT_EQ(std::tuple(many.bytes, many.bad, many.odd), std::tuple(one.bytes, one.bad, one.odd));
    EXPECT_EQ(last, dataset->size());
  }
}

TEST(Verify, WhatCannotBeReadOrHasChangedIsBad) {
  const TempFolder root;
  const std::string good = encode_jpeg(make_image(40, 40, 3, 1));
  for (const char* name : {"1", "2", "3"}) root.write(fmt::format("a/{}.jpg", name), good);
  const auto dataset = open(root);
  fs::remove(root.path("a/1.jpg"));
  root.write("a/3.jpg", good + "x");
  const SplitReport report = verify_split(*dataset, {});
  ASSERT_EQ(report.findings.size(), 2u);
  EXPECT_EQ(report.findings[0].sample, 0u);
  EXPECT_EQ(report.findings[0].finding, Finding::kUnreadable);
  EXPECT_EQ(report.findings[1].sample, 2u);
  EXPECT_EQ(report.findings[1].finding, Finding::kChanged);
  EXPECT_EQ(report.checksums[0], Checksum{});
  EXPECT_NE(report.checksums[1], Checksum{});
}

TEST(Verify, DuplicatesAreFoundWithinAndAcrossSplits) {
  const TempFolder root;
  const auto image = [](uint64_t seed) { return encode_jpeg(make_image(40, 40, 3, seed)); };
  root.write("train/a/1.jpg", image(1));
  root.write("train/a/2.jpg", image(2));
  root.write("train/b/1.jpg", image(1));
  root.write("train/b/3.jpg", image(3));
  root.write("val/a/4.jpg", image(4));
  root.write("val/b/9.jpg", image(3));
  root.write("train/b/empty1.jpg", "");
  root.write("train/b/empty2.jpg", "");
  const auto train = open(root), val = open(root, Split::kVal);
  const std::vector<Duplicates> groups =
      find_duplicates({verify_split(*train, {}), verify_split(*val, {})});
  // Samples of train: a/1, a/2, b/1, b/3, ...; of val: a/4, b/9.
  EXPECT_EQ(groups, (std::vector<Duplicates>{{{0, 0}, {0, 2}}, {{0, 3}, {1, 1}}}));
}

TEST(Verify, RawPixelsHaveDuplicatesToo) {
  const TempFolder root;
  root.write("train-images-idx3-ubyte", test::encode_idx_images(3, 1, 2, {1, 2, 3, 4, 1, 2}));
  root.write("train-labels-idx1-ubyte", test::encode_idx_labels({0, 1, 1}));
  const auto dataset = open_dataset({.path = root.path()}, Split::kTrain);
  const SplitReport report = verify_split(*dataset, {.threads = 2});
  EXPECT_EQ(report.bad + report.odd, 0u);
  EXPECT_EQ(report.bytes, 6u);
  EXPECT_EQ(find_duplicates({report}), (std::vector<Duplicates>{{{0, 0}, {0, 2}}}));
}

TEST(Verify, SmallClassesAreNamed) {
  const TempFolder root;
  const auto fill = [&](const char* name, int images) {
    for (int i = 0; i < images; ++i) root.write(fmt::format("{}/{}.jpg", name, i), "x");
  };
  fill("a", 1);
  fill("b", 30);
  fill("c", 2);
  fill("d", 30);
  fill("e", 3);
  std::vector<uint64_t> counts;
  EXPECT_EQ(small_classes(*open(root), counts), (std::vector<int32_t>{0}));  // the median is 3
  EXPECT_EQ(counts, (std::vector<uint64_t>{1, 30, 2, 30, 3}));
  fill("f", 30);
  EXPECT_EQ(small_classes(*open(root), counts), (std::vector<int32_t>{0, 2}));  // it is 30
}

TEST(Recognise, SaysWhichFormatAndHowSure) {
  const TempFolder root;
  const auto formats = [](const std::string& path) {
    std::vector<std::pair<std::string, bool>> out;
    for (const Recognised& r : recognise(path)) out.emplace_back(r.name, r.certain);
    return out;
  };
  using Formats = std::vector<std::pair<std::string, bool>>;
  EXPECT_EQ(formats(root.path()), Formats{});
  root.write("notes/a.txt", "x");
  EXPECT_EQ(formats(root.path()), Formats{});
  root.write("photos/1.jpg", "x");
  root.write("texts/a.txt", "x");
  EXPECT_EQ(formats(root.path()), (Formats{{"image_folder", false}}));
  root.write("train-images-idx3-ubyte", "x");
  EXPECT_EQ(formats(root.path()), (Formats{{"idx", true}}));  // a folder beside is no evidence
  root.write("train/a/1.jpg", "x");
  EXPECT_EQ(formats(root.path()), (Formats{{"idx", true}, {"image_folder", true}}));
  EXPECT_EQ(format_of("idx"), Format::kIdx);
  EXPECT_EQ(format_of("image_folder"), Format::kImageFolder);
  EXPECT_EQ(format_of("none"), std::nullopt);
}

}  // namespace
}  // namespace convoy::data
