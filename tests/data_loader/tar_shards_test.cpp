// Tar shards: what other programs wrote, and R39, what is hostile. What `convoy pack` writes is in
// tests/trainer/commands/pack_shards_test.cpp.
#include "data_loader/tar_shards.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data_loader/shard_index.h"
#include "data_loader/tar.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/tiny_images.h"

namespace convoy::data {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;

// No log lines while it lives.
struct QuietLog {
  QuietLog() {
    log::set_sink([](log::Level, const std::string&) {});
  }
  ~QuietLog() { log::set_sink(nullptr); }
};

std::string member(const std::string& name, const std::string& bytes) {
  return tar_header(name, bytes.size()) + bytes + std::string(tar_padding(bytes.size()), '\0');
}

std::string sample(const std::string& key, const std::string& bytes, const std::string& label) {
  return member(key + ".jpg", bytes) + member(key + ".cls", label);
}

const std::string kEnd(kTarEnd, '\0');

std::unique_ptr<Dataset> open(const std::string& path, Split split = Split::kTrain,
                              const std::string& cache = "",
                              SampleOrder order = SampleOrder::kByName) {
  return open_dataset({.path = path, .cache_folder = cache, .order = order}, split);
}

std::string bytes_of(const Dataset& dataset, uint64_t i) {
  Sample sample;
  dataset.read(i, sample);
  EXPECT_EQ(sample.label, dataset.label(i));
  return {sample.bytes.begin(), sample.bytes.end()};
}

// The error's text; it must be of one line and bad data.
std::string error_of(const std::string& path) {
  const QuietLog quiet;
  try {
    open(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "";
}

// Of a folder with this one shard.
std::string error_of_shard(const std::string& tar) {
  const TempFolder root;
  root.write("a-000000.tar", tar);
  return error_of(root.path());
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
}

TEST(TarShards, ForeignShardsNeedNoIndex) {
  const QuietLog quiet;
  const TempFolder root;
  root.write("train/b-000001.tar", sample("./000002", "two", "1\n") + kEnd);
  root.write("train/b-000000.tar", member("000000.json", "{}") + sample("000000", "zero", "2") +
                                       member("000001.cls", "0") + member("000001.PNG", "one") +
                                       kEnd);
  root.write("train/notes.txt", "x");
  root.write("val/v.tar", sample("0", "val", "1") + kEnd);
  const auto train = open(root.path());
  ASSERT_EQ(train->size(), 3u);
  EXPECT_EQ(train->classes(), (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(train->raw_shape(), std::nullopt);
  // By label, then by name.
  EXPECT_EQ(bytes_of(*train, 0), "one");
  EXPECT_EQ(bytes_of(*train, 1), "two");
  EXPECT_EQ(bytes_of(*train, 2), "zero");
  EXPECT_EQ(train->label(2), 2);
  EXPECT_EQ(train->file(0).name, "000001.PNG");
  expect_has(train->name(2), root.path("train/b-000000.tar") + ", byte ");
  EXPECT_TRUE(train->shard_sizes().empty());
  EXPECT_EQ(open(root.path(), Split::kVal)->classes().size(), 3u);
  const auto by_shard = open(root.path(), Split::kTrain, "", SampleOrder::kByShard);
  EXPECT_EQ(bytes_of(*by_shard, 0), "zero");
  EXPECT_EQ(bytes_of(*by_shard, 2), "two");
  EXPECT_EQ(std::vector<uint64_t>(by_shard->shard_sizes().begin(), by_shard->shard_sizes().end()),
            (std::vector<uint64_t>{2, 1}));
  EXPECT_NE(by_shard->digest(), train->digest());
  // The names of the classes.
  root.write("classes.txt", "cat\r\ndog\nowl\nyak");
  EXPECT_EQ(open(root.path())->classes(), (std::vector<std::string>{"cat", "dog", "owl", "yak"}));
  EXPECT_NE(open(root.path())->digest(), train->digest());
  root.write("classes.txt", "cat\ndog\n");
  expect_has(error_of(root.path()), "label 2, but " + root.path("classes.txt"));
}

TEST(TarShards, WindowsNeedShards) {
  const TempFolder root;
  root.write("a/1.jpg", "x");
  try {
    open(root.path(), Split::kTrain, "", SampleOrder::kByShard);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadJob);
    expect_has(error.what(), "convoy pack");
  }
}

// A tar of the system's own, with long names and with each format that it knows.
TEST(TarShards, ReadsWhatTarWrites) {
  const QuietLog quiet;
  const std::string long_class(90, 'c');
  for (const std::string format : {"gnu", "pax", "ustar", "oldgnu"}) {
    const TempFolder root, source;
    const std::string long_name(format == "ustar" ? 60 : 140, 'n');
    source.write("in/" + long_class + "/" + long_name + ".jpg", "long");
    source.write("in/" + long_class + "/" + long_name + ".cls", "1");
    source.write("in/short.jpg", "short");
    source.write("in/short.cls", "0");
    const std::string command =
        fmt::format("cd {} && tar --format={} --sort=name -cf {} . 2>/dev/null", source.path("in"),
                    format, root.path("x.tar"));
    if (std::system(command.c_str()) != 0) GTEST_SKIP() << "SKIPPED LOUDLY: no GNU tar";
    const auto dataset = open(root.path());
    ASSERT_EQ(dataset->size(), 2u) << format;
    EXPECT_EQ(bytes_of(*dataset, 0), "short");
    EXPECT_EQ(bytes_of(*dataset, 1), "long");
    EXPECT_EQ(dataset->file(1).name, long_class + "/" + long_name + ".jpg");
  }
}

TEST(TarShards, HeadersAreReadOnceAndAgainWhenAShardChanged) {
  const QuietLog quiet;
  const TempFolder root, cache;
  const std::string shard = root.write("a.tar", sample("x", "one", "0") + kEnd);
  root.write("b.tar", sample("y", "two", "1") + kEnd);
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(1);
  open(root.path(), Split::kTrain, cache.path());
  EXPECT_TRUE(fs::is_empty(cache.path())) << "a shard of this second must not be kept";
  for (const char* name : {"a.tar", "b.tar"}) fs::last_write_time(root.path(name), old);
  const std::string digest = open(root.path(), Split::kTrain, cache.path())->digest();
  ASSERT_FALSE(fs::is_empty(cache.path()));
  EXPECT_EQ(open(root.path(), Split::kTrain, cache.path())->digest(), digest);
  // It is really used: what changed without a trace is not seen; with one it is.
  root.write("a.tar", sample("z", "one", "0") + kEnd);
  fs::last_write_time(shard, old);
  EXPECT_EQ(open(root.path(), Split::kTrain, cache.path())->digest(), digest);
  fs::last_write_time(shard, old + std::chrono::seconds(1));
  EXPECT_NE(open(root.path(), Split::kTrain, cache.path())->digest(), digest);
  // A damaged one is made anew.
  for (const auto& entry : fs::directory_iterator(cache.path())) fs::resize_file(entry.path(), 50);
  EXPECT_EQ(open(root.path(), Split::kTrain, cache.path())->size(), 2u);
}

TEST(TarShards, NamesOfMembersLeadBack) {
  std::string scratch;
  for (const std::string file : {"a.jpg", "a.b.JPEG", "50%.png", "%2E.jpg", "a%.jpg", "..jpg"})
    for (const bool is_shared : {false, true}) {
      const std::string name = member_name("class.x", file, is_shared);
      EXPECT_EQ(original_name(name, "class.x", scratch), file) << name;
      // WebDataset's key: up to the first dot behind the last slash.
      EXPECT_EQ(std::string(key_of(name)) + file.substr(file.rfind('.')), name);
    }
  EXPECT_EQ(member_name("c", "a.jpg", false), "c/a.jpg");
  EXPECT_NE(member_name("c", "a.jpg", true), member_name("c", "a.png", true));
}

// ---- R39 ----

// A header as tar_header() makes it, with a field changed and the checksum set right.
std::string changed_header(const std::string& name, uint64_t bytes, size_t at,
                           const std::string& field) {
  std::string header = tar_header(name, bytes);
  header.replace(at, field.size(), field);
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  return header.replace(148, 8, fmt::format("{:06o}{} ", sum, '\0'));
}

TEST(HostileTar, R39NamesThatLeadOutsideAreRefused) {
  for (const std::string name : {"../x", "/etc/x", "a/../../x", "./../x", "a/.."})
    expect_has(error_of_shard(sample("ok", "1", "0") + member(name + ".jpg/..", "x") + kEnd),
               "a-000000.tar, byte 2048: the name");
  expect_has(error_of_shard(sample("/x", "1", "0") + kEnd), "leads outside");
}

TEST(HostileTar, R39OnlyRegularMembersAreRead) {
  const QuietLog quiet;
  const TempFolder root;
  std::string tar;
  for (const char type : {'1', '2', '3', '4', '5', '6', 'V', 'Z'}) {
    tar += changed_header(fmt::format("{}.jpg", type), 0, 156, std::string(1, type));
    // Their size says nothing of data behind them.
    if (type < '7') tar += changed_header("size.jpg", 77777, 156, std::string(1, type));
  }
  root.write("a.tar", tar + sample("x", "one", "0") + kEnd + "behind the end");
  const auto dataset = open(root.path());
  EXPECT_EQ(dataset->size(), 1u);
  EXPECT_EQ(bytes_of(*dataset, 0), "one");
  EXPECT_EQ(std::distance(fs::directory_iterator(root.path()), {}), 1) << "something was written";
}

TEST(HostileTar, R39SizesBeyondTheEnd) {
  // 8 GiB - 1 in octal, more in base 256, more than 63 bits, negative, no digits.
  const std::string ok = sample("ok", "1", "0");
  const auto with_size = [&](const std::string& field) {
    return error_of_shard(ok + changed_header("x.jpg", 1, 124, field) + "x" + kEnd);
  };
  const std::string cut = "goes beyond the end";
  expect_has(with_size("77777777777"), "byte 2048: the member of 8589934591 bytes " + cut);
  expect_has(with_size(std::string("\x80\0\0\0\0\0\0\2\0\0\0\0", 12)), "8589934592 bytes " + cut);
  expect_has(with_size("\x80" + std::string(3, '\0') + std::string(8, '\x7f')), cut);
  expect_has(with_size("\x80" + std::string(11, '\x7f')), "no number of bytes");
  expect_has(with_size(std::string(12, '\xff')), "no number of bytes");
  expect_has(with_size("12x45678901"), "no number of bytes");
  const auto with_pax = [&](const std::string& record) {
    std::string extended = member("p", record);
    return error_of_shard(ok + changed_header("p", record.size(), 156, "x") +
                          extended.substr(kTarBlock) + sample("x", "1", "0") + kEnd);
  };
  expect_has(with_pax("25 size=9223372036854775\n"), cut);
  expect_has(with_pax("29 size=18446744073709551617\n"), "no number of bytes");
  expect_has(with_pax("99 size=1\n"), "a damaged extended header");
  expect_has(with_pax("3 =\n"), "a damaged extended header");
  expect_has(with_pax("22 GNU.sparse.major=1\n"), "byte 2048: a sparse file");
  EXPECT_EQ(with_pax("10 size=1\n"), "");
}

TEST(HostileTar, R39CutAnywhereIsNamed) {
  const std::string tar = sample("a", "1", "0") + sample("b", std::string(600, 'x'), "1") + kEnd;
  for (size_t bytes = 0; bytes < tar.size() - kTarEnd + kTarBlock; bytes += 100)
    expect_has(error_of_shard(tar.substr(0, bytes)), "it is cut off");
  EXPECT_EQ(error_of_shard(tar), "");
  std::string damaged = tar;
  damaged[2048 + 3] = 'x';
  expect_has(error_of_shard(damaged), "byte 2048: no tar header");
  expect_has(error_of_shard("GIF89a" + std::string(1000, 'x')), "byte 0: no tar header");
  expect_has(error_of_shard(kEnd), "no images");
}

TEST(HostileTar, R39DuplicatesAndLabels) {
  const std::string a = sample("a", "1", "0");
  expect_has(error_of_shard(a + sample("b", "2", "0") + a + kEnd),
             "the key \"a\" comes twice, its images are at bytes 512 and 4608");
  expect_has(error_of_shard(member("a.jpg", "1") + member("a.png", "1") + kEnd),
             "byte 1024: a second image");
  expect_has(error_of_shard(a + member("a.cls", "1") + kEnd), "a second label");
  expect_has(error_of_shard(member("a.jpg", "1") + sample("b", "2", "0") + kEnd), "has no label");
  expect_has(error_of_shard(member("a.jpg", "1") + kEnd), "has no label");
  for (const std::string label : {"", "x", "-1", "1 2", "2147483648", "99999999999999999999999"})
    expect_has(error_of_shard(sample("a", "1", label) + kEnd), "which is no label");
  expect_has(error_of_shard(sample("a", "1", "2147483647") + kEnd), "2147483648 classes");
  const std::string sparse = changed_header("a.jpg", 0, 156, "S");
  expect_has(error_of_shard(sparse + kEnd), "byte 0: a sparse file");
}

TEST(HostileTar, R39HugeNamesTakeNoMemory) {
  const std::string huge = changed_header("x", uint64_t{1} << 30, 156, "L");
  const TempFolder root;
  root.write("a.tar", huge);
  fs::resize_file(root.path("a.tar"), (uint64_t{1} << 30) + 4096);
  expect_has(error_of(root.path()), "a name or extended header of 1073741824 bytes");
}

TEST(HostileTar, AShardThatChangesIsNamed) {
  const QuietLog quiet;
  const TempFolder root;
  const std::string shard = root.write("a.tar", sample("x", "one", "0") + kEnd);
  const auto dataset = open(root.path());
  Sample into;
  fs::resize_file(shard, 600);
  try {
    dataset->read(0, into);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    expect_has(error.what(), "a.tar: has 600 bytes, had 3072");
  }
  fs::remove(shard);
  EXPECT_THROW(dataset->read(0, into), Error);
}

}  // namespace
}  // namespace convoy::data
