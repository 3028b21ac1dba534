// Some of a dataset's classes, and some images of each: a dataset in front of another.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

struct SubsetSpec {
  // Labels of the whole dataset, each once; here they are counted anew in this order. Empty: all.
  std::vector<uint32_t> classes;
  // Of each class those images whose draw by (seed, class, place in the class) is least, so fewer
  // are always among more; 0: all.
  uint64_t images_per_class = 0;
  uint64_t seed = 0;
};

// Samples keep their order and names; the digest is of the whole dataset's and of the samples
// chosen. Throws Error: kBadJob for a class that the dataset does not have, kBadData for one with
// fewer images than wanted or where none is left.
std::unique_ptr<Dataset> make_subset(std::unique_ptr<Dataset> whole, const SubsetSpec& spec);

}  // namespace convoy::data
