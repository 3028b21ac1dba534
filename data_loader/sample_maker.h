// One sample from the dataset to the network's input: read, decode what the crop needs, transform.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/image.h"
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
  std::vector<uint8_t> rgb;          // of one look that becomes grey
  std::vector<Geometry> geometries;  // of the sample's looks

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
    rgb = {};
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
    return make_looks(
        out, i, 1,
        [&](int, ImageShape image, const std::string& name) { return geometry(image, name); },
        scratch);
  }

  // Several looks at sample i, decoded once: `count` times output.bytes() at out.
  // geometry(look, image shape, name) -> Geometry, whose may_shrink is looked at where it is the
  // only one. Where the output has one channel and the image is encoded, which gives three, its
  // colours become grey as Pillow's convert("L") does it, behind the resize. Otherwise as make().
  template <typename MakeGeometry>
  int32_t make_looks(uint8_t* out, uint64_t i, int count, const MakeGeometry& geometry,
                     SampleScratch& scratch) const {
    scratch.now_making.store(i, std::memory_order_relaxed);
    Stopwatch watch(scratch.profile);
    dataset_.read(i, scratch.sample);
    watch.book(scratch.times.read);
    scratch.bytes += scratch.sample.bytes.size();
    const int32_t label = scratch.sample.label;
    const std::string name = dataset_.name(i);
    std::vector<Geometry>& wanted = scratch.geometries;
    const auto want = [&](ImageShape shape) {
      wanted.clear();
      for (int look = 0; look < count; ++look) wanted.push_back(geometry(look, shape, name));
    };
    if (const std::optional<ImageShape> raw = dataset_.raw_shape()) {
      const PixelView pixels{scratch.sample.bytes.data(),
                             {0, 0, raw->width, raw->height},
                             raw->channels,
                             raw->bytes() / static_cast<size_t>(raw->height)};
      want(*raw);
      watch.skip();
      apply_all(out, pixels, scratch);
      watch.book(scratch.times.resize);
      return label;
    }
    ImageShape shape;
    watch.skip();
    ImageCodec& codec = scratch.decoder.open(scratch.sample.bytes, name, max_pixels_, shape);
    watch.book(scratch.times.decode);
    const ReleaseIfLarge memory(scratch, shape);
    const int orientation = apply_exif_orientation_ ? stored_orientation(scratch.sample.bytes) : 1;
    if (orientation != 1) {
      codec.decode({0, 0, shape.width, shape.height}, 1, scratch.image);
      turn_upright(scratch.image, orientation, scratch.upright);
      watch.book(scratch.times.decode);
      want(scratch.upright.shape);
      watch.skip();
      apply_all(out, scratch.upright.view(), scratch);
      watch.book(scratch.times.resize);
      return label;
    }
    want(shape);
    const int denominator =
        count == 1 && codec.can_shrink() ? shrink_denominator(wanted.front()) : 1;
    if (denominator > 1) wanted.front() = shrink(wanted.front(), denominator);
    watch.skip();
    Region needed = source_region(wanted.front());
    for (const Geometry& g : wanted) needed = hull(needed, source_region(g));
    codec.decode(needed, denominator, scratch.image);
    watch.book(scratch.times.decode);
    apply_all(out, scratch.image.view(), scratch);
    watch.book(scratch.times.resize);
    return label;
  }

  const Dataset& dataset() const { return dataset_; }
  ImageShape output() const { return output_; }

 private:
  static Region hull(const Region& a, const Region& b) {
    const int x = std::min(a.x, b.x), y = std::min(a.y, b.y);
    return {x, y, std::max(a.x + a.width, b.x + b.width) - x,
            std::max(a.y + a.height, b.y + b.height) - y};
  }

  // By scratch.geometries.
  void apply_all(uint8_t* out, const PixelView& pixels, SampleScratch& scratch) const {
    const bool to_grey = output_.channels == 1 && pixels.channels == 3;
    if (to_grey) scratch.rgb.resize(3 * output_.bytes());
    for (const Geometry& geometry : scratch.geometries) {
      apply(to_grey ? scratch.rgb.data() : out, geometry, pixels, scratch.resize);
      // ITU-R 601-2 in 16-bit fixed point (Pillow, src/libImaging/Convert.c).
      for (size_t p = 0; to_grey && p < output_.bytes(); ++p) {
        const uint8_t* rgb = &scratch.rgb[3 * p];
        out[p] =
            static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
      }
      out += output_.bytes();
    }
  }

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
