// Looks at every sample of a dataset, once and whole: what is wrong with it, what is odd, and which
// samples are there twice.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

// What may be said of one sample. Bad: a run would stop at it or replace it. Odd: a run takes it,
// but somebody may want to know.
enum class Finding : uint8_t {
  kEmpty,
  kNotAnImage,
  kTruncated,
  kDamaged,
  kArithmetic,
  kTwelveBit,  // or any other number of bits but 8
  kUnsupported,
  kTooLarge,
  kUnreadable,
  kChanged,  // since it was indexed, or no regular file any more
  // From here on odd.
  kGrey,
  kCmyk,
  kMisnamed,     // a PNG called .jpg or a JPEG called .png
  kOrientation,  // EXIF says that the image does not stand upright
  kProgressive,
  kHuge,
  kSmall,
};
constexpr size_t kFindings = static_cast<size_t>(Finding::kSmall) + 1;
constexpr bool is_bad(Finding finding) {
  return finding < Finding::kGrey;
}
const char* name_of(Finding finding);  // "truncated"
const char* explain(Finding finding);  // a few words on what it means

constexpr uint64_t kHugePixels = 25'000'000;
constexpr int kSmallSide = 32;  // of the shorter side; less is small

struct SampleFinding {
  uint64_t sample = 0;
  Finding finding = Finding::kEmpty;
  std::string detail;  // of a bad sample the error's text; "5 of 8", "9331 x 6530" ...
};

struct VerifyConfig {
  int threads = 1;
  uint64_t max_pixels = 178956970;
  // Called by one thread at a time, now and then, with the samples that are done and the bad ones
  // among them.
  std::function<void(uint64_t done, uint64_t bad)> progress = [](uint64_t, uint64_t) {};
};

// 128 bits of the SHA-256 of a sample's bytes as they are stored.
using Checksum = std::array<uint64_t, 2>;

struct SplitReport {
  uint64_t bytes = 0;                   // of all samples that could be read
  uint64_t bad = 0, odd = 0;            // samples with such a finding; a bad one is not odd
  std::vector<SampleFinding> findings;  // by sample, then in the order of Finding
  std::vector<Checksum> checksums;      // of each sample; zero where it is empty or cannot be read
};

// Decodes every image whole, every scanline, by libjpeg or libpng with all warnings that mean
// damage as errors. Raw pixels (IDX, CIFAR) are read only: opening the dataset has checked all
// there is to check. The report does not depend on the number of threads. Takes 16 bytes per sample
// and what is found.
SplitReport verify_split(const Dataset& dataset, const VerifyConfig& config);

struct Place {
  int split = 0;  // index into the reports
  uint64_t sample = 0;
  bool operator==(const Place&) const = default;
  bool operator<(const Place& other) const {
    return split != other.split ? split < other.split : sample < other.sample;
  }
};
// Samples with the same bytes, two at least, in order.
using Duplicates = std::vector<Place>;

// In order of the first of each. `reports`: of the splits of one dataset.
std::vector<Duplicates> find_duplicates(const std::vector<SplitReport>& reports);

// Classes with one sample or none, or less than a tenth of the median class's, in order of labels;
// the numbers of samples of all classes in `counts`.
std::vector<int32_t> small_classes(const Dataset& dataset, std::vector<uint64_t>& counts);

}  // namespace convoy::data
