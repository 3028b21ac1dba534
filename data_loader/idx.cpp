#include "data_loader/idx.h"

#include <libdeflate.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <span>

#include "data_loader/files.h"
#include "data_loader/raw_pixels.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

// "train-images-idx3-ubyte[.gz]" in the folder; empty where there is none.
std::string find_file(const std::string& folder, Split split, bool images) {
  const char* prefix = split == Split::kTrain ? "train" : "t10k";
  const std::string stem =
      fmt::format("{}/{}-{}-ubyte", folder, prefix, images ? "images-idx3" : "labels-idx1");
  for (const char* suffix : {"", ".gz"})
    if (is_regular_file(stem + suffix)) return stem + suffix;
  return {};
}

std::string require_file(const std::string& folder, Split split, bool images) {
  const std::string path = find_file(folder, split, images);
  if (path.empty())
    fail(ExitCode::kBadData, "{}: no {}-{}-ubyte or .gz in it ({} {})", printable(folder),
         split == Split::kTrain ? "train" : "t10k", images ? "images-idx3" : "labels-idx1",
         name_of(split), images ? "images" : "labels");
  return path;
}

struct IdxFile {
  std::array<uint32_t, 3> sizes = {1, 1, 1};
  std::vector<uint8_t> bytes;
};

// Reads a plain or gzipped stream of bytes.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(open_regular(path)) {
    gz_ = gzdopen(file_.fd.get(), "rb");
    if (gz_ == nullptr) fail(ExitCode::kIo, "{}: cannot open with zlib", printable(path_));
    file_.fd.release();  // gzclose() closes it
    gzbuffer(gz_, 1u << 17);
  }
  ~Reader() { gzclose(gz_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Up to `bytes`; less at the end of the file.
  size_t read(uint8_t* out, size_t bytes) {
    size_t filled = 0;
    while (filled < bytes) {
      const size_t ask = std::min<size_t>(bytes - filled, 1u << 30);
      const int got = gzread(gz_, out + filled, static_cast<unsigned>(ask));
      if (got < 0) {
        int code = 0;
        const std::string text = gzerror(gz_, &code);
        if (code == Z_ERRNO) fail(ExitCode::kIo, "{}: {}", printable(path_), errno_text());
        fail(ExitCode::kBadData, "{}: broken gzip data after {} unpacked bytes: {}",
             printable(path_), filled, text);
      }
      if (got == 0) break;
      filled += static_cast<size_t>(got);
    }
    return filled;
  }

  bool zipped() { return !gzdirect(gz_); }
  uint64_t file_bytes() const { return file_.bytes; }
  // The most bytes the file can hold: deflate packs at most 1032 to 1.
  uint64_t capacity() { return zipped() ? file_.bytes * 1032 : file_.bytes; }

 private:
  std::string path_;
  OpenFile file_;
  gzFile gz_;
};

// Fills `out` with `bytes` from a file that is one sound gzip member of just so many: libdeflate
// takes half of zlib's time. False for any other file; zlib then says what it holds. No memory is
// taken where the member's own last word, its size, is another.
bool unzip_whole(const std::string& path, size_t bytes, std::vector<uint8_t>& out) {
  std::vector<uint8_t> packed;
  read_file(path, packed);
  if (packed.size() < 4) return false;
  const uint8_t* last = &packed[packed.size() - 4];
  const uint32_t size = uint32_t{last[0]} | uint32_t{last[1]} << 8 | uint32_t{last[2]} << 16 |
                        uint32_t{last[3]} << 24;
  if (size != bytes) return false;
  out.resize(bytes);
  const std::unique_ptr<libdeflate_decompressor, decltype(&libdeflate_free_decompressor)> unzip(
      libdeflate_alloc_decompressor(), &libdeflate_free_decompressor);
  size_t used = 0;
  // Without a place for the number of bytes written, it must be out.size().
  return unzip != nullptr &&
         libdeflate_gzip_decompress_ex(unzip.get(), packed.data(), packed.size(), out.data(),
                                       out.size(), &used, nullptr) == LIBDEFLATE_SUCCESS &&
         used == packed.size();
}

// An IDX file of unsigned bytes with `dimensions` sizes.
IdxFile read_idx(const std::string& path, int dimensions) {
  Reader reader(path);
  const size_t header_bytes = 4 + 4 * static_cast<size_t>(dimensions);
  std::array<uint8_t, 16> header{};
  const size_t got = reader.read(header.data(), header_bytes);
  if (got < header_bytes)
    fail(ExitCode::kBadData, "{}: {} bytes, but the IDX header alone has {}", printable(path), got,
         header_bytes);
  const auto word = [&](size_t i) {
    return uint32_t{header[4 * i]} << 24 | uint32_t{header[4 * i + 1]} << 16 |
           uint32_t{header[4 * i + 2]} << 8 | uint32_t{header[4 * i + 3]};
  };
  const uint32_t magic = 0x800u + static_cast<uint32_t>(dimensions);
  if (word(0) != magic)
    fail(ExitCode::kBadData, "{}: starts with 0x{:08x}, an IDX file of {} starts with 0x{:08x}",
         printable(path), word(0), dimensions == 1 ? "labels" : "images", magic);
  IdxFile file;
  unsigned __int128 total = 1;
  std::string sizes;
  for (int d = 0; d < dimensions; ++d) {
    const uint32_t size = word(static_cast<size_t>(d) + 1);
    file.sizes[static_cast<size_t>(d)] = size;
    total *= size;
    sizes += fmt::format("{}{}", d == 0 ? "" : " x ", size);
  }
  if (total == 0) fail(ExitCode::kBadData, "{}: empty: its sizes are {}", printable(path), sizes);
  if (total + header_bytes > reader.capacity())
    fail(ExitCode::kBadData, "{}: the header says {} bytes of data, the file is too short for that",
         printable(path), sizes);
  const auto wanted = static_cast<size_t>(total);
  if (reader.zipped() && wanted + header_bytes <= kMaxFileBytes &&
      reader.file_bytes() <= kMaxFileBytes &&
      unzip_whole(path, wanted + header_bytes, file.bytes)) {
    file.bytes.erase(file.bytes.begin(), file.bytes.begin() + static_cast<int64_t>(header_bytes));
    return file;
  }
  // Memory grows with the data that is really there.
  constexpr size_t kPiece = size_t{1} << 24;
  file.bytes.clear();
  if (!reader.zipped()) file.bytes.reserve(wanted);
  size_t data_bytes = 0;
  while (data_bytes == file.bytes.size() && data_bytes < wanted) {
    file.bytes.resize(data_bytes + std::min(wanted - data_bytes, kPiece));
    data_bytes += reader.read(&file.bytes[data_bytes], file.bytes.size() - data_bytes);
  }
  uint8_t more = 0;
  if (data_bytes != wanted || reader.read(&more, 1) != 0)
    fail(ExitCode::kBadData, "{}: the header says {} = {} bytes of data, the file has {}",
         printable(path), sizes, wanted,
         data_bytes < wanted ? fmt::format("{}", data_bytes) : "more");
  return file;
}

}  // namespace

bool is_idx(const std::string& path) {
  for (const Split split : {Split::kTrain, Split::kVal})
    if (!find_file(path, split, true).empty()) return true;
  return false;
}

std::unique_ptr<Dataset> open_idx(const DatasetSpec& spec, Split split) {
  const std::string image_path = require_file(spec.path, split, true);
  const std::string label_path = require_file(spec.path, split, false);
  IdxFile images = read_idx(image_path, 3);
  const IdxFile labels = read_idx(label_path, 1);
  if (labels.sizes[0] != images.sizes[0])
    fail(ExitCode::kBadData, "{}: {} labels, but {} has {} images", printable(label_path),
         labels.sizes[0], printable(image_path), images.sizes[0]);
  constexpr uint32_t kMaxSide = 65535;
  if (images.sizes[1] > kMaxSide || images.sizes[2] > kMaxSide)
    fail(ExitCode::kBadData, "{}: images of {} x {} pixels; at most {} a side",
         printable(image_path), images.sizes[1], images.sizes[2], kMaxSide);

  int classes = spec.classes;
  if (classes == 0) {
    const bool train_is_elsewhere =
        split == Split::kVal && !find_file(spec.path, Split::kTrain, false).empty();
    const std::vector<uint8_t> counted =
        train_is_elsewhere ? read_idx(require_file(spec.path, Split::kTrain, false), 1).bytes
                           : labels.bytes;
    classes = *std::max_element(counted.begin(), counted.end()) + 1;
  }
  RawPixels data;
  data.files = {{image_path, 0}};
  data.shape = {static_cast<int>(images.sizes[1]), static_cast<int>(images.sizes[2]), 1};
  data.labels.assign(labels.bytes.begin(), labels.bytes.end());
  data.classes = numbered_classes(classes);
  data.digest = Sha256()
                    .update(fmt::format("idx {} {}\n", images.sizes[0], to_string(data.shape)))
                    .update(images.bytes.data(), images.bytes.size())
                    .update(labels.bytes.data(), labels.bytes.size())
                    .hex();
  data.pixels = std::move(images.bytes);
  return make_raw_dataset(std::move(data));
}

}  // namespace convoy::data
