// Encoded images: which kind it is, by content; size; pixels of a region as RGB8.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data_loader/dataset.h"
#include "data_loader/sample_times.h"
#include "data_loader/transforms.h"
#include "ops/core/error.h"

namespace convoy::data {

// What is wrong with an image.
enum class Damage {
  kEmpty,
  kNotAnImage,
  kTruncated,
  kDamaged,
  kUnsupported,  // arithmetic coding, 12 bits ...: whole, but nothing here reads it
  kTooLarge,     // more pixels, or bytes, than are read
};

// An image that is broken or no image: decided by its bytes alone, so that every run decides alike.
class BadContent : public Error {
 public:
  explicit BadContent(const std::string& message, Damage damage = Damage::kDamaged)
      : Error(ExitCode::kBadData, message), damage_(damage) {}
  Damage damage() const { return damage_; }

 private:
  Damage damage_;
};

// Decoded RGB8 pixels. Make one per thread and use it again: it keeps its memory.
struct Image {
  ImageShape shape;  // of the whole image, after shrinking
  Region region;     // the part that was decoded
  size_t stride = 0;
  std::vector<uint8_t> pixels;

  PixelView view() const { return {pixels.data(), region, 3, stride}; }
};

// Which way is up in an encoded image, by what it says itself (EXIF): 1 upright ... 8; 1 also for
// one of a kind that cannot say.
int stored_orientation(std::span<const uint8_t> bytes);

// `image` as it is to be looked at, in `out`: its pixels turned or mirrored as EXIF's orientation
// (2 ... 8) says. `image` holds all its pixels.
void turn_upright(const Image& image, int orientation, Image& out);

// How much of a file is read.
enum class Reading {
  // What the region needs. Damage below it may stay unseen in a file whose end is in place; whether
  // it is seen depends on the bytes and the region alone.
  kRegion,
  kAll,  // everything, by the reference decoder: damage is found wherever it is
};

// One kind of encoded image. open(), then at most one decode(). Not thread-safe: one per thread.
class ImageCodec {
 public:
  virtual ~ImageCodec() = default;
  // Reads the header. `bytes` stay the caller's until decode() is over; `name` is for messages.
  // Throws BadContent, also for images of more than max_pixels.
  virtual ImageShape open(std::span<const uint8_t> bytes, const std::string& name,
                          uint64_t max_pixels) = 0;
  // Whether decode() takes a denominator other than 1.
  virtual bool can_shrink() const = 0;
  // Pixels of at least `region` (in coordinates of the image shrunk to 1/denominator: 1, 2, 4, 8).
  // A file that is cut off is found out whatever the region; for other damage see Reading. Throws
  // BadContent.
  virtual void decode(const Region& region, int denominator, Image& out) = 0;
  // From now on the parts of decode() are booked there, by codecs that can tell them apart; null:
  // nowhere.
  virtual void profile(SampleTimes* /*times*/) {}
};

// Chooses the codec by the first bytes and keeps one of each. Not thread-safe: one per thread.
class ImageDecoder {
 public:
  explicit ImageDecoder(Reading reading = Reading::kRegion);
  ~ImageDecoder();
  // The codec, opened; the image's shape in `shape`. Throws BadContent.
  ImageCodec& open(std::span<const uint8_t> bytes, const std::string& name, uint64_t max_pixels,
                   ImageShape& shape);
  // Gives the codecs' memory back; they are made again when needed.
  void release();
  // ImageCodec::profile() of all codecs.
  void profile(SampleTimes* times) { times_ = times; }

 private:
  Reading reading_;
  SampleTimes* times_ = nullptr;
  std::unique_ptr<ImageCodec> jpeg_, png_, coefficients_;
};

// Throws BadContent where width * height > max_pixels.
void check_pixels(uint64_t width, uint64_t height, uint64_t max_pixels, const std::string& name);

}  // namespace convoy::data
