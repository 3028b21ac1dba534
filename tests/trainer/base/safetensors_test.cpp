// Tensor files: what is written, read, and refused.
#include "trainer/base/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "tests/support/temp_folder.h"

namespace convoy::trainer {
namespace {

using test::read_file;
using test::TempFolder;
using test::write_file;

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

// A file as its parts: the header's length is that of the header given.
std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

// The message of read_safetensors; empty when the file is accepted.
std::string refusal(const std::string& path) {
  try {
    read_safetensors(path);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    return error.what();
  }
}

TEST(Safetensors, ReadsWhatItWrote) {
  const TempFolder dir;
  const std::vector<float> weight = {1.5f, -2.0f, 0.0f, 4.0f, 5.0f, 6.0f};
  const std::vector<int64_t> tracked = {1234567890123};
  const std::vector<uint16_t> half = {0x3f80, 0x4000};
  const std::vector<uint8_t> empty;
  const std::vector<NamedTensor> tensors = {
      {"z.weight", StoredType::kF32, {2, 3}, bytes_of(weight)},
      {"a.num_batches_tracked", StoredType::kI64, {}, bytes_of(tracked)},
      {"empty \"quoted\" \xc3\xbc", StoredType::kU8, {0, 4}, bytes_of(empty)},
      {"half", StoredType::kBf16, {2}, bytes_of(half)}};
  const FileRecord record =
      write_safetensors(dir.path("t"), tensors, {{"format", "pt"}, {"k", "v\n"}});

  const std::string bytes = read_file(dir.path("t"));
  EXPECT_EQ(record.bytes, bytes.size());
  EXPECT_EQ(record.sha256, sha256_hex(bytes));
  EXPECT_EQ((bytes.size() - 24 - 8 - 4) % 8, 0u);  // the data begins at a multiple of 8

  Metadata metadata;
  FileRecord found;
  const TensorList list = read_safetensors(dir.path("t"), &metadata, &found);
  EXPECT_EQ(found.bytes, record.bytes);
  EXPECT_EQ(found.sha256, record.sha256);
  EXPECT_EQ(metadata, (Metadata{{"format", "pt"}, {"k", "v\n"}}));
  ASSERT_EQ(list.tensors.size(), tensors.size());
  for (const NamedTensor& expected : tensors) {
    SCOPED_TRACE(expected.name);
    const NamedTensor* tensor = list.find(expected.name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->type, expected.type);
    EXPECT_EQ(tensor->shape, expected.shape);
    EXPECT_TRUE(std::equal(tensor->bytes.begin(), tensor->bytes.end(), expected.bytes.begin(),
                           expected.bytes.end()));
  }
  EXPECT_EQ(list.tensors[0].name, "z.weight");  // the order given, not the alphabet's
  EXPECT_EQ(list.find("none"), nullptr);
}

// The bytes of the format itself, written by hand.
TEST(Safetensors, TheBytesAreThoseOfTheFormat) {
  const TempFolder dir;
  const std::vector<uint8_t> data = {7, 8};
  write_safetensors(dir.path("t"),
                    std::vector<NamedTensor>{{"a", StoredType::kU8, {2}, bytes_of(data)}});
  EXPECT_EQ(
      read_file(dir.path("t")),
      file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}   ", "\x07\x08"));
  write_safetensors(dir.path("none"), {});
  EXPECT_EQ(read_file(dir.path("none")), file_of("{}      ", ""));
  EXPECT_TRUE(read_safetensors(dir.path("none")).tensors.empty());
}

TEST(Safetensors, ACopyHasItsOwnMemory) {
  std::vector<float> values = {1, 2};
  std::vector<float> more = {3};
  TensorList list;
  list.tensors = {{"a", StoredType::kF32, {2}, bytes_of(values)},
                  {"b", StoredType::kF32, {1}, bytes_of(more)}};
  const TensorList copy = copy_of(list);
  values = {9, 9};
  more[0] = 9;
  ASSERT_EQ(copy.tensors.size(), 2u);
  float read[3];
  std::memcpy(read, copy.tensors[0].bytes.data(), 8);
  std::memcpy(read + 2, copy.tensors[1].bytes.data(), 4);
  EXPECT_EQ(read[0], 1.0f);
  EXPECT_EQ(read[1], 2.0f);
  EXPECT_EQ(read[2], 3.0f);
}

TEST(Safetensors, TheWriterRefusesWhatItsReaderWould) {
  const TempFolder dir;
  const std::vector<float> two = {1, 2};
  const std::vector<std::vector<NamedTensor>> cases = {
      {{"", StoredType::kF32, {2}, bytes_of(two)}},
      {{"__metadata__", StoredType::kF32, {2}, bytes_of(two)}},
      {{"a", StoredType::kF32, {2}, bytes_of(two)}, {"a", StoredType::kF32, {2}, bytes_of(two)}},
      {{"a", StoredType::kF32, {3}, bytes_of(two)}},
      {{"a", StoredType::kF32, {-2}, bytes_of(two)}},
      {{"\xff", StoredType::kF32, {2}, bytes_of(two)}}};
  for (const auto& tensors : cases) EXPECT_THROW(write_safetensors(dir.path("t"), tensors), Error);
}

TEST(Safetensors, DamagedFilesAreRefusedByName) {
  const TempFolder dir;
  const std::string path = dir.path("t");
  const auto entry = [](const char* name, const char* dtype, const char* shape, const char* range) {
    return fmt::format("\"{}\":{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":{}}}", name, dtype,
                       shape, range);
  };
  struct Case {
    std::string header, data;
    const char* expected;
  };
  const std::string good = entry("a", "U8", "[2]", "[0,2]");
  const std::vector<Case> cases = {
      {"{" + entry("a", "U8", "[2]", "[0,3]") + "}", "xxx", "tensor \"a\": shape [2] of U8"},
      {"{" + entry("a", "F32", "[2]", "[0,2]") + "}", "xx", "does not fill bytes 0 to 2"},
      {"{" + entry("a", "U8", "[2]", "[0,2]") + "}", "x", "not inside the file's 1"},
      {"{" + entry("a", "U8", "[2]", "[0,2]") + "}", "xxx", "end at byte 2 of 3"},
      {"{" + entry("a", "U8", "[2]", "[1,3]") + "}", "xxx", "the one before ends at 0"},
      {"{" + entry("a", "U8", "[2]", "[2,0]") + "}", "xx", "not inside"},
      {"{" + good + "," + entry("b", "U8", "[2]", "[1,3]") + "}", "xxx",
       "tensor \"b\": begins at byte 1, inside the one before"},
      {"{" + good + "," + entry("b", "U8", "[1]", "[3,4]") + "}", "xxxx",
       "tensor \"b\": begins at byte 3, but the one before ends at 2"},
      {"{" + good + "," + good + "}", "xxxx", "tensor \"a\": stands twice"},
      {"{" + entry("a", "F64", "[2]", "[0,16]") + "}", std::string(16, 'x'),
       "tensor \"a\": dtype \"F64\" is not one of F32, BF16, F16, I64, I32, U8; in Python, "
       ".float() on every tensor before save_file makes it F32"},
      {"{" + entry("", "U8", "[2]", "[0,2]") + "}", "xx", "has no name"},
      {"{" + entry("a", "U8", "[-2]", "[0,2]") + "}", "xx", "number -2"},
      {"{" + entry("a", "U8", "[2.0]", "[0,2]") + "}", "xx", "number 2.0"},
      {"{" + entry("a", "U8", "[9223372036854775808]", "[0,2]") + "}", "xx", "dimension"},
      {"{" + entry("a", "I64", "[4611686018427387904,4]", "[0,0]") + "}", "", "does not fill"},
      {"{" + entry("a", "U8", "[2]", "[0,2,3]") + "}", "xx", "must be two numbers"},
      {"{" + entry("a", "U8", "[2]", "[0]") + "}", "xx", "must be two numbers"},
      {"{" + entry("a", "U8", "2", "[0,2]") + "}", "xx", "unexpected number 2"},
      {"{" + entry("a", "U8", "[[2]]", "[0,2]") + "}", "xx", "unexpected list"},
      {"{" + entry("a", "U8", "\"2\"", "[0,2]") + "}", "xx", "shape must be a list"},
      {"{" + entry("a", "U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]") + "}", "x",
       "more than 16 dimensions"},
      {"{" + entry("a", "U8", "null", "[0,2]") + "}", "xx", "unexpected null"},
      {"{" + entry("a", "U8", "[true]", "[0,2]") + "}", "xx", "true or false"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", "xx", "lacks dtype"},
      {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[2]}}", "xx", "\"dtype\" stands twice"},
      {"{\"a\":{\"dtype\":\"U8\",\"extra\":1}}", "xx", "unknown key \"extra\""},
      {"{\"a\":{\"dtype\":{}}}", "", "an object inside"},
      {"{\"a\":{\"dtype\":[1]}}", "", "unexpected list"},
      {"{\"a\":3}", "", "unexpected number"},
      {"{\"a\":\"x\"}", "", "unexpected text"},
      {"{\"__metadata__\":{\"k\":1}}", "", "unexpected number"},
      {"{\"__metadata__\":{\"k\":\"v\",\"k\":\"v\"}}", "", "metadata key \"k\" stands twice"},
      {"{\"__metadata__\":[]}", "", "unexpected list"},
      {"{" + good, "xx", "not JSON"},
      {"{" + good + "} x", "xx", "not JSON"},
      {"{\"\xff\":1}", "", "not JSON"},
      {"[]", "", "does not begin with an object"},
      {"", "", "does not begin with an object"},
      {std::string(100000, '{'), "", "not JSON"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.header.substr(0, 200));
    write_file(path, file_of(c.header, c.data));
    const std::string message = refusal(path);
    EXPECT_NE(message.find(c.expected), std::string::npos) << message;
  }
  write_file(path, file_of("{" + good + "}", "xx"));
  EXPECT_EQ(refusal(path), "");
}

TEST(Safetensors, LengthsAreCheckedBeforeMemoryIsTaken) {
  const TempFolder dir;
  const std::string path = dir.path("t");
  write_file(path, "");
  EXPECT_NE(refusal(path).find("has 0 bytes"), std::string::npos);
  write_file(path, "1234567");
  EXPECT_NE(refusal(path).find("has 7 bytes"), std::string::npos);
  write_file(path, std::string(8, '\xff'));  // a header of 2^64 - 1 bytes
  EXPECT_NE(refusal(path).find("18446744073709551615"), std::string::npos);
  write_file(path, file_of("{}", "").substr(0, 9));  // cut inside the header
  EXPECT_NE(refusal(path).find("a header of 2 bytes in a file of 9"), std::string::npos);
  // A sparse file with a header beyond the limit.
  const uint64_t length = 100'000'001;
  write_file(path, std::string(reinterpret_cast<const char*>(&length), 8));
  std::filesystem::resize_file(path, 200'000'000);
  EXPECT_NE(refusal(path).find("at most 100000000 are read"), std::string::npos);
}

TEST(Safetensors, FilesTheSystemRefusesAreIoErrors) {
  const TempFolder dir;
  dir.write("file", "");
  const auto code_of = [](auto call) {
    try {
      call();
      return ExitCode::kDone;
    } catch (const Error& error) {
      return error.code();
    }
  };
  EXPECT_EQ(code_of([&] { read_safetensors(dir.path("none")); }), ExitCode::kIo);
  EXPECT_EQ(code_of([&] { write_safetensors(dir.path("file/below"), {}); }), ExitCode::kIo);
  EXPECT_EQ(code_of([&] { write_safetensors("/dev/full", {}); }), ExitCode::kIo);
}

}  // namespace
}  // namespace convoy::trainer
