#include "data_loader/eval_loader.h"

#include <algorithm>

#include "data_loader/batch_ring.h"
#include "data_loader/listing.h"
#include "data_loader/read_ahead.h"
#include "data_loader/sample_maker.h"

namespace convoy::data {
namespace {

ImageShape shape_of(const EvalLoaderConfig& config, const Dataset& dataset) {
  return config.shape.bytes() > 0 ? config.shape : output_shape(config.looks.transform, dataset);
}

uint64_t images_of(const EvalLoaderConfig& config, const Dataset& dataset) {
  return config.images.empty() ? dataset.size() : config.images.size();
}

BatchRing::Config ring_config(const EvalLoaderConfig& config, const Dataset& dataset) {
  const uint64_t slices =
      config.batch < 1 ? 0 : EvalLoader::slices(images_of(config, dataset), config.batch);
  for (const uint64_t slice : config.slices)
    if (slice >= slices)
      fail(ExitCode::kFault, "evaluation loader: slice {} of {} (batch {})", slice, slices,
           config.batch);
  if (config.lanes < 1 || config.threads < 0)
    fail(ExitCode::kFault, "evaluation loader: {} lanes, {} threads", config.lanes, config.threads);
  ImageShape stack = shape_of(config, dataset);
  stack.height *= config.looks.count();
  return {.batches = config.slices.size(),
          .batch_size = config.batch,
          .shape = stack,
          .threads = config.threads,
          .slots = ring_slots(config.threads, config.lanes, config.batch),
          .group = group_size(dataset),
          .profile = config.profile,
          .pin = config.pin};
}

}  // namespace

class EvalLoader::Impl {
 public:
  Impl(const Dataset& dataset, EvalLoaderConfig config)
      : config_(std::move(config)),
        images_(images_of(config_, dataset)),
        maker_(dataset, shape_of(config_, dataset), config_.max_pixels,
               config_.apply_exif_orientation),
        read_ahead_(make_read_ahead()),
        ring_(
            ring_config(config_, dataset),
            [this](Batch& batch, uint64_t k) { batch.step = config_.slices[k]; },
            [this](uint8_t* out, Batch& batch, uint64_t k, int i, SampleScratch& scratch) {
              if (read_ahead_) read_ahead_->reached(k * batch_size() + static_cast<uint64_t>(i));
              make(out, batch, i, scratch);
            }) {}

  BatchRing& ring() { return ring_; }
  std::optional<InProgress> in_progress() const { return ring_.in_progress(maker_.dataset()); }

 private:
  uint64_t batch_size() const { return static_cast<uint64_t>(config_.batch); }
  // The place-th of all slices' images.
  uint64_t image_at(uint64_t place) const {
    if (config_.images.empty()) return place;
    return place < images_ ? config_.images[place] : kNoSubstitute;
  }

  // nullptr: none.
  std::unique_ptr<ReadAhead> make_read_ahead() const {
    ring_config(config_, maker_.dataset());  // refuses what is no configuration
    if (config_.threads == 0 || config_.read_ahead <= 0 || maker_.dataset().raw_shape() ||
        images_ == 0)
      return nullptr;
    // Padding behind the last image asks for that image again.
    return std::make_unique<ReadAhead>(
        maker_.dataset(), config_.slices.size() * batch_size(),
        static_cast<uint64_t>(config_.read_ahead), [this](uint64_t n) {
          const uint64_t place = config_.slices[n / batch_size()] * batch_size() + n % batch_size();
          return image_at(std::min(place, images_ - 1));
        });
  }

  Geometry geometry(int look, ImageShape image, const std::string& name) const {
    const ImageShape& output = maker_.output();
    switch (config_.looks.kind) {
      case Looks::Kind::kCentre:
        return eval_geometry(config_.looks.transform, image, output, name);
      case Looks::Kind::kTenCrops:
        return ten_crop_geometry(config_.looks.transform, look, image, output, name);
      case Looks::Kind::kWhole:
        break;
    }
    Geometry whole = dense_geometry(image, config_.looks.scale);
    if (whole.x.count != output.width || whole.y.count != output.height)
      fail(ExitCode::kBadData, "{}: is another image now ({} x {}) than a moment ago",
           printable(name), image.width, image.height);
    return whole;
  }

  void make(uint8_t* out, Batch& batch, int i, SampleScratch& scratch) const {
    const auto at = static_cast<size_t>(i);
    const uint64_t place = batch.step * batch_size() + static_cast<uint64_t>(i);
    batch.epochs[at] = 0;
    batch.sample_ids[at] = image_at(place);
    if (place >= images_) return leave_empty(out, batch, at);
    try {
      const int32_t label = maker_.make_looks(
          out, batch.sample_ids[at], config_.looks.count(),
          [&](int look, ImageShape image, const std::string& name) {
            return geometry(look, image, name);
          },
          scratch);
      batch.labels[at] = config_.class_of_label.empty()
                             ? label
                             : config_.class_of_label.at(static_cast<size_t>(label));
    } catch (const Error& error) {
      if (!config_.bad) throw;
      leave_empty(out, batch, at);
      config_.bad(batch.sample_ids[at], error);
    }
  }

  void leave_empty(uint8_t* out, Batch& batch, size_t at) const {
    std::fill_n(out, batch.shape.bytes(), uint8_t{0});
    batch.labels[at] = -1;
  }

  const EvalLoaderConfig config_;
  const uint64_t images_;
  const SampleMaker maker_;
  const std::unique_ptr<ReadAhead> read_ahead_;
  BatchRing ring_;  // last: its threads use all of the above
};

EvalLoader::EvalLoader(const Dataset& dataset, EvalLoaderConfig config)
    : impl_(std::make_unique<Impl>(dataset, std::move(config))) {}
EvalLoader::~EvalLoader() = default;
uint64_t EvalLoader::slices(uint64_t images, int batch) {
  return (images + static_cast<uint64_t>(batch) - 1) / static_cast<uint64_t>(batch);
}
const Batch& EvalLoader::acquire(uint64_t n) {
  return impl_->ring().acquire(n);
}
void EvalLoader::release(const Batch& batch) {
  impl_->ring().release(batch);
}
void EvalLoader::stop(std::exception_ptr error) {
  impl_->ring().stop(std::move(error));
}
LoaderStats EvalLoader::stats() const {
  return impl_->ring().stats();
}
int EvalLoader::slots() const {
  return impl_->ring().config().slots;
}
uint64_t EvalLoader::ring_bytes() const {
  return impl_->ring().config().bytes();
}
uint64_t EvalLoader::ring_bytes(const Dataset& dataset, const EvalLoaderConfig& config) {
  return ring_config(config, dataset).bytes();
}
std::optional<InProgress> EvalLoader::in_progress() const {
  return impl_->in_progress();
}

std::vector<ImageShape> image_shapes(const Dataset& dataset, std::span<const uint64_t> images,
                                     int threads, uint64_t max_pixels,
                                     bool apply_exif_orientation) {
  if (const std::optional<ImageShape> raw = dataset.raw_shape())
    return std::vector<ImageShape>(images.size(), *raw);
  std::vector<ImageShape> shapes(images.size());
  for_each_in_parallel(images.size(), static_cast<size_t>(std::max(1, threads)), [&](size_t i) {
    thread_local Sample sample;
    thread_local ImageDecoder decoder;
    dataset.read(images[i], sample);
    decoder.open(sample.bytes, dataset.name(images[i]), max_pixels, shapes[i]);
    if (apply_exif_orientation && stored_orientation(sample.bytes) >= 5)
      std::swap(shapes[i].width, shapes[i].height);
  });
  return shapes;
}

}  // namespace convoy::data
