// Mean and standard deviation of a training set, per channel and per pixel.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/loader.h"
#include "data_loader/transforms.h"

namespace convoy::data {

// Units of [0, 1]: a byte divided by 255.
struct ImageStatistics {
  ImageShape shape;
  uint64_t samples = 0;
  std::vector<double> mean,
      std;  // [channels]: (x - mean) / std; std of a constant channel is 1/255
  std::vector<double> mean_image;  // [height, width, channels]
  double mean_image_std = 0;       // of x - mean_image, over everything
};

struct StatisticsConfig {
  // Each image passes the evaluation transform (shorter side resized, centre crop), which knows no
  // randomness.
  EvalTransform transform;
  int threads = 1;
  BadSample bad_sample = BadSample::kFail;  // kSubstitute: bad images are left out, with a warning
  uint64_t max_pixels = 178956970;
  bool apply_exif_orientation = false;
  std::string cache_folder;  // existing folder; empty: nothing is kept
  // Called now and then while it gets on, by any thread.
  std::function<void()> progress = [] {};
};

// Sums are integers, so the result does not depend on the number of threads. Cached as a text file
// by the digest of the dataset and the transform; a damaged one is made anew. Logs its progress.
ImageStatistics image_statistics(const Dataset& dataset, const StatisticsConfig& config);

}  // namespace convoy::data
