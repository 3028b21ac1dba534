#include "trainer/base/safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "trainer/base/file.h"

namespace convoy::trainer {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 16;

constexpr const char* kF64Remedy =
    "; in Python, .float() on every tensor before save_file makes it F32";

struct TypeRow {
  StoredType type;
  const char* name;
  size_t bytes;
};
constexpr TypeRow kTypes[] = {{StoredType::kF32, "F32", 4}, {StoredType::kBf16, "BF16", 2},
                              {StoredType::kF16, "F16", 2}, {StoredType::kI64, "I64", 8},
                              {StoredType::kI32, "I32", 4}, {StoredType::kU8, "U8", 1}};

const TypeRow& row_of(StoredType type) {
  return kTypes[static_cast<size_t>(type)];
}

// Bytes of a tensor; nullopt where a dimension is negative or the product exceeds 64 bits.
std::optional<uint64_t> bytes_of(StoredType type, const std::vector<int64_t>& shape) {
  uint64_t bytes = size_of(type);
  for (const int64_t dimension : shape)
    if (dimension < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes))
      return std::nullopt;
  return bytes;
}

// A tensor as the header describes it.
struct Entry {
  std::string name;
  std::optional<StoredType> type;
  std::optional<std::vector<int64_t>> shape;
  std::vector<uint64_t> offsets;  // begin and end
};

// Reads the header's JSON token by token: no document is built, nothing nests deeper than the
// format does, and a doubled key is seen.
class HeaderReader final : public json::json_sax_t {
 public:
  HeaderReader(const std::string& path, Metadata* metadata) : path_(path), metadata_(metadata) {}

  std::vector<Entry> take_entries() { return std::move(entries_); }

  bool key(string_t& name) override {
    key_ = name;
    if (depth_ == 1) {
      where_ = fmt::format("tensor \"{}\"", printable(name));
      if (!names_.insert(name).second) bad("stands twice in the header");
      if (name != "__metadata__") {
        if (name.empty()) bad("has no name");
        entries_.push_back({name, {}, {}, {}});
      }
    } else if (!in_metadata_) {
      if (name != "dtype" && name != "shape" && name != "data_offsets")
        bad(fmt::format("unknown key \"{}\"", printable(name)));
      if (!keys_.insert(name).second) bad(fmt::format("\"{}\" stands twice", name));
    } else if (!keys_.insert(name).second) {
      bad(fmt::format("metadata key \"{}\" stands twice", printable(name)));
    }
    return true;
  }
  bool start_object(size_t) override {
    if (depth_ > 1 || in_list_) bad("an object inside a tensor's description");
    if (depth_++ == 1) {
      in_metadata_ = key_ == "__metadata__";
      keys_.clear();
    }
    return true;
  }
  bool end_object() override {
    if (--depth_ == 1 && !in_metadata_ && keys_.size() != 3)
      bad("lacks dtype, shape or data_offsets");
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_list_ || key_ == "dtype") bad("an unexpected list");
    in_list_ = true;
    if (key_ == "shape") entries_.back().shape.emplace();
    return true;
  }
  bool end_array() override {
    in_list_ = false;
    if (key_ == "data_offsets" && entries_.back().offsets.size() != 2)
      bad("data_offsets must be two numbers");
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_list_) bad(fmt::format("unexpected number {}", value));
    if (key_ == "data_offsets") {
      if (entries_.back().offsets.size() == 2) bad("data_offsets must be two numbers");
      entries_.back().offsets.push_back(value);
    } else {
      if (value > static_cast<uint64_t>(INT64_MAX)) bad(fmt::format("dimension {}", value));
      if (entries_.back().shape->size() == kMaxDimensions)
        bad(fmt::format("has more than {} dimensions", kMaxDimensions));
      entries_.back().shape->push_back(static_cast<int64_t>(value));
    }
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ != 2 || in_list_) bad("an unexpected text");
    if (in_metadata_) {
      if (metadata_) metadata_->emplace_back(key_, value);
      return true;
    }
    if (key_ != "dtype") bad(fmt::format("{} must be a list of numbers", key_));
    for (const TypeRow& row : kTypes)
      if (value == row.name) entries_.back().type = row.type;
    if (!entries_.back().type)
      bad(fmt::format("dtype \"{}\" is not one of F32, BF16, F16, I64, I32, U8{}", printable(value),
                      value == "F64" ? kF64Remedy : ""));
    return true;
  }
  bool number_integer(number_integer_t value) override { bad(fmt::format("number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override {
    bad(fmt::format("number {}", printable(text)));
  }
  bool null() override { bad("an unexpected null"); }
  bool boolean(bool) override { bad("an unexpected true or false"); }
  bool binary(binary_t&) override { bad("unexpected bytes"); }
  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    fail(ExitCode::kBadData, "{}: the header is not JSON at byte {}", printable(path_),
         8 + position);
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(ExitCode::kBadData, "{}: {}: {}", printable(path_), where_, what);
  }

  const std::string& path_;
  Metadata* metadata_;
  std::vector<Entry> entries_;
  std::set<std::string, std::less<>> names_, keys_;
  std::string key_, where_ = "header";
  int depth_ = 0;
  bool in_metadata_ = false, in_list_ = false;
};

// The tensors of the header, in the order of their bytes, checked against a data section of
// `data_bytes`.
std::vector<Entry> check_entries(std::vector<Entry> entries, uint64_t data_bytes,
                                 const std::string& path) {
  // Ends break ties: an empty tensor stands before the one that begins where it does.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  uint64_t position = 0;
  for (const Entry& entry : entries) {
    const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
    const auto bad = [&](const std::string& what) {
      fail(ExitCode::kBadData, "{}: tensor \"{}\": {}", printable(path), printable(entry.name),
           what);
    };
    if (begin > end || end > data_bytes)
      bad(fmt::format("bytes {} to {} are not inside the file's {}", begin, end, data_bytes));
    if (begin < position) bad(fmt::format("begins at byte {}, inside the one before", begin));
    if (begin > position)
      bad(fmt::format("begins at byte {}, but the one before ends at {}", begin, position));
    const auto bytes = bytes_of(*entry.type, *entry.shape);
    if (!bytes || *bytes != end - begin)
      bad(fmt::format("shape {} of {} does not fill bytes {} to {}", shape_text(*entry.shape),
                      name_of(*entry.type), begin, end));
    position = end;
  }
  if (position != data_bytes)
    fail(ExitCode::kBadData, "{}: the tensors end at byte {} of {}", printable(path), position,
         data_bytes);
  return entries;
}

// Length and header, padded with spaces to a multiple of 8.
std::string make_header(std::span<const NamedTensor> tensors, const Metadata& metadata,
                        const std::string& path) {
  const auto quoted = [&](const std::string& text) {
    try {
      return json(text).dump();
    } catch (const json::exception&) {
      fail(ExitCode::kFault, "{}: the name \"{}\" is not UTF-8", printable(path), printable(text));
    }
  };
  std::string header;
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata)
      header += fmt::format("{}{}:{}", header.empty() ? "" : ",", quoted(key), quoted(value));
    header = fmt::format("\"__metadata__\":{{{}}}", header);
  }
  std::set<std::string_view> names = {"__metadata__"};
  uint64_t position = 0;
  for (const NamedTensor& tensor : tensors) {
    const auto bytes = bytes_of(tensor.type, tensor.shape);
    if (tensor.name.empty() || !names.insert(tensor.name).second)
      fail(ExitCode::kFault, "{}: tensor name \"{}\" is empty, reserved or used twice",
           printable(path), printable(tensor.name));
    if (!bytes || *bytes != tensor.bytes.size())
      fail(ExitCode::kFault, "{}: tensor \"{}\" of shape {} and type {} is given {} bytes",
           printable(path), printable(tensor.name), shape_text(tensor.shape), name_of(tensor.type),
           tensor.bytes.size());
    header += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          header.empty() ? "" : ",", quoted(tensor.name), name_of(tensor.type),
                          fmt::join(tensor.shape, ","), position, position + *bytes);
    position += *bytes;
  }
  header = "{" + header + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header;
}

std::unique_ptr<std::byte[]> allocate(uint64_t bytes, const std::string& what) {
  try {
    return std::make_unique_for_overwrite<std::byte[]>(bytes);
  } catch (const std::bad_alloc&) {
    fail(ExitCode::kFault, "{}: no memory for {} bytes", printable(what), bytes);
  }
}

}  // namespace

size_t size_of(StoredType type) {
  return row_of(type).bytes;
}
const char* name_of(StoredType type) {
  return row_of(type).name;
}
std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const NamedTensor* TensorList::find(std::string_view name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const NamedTensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

TensorList copy_of(const TensorList& list) {
  uint64_t bytes = 0;
  for (const NamedTensor& tensor : list.tensors) bytes += tensor.bytes.size();
  TensorList copy{list.tensors, allocate(bytes, "the copy of the state")};
  std::byte* position = copy.storage.get();
  for (NamedTensor& tensor : copy.tensors) {
    std::copy(tensor.bytes.begin(), tensor.bytes.end(), position);
    tensor.bytes = {position, tensor.bytes.size()};
    position += tensor.bytes.size();
  }
  return copy;
}

FileRecord write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                             const Metadata& metadata) {
  const std::string header = make_header(tensors, metadata, path);
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  Sha256 sha;
  FileRecord record;
  const auto write = [&](const void* data, size_t bytes) {
    file.write(data, bytes);
    sha.update(data, bytes);
    record.bytes += bytes;
  };
  write(header.data(), header.size());
  for (const NamedTensor& tensor : tensors) write(tensor.bytes.data(), tensor.bytes.size());
  file.sync();
  file.close();
  record.sha256 = sha.hex();
  return record;
}

TensorList read_safetensors(const std::string& path, Metadata* metadata, FileRecord* record) {
  File file(path, O_RDONLY);
  const uint64_t file_bytes = file.size();
  Sha256 sha;
  const auto read = [&](void* data, size_t bytes) {
    if (file.read(data, bytes) != bytes)
      fail(ExitCode::kBadData, "{}: ended before its {} bytes were read", printable(path),
           file_bytes);
    sha.update(data, bytes);
  };
  uint64_t header_bytes = 0;
  if (file_bytes < sizeof header_bytes)
    fail(ExitCode::kBadData, "{}: has {} bytes, too few for a safetensors file", printable(path),
         file_bytes);
  read(&header_bytes, sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - sizeof header_bytes)
    fail(ExitCode::kBadData,
         "{}: not a safetensors file: a header of {} bytes in a file of {} (at most {} are read)",
         printable(path), header_bytes, file_bytes, kMaxHeaderBytes);
  std::string header(header_bytes, '\0');
  read(header.data(), header.size());
  const uint64_t data_bytes = file_bytes - sizeof header_bytes - header_bytes;

  HeaderReader reader(path, metadata);
  if (!header.starts_with('{'))
    fail(ExitCode::kBadData, "{}: the header does not begin with an object", printable(path));
  json::sax_parse(header, &reader);
  const std::vector<Entry> entries = check_entries(reader.take_entries(), data_bytes, path);

  TensorList list;
  list.storage = allocate(data_bytes, path);
  read(list.storage.get(), data_bytes);
  for (const Entry& entry : entries)
    list.tensors.push_back({entry.name, *entry.type, *entry.shape,
                            std::span<const std::byte>(list.storage.get() + entry.offsets[0],
                                                       entry.offsets[1] - entry.offsets[0])});
  if (record) *record = {file_bytes, sha.hex()};
  return list;
}

}  // namespace convoy::trainer
