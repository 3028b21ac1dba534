// convoy pack: a dataset of images into tar shards.
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/pack_shards.h"
#include "trainer/engine/setup.h"
#include "trainer/job/limits.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

double mean(uint64_t bytes, uint64_t images) {
  return static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(images, 1));
}

ordered_json to_json(const std::vector<PackedSplit>& splits, const std::string& target,
                     double seconds) {
  ordered_json out = {{"target", target}, {"seconds", seconds}, {"splits", ordered_json::array()}};
  for (const PackedSplit& s : splits) {
    ordered_json split = {{"name", s.name},
                          {"images", s.images},
                          {"shards", s.shards},
                          {"kept_shards", s.kept_shards},
                          {"coefficients", s.coefficients},
                          {"bytes", s.bytes},
                          {"mean_image_bytes", mean(s.image_bytes, s.images)},
                          {"mean_source_bytes", mean(s.source_bytes, s.images + s.left_out.size())},
                          {"source_digest", s.digest},
                          {"left_out", ordered_json::array()}};
    for (const std::string& line : s.left_out) split["left_out"].push_back(line);
    out["splits"].push_back(split);
  }
  return out;
}

void print(const std::vector<PackedSplit>& splits, const PackConfig& config, double seconds) {
  for (const PackedSplit& s : splits) {
    for (const std::string& line : s.left_out) std::cout << "left out: " << line << "\n";
    std::cout << fmt::format("{}: {} images in {} shard(s) of {:.0f} MB, {:.2f} GB", s.name,
                             s.images, s.shards, mean(s.bytes, s.shards) / 1e6,
                             static_cast<double>(s.bytes) / 1e9);
    if (s.kept_shards > 0) std::cout << fmt::format(" ({} were whole before)", s.kept_shards);
    if (config.shrink.short_side > 0 || config.coefficients)
      std::cout << fmt::format("; {:.1f} kB an image, {:.1f} kB before",
                               mean(s.image_bytes, s.images) / 1e3,
                               mean(s.source_bytes, s.images + s.left_out.size()) / 1e3);
    if (config.coefficients && s.coefficients < s.images)
      std::cout << fmt::format("; {} are no plain JPEG and stay as they are",
                               s.images - s.coefficients);
    if (!s.left_out.empty()) std::cout << fmt::format("; {} left out", s.left_out.size());
    std::cout << "\n";
  }
  std::cout << fmt::format("{}: {:.1f} s\n", printable(config.target), seconds);
}

void check(const po::variables_map& values, int megabytes, int threads, int short_side, int quality,
           const std::string& chroma) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) fail(ExitCode::kUsage, "{}", what);
  };
  require(megabytes >= 1 && megabytes <= 1 << 20,
          fmt::format("--shard-megabytes {}: must be from 1 to {}", megabytes, 1 << 20));
  require(threads >= 0 && threads <= 4096, fmt::format("--threads {}: must be 0 to 4096", threads));
  require(values.count("short-side") == 0 || (short_side >= 1 && short_side <= 8192),
          fmt::format("--short-side {}: must be from 1 to 8192", short_side));
  require(quality >= 1 && quality <= 100,
          fmt::format("--quality {}: must be from 1 to 100", quality));
  require(chroma == "source" || chroma == "420",
          fmt::format("--chroma {}: must be source or 420", printable(chroma)));
  require(short_side > 0 || (values["quality"].defaulted() && values["chroma"].defaulted()),
          "--quality and --chroma are for --short-side: without it no image is encoded anew");
}

}  // namespace

int pack_command(const Arguments& arguments) {
  PackConfig config;
  int megabytes = 256, threads = 0, short_side = 0, quality = 90;
  std::string chroma = "source";
  bool json = false, no_check = false, skip_bad = false;
  po::options_description options("Options");
  options.add_options()("source", po::value(&config.source)->required(), "an image folder")(
      "target", po::value(&config.target)->required(), "folder of the shards; new or empty")(
      "shard-megabytes", po::value(&megabytes)->default_value(megabytes),
      "MiB of a shard, about: all shards of a split hold equally many images")(
      "threads", po::value(&threads)->default_value(threads),
      "shards that are made at once; 0: all CPUs")(
      "short-side", po::value(&short_side),
      "make images smaller whose shorter side is longer than so many pixels (usual: 256 to 500)")(
      "quality", po::value(&quality)->default_value(quality), "of the JPEGs then, 1 to 100")(
      "chroma", po::value(&chroma)->default_value(chroma),
      "of the JPEGs then: source (subsampled where the image's was) or 420 (always: smaller, "
      "faster "
      "to decode)")(
      "coefficients", po::bool_switch(&config.coefficients),
      "store what JPEGs hold in another code: the same pixels, decoded in a third to a "
      "half of the time, about 1.2 times the bytes; only Convoy reads it")(
      "skip-bad", po::bool_switch(&skip_bad),
      "leave out what cannot be decoded and list it, instead of failing")(
      "no-check", po::bool_switch(&no_check),
      "do not decode images that stay as they are: damaged ones are then found in training")(
      "follow-links", po::bool_switch(&config.follow_links),
      "take images that links to outside the folder lead to")(
      "max-pixels", po::value(&config.shrink.max_pixels)->default_value(config.shrink.max_pixels),
      "images with more are bad")("json", po::bool_switch(&json),
                                  "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "pack SOURCE TARGET [OPTIONS]",
      "Packs an image folder (train/ and val/, or one of classes) into tar shards that tar and\n"
      "WebDataset read as well: CLASS/NAME.jpg and CLASS/NAME.cls, the class names in classes.txt. "
      "A\n"
      "shard's index beside it has a checksum of each image. Images stay as they are, byte for "
      "byte,\n"
      "and training on the shards then sees the same batches as on the folder; with --short-side\n"
      "larger ones are encoded anew (antialiased, optimised Huffman tables; a PNG becomes a JPEG). "
      "The\n"
      "shards do not depend on --threads. Interrupted, the same command goes on.\n",
      "source target");
  if (!values) return 0;
  check(*values, megabytes, threads, short_side, quality, chroma);
  config.cache_folder = cache_folder();
  config.shard_bytes = static_cast<uint64_t>(megabytes) << 20;
  config.threads = threads > 0 ? threads : usable_cpus();
  config.shrink = {.short_side = short_side,
                   .quality = quality,
                   .half_chroma = chroma == "420",
                   .max_pixels = config.shrink.max_pixels};
  config.check = !no_check;
  config.skip_bad = skip_bad;
  const Clock::time_point start = Clock::now();
  std::vector<PackedSplit> splits;
  {
    std::optional<Progress> progress;
    if (::isatty(2) == 1) progress.emplace();
    config.progress = [&](uint64_t done, uint64_t of) {
      if (progress) progress->update(to_line("pack", done, of, seconds_since(start), ""));
    };
    splits = pack(config);
  }
  if (json)
    std::cout << to_json(splits, config.target, seconds_since(start))
                     .dump(2, ' ', false, ordered_json::error_handler_t::replace)
              << std::endl;
  else
    print(splits, config, seconds_since(start));
  return 0;
}

}  // namespace convoy::trainer
