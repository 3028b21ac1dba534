// Random images made on the fly, for benchmarks: no files, no folder.
#pragma once

#include <memory>

#include "data_loader/dataset.h"

namespace convoy::data {

// Sample i is uniform noise that depends on i alone; its label is i % classes.
std::unique_ptr<Dataset> open_synthetic(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
