// From a dataset of encoded images to tar shards of them: NAME-000000.tar, each with its index
// beside it, and classes.txt (data_loader/tar_shards.h reads them).
//
// Where an image goes is a function of the dataset alone: a keyed permutation of its samples is cut
// into shards of equally many, so that shards are mixtures of all classes, as windows of shards
// need them. What the shards hold does not depend on threads, nor on how often packing was
// interrupted.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/shrink.h"

namespace convoy::trainer {

struct PackConfig {
  std::string source, target;
  std::string cache_folder;                    // for the source's index
  uint64_t shard_bytes = uint64_t{256} << 20;  // about; a shard holds at least one image
  int threads = 1;
  data::ShrinkSettings shrink;  // short_side 0: bytes stay as they are
  bool coefficients = false;    // JPEGs as data_loader/coefficient_file.h has them, where it can
  bool follow_links = false;    // of the source: see DatasetSpec
  bool check = true;            // decode images that stay as they are, to find damaged ones
  bool skip_bad = false;        // leave bad images out and list them, instead of failing
  // Images that are done and how many there are; now and then, from several threads.
  std::function<void(uint64_t done, uint64_t of)> progress = [](uint64_t, uint64_t) {};
};

struct PackedSplit {
  std::string name;  // "train", "val" or, of a folder without them, "images"
  uint64_t images = 0, shards = 0;
  uint64_t kept_shards = 0;           // whole from before
  uint64_t coefficients = 0;          // images that are stored as such
  uint64_t bytes = 0;                 // of the shards
  uint64_t image_bytes = 0;           // of the images in them
  uint64_t source_bytes = 0;          // of the images they were made of
  std::vector<std::string> left_out;  // bad ones: "FILE: what is wrong"
  std::string digest;  // of the dataset, before: equal to the shards' where bytes stayed
};

// Writes to `target`, made where it is missing; it is empty or holds this very work unfinished:
// then shards that are whole are kept. Throws Error: kUsage where the target is something else or
// the source cannot be packed, kBadData for a bad image (unless skip_bad), kIo, also where the
// shards would not fit on the disk.
std::vector<PackedSplit> pack(const PackConfig& config);

}  // namespace convoy::trainer
