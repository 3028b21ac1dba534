// One sample from the dataset to the network's input: read, decode what the crop needs, transform.
#pragma once

#include <atomic>
#include <cstdint>

#include "data_loader/dataset.h"
#include "data_loader/image.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/sample_times.h"
#include "data_loader/transforms.h"
#include "ops/core/clock.h"

namespace convoy::data {

// What a thread needs to make samples; it keeps its memory from one to the next, but that of a
// large one: a single image of 100 Mpixel must not cost every thread its memory for the whole run.
struct SampleScratch {
  // An image's bytes, encoded and as RGB8, from which on memory is given back after it: 5 Mpixel,
  // which take so long to decode that the system's calls for their memory do not matter.
  static constexpr size_t kLargeBytes = size_t{16} << 20;

  Sample sample;
  ImageDecoder decoder;
  Image image, upright;
  ResizeScratch resize;

  bool profile = false;  // whether `times` is kept
  SampleTimes times;
  uint64_t bytes = 0;  // read for samples

  // Gives all memory back.
  void release() {
    sample = {};
    decoder.release();
    image = {};
    upright = {};
    resize = {};
  }

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
    Stopwatch watch(scratch.profile);
    dataset_.read(i, scratch.sample);
    watch.book(scratch.times.read);
    scratch.bytes += scratch.sample.bytes.size();
    const int32_t label = scratch.sample.label;
    const std::string name = dataset_.name(i);
    if (const std::optional<ImageShape> raw = dataset_.raw_shape()) {
      const PixelView pixels{scratch.sample.bytes.data(),
                             {0, 0, raw->width, raw->height},
                             raw->channels,
                             raw->bytes() / static_cast<size_t>(raw->height)};
      const Geometry wanted = geometry(*raw, name);
      watch.skip();
      apply(out, wanted, pixels, scratch.resize);
      watch.book(scratch.times.resize);
    } else {
      ImageShape shape;
      watch.skip();
      ImageCodec& codec = scratch.decoder.open(scratch.sample.bytes, name, max_pixels_, shape);
      watch.book(scratch.times.decode);
      const ReleaseIfLarge memory(scratch, shape);
      const int orientation =
          apply_exif_orientation_ ? jpeg_facts(scratch.sample.bytes).orientation : 1;
      if (orientation != 1) {
        codec.decode({0, 0, shape.width, shape.height}, 1, scratch.image);
        turn_upright(scratch.image, orientation, scratch.upright);
        watch.book(scratch.times.decode);
        const Geometry wanted = geometry(scratch.upright.shape, name);
        watch.skip();
        apply(out, wanted, scratch.upright.view(), scratch.resize);
        watch.book(scratch.times.resize);
        return label;
      }
      Geometry wanted = geometry(shape, name);
      const int denominator = codec.can_shrink() ? shrink_denominator(wanted) : 1;
      if (denominator > 1) wanted = shrink(wanted, denominator);
      watch.skip();
      codec.decode(source_region(wanted), denominator, scratch.image);
      watch.book(scratch.times.decode);
      apply(out, wanted, scratch.image.view(), scratch.resize);
      watch.book(scratch.times.resize);
    }
    return label;
  }

  const Dataset& dataset() const { return dataset_; }
  ImageShape output() const { return output_; }

 private:
  // At the end of its life, however that comes.
  class ReleaseIfLarge {
   public:
    ReleaseIfLarge(SampleScratch& scratch, ImageShape image) : scratch_(scratch), image_(image) {}
    ~ReleaseIfLarge() {
      if (scratch_.sample.bytes.size() + image_.bytes() > SampleScratch::kLargeBytes)
        scratch_.release();
    }
    ReleaseIfLarge(const ReleaseIfLarge&) = delete;
    ReleaseIfLarge& operator=(const ReleaseIfLarge&) = delete;

   private:
    SampleScratch& scratch_;
    const ImageShape image_;
  };

  const Dataset& dataset_;
  ImageShape output_;
  uint64_t max_pixels_;
  bool apply_exif_orientation_;
};

}  // namespace convoy::data
