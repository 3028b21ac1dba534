#include "tests/fuzz/parsers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

#include "data_loader/baseline_jpeg.h"
#include "data_loader/coefficient_file.h"
#include "data_loader/image.h"
#include "data_loader/jpeg.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/mean.h"
#include "data_loader/png.h"
#include "data_loader/sample_maker.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/decisions.h"
#include "ops/graph.h"
#include "tests/fuzz/tiny_checkpoint.h"
#include "tests/support/temp_folder.h"
#include "trainer/base/safetensors.h"
#include "trainer/checkpoints/checkpoint.h"
#include "trainer/job/graph_text.h"
#include "trainer/job/job.h"
#include "trainer/records/ledger.h"
#include "trainer/records/lives.h"
#include "trainer/records/metrics.h"

namespace convoy::fuzz {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;

// ---- What may come of an input ----

void require(bool holds, std::string_view what) {
  if (!holds) throw std::logic_error(fmt::format("fuzz: {}", what));
}

// A refusal is of the caller's codes and can be printed: control characters are escaped.
void check_refusal(const Error& error, std::initializer_list<ExitCode> codes) {
  if (std::find(codes.begin(), codes.end(), error.code()) == codes.end())
    require(false, fmt::format("exit code {}: {}", static_cast<int>(error.code()), error.what()));
  const std::string_view text = error.what();
  require(!text.empty() && text.size() < 100'000, "an empty or endless message");
  for (const char c : text)
    if (c != '\n' && (static_cast<unsigned char>(c) < 0x20 || c == 0x7f))
      require(false, "a control character in a message: " + printable(text));
}

// False where `body` refused.
template <typename Body>
bool accepted(std::initializer_list<ExitCode> codes, const Body& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    check_refusal(error, codes);
    return false;
  }
}

// ---- Files in memory ----

// A file without a disk, under a name in a folder: a link to /proc/self/fd.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& path) : fd_(::memfd_create("convoy-fuzz", MFD_CLOEXEC)) {
    require(fd_ >= 0, "memfd_create: " + errno_text());
    fs::remove(path);
    fs::create_symlink(this->path(), path);
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return fmt::format("/proc/self/fd/{}", fd_); }
  void set(std::string_view bytes) const {
    require(::ftruncate(fd_, 0) == 0 &&
                ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
            "writing to memory: " + errno_text());
  }

 private:
  int fd_;
};

// Takes pieces off the front of an input, for parsers of more than one file.
struct Pieces {
  std::string_view rest;

  std::string_view take(size_t bytes) {
    const std::string_view piece = rest.substr(0, bytes);
    rest.remove_prefix(piece.size());
    return piece;
  }
  // A piece with its length before it, in two bytes.
  std::string_view take_counted() {
    const std::string_view length = take(2);
    if (length.size() < 2) return {};
    return take(static_cast<size_t>(static_cast<uint8_t>(length[0])) |
                static_cast<size_t>(static_cast<uint8_t>(length[1])) << 8);
  }
};

// Everything a run asks of a dataset, of its first samples.
void use(const data::Dataset& dataset) {
  require(dataset.size() > 0, "an empty dataset");
  require(dataset.digest().size() == 64, "no digest");
  data::Sample sample;
  for (uint64_t i = 0; i < std::min<uint64_t>(dataset.size(), 4); ++i) {
    dataset.read(i, sample);
    require(sample.label >= 0 && static_cast<size_t>(sample.label) < dataset.classes().size(),
            "a label outside its classes");
    if (dataset.raw_shape())
      require(sample.bytes.size() == dataset.raw_shape()->bytes(), "a sample of another size");
    require(!dataset.name(i).empty(), "a sample without a name");
  }
}

// ---- Images ----

constexpr uint64_t kMaxPixels = 1u << 14;  // small, so that many inputs are tried

class OneImage final : public data::Dataset {
 public:
  explicit OneImage(std::string_view bytes) : bytes_(bytes) {}
  uint64_t size() const override { return 1; }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::optional<data::ImageShape> raw_shape() const override { return std::nullopt; }
  void read(uint64_t, data::Sample& sample) const override {
    sample.bytes = {reinterpret_cast<const uint8_t*>(bytes_.data()), bytes_.size()};
  }
  int32_t label(uint64_t) const override { return 0; }
  std::string name(uint64_t) const override { return "image"; }
  const std::string& digest() const override { return digest_; }

 private:
  std::string_view bytes_;
  std::vector<std::string> classes_ = {"one"};
  std::string digest_ = std::string(64, '0');
};

// The pixels of a region; false where the file is damaged. What lay in the memory before is `dirt`.
bool decode(data::ImageCodec& codec, std::string_view bytes, const data::Region& region,
            int denominator, uint8_t dirt, data::Image& out) {
  return accepted({ExitCode::kBadData}, [&] {
    const data::ImageShape shape = codec.open(
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "image", kMaxPixels);
    out.pixels.assign(shape.bytes(), dirt);
    codec.decode(region, denominator, out);
  });
}

// Row y of what was decoded of `region`.
std::span<const uint8_t> row_of(const data::Image& image, const data::Region& region, int y) {
  const size_t at = static_cast<size_t>(region.y + y - image.region.y) * image.stride +
                    static_cast<size_t>(region.x - image.region.x) * 3;
  return std::span(image.pixels).subspan(at, static_cast<size_t>(region.width) * 3);
}

// Whole, in part and shrunk: the pixels are those of the file alone, and so is damage where the
// codec reads all; otherwise a part may be good where the whole is not. Unless `scales_alike`,
// values may be too large for one scale only.
void check_codec(data::ImageCodec& codec, std::string_view bytes, bool reads_all,
                 bool scales_alike = true) {
  data::ImageShape shape;
  if (!accepted({ExitCode::kBadData}, [&] {
        shape = codec.open({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "image",
                           kMaxPixels);
      }))
    return;
  require(shape.height > 0 && shape.width > 0 && shape.channels == 3, "an empty image");
  const data::Region whole{0, 0, shape.width, shape.height};
  const data::Region part{shape.width / 3, shape.height / 3, (shape.width + 2) / 3,
                          (shape.height + 2) / 3};
  data::Image first, again;
  const bool good = decode(codec, bytes, whole, 1, 0x00, first);
  const bool part_good = decode(codec, bytes, part, 1, 0xff, again);
  require(reads_all ? part_good == good : part_good >= good,
          "the whole and a part differ about damage");
  if (good)
    for (int y = 0; y < part.height; ++y)
      require(std::ranges::equal(row_of(first, part, y), row_of(again, part, y)),
              "the whole and a part have other pixels");
  if (!codec.can_shrink()) return;
  const int denominator = 2 << (bytes.size() % 3);
  const data::Region corner{0, 0, 1, 1};
  const bool corner_good = decode(codec, bytes, corner, denominator, 0x55, again);
  require(!scales_alike || (reads_all ? corner_good == good : corner_good >= good),
          "shrunk and whole differ about damage");
}

// As the loader makes a sample of training and of evaluation.
void make_samples(std::string_view bytes) {
  static data::SampleScratch scratch;
  const OneImage dataset(bytes);
  const data::TrainTransform train{.crop = data::Crop::kRandomResized, .size = 24};
  const data::EvalTransform eval{.resize = 28, .size = 24};
  const data::ImageShape output{24, 24, 3};
  const data::SampleMaker maker(dataset, output, kMaxPixels);
  std::vector<uint8_t> pixels(output.bytes());
  accepted({ExitCode::kBadData}, [&] {
    maker.make(
        pixels.data(), 0,
        [&](data::ImageShape shape, const std::string& name) {
          return train_geometry(train, shape, output, 1, 0, bytes.size(), name);
        },
        scratch);
  });
  accepted({ExitCode::kBadData}, [&] {
    maker.make(
        pixels.data(), 0,
        [&](data::ImageShape shape, const std::string& name) {
          return eval_geometry(eval, shape, output, name);
        },
        scratch);
  });
}

void feed_jpeg(std::string_view bytes) {
  static const auto codec = data::make_jpeg_codec();
  static const auto strict = data::make_jpeg_codec(data::Reading::kAll);
  check_codec(*codec, bytes, false);
  check_codec(*strict, bytes, true);
  make_samples(bytes);
}

// Our decoder beside libjpeg: what it accepts has libjpeg's pixels, and of the whole image libjpeg
// accepts as much.
void feed_baseline(std::string_view text) {
  static const auto libjpeg = data::make_libjpeg_codec();
  static data::BaselineJpeg baseline;
  const std::span bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  data::ImageShape shape;
  if (!baseline.open(bytes, shape)) return;
  if (uint64_t{static_cast<uint32_t>(shape.width)} * static_cast<uint32_t>(shape.height) >
      kMaxPixels)
    return;
  for (const int denominator : {1, 2, 4, 8})
    for (const bool whole : {true, false}) {
      const int width = (shape.width + denominator - 1) / denominator;
      const int height = (shape.height + denominator - 1) / denominator;
      const data::Region region =
          whole ? data::Region{0, 0, width, height}
                : data::Region{width / 3, height / 4, (width + 2) / 3, (height + 2) / 3};
      data::Image ours, theirs;
      if (!baseline.open(bytes, shape)) require(false, "a header is read once only");
      if (!baseline.decode(region, denominator, ours)) continue;
      const bool good = decode(*libjpeg, text, region, denominator, 0x33, theirs);
      require(good || !whole, "libjpeg refuses what was accepted");
      for (int y = 0; good && y < region.height; ++y)
        require(std::ranges::equal(row_of(ours, region, y), row_of(theirs, region, y)),
                "other pixels than libjpeg's");
    }
}

// Files of coefficients; and what their encoder makes of any JPEG.
void feed_coefficients(std::string_view text) {
  static const auto codec = data::make_coefficient_codec();
  static data::CoefficientEncoder encoder(kMaxPixels);
  check_codec(*codec, text, false, false);
  const std::span bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  std::vector<uint8_t> made;
  accepted({ExitCode::kBadData}, [&] { encoder.encode(bytes, "x", made); });
  make_samples(text);
}

void feed_png(std::string_view bytes) {
  static const auto codec = data::make_png_codec();
  check_codec(*codec, bytes, true);
  make_samples(bytes);
}

// The tag alone, of a TIFF structure and of a JPEG that holds one; and that it is the one told.
void feed_exif(std::string_view bytes) {
  const std::span file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  const auto sane = [](int orientation) { return orientation >= 1 && orientation <= 8; };
  const int alone = data::exif_orientation(file);
  require(sane(alone) && sane(data::jpeg_facts(file).orientation), "an orientation outside 1 to 8");
  if (bytes.size() > 60'000) return;
  const size_t length = bytes.size() + 8;
  std::string wrapped("\xff\xd8\xff\xe1", 4);
  wrapped += {static_cast<char>(length >> 8), static_cast<char>(length)};
  wrapped += std::string("Exif\0\0", 6) + std::string(bytes) + "\xff\xd9";
  require(data::jpeg_facts({reinterpret_cast<const uint8_t*>(wrapped.data()), wrapped.size()})
                  .orientation == alone,
          "another orientation in a file");
}

// ---- Datasets ----

// The labels, counted; then the images.
void feed_idx(std::string_view bytes) {
  static const TempFolder folder;
  static const MemoryFile labels(folder.path("train-labels-idx1-ubyte"));
  static const MemoryFile images(folder.path("train-images-idx3-ubyte"));
  Pieces pieces{bytes};
  labels.set(pieces.take_counted());
  images.set(pieces.rest);
  const data::DatasetSpec spec{.format = data::Format::kIdx, .path = folder.path()};
  accepted({ExitCode::kBadData}, [&] { use(*open_dataset(spec, data::Split::kTrain)); });
}

// The names of the classes, counted; then the records: of CIFAR-100 where the length is odd.
void feed_cifar(std::string_view bytes) {
  static const TempFolder ten, hundred;
  static const MemoryFile ten_names(ten.path("batches.meta.txt"));
  static const MemoryFile ten_records(ten.path("test_batch.bin"));
  static const MemoryFile hundred_names(hundred.path("fine_label_names.txt"));
  static const MemoryFile hundred_records(hundred.path("test.bin"));
  Pieces pieces{bytes};
  const std::string_view names = pieces.take_counted();
  const bool is_hundred = names.size() % 2 == 1;
  (is_hundred ? hundred_names : ten_names).set(names);
  (is_hundred ? hundred_records : ten_records).set(pieces.rest);
  const data::DatasetSpec spec{.format = data::Format::kCifar,
                               .path = is_hundred ? hundred.path() : ten.path()};
  accepted({ExitCode::kBadData}, [&] { use(*open_dataset(spec, data::Split::kVal)); });
}

// A folder of images whose time of modification is far ahead: no index is written for it.
struct IndexedFolder {
  static constexpr int64_t kSeconds = 4'000'000'000;  // make_seeds.cpp knows it

  IndexedFolder() {
    root.write("a/1.jpg", "1");
    root.write("b/2.jpg", "22");
    for (const std::string& folder : {root.path("a"), root.path("b"), root.path()}) {
      const timespec time{kSeconds, 0};
      const std::array<timespec, 2> times{time, time};
      require(::utimensat(AT_FDCWD, folder.c_str(), times.data(), 0) == 0, errno_text());
    }
    const std::string real = fs::canonical(root.path()).string();
    index = fmt::format("{}/images-{}.index", cache.path(),
                        sha256_hex(real + "\nno links out").substr(0, 16));
  }

  TempFolder root, cache;
  std::string index;
};

// The text of a kept index, without its digest.
void feed_index(std::string_view bytes) {
  static const IndexedFolder folder;
  static const MemoryFile index(folder.index);
  index.set(fmt::format("{}{}\n", bytes, sha256_hex(bytes)));
  const data::DatasetSpec spec{.format = data::Format::kImageFolder,
                               .path = folder.root.path(),
                               .cache_folder = folder.cache.path()};
  // kIo: the index names a file that is not there.
  accepted({ExitCode::kBadData, ExitCode::kIo}, [&] {
    const auto dataset = open_dataset(spec, data::Split::kTrain);
    const std::string inside = folder.root.path() + "/";
    for (uint64_t i = 0; i < std::min<uint64_t>(dataset->size(), 100); ++i) {
      const std::string name = dataset->name(i);
      require(name.starts_with(inside) &&
                  std::count(name.begin() + static_cast<int64_t>(inside.size()), name.end(), '/') ==
                      1 &&
                  name.find("/../") == std::string::npos,
              "an index that leads out of its folder: " + name);
    }
    use(*dataset);
  });
}

// What is read of a dataset of one shard stays in it.
void use_shard(const data::DatasetSpec& spec) {
  for (const data::SampleOrder order : {data::SampleOrder::kByName, data::SampleOrder::kByShard}) {
    data::DatasetSpec ordered = spec;
    ordered.order = order;
    accepted({ExitCode::kBadData}, [&] {
      const auto dataset = open_dataset(ordered, data::Split::kTrain);
      for (uint64_t i = 0; i < std::min<uint64_t>(dataset->size(), 100); ++i)
        require(!dataset->file(i).name.empty(), "an image without a name");
      if (order == data::SampleOrder::kByShard)
        require(dataset->shard_sizes().size() == 1 && dataset->shard_sizes()[0] == dataset->size(),
                "a shard of another size");
      use(*dataset);
    });
  }
}

// A shard without an index.
void feed_tar(std::string_view bytes) {
  static const TempFolder folder;
  static const MemoryFile shard(folder.path("a.tar"));
  shard.set(bytes);
  use_shard({.format = data::Format::kTarShards, .path = folder.path()});
}

// The index beside a shard of 4096 bytes, without its digest.
void feed_tar_index(std::string_view bytes) {
  static const TempFolder folder;
  static const MemoryFile shard(folder.path("a.tar")), index(folder.path("a.tar.index"));
  shard.set(std::string(4096, 'x'));
  index.set(fmt::format("{}{}\n", bytes, sha256_hex(bytes)));
  use_shard({.format = data::Format::kTarShards, .path = folder.path()});
}

// The numbers of kept image statistics, after what they are of.
struct KeptStatistics {
  KeptStatistics() {
    data.write("train-images-idx3-ubyte", std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02"
                                                      "\1\2\3\4\5\6\7\x08",
                                                      24));
    data.write("train-labels-idx1-ubyte", std::string("\0\0\x08\x01\0\0\0\x02\0\1", 10));
    dataset =
        open_dataset({.format = data::Format::kIdx, .path = data.path()}, data::Split::kTrain);
    config.transform = {.resize = 0, .size = 0};
    config.cache_folder = cache.path();
    truth = image_statistics(*dataset, config);
    for (const auto& entry : fs::directory_iterator(cache.path())) path = entry.path().string();
    const std::string text = test::read_file(path);
    header = text.substr(0, text.find("substitute"));
    header = text.substr(0, text.find('\n', header.size()) + 1);
  }

  TempFolder data, cache;
  std::unique_ptr<data::Dataset> dataset;
  data::StatisticsConfig config;
  data::ImageStatistics truth;
  std::string path, header;
};

void feed_statistics(std::string_view bytes) {
  static const KeptStatistics kept;
  const std::string text = kept.header + std::string(bytes);
  test::write_file(kept.path, text + sha256_hex(text) + "\n");
  const data::ImageStatistics found = image_statistics(*kept.dataset, kept.config);
  require(found.samples == kept.truth.samples, "statistics of another number of images");
  for (const double value : found.mean)
    require(value >= 0 && value <= 1, fmt::format("a mean of {}", value));
  for (const double value : found.std)
    require(value > 0 && value <= 1, fmt::format("a deviation of {}", value));
}

// ---- Files of a run ----

void feed_safetensors(std::string_view bytes) {
  static const TempFolder folder;
  static const MemoryFile file(folder.path("file")), copy(folder.path("copy"));
  file.set(bytes);
  trainer::Metadata metadata;
  trainer::TensorList list;
  if (!accepted({ExitCode::kBadData},
                [&] { list = trainer::read_safetensors(file.path(), &metadata); }))
    return;
  // Written and read again it is the same.
  trainer::write_safetensors(copy.path(), list.tensors, metadata);
  const trainer::TensorList again = trainer::read_safetensors(copy.path());
  require(again.tensors.size() == list.tensors.size(), "another number of tensors");
  for (size_t i = 0; i < list.tensors.size(); ++i) {
    const trainer::NamedTensor &a = list.tensors[i], &b = again.tensors[i];
    require(a.name == b.name && a.type == b.type && a.shape == b.shape &&
                std::ranges::equal(a.bytes, b.bytes),
            "another tensor " + printable(a.name));
  }
}

// A manifest without its last line, the checksum; and the same as it is.
void feed_manifest(std::string_view bytes) {
  static const TempFolder folder;
  static const std::string checkpoint = save_checkpoint(folder.path(), TinyCheckpoint().state());
  static const MemoryFile manifest(checkpoint + "/manifest.txtpb");
  const std::string complete = fmt::format("{}{}{}\n", bytes, kManifestTrailer, sha256_hex(bytes));
  for (const std::string_view text : {bytes, std::string_view(complete)}) {
    manifest.set(text);
    accepted({ExitCode::kBadData, ExitCode::kFault}, [&] {
      const trainer::VerifiedCheckpoint verified = trainer::verify_checkpoint(checkpoint);
      require(verified.digest.size() == 64, "no digest");
    });
  }
}

void feed_metrics(std::string_view bytes) {
  static const TempFolder folder;
  const std::string path = folder.path("metrics.jsonl");
  test::write_file(path, bytes);
  const trainer::MetricsWriter first(folder.path(), 100);
  const std::string kept = test::read_file(path);
  require(kept.size() <= bytes.size() && (kept.empty() || kept.back() == '\n'), "a torn line");
  const trainer::MetricsWriter second(folder.path(), 100);
  require(test::read_file(path) == kept, "lines that were dropped at the second start only");
}

// One record without its checksum, and the same bytes as a whole file.
void feed_ledger(std::string_view bytes) {
  accepted({ExitCode::kBadData}, [&] {
    const trainer::LedgerText ledger = trainer::parse_ledger(bytes);
    require(ledger.whole_bytes <= bytes.size(), "more than the file");
    uint64_t end = 0;
    for (const trainer::LedgerPiece& piece : trainer::surviving_path(ledger.records)) {
      require(piece.first >= end && piece.end > piece.first, "a path that goes back");
      end = piece.end;
    }
  });
  trainer::LedgerRecord record;
  if (!accepted({ExitCode::kBadData, ExitCode::kFault},
                [&] { record = trainer::parse_record(bytes); }))
    return;
  const trainer::LedgerText again = trainer::parse_ledger(to_line(record) + "\n");
  require(again.damaged.empty() && again.records.size() == 1,
          "a record that cannot be read again: " +
              (again.damaged.empty() ? "" : printable(again.damaged[0])));
  const trainer::LedgerRecord& same = again.records[0];
  require(same.terms == record.terms && same.first == record.first && same.end == record.end &&
              same.numbers == record.numbers &&
              same.substituted.size() == record.substituted.size() &&
              same.skipped.size() == record.skipped.size() &&
              same.unrecorded.empty() == record.unrecorded.empty(),
          "another record");
}

void feed_lives(std::string_view bytes) {
  const trainer::LivesText text = trainer::parse_lives(bytes);
  require(trainer::idle_lives(text.lives).size() <= text.lives.size(), "more lives than there are");
  const trainer::Goodput parts = trainer::goodput(text.lives);
  double sum = parts.lost + parts.down;
  for (const double seconds : parts.seconds) sum += seconds;
  require(std::isfinite(parts.wall) && parts.wall >= 0, "a wall time that is none");
  require(std::abs(sum - parts.wall) <= 1e-6 * (1 + parts.wall),
          fmt::format("parts of {} s in {} s", sum, parts.wall));
}

// ---- Text ----

void feed_job(std::string_view bytes) {
  trainer::Job job;
  if (!accepted({ExitCode::kBadJob}, [&] { job = trainer::parse_job(bytes, "job", {}, "cpu"); }))
    return;
  const std::string text = to_text(job);
  const trainer::Job again = trainer::parse_job(text, "job", {}, "cpu");
  require(to_text(again) == text, "a job that is another one when it is read again");
  require(identity_digest(again, "d") == identity_digest(job, "d"), "another identity");
  require(trainer::differing_keys(text, to_text(again)).empty(), "it differs from itself");
}

// --set KEY=VALUE, one a line.
void feed_set(std::string_view bytes) {
  std::vector<std::string> sets;
  for (size_t begin = 0; begin <= bytes.size();) {
    const size_t end = std::min(bytes.find('\n', begin), bytes.size());
    sets.emplace_back(bytes.substr(begin, end - begin));
    begin = end + 1;
  }
  accepted({ExitCode::kBadJob}, [&] {
    const std::string text = to_text(trainer::parse_job(
        "model { name: \"resnet50\" } data { path: \"d\" }", "job", sets, "cpu"));
    require(to_text(trainer::parse_job(text, "job", {}, "cpu")) == text, "another job");
  });
}

void feed_graph(std::string_view bytes) {
  ops::Graph graph;
  if (!accepted({ExitCode::kBadJob}, [&] { graph = trainer::parse_graph(bytes, "graph"); })) return;
  const std::string text = trainer::to_text(graph);
  require(trainer::to_text(trainer::parse_graph(text, "graph")) == text, "another graph");
  accepted({ExitCode::kBadJob}, [&] {
    const std::vector<Shape> shapes = infer_shapes(graph, 64);
    int64_t macs = 0;
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      require(shapes[i].elements() > 0, "an empty tensor");
      macs += ops::macs(graph.nodes[i].op, input_shapes(graph, shapes, i, 64));
    }
    require(macs >= 0, "negative work");
    layout_of(graph);
  });
}

// What is taken, as text again, is taken as the same.
void feed_plans(std::string_view bytes) {
  const std::string text(bytes);
  accepted({ExitCode::kBadData}, [&] { Decisions().prescribe(text); });
  accepted({ExitCode::kBadData}, [&] {
    const Choice choice = parse_choice(text);
    require(parse_choice(to_text(choice)) == choice, "another choice");
  });
}

constexpr Parser kParsers[] = {
    {"baseline", &feed_baseline, 8192},
    {"jpeg", &feed_jpeg, 8192},
    {"coefficients", &feed_coefficients, 8192},
    {"png", &feed_png, 8192},
    {"exif", &feed_exif, 512},
    {"idx", &feed_idx, 4096},
    {"cifar", &feed_cifar, 16384},
    {"index", &feed_index, 2048},
    {"tar", &feed_tar, 8192},
    {"tar_index", &feed_tar_index, 2048},
    {"statistics", &feed_statistics, 512},
    {"safetensors", &feed_safetensors, 4096},
    {"manifest", &feed_manifest, 4096},
    {"metrics", &feed_metrics, 4096},
    {"ledger", &feed_ledger, 2048},
    {"lives", &feed_lives, 2048},
    {"job", &feed_job, 2048},
    {"set", &feed_set, 256},
    {"graph", &feed_graph, 4096},
    {"plans", &feed_plans, 512},
};

}  // namespace

std::span<const Parser> parsers() {
  // What the parsers log is not looked at.
  log::set_sink([](log::Level, const std::string&) {});
  return kParsers;
}

const Parser* find_parser(std::string_view name) {
  for (const Parser& parser : parsers())
    if (parser.name == name) return &parser;
  return nullptr;
}

}  // namespace convoy::fuzz
