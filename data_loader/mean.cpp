#include "data_loader/mean.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "data_loader/files.h"
#include "data_loader/sample_maker.h"
#include "ops/core/clock.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::data {
namespace {

constexpr std::string_view kMagic = "convoy image statistics 1";

// Exact, whatever the order: 255^2 * pixels of 10^10 images of 10^4 pixels still fit.
struct Sums {
  uint64_t samples = 0;
  std::vector<uint64_t> pixels;   // [height, width, channels]: sum of the byte
  std::vector<uint64_t> squares;  // [channels]: sum of its square

  explicit Sums(ImageShape shape)
      : pixels(shape.bytes()), squares(static_cast<size_t>(shape.channels)) {}

  void add(const std::vector<uint8_t>& image) {
    const size_t channels = squares.size();
    ++samples;
    for (size_t i = 0; i < image.size(); i += channels)
      for (size_t c = 0; c < channels; ++c) {
        pixels[i + c] += image[i + c];
        squares[c] += uint64_t{image[i + c]} * image[i + c];
      }
  }
  void add(const Sums& other) {
    samples += other.samples;
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] += other.pixels[i];
    for (size_t c = 0; c < squares.size(); ++c) squares[c] += other.squares[c];
  }
};

// The work of all threads: images are given out in ascending order, so the first bad one is known
// exactly when all have ended.
class Summation {
 public:
  Summation(const Dataset& dataset, const StatisticsConfig& config, ImageShape shape)
      : dataset_(dataset),
        config_(config),
        maker_(dataset, shape, config.max_pixels, config.apply_exif_orientation),
        total_(shape) {}

  Sums run() {
    {
      std::vector<std::jthread> threads;
      for (int t = 1; t < config_.threads; ++t) threads.emplace_back([this] { work(); });
      work();
    }
    if (error_) std::rethrow_exception(error_);
    if (left_out_ > 0)
      log::warning("image statistics: {} bad images left out, the first: {}", left_out_,
                   first_left_out_);
    if (total_.samples == 0)
      fail(ExitCode::kBadData, "image statistics: no image could be read, the first: {}",
           first_left_out_);
    return total_;
  }

 private:
  void work() {
    Sums sums(maker_.output());
    SampleScratch scratch;
    std::vector<uint8_t> image(maker_.output().bytes());
    uint64_t i = 0;
    while (next(i)) {
      try {
        maker_.make(
            image.data(), i,
            [&](ImageShape shape, const std::string& name) {
              return eval_geometry(config_.transform, shape, maker_.output(), name);
            },
            scratch);
        sums.add(image);
      } catch (const BadContent& bad) {
        failed(i, std::make_exception_ptr(with_remedy(bad)), bad.what());
      } catch (...) {
        failed(i, std::current_exception(), nullptr);
      }
    }
    const std::lock_guard lock(mutex_);
    total_.add(sums);
  }

  bool next(uint64_t& i) {
    const std::lock_guard lock(mutex_);
    if (error_ || next_ == dataset_.size()) return false;
    i = next_++;
    if (i % 64 == 0) config_.progress();
    const auto now = Clock::now();
    if (now - said_ > std::chrono::seconds(10)) {
      said_ = now;
      log::info("image statistics: {} of {} training images", i, dataset_.size());
    }
    return true;
  }

  // `bad`: the text of an error of content.
  void failed(uint64_t i, std::exception_ptr error, const char* bad) {
    const std::lock_guard lock(mutex_);
    if (bad != nullptr && config_.bad_sample == BadSample::kSubstitute) {
      if (left_out_++ == 0 || i < first_left_out_at_) {
        first_left_out_at_ = i;
        first_left_out_ = bad;
      }
    } else if (!error_ || i < error_at_) {
      error_ = std::move(error);
      error_at_ = i;
    }
  }

  const Dataset& dataset_;
  const StatisticsConfig& config_;
  const SampleMaker maker_;
  std::mutex mutex_;  // guards all below
  uint64_t next_ = 0;
  Clock::time_point said_ = Clock::now();
  Sums total_;
  uint64_t left_out_ = 0, first_left_out_at_ = 0;
  std::string first_left_out_;
  std::exception_ptr error_;
  uint64_t error_at_ = 0;
};

// Bad images left out or not is part of what the sums mean.
std::string identity(const Dataset& dataset, const StatisticsConfig& config, ImageShape shape) {
  return fmt::format("{}\ndataset {}\nresize {} shape {} max_pixels {} substitute {}{}\n", kMagic,
                     dataset.digest(), config.transform.resize, to_string(shape), config.max_pixels,
                     config.bad_sample == BadSample::kSubstitute ? 1 : 0,
                     config.apply_exif_orientation ? " exif 1" : "");
}

std::string to_text(const Sums& sums) {
  std::string text = fmt::format("{}\n", sums.samples);
  for (const uint64_t value : sums.squares) text += fmt::format("{}\n", value);
  for (const uint64_t value : sums.pixels) text += fmt::format("{}\n", value);
  return text;
}

// Whether these can be sums of at most `samples` images (of just so many, unless bad ones may be
// left out): a cache is not trusted more than any other file.
bool plausible(const Sums& sums, uint64_t samples, bool some_left_out) {
  using Wide = unsigned __int128;
  if (sums.samples > samples || (sums.samples < samples && !some_left_out)) return false;
  const size_t channels = sums.squares.size();
  std::vector<Wide> totals(channels);
  Wide sum_squares = 0, all_squares = 0;
  for (size_t i = 0; i < sums.pixels.size(); ++i) {
    if (sums.pixels[i] > Wide{255} * sums.samples) return false;
    totals[i % channels] += sums.pixels[i];
    sum_squares += Wide{sums.pixels[i]} * sums.pixels[i];
  }
  const Wide n = Wide{sums.samples} * (sums.pixels.size() / channels);
  for (size_t c = 0; c < channels; ++c) {
    if (sums.squares[c] > 255 * totals[c] || n * sums.squares[c] < totals[c] * totals[c])
      return false;
    all_squares += sums.squares[c];
  }
  return sums.samples * all_squares >= sum_squares;
}

// False where the text holds other numbers than such sums.
bool from_text(std::string_view text, Sums& sums) {
  const auto take = [&](uint64_t& value) {
    std::string_view line;
    if (!next_line(text, line)) return false;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    return error == std::errc() && end == line.data() + line.size();
  };
  if (!take(sums.samples) || sums.samples == 0) return false;
  for (std::vector<uint64_t>* list : {&sums.squares, &sums.pixels})
    for (uint64_t& value : *list)
      if (!take(value)) return false;
  return text.empty();
}

// A variance comes as the exact integer n^2 * variance = n * sum(x^2) - sum(x)^2.
double deviation(unsigned __int128 n2_variance, double n) {
  const double std = std::sqrt(static_cast<double>(n2_variance)) / n / 255.0;
  return std > 0 ? std : 1.0 / 255.0;
}

ImageStatistics from_sums(const Sums& sums, ImageShape shape) {
  using Wide = unsigned __int128;
  const size_t channels = static_cast<size_t>(shape.channels);
  ImageStatistics out;
  out.shape = shape;
  out.samples = sums.samples;
  const uint64_t n = sums.samples * (shape.bytes() / channels);  // values of one channel
  std::vector<uint64_t> channel_sums(channels);
  Wide sum_squares = 0;  // over pixels: (sum over images)^2
  for (size_t i = 0; i < sums.pixels.size(); ++i) {
    channel_sums[i % channels] += sums.pixels[i];
    sum_squares += Wide{sums.pixels[i]} * sums.pixels[i];
    out.mean_image.push_back(static_cast<double>(sums.pixels[i]) /
                             static_cast<double>(sums.samples) / 255.0);
  }
  Wide all_squares = 0;
  for (size_t c = 0; c < channels; ++c) {
    out.mean.push_back(static_cast<double>(channel_sums[c]) / static_cast<double>(n) / 255.0);
    out.std.push_back(deviation(Wide{n} * sums.squares[c] - Wide{channel_sums[c]} * channel_sums[c],
                                static_cast<double>(n)));
    all_squares += sums.squares[c];
  }
  // Sum over images and pixels of (x - m_p)^2 = sum x^2 - sum_p (sum_i x)^2 / samples.
  const double values = static_cast<double>(n) * static_cast<double>(channels);
  const double samples = static_cast<double>(sums.samples);
  out.mean_image_std =
      deviation(Wide{sums.samples} * all_squares - sum_squares, std::sqrt(samples * values));
  return out;
}

}  // namespace

ImageStatistics image_statistics(const Dataset& dataset, const StatisticsConfig& config) {
  const ImageShape shape = output_shape(config.transform, dataset);
  const std::string header = identity(dataset, config, shape);
  const std::string path = config.cache_folder.empty()
                               ? std::string()
                               : fmt::format("{}/statistics-{}.txt", config.cache_folder,
                                             sha256_hex(header).substr(0, 16));
  if (!path.empty()) {
    const std::string text = read_cache(path);
    Sums sums(shape);
    if (text.starts_with(header) && from_text(std::string_view(text).substr(header.size()), sums) &&
        plausible(sums, dataset.size(), config.bad_sample == BadSample::kSubstitute))
      return from_sums(sums, shape);
  }
  log::info("image statistics over {} training images, {}: computed once", dataset.size(),
            to_string(shape));
  const Sums sums = Summation(dataset, config, shape).run();
  if (!path.empty()) write_cache(path, header + to_text(sums));
  return from_sums(sums, shape);
}

}  // namespace convoy::data
