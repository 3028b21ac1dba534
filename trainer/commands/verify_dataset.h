// convoy verify of a folder that is a dataset: which kind it is, and the report on its images.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data_loader/dataset.h"

namespace convoy::trainer {

struct VerifyDatasetOptions {
  std::string path;
  data::Recognised format;
  int threads = 1;
  uint64_t max_pixels = 178956970;
  bool follow_links = false;
  bool all = false;  // every finding, not the first few of each kind
  bool json = false;
};

// Prints the report; returns the exit code: bad data (65) where something is bad, else 0. Throws
// Error where the dataset cannot be opened at all.
int verify_dataset(const VerifyDatasetOptions& options);

}  // namespace convoy::trainer
