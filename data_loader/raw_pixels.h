// The common part of IDX and CIFAR: all samples in memory, of one size.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

struct RawPixels {
  struct File {
    std::string path;
    uint64_t first_sample = 0;
  };
  std::vector<File> files;  // ascending; for messages
  ImageShape shape;
  std::vector<uint8_t> pixels;  // [samples, height, width, channels]
  std::vector<int32_t> labels;  // [samples]
  std::vector<std::string> classes;
  std::string digest;
};

// Throws Error (kBadData) where a label is not the index of a class.
std::unique_ptr<Dataset> make_raw_dataset(RawPixels data);

// "0" ... "n - 1", for formats without names.
std::vector<std::string> numbered_classes(int n);

}  // namespace convoy::data
