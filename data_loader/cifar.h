// CIFAR-10 and CIFAR-100, binary version (Krizhevsky 2009,
// https://www.cs.toronto.edu/~kriz/cifar.html).
#pragma once

#include <memory>
#include <string>

#include "data_loader/dataset.h"

namespace convoy::data {

// In `path` itself or in cifar-10-batches-bin/ or cifar-100-binary/ below it.
bool is_cifar(const std::string& path);

// 32x32x3, all in memory. CIFAR-100 has its fine labels. Class names come from batches.meta.txt or
// fine_label_names.txt; without these they are numbers.
std::unique_ptr<Dataset> open_cifar(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
