#include "trainer/commands/pack_shards.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>

#include "data_loader/coefficient_file.h"
#include "data_loader/files.h"
#include "data_loader/image.h"
#include "data_loader/listing.h"
#include "data_loader/sampler.h"
#include "data_loader/shard_index.h"
#include "data_loader/tar.h"
#include "data_loader/tar_shards.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;

// The key of the samples' places. Part of what shards are: never change it.
constexpr uint64_t kPlacesSeed = 0x7061636B;

constexpr const char* kOtherTarget = "choose another TARGET";
constexpr size_t kMaxPlanBytes = size_t{1} << 20;

constexpr std::string_view kJpegSuffix = ".jpg";

bool is_made_anew(const PackConfig& config) {
  return config.shrink.short_side > 0 || config.coefficients;
}

struct SplitPlan {
  std::string name;
  std::string folder;  // of the shards
  std::unique_ptr<data::Dataset> source;
  uint64_t per_shard = 1, shards = 1;
  uint64_t bytes = 0;  // of all shards; an estimate where images are encoded anew
};

// Blocks of a sample in a shard: two headers, the label, the image.
uint64_t blocks_of(uint64_t image_bytes) {
  return 3 * data::kTarBlock + image_bytes + data::tar_padding(image_bytes);
}

// An image's name in a shard. Files of one stem in one class are neighbours, but for others whose
// names go on where theirs has its dot.
// `suffix`: of what is stored in its place; empty: the file itself.
std::string member_of(const data::Dataset& source, uint64_t i, std::string_view suffix) {
  const std::string name = source.file(i).name;
  const int32_t label = source.label(i);
  const std::string stem = name.substr(0, name.rfind('.') + 1);
  const auto is_near = [&](uint64_t other) {
    return source.label(other) == label && source.file(other).name.starts_with(stem);
  };
  const auto shares = [&](uint64_t other) {
    const std::string there = source.file(other).name;
    return there.substr(0, there.rfind('.') + 1) == stem;
  };
  const std::string& class_name = source.classes()[static_cast<size_t>(label)];
  bool is_shared = false;
  for (uint64_t k = i; !is_shared && k > 0 && is_near(k - 1); --k) is_shared = shares(k - 1);
  for (uint64_t k = i + 1; !is_shared && k < source.size() && is_near(k); ++k)
    is_shared = shares(k);
  // What was made of a PNG is no PNG.
  const char kind = name[stem.size()];
  const bool was_png = kind == 'p' || kind == 'P';
  if (suffix.empty() || (suffix == kJpegSuffix && !was_png))
    return data::member_name(class_name, name, is_shared);
  return fmt::format(
      "{}{}", data::key_of(data::member_name(class_name, name, is_shared || was_png)), suffix);
}

// What one thread needs to make an image ready for its shard.
struct Maker {
  explicit Maker(const PackConfig& config)
      : shrinker(config.shrink), encoder(config.shrink.max_pixels) {}

  data::Sample sample;
  data::Shrinker shrinker;
  data::CoefficientEncoder encoder;
  std::vector<uint8_t> smaller, coefficients;
};

struct Made {
  std::span<const uint8_t> bytes;  // the maker's, until the next
  std::string_view suffix;         // empty: the file as it is
};

// What is to be stored for sample i.
Made make_image(const PackConfig& config, const data::Dataset& source, uint64_t i, Maker& maker) {
  source.read(i, maker.sample);
  Made made{maker.sample.bytes, ""};
  if ((config.shrink.short_side > 0 || config.check) &&
      maker.shrinker.shrink(maker.sample.bytes, source.name(i), maker.smaller))
    made = {maker.smaller, kJpegSuffix};
  if (config.coefficients && maker.encoder.encode(made.bytes, source.name(i), maker.coefficients))
    made = {maker.coefficients, data::kCoefficientSuffix};
  return made;
}

uint64_t sample_at(const SplitPlan& split, uint64_t slot) {
  return data::permute(kPlacesSeed, 0, split.source->size(), slot);
}

// Bytes of all samples in shards: known, or estimated from the first ones that are made smaller.
uint64_t estimate_bytes(const PackConfig& config, const SplitPlan& split) {
  const uint64_t n = split.source->size();
  uint64_t sum = 0;
  if (!is_made_anew(config)) {
    for (uint64_t i = 0; i < n; ++i) sum += blocks_of(split.source->file(i).bytes);
    return sum;
  }
  constexpr uint64_t kTried = 64;
  Maker maker(config);
  uint64_t tried = 0;
  for (uint64_t slot = 0; slot < n && tried < kTried; ++slot) {
    try {
      sum +=
          blocks_of(make_image(config, *split.source, sample_at(split, slot), maker).bytes.size());
      ++tried;
    } catch (const data::BadContent&) {
      continue;  // whoever packs it says so
    }
  }
  return tried == 0 ? n : static_cast<uint64_t>(static_cast<unsigned __int128>(sum) * n / tried);
}

SplitPlan plan_split(const PackConfig& config, data::Split which, bool flat) {
  SplitPlan split;
  split.name = flat ? "images" : name_of(which);
  split.folder = flat ? config.target : config.target + "/" + split.name;
  split.source = data::open_dataset({.path = config.source,
                                     .cache_folder = config.cache_folder,
                                     .follow_links = config.follow_links,
                                     .synthetic_shape = {}},
                                    which);
  if (split.source->raw_shape())
    fail(ExitCode::kUsage,
         "{}: raw pixels of one size, which are read whole into memory anyway; pack is for encoded "
         "images (JPEG, PNG)",
         printable(config.source));
  for (const std::string& name : split.source->classes())
    if (name.find_first_of("\n\r") != std::string::npos)
      fail(ExitCode::kBadData, "{}: the class \"{}\" has a line break in its name: rename it",
           printable(config.source), printable(name));
  const uint64_t n = split.source->size();
  split.bytes = estimate_bytes(config, split);
  const uint64_t wanted = std::clamp<uint64_t>(split.bytes / config.shard_bytes + 1, 1, n);
  split.per_shard = (n + wanted - 1) / wanted;
  split.shards = (n + split.per_shard - 1) / split.per_shard;
  return split;
}

// All that decides what whole shards hold. Not skip_bad: a shard without a bad image is the same.
std::string text_of(const PackConfig& config, const std::vector<SplitPlan>& splits) {
  std::string text =
      fmt::format("convoy pack 1\nshort_side {} quality {} half_chroma {}\n",
                  config.shrink.short_side, config.shrink.quality, config.shrink.half_chroma);
  if (config.coefficients) text += "coefficients 1\n";
  text += fmt::format("max_pixels {} check {}\n", config.shrink.max_pixels, config.check);
  for (const SplitPlan& split : splits)
    text += fmt::format("{}: {} images, {} per shard, dataset {}\n", split.name,
                        split.source->size(), split.per_shard, split.source->digest());
  return text;
}

// The target is ours: empty, or this work unfinished.
void take_target(const PackConfig& config, const std::string& plan) {
  const std::string& target = config.target;
  const fs::path source = fs::weakly_canonical(config.source);
  const fs::path inside = fs::weakly_canonical(target).lexically_relative(source);
  if (!inside.empty() && *inside.begin() != "..")
    fail(ExitCode::kUsage,
         "{}: lies in {}, which would then no longer be a dataset: choose another "
         "TARGET",
         printable(target), printable(config.source));
  make_folder(target, kOtherTarget);
  const std::string path = target + "/" + data::kUnfinishedPack;
  if (data::is_regular_file(path)) {
    if (read_text(path, kMaxPlanBytes) == plan) return;
    fail(
        ExitCode::kUsage,
        "{}: holds an unfinished pack of another source or with other options: finish that one, or "
        "choose or empty another TARGET",
        printable(target));
  }
  sys::unlink(path + ".tmp");  // killed before it had its plan, a pack has left nothing else
  if (!fs::is_empty(target))
    fail(ExitCode::kUsage, "{}: is not empty: choose another TARGET", printable(target));
  rewrite_file(path, plan);
  sync_folder(target);
}

// Bytes of files that are there already.
uint64_t bytes_in(const std::string& folder) {
  uint64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

// Hours of work must not end in a full disk that could have been foreseen.
void expect_space(const PackConfig& config, const std::vector<SplitPlan>& splits) {
  uint64_t needed = 0;
  for (const SplitPlan& split : splits) needed += split.bytes;
  const uint64_t there = bytes_in(config.target) + fs::space(config.target).available;
  if (there >= needed) return;
  const std::string words = fmt::format(
      "{}: the shards take {}{:.2f} GB, there is room for {:.2f} GB: free some space, or choose "
      "another TARGET",
      printable(config.target), is_made_anew(config) ? "about " : "",
      static_cast<double>(needed) / 1e9, static_cast<double>(there) / 1e9);
  if (is_made_anew(config))
    log::warning("{}", words);
  else
    fail(ExitCode::kIo, "{}", words);
}

class SplitPacker {
 public:
  SplitPacker(const PackConfig& config, const SplitPlan& split, std::atomic<uint64_t>& done,
              uint64_t of)
      : config_(config), split_(split), done_(done), of_(of) {}

  PackedSplit run() {
    make_folder(split_.folder, kOtherTarget);
    std::vector<Shard> shards(split_.shards);
    data::for_each_in_parallel(shards.size(), static_cast<size_t>(config_.threads),
                               [&](size_t k) { shards[k] = shard(k); });
    PackedSplit packed{.name = split_.name, .shards = split_.shards};
    packed.digest = split_.source->digest();
    for (Shard& s : shards) {
      packed.images += s.index.size();
      packed.kept_shards += s.is_kept ? 1 : 0;
      packed.bytes += s.index.shard_bytes;
      for (size_t i = 0; i < s.index.size(); ++i) {
        packed.image_bytes += s.index.image(i).bytes;
        packed.coefficients += s.index.image(i).name.ends_with(data::kCoefficientSuffix) ? 1 : 0;
      }
      for (std::string& line : s.index.left_out) packed.left_out.push_back(std::move(line));
    }
    for (uint64_t i = 0; i < split_.source->size(); ++i)
      packed.source_bytes += split_.source->file(i).bytes;
    if (packed.images == 0)
      fail(ExitCode::kBadData, "{}: no image of {} is good: {}", printable(config_.source),
           split_.name, packed.left_out.front());
    return packed;
  }

 private:
  struct Shard {
    data::ShardIndex index;
    bool is_kept = false;
  };

  Shard shard(uint64_t k) {
    const std::string path = fmt::format("{}/{}-{:06}.tar", split_.folder, split_.name, k);
    const uint64_t begin = k * split_.per_shard;
    const uint64_t end = std::min(begin + split_.per_shard, split_.source->size());
    if (std::optional<data::ShardIndex> whole = whole_shard(path)) {
      advance(end - begin);
      return {std::move(*whole), true};
    }
    Shard made{write(path, begin, end), false};
    return made;
  }

  // The index of a shard that is there and has its checksum.
  std::optional<data::ShardIndex> whole_shard(const std::string& path) const {
    const std::string index_path = data::shard_index_path(path);
    if (!data::is_regular_file(path) || !data::is_regular_file(index_path)) return std::nullopt;
    const std::string text = data::read_cache(index_path);
    if (text.empty()) return std::nullopt;
    data::ShardIndex index = data::ShardIndex::parse(text, index_path);
    File file(path, O_RDONLY);
    Sha256 sha;
    std::vector<char> piece(size_t{1} << 20);
    for (size_t got = piece.size(); got == piece.size();) {
      got = file.read(piece.data(), piece.size());
      sha.update(piece.data(), got);
    }
    if (!config_.skip_bad && !index.left_out.empty()) return std::nullopt;  // fails when made anew
    if (file.size() == index.shard_bytes && sha.hex() == index.shard_sha256) return index;
    log::warning("{}: not whole: it is packed again", printable(path));
    return std::nullopt;
  }

  // Under other names until both are on the disk; the shard's own name comes last.
  data::ShardIndex write(const std::string& path, uint64_t begin, uint64_t end) {
    const std::string index_path = data::shard_index_path(path);
    data::ShardIndex index = write_shard(path + ".tmp", begin, end);
    std::string text = index.to_text();
    text += sha256_hex(text) + "\n";
    rewrite_file(index_path, text);
    rename_path(path + ".tmp", path);
    sync_folder(split_.folder);
    return index;
  }

  data::ShardIndex write_shard(const std::string& path, uint64_t begin, uint64_t end) {
    File file(path, O_WRONLY | O_CREAT | O_TRUNC);
    Sha256 sha;
    data::ShardIndex index;
    Maker maker(config_);
    std::string piece;
    const auto put = [&] {
      file.write(piece.data(), piece.size());
      sha.update(piece);
      index.shard_bytes += piece.size();
    };
    for (uint64_t slot = begin; slot < end; ++slot) {
      announce(slot + kAhead, end);
      if (add_sample(sample_at(split_, slot), maker, index, piece)) put();
      advance(1);
    }
    piece.assign(data::kTarEnd, '\0');
    put();
    file.sync();
    file.close();
    index.shard_sha256 = sha.hex();
    return index;
  }

  // `piece`: the sample's two members, to stand at the end of the shard. False where it is bad.
  bool add_sample(uint64_t i, Maker& maker, data::ShardIndex& index, std::string& piece) const {
    const data::Dataset& source = *split_.source;
    Made made;
    try {
      made = make_image(config_, source, i, maker);
    } catch (const data::BadContent& bad) {
      if (!config_.skip_bad)
        fail(ExitCode::kBadData, "{} (convoy pack --skip-bad leaves such images out)", bad.what());
      index.left_out.emplace_back(bad.what());
      return false;
    }
    const std::span<const uint8_t> bytes = made.bytes;
    const std::string name = member_of(source, i, made.suffix);
    const std::string label = fmt::format("{}", source.label(i));
    piece = data::tar_header(name, bytes.size());
    index.add({.offset = index.shard_bytes + piece.size(),
               .bytes = bytes.size(),
               .label = static_cast<uint64_t>(source.label(i)),
               .crc32 = data::crc32_of(bytes.data(), bytes.size()),
               .name = name});
    piece.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    piece.append(data::tar_padding(bytes.size()), '\0');
    piece += data::tar_header(fmt::format("{}.cls", data::key_of(name)), label.size());
    piece += label;
    piece.append(data::tar_padding(label.size()), '\0');
    return true;
  }

  // Asks for what comes soon; whoever reads it says what is wrong with it.
  void announce(uint64_t slot, uint64_t end) const {
    if (slot >= end) return;
    try {
      split_.source->will_read(sample_at(split_, slot));
    } catch (const Error&) {
      return;
    }
  }

  void advance(uint64_t images) { config_.progress(done_ += images, of_); }

  static constexpr uint64_t kAhead = 16;

  const PackConfig& config_;
  const SplitPlan& split_;
  std::atomic<uint64_t>& done_;
  const uint64_t of_;
};

void write_classes(const PackConfig& config, const std::vector<std::string>& classes) {
  std::string text;
  for (const std::string& name : classes) text += name + "\n";
  rewrite_file(config.target + "/classes.txt", text);
}

}  // namespace

std::vector<PackedSplit> pack(const PackConfig& config) {
  const bool has_train = data::is_directory(config.source + "/train");
  const bool has_val = data::is_directory(config.source + "/val");
  std::vector<SplitPlan> splits;
  const bool flat = !has_train && !has_val;
  if (has_train || flat) splits.push_back(plan_split(config, data::Split::kTrain, flat));
  if (has_val) splits.push_back(plan_split(config, data::Split::kVal, flat));
  take_target(config, text_of(config, splits));
  expect_space(config, splits);

  uint64_t images = 0;
  for (const SplitPlan& split : splits) images += split.source->size();
  std::atomic<uint64_t> done = 0;
  std::vector<PackedSplit> packed;
  for (const SplitPlan& split : splits)
    packed.push_back(SplitPacker(config, split, done, images).run());
  write_classes(config, splits.front().source->classes());
  sync_folder(config.target);
  // Last of all: the folder is a dataset from here on. Should a crash bring the file back, the same
  // command finds everything whole and removes it again.
  fs::remove(config.target + "/" + data::kUnfinishedPack);
  return packed;
}

}  // namespace convoy::trainer
