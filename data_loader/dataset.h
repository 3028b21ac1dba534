// A dataset: how many samples, which classes, and read(i) -> bytes and label. One table of formats.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::data {

enum class Split { kTrain, kVal };
const char* name_of(Split split);  // "train", "val"

enum class Format { kAuto, kImageFolder, kIdx, kCifar, kSynthetic, kTarShards };

// How samples are numbered, where the format gives a choice.
enum class SampleOrder {
  kByName,   // by class and name
  kByShard,  // as they lie in their shards; of tar shards alone
};

// Height, width and channels of an image in memory, NHWC.
struct ImageShape {
  int height = 0, width = 0, channels = 0;

  size_t bytes() const { return size_t(height) * size_t(width) * size_t(channels); }
  bool operator==(const ImageShape&) const = default;
};
std::string to_string(const ImageShape& shape);  // "28x28x1": height, width, channels

// What read() gives. Make one per thread and use it again: it keeps its memory.
struct Sample {
  std::span<const uint8_t> bytes;  // borrowed from the dataset or from `storage`; valid until the
                                   // next read() into this Sample or the end of the dataset
  int32_t label = 0;
  std::vector<uint8_t> storage;
};

// The file that an encoded image is, or was before it was packed.
struct SampleFile {
  std::string name;  // within its class
  uint64_t bytes = 0;
};

// Immutable after it is opened; every member function may be called from several threads at once.
class Dataset {
 public:
  virtual ~Dataset() = default;

  virtual uint64_t size() const = 0;
  // Names in the order of the labels: labels are 0 ... classes().size() - 1.
  virtual const std::vector<std::string>& classes() const = 0;
  // Fixed-size raw uint8 pixels, NHWC; nullopt: encoded images (JPEG, PNG) of any size.
  virtual std::optional<ImageShape> raw_shape() const = 0;
  // Sample i < size(). Throws Error: kIo when the file cannot be read (passing troubles are tried
  // again first), kBadData when it is not what was indexed. Does not look inside encoded images.
  virtual void read(uint64_t i, Sample& sample) const = 0;
  virtual int32_t label(uint64_t i) const = 0;
  // Sample i in messages: its file, or "FILE, image 17". Not yet printable().
  virtual std::string name(uint64_t i) const = 0;
  // SHA-256, 64 hexadecimal digits, the same on every machine that holds the same data. Image
  // folders and tar shards: over names, sizes and labels of all images, the same for a folder and
  // for shards of it; kByShard: over their places, too. IDX and CIFAR: over the (unpacked)
  // contents.
  virtual const std::string& digest() const = 0;

  // Encoded images only, else Error (kFault).
  virtual SampleFile file(uint64_t i) const;
  // kByShard: images of each shard, in order; else empty.
  virtual std::span<const uint64_t> shard_sizes() const { return {}; }
  // Sample i will be read soon: asks the system to fetch it. May fail as read() does, and wait as
  // long; nothing but speed depends on it.
  virtual void will_read(uint64_t /*i*/) const {}
};

struct DatasetSpec {
  Format format = Format::kAuto;  // kAuto: by what the folder holds
  std::string path;
  // Labels outside 0 ... classes - 1 are an error; 0: as many classes as the dataset has.
  int classes = 0;
  // Existing folder for the index of an image folder, or of shards that have none; empty: none is
  // kept. A stale or damaged index is made anew.
  std::string cache_folder;
  // Image folders: links may lead out of the folder. Otherwise they are an error that names the
  // first.
  bool follow_links = false;
  SampleOrder order = SampleOrder::kByName;
  // kSynthetic alone.
  uint64_t synthetic_samples = 0;
  ImageShape synthetic_shape;
};

// What a folder seems to hold.
struct Recognised {
  Format format;
  std::string name;     // of the format, as `data.format` has it, in lower case
  std::string because;  // what was found there
  // Otherwise it is a guess: nothing there speaks against it.
  bool certain = true;
};
// Every format whose files lie in the folder, in the order in which kAuto tries them. Throws Error
// (kIo) where the folder is missing.
std::vector<Recognised> recognise(const std::string& path);
// "idx, cifar, image_folder": those that lie in folders.
std::string format_names();
// Of such a name; nullopt where there is none.
std::optional<Format> format_of(std::string_view name);

// Throws Error: kBadData when the folder is empty or wrong in any way that can be seen without
// decoding, kIo when it is missing or cannot be read, kBadJob when its format does not have the
// order.
std::unique_ptr<Dataset> open_dataset(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
