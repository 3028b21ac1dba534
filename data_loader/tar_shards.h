// Images in tar shards: train/*.tar and val/*.tar, or *.tar alone, which then serve both splits; as
// `convoy pack` writes them, or WebDataset's (data_loader/shard_index.h). The classes' names are
// the lines of classes.txt in the shards' folder or above it; without one they are numbers.
//
// Shards are sorted bytewise. In the order kByName the samples are those of the folder the shards
// were made of: sorted by label and name, with the folder's digest. In the order kByShard they are
// numbered as they lie in the shards, and the digest is of that order, too.
#pragma once

#include <memory>
#include <string>

#include "data_loader/dataset.h"

namespace convoy::data {

bool is_tar_shards(const std::string& path);

// An index beside a shard is used as it is (the shard must have its length; read() checks each
// sample's checksum). Indexes of other shards are kept in spec.cache_folder while no shard's length
// or time of modification changes. Throws Error, see open_dataset(): kBadData names shard and
// place.
std::unique_ptr<Dataset> open_tar_shards(const DatasetSpec& spec, Split split);

// A file in the folder where `convoy pack` is not done yet: such a folder is refused.
constexpr const char* kUnfinishedPack = "pack.unfinished";

// The names of a folder's shards, sorted.
std::vector<std::string> list_shards(const std::string& folder);

}  // namespace convoy::data
