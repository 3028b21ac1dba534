// Batches for evaluation, which looks at each image once or several times: the centre, ten crops,
// or the whole image at some scale. Which images stand in which slice is the caller's: what a slice
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

struct EvalLoaderConfig {
  Looks looks;
  // Of one look; empty: as the transform gives it (output_shape()). kWhole: dense_shape() of all
  // the images.
  ImageShape shape = {};
  int batch = 100;  // E: images of a slice, which has E * looks.count() rows
  // Slice k holds [k * E, (k + 1) * E) of them; empty: all of the dataset, in its order.
  std::vector<uint64_t> images = {};
  std::vector<uint64_t> slices = {};  // in the order in which they will be acquired
  int lanes = 1;                      // batches held at once
  int threads = 1;                    // 0: acquire() makes the batch in the caller's thread
  int read_ahead = 64;                // as LoaderConfig::read_ahead
  uint64_t max_pixels = 178956970;
  bool apply_exif_orientation = false;
  bool profile = false;  // as LoaderConfig's
  PinMemory pin = {};
  // Classes of the network by the dataset's labels; empty: the labels themselves.
  std::vector<int32_t> class_of_label = {};
  // Called by a loader's thread with an image that cannot be read or decoded, before its slice can
  // be acquired; the image then stands there as padding does. Empty: the error is acquire()'s: an
  // accuracy is over all images or none.
  std::function<void(uint64_t image, const Error& error)> bad = {};
};

class EvalLoader {
 public:
  // The dataset must outlive it. Throws Error: as output_shape(), where no shape is given.
  EvalLoader(const Dataset& dataset, EvalLoaderConfig config);
  ~EvalLoader();

  // ceil(images / batch).
  static uint64_t slices(uint64_t images, int batch);

  // The n-th of config.slices; each once. Otherwise as in Loader; lanes may take any n, ascending.
  // Of the batch: step is the slice; pixels [E, looks, height, width, channels] while `shape` is
  // that of all looks of one image on top of each other; labels and sample_ids one for each image.
  // The last slice is padded with label -1; sample_ids are there numbers behind the dataset's last,
  // or kNoSubstitute where images were listed.
  const Batch& acquire(uint64_t n);
  void release(const Batch& batch);
  void stop(std::exception_ptr error);

  // As in Loader.
  LoaderStats stats() const;
  int slots() const;
  uint64_t ring_bytes() const;
  static uint64_t ring_bytes(const Dataset& dataset, const EvalLoaderConfig& config);
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
