// Batches for evaluation that looks at each image once or several times: the centre, ten crops, or
// the whole image at some scale. Which images stand in which batch is the caller's: what a batch
// holds depends on nothing else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/loader.h"
#include "data_loader/transforms.h"
#include "ops/core/error.h"

namespace convoy::data {

struct Looks {
  enum class Kind { kCentre, kTenCrops, kWhole };
  Kind kind = Kind::kCentre;
  EvalTransform transform;  // kCentre and kTenCrops
  int scale = 0;            // kWhole: pixels of the shorter side

  int count() const { return kind == Kind::kTenCrops ? kCropLooks : 1; }
};

struct LookLoaderConfig {
  Looks looks;
  ImageShape shape;               // of one look; kWhole: dense_shape() of all the images
  int batch = 1;                  // images of a batch, which has batch * looks.count() rows
  std::vector<uint64_t> images;   // batch k holds [k * batch, (k + 1) * batch) of them
  std::vector<uint64_t> batches;  // in the order in which they will be acquired
  int lanes = 1;                  // batches held at once
  int threads = 1;                // 0: acquire() makes the batch in the caller's thread
  uint64_t max_pixels = 178956970;
  bool apply_exif_orientation = false;
  // Classes of the network by the dataset's labels; empty: the labels themselves.
  std::vector<int32_t> class_of_label;
  // Called by a loader's thread with an image that cannot be read or decoded, before its batch can
  // be acquired; the image then stands there as padding does. Empty: the error is acquire()'s.
  std::function<void(uint64_t image, const Error& error)> bad;
};

// The dataset must outlive it.
class LookLoader {
 public:
  LookLoader(const Dataset& dataset, const LookLoaderConfig& config);
  ~LookLoader();

  // ceil(images / batch).
  static uint64_t batches(uint64_t images, int batch);

  // The n-th of config.batches; each once. Of the batch: step is which batch it is; pixels
  // [batch, looks, height, width, channels] while `shape` is that of all looks of one image on top
  // of each other; labels and sample_ids one for each image, padding has label -1. Otherwise as in
  // EvalLoader.
  const Batch& acquire(uint64_t n);
  void release(const Batch& batch);
  void stop(std::exception_ptr error);
  std::optional<InProgress> in_progress() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Height and width of images as they are decoded (and, where that is asked for, turned upright), by
// reading their files' headers on so many threads. Throws the error of the first bad one.
std::vector<ImageShape> image_shapes(const Dataset& dataset, std::span<const uint64_t> images,
                                     int threads, uint64_t max_pixels, bool apply_exif_orientation);

}  // namespace convoy::data
