// One sample from the dataset to the network's input: read, decode what the crop needs, transform.
#pragma once

#include <atomic>
#include <cstdint>

#include "data_loader/dataset.h"
#include "data_loader/image.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/transforms.h"
#include "ops/core/clock.h"

namespace convoy::data {

// What a thread needs to make samples; it keeps its memory from one to the next.
struct SampleScratch {
  Sample sample;
  ImageDecoder decoder;
  Image image, upright;
  ResizeScratch resize;

  // What the thread is at, for others to look at: the sample, and since when it works on it or on
  // others taken with it.
  static constexpr uint64_t kNone = UINT64_MAX;
  std::atomic<uint64_t> now_making = kNone;
  std::atomic<Clock::time_point> since;
};

// Borrows the dataset. Immutable: threads share one and bring their own scratch.
class SampleMaker {
 public:
  SampleMaker(const Dataset& dataset, ImageShape output, uint64_t max_pixels,
              bool apply_exif_orientation = false)
      : dataset_(dataset),
        output_(output),
        max_pixels_(max_pixels),
        apply_exif_orientation_(apply_exif_orientation) {}

  // Writes the pixels of sample i to out [output.bytes()] and returns its label.
  // geometry(image shape, name) -> Geometry. Throws BadContent, or Error for all else.
  template <typename MakeGeometry>
  int32_t make(uint8_t* out, uint64_t i, const MakeGeometry& geometry,
               SampleScratch& scratch) const {
    scratch.now_making.store(i, std::memory_order_relaxed);
    dataset_.read(i, scratch.sample);
    const std::string name = dataset_.name(i);
    if (const std::optional<ImageShape> raw = dataset_.raw_shape()) {
      const PixelView pixels{scratch.sample.bytes.data(),
                             {0, 0, raw->width, raw->height},
                             raw->channels,
                             raw->bytes() / static_cast<size_t>(raw->height)};
      apply(out, geometry(*raw, name), pixels, scratch.resize);
    } else {
      ImageShape shape;
      ImageCodec& codec = scratch.decoder.open(scratch.sample.bytes, name, max_pixels_, shape);
      const int orientation =
          apply_exif_orientation_ ? jpeg_facts(scratch.sample.bytes).orientation : 1;
      if (orientation != 1) {
        codec.decode({0, 0, shape.width, shape.height}, 1, scratch.image);
        turn_upright(scratch.image, orientation, scratch.upright);
        apply(out, geometry(scratch.upright.shape, name), scratch.upright.view(), scratch.resize);
        return scratch.sample.label;
      }
      Geometry wanted = geometry(shape, name);
      const int denominator = codec.can_shrink() ? shrink_denominator(wanted) : 1;
      if (denominator > 1) wanted = shrink(wanted, denominator);
      codec.decode(source_region(wanted), denominator, scratch.image);
      apply(out, wanted, scratch.image.view(), scratch.resize);
    }
    return scratch.sample.label;
  }

  const Dataset& dataset() const { return dataset_; }
  ImageShape output() const { return output_; }

 private:
  const Dataset& dataset_;
  ImageShape output_;
  uint64_t max_pixels_;
  bool apply_exif_orientation_;
};

}  // namespace convoy::data
