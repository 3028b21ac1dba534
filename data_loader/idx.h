// MNIST's IDX files, gzipped or not (http://yann.lecun.com/exdb/mnist): train-images-idx3-ubyte,
// train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each with or without
// .gz.
#pragma once

#include <memory>
#include <string>

#include "data_loader/dataset.h"

namespace convoy::data {

bool is_idx(const std::string& path);

// Grey images, all in memory. The number of classes, where spec.classes does not say it, is the
// training set's largest label + 1. Headers are checked against the files before memory is taken.
std::unique_ptr<Dataset> open_idx(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
