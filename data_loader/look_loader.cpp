#include "data_loader/look_loader.h"

#include <algorithm>

#include "data_loader/batch_ring.h"
#include "data_loader/listing.h"
#include "data_loader/read_ahead.h"
#include "data_loader/sample_maker.h"

namespace convoy::data {

class LookLoader::Impl {
 public:
  Impl(const Dataset& dataset, const LookLoaderConfig& config)
      : config_(config),
        maker_(dataset, config.shape, config.max_pixels, config.apply_exif_orientation),
        read_ahead_(make_read_ahead()),
        ring_(
            ring_config(config, dataset),
            [this](Batch& batch, uint64_t k) { batch.step = config_.batches[k]; },
            [this](uint8_t* out, Batch& batch, uint64_t k, int i, SampleScratch& scratch) {
              if (read_ahead_) read_ahead_->reached(k * batch_size() + static_cast<uint64_t>(i));
              make(out, batch, i, scratch);
            }) {}

  BatchRing& ring() { return ring_; }
  std::optional<InProgress> in_progress() const { return ring_.in_progress(maker_.dataset()); }

 private:
  uint64_t batch_size() const { return static_cast<uint64_t>(config_.batch); }

  // nullptr: none.
  std::unique_ptr<ReadAhead> make_read_ahead() const {
    ring_config(config_, maker_.dataset());  // refuses what is no configuration
    if (config_.threads == 0 || maker_.dataset().raw_shape() || config_.images.empty())
      return nullptr;
    constexpr uint64_t kImagesAhead = 64;  // as LoaderConfig::read_ahead
    // Padding behind the last image asks for that image again.
    return std::make_unique<ReadAhead>(
        maker_.dataset(), config_.batches.size() * batch_size(), kImagesAhead, [this](uint64_t n) {
          const uint64_t place =
              config_.batches[n / batch_size()] * batch_size() + n % batch_size();
          return config_.images[std::min<uint64_t>(place, config_.images.size() - 1)];
        });
  }

  static BatchRing::Config ring_config(const LookLoaderConfig& config, const Dataset& dataset) {
    const uint64_t most =
        config.batch < 1 ? 0 : LookLoader::batches(config.images.size(), config.batch);
    for (const uint64_t batch : config.batches)
      if (batch >= most)
        fail(ExitCode::kFault, "evaluation loader: batch {} of {} (of {} images)", batch, most,
             config.batch);
    if (config.lanes < 1 || config.threads < 0)
      fail(ExitCode::kFault, "evaluation loader: {} lanes, {} threads", config.lanes,
           config.threads);
    ImageShape stack = config.shape;
    stack.height *= config.looks.count();
    // As many batches ready as are held, and where batches are small, a few images a thread.
    const int ahead = std::max(config.lanes, 1 + (4 * config.threads - 1) / config.batch);
    return {.batches = config.batches.size(),
            .batch_size = config.batch,
            .shape = stack,
            .threads = config.threads,
            .slots = config.threads == 0 ? config.lanes : config.lanes + ahead,
            .group = dataset.raw_shape() ? 32 : 1};
  }

  Geometry geometry(int look, ImageShape image, const std::string& name) const {
    switch (config_.looks.kind) {
      case Looks::Kind::kCentre:
        return eval_geometry(config_.looks.transform, image, config_.shape, name);
      case Looks::Kind::kTenCrops:
        return ten_crop_geometry(config_.looks.transform, look, image, config_.shape, name);
      case Looks::Kind::kWhole:
        break;
    }
    Geometry whole = dense_geometry(image, config_.looks.scale);
    if (whole.x.count != config_.shape.width || whole.y.count != config_.shape.height)
      fail(ExitCode::kBadData, "{}: is another image now ({} x {}) than a moment ago",
           printable(name), image.width, image.height);
    return whole;
  }

  void make(uint8_t* out, Batch& batch, int i, SampleScratch& scratch) const {
    const auto at = static_cast<size_t>(i);
    const uint64_t place =
        batch.step * static_cast<uint64_t>(config_.batch) + static_cast<uint64_t>(i);
    batch.epochs[at] = 0;
    batch.sample_ids[at] = place < config_.images.size() ? config_.images[place] : kNoSubstitute;
    if (place >= config_.images.size()) return leave_empty(out, batch, at);
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
    std::fill_n(out, config_.shape.bytes() * static_cast<size_t>(config_.looks.count()),
                uint8_t{0});
    batch.labels[at] = -1;
  }

  const LookLoaderConfig config_;
  const SampleMaker maker_;
  const std::unique_ptr<ReadAhead> read_ahead_;
  BatchRing ring_;  // last: its threads use all of the above
};

LookLoader::LookLoader(const Dataset& dataset, const LookLoaderConfig& config)
    : impl_(std::make_unique<Impl>(dataset, config)) {}
LookLoader::~LookLoader() = default;
uint64_t LookLoader::batches(uint64_t images, int batch) {
  return EvalLoader::slices(images, batch);
}
const Batch& LookLoader::acquire(uint64_t n) {
  return impl_->ring().acquire(n);
}
void LookLoader::release(const Batch& batch) {
  impl_->ring().release(batch);
}
void LookLoader::stop(std::exception_ptr error) {
  impl_->ring().stop(std::move(error));
}
std::optional<InProgress> LookLoader::in_progress() const {
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
