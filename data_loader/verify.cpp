#include "data_loader/verify.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <thread>

#include "data_loader/coefficient_file.h"
#include "data_loader/image.h"
#include "data_loader/jpeg_facts.h"
#include "data_loader/listing.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"

namespace convoy::data {
namespace {

struct FindingRow {
  Finding finding;
  const char* name;
  const char* explanation;
};

constexpr FindingRow kRows[] = {
    {Finding::kEmpty, "empty", "a file without bytes"},
    {Finding::kNotAnImage, "not_an_image", "neither JPEG nor PNG, whatever its name says"},
    {Finding::kTruncated, "truncated", "the file ends before the image does"},
    {Finding::kDamaged, "damaged", "cannot be decoded without errors"},
    {Finding::kArithmetic, "arithmetic", "JPEG with arithmetic coding, which is not read"},
    {Finding::kTwelveBit, "12_bit", "JPEG with other than 8 bits a value, which is not read"},
    {Finding::kUnsupported, "unsupported", "a lossless or hierarchical JPEG, which is not read"},
    {Finding::kTooLarge, "too_large", "more pixels than data.max_pixels, or more than 1 GiB"},
    {Finding::kUnreadable, "unreadable", "the operating system refused to read it"},
    {Finding::kChanged, "changed",
     "not what its index says: changed since, another checksum, or no regular file"},
    {Finding::kGrey, "grey", "one channel; becomes R = G = B"},
    {Finding::kCmyk, "cmyk", "CMYK or YCCK; becomes RGB without a colour profile"},
    {Finding::kMisnamed, "misnamed", "its name says JPEG and it is PNG, or the other way round"},
    {Finding::kOrientation, "orientation",
     "EXIF says it lies or is mirrored; ignored unless data.apply_exif_orientation is set"},
    {Finding::kProgressive, "progressive", "decodes slower than baseline JPEG"},
    {Finding::kHuge, "huge", "more than 25 million pixels: slow"},
    {Finding::kSmall, "small", "shorter side below 32 pixels"},
};
static_assert(std::size(kRows) == kFindings);

const FindingRow& row_of(Finding finding) {
  return kRows[static_cast<size_t>(finding)];
}

Finding finding_of(Damage damage, const JpegFacts& facts) {
  switch (damage) {
    case Damage::kEmpty:
      return Finding::kEmpty;
    case Damage::kNotAnImage:
      return Finding::kNotAnImage;
    case Damage::kTruncated:
      return Finding::kTruncated;
    case Damage::kDamaged:
      return Finding::kDamaged;
    case Damage::kUnsupported:
      return facts.process > 8                            ? Finding::kArithmetic
             : facts.process <= 2 && facts.precision != 8 ? Finding::kTwelveBit
                                                          : Finding::kUnsupported;
    case Damage::kTooLarge:
      return Finding::kTooLarge;
  }
  return Finding::kDamaged;
}

// "jpg", "jpeg", "png", "cvc" of a sample's name; "" where it has none of these.
std::string extension_of(const std::string& name) {
  std::string text = name.substr(name.rfind('.') + 1);
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return is_image_name(name) ? text : "";
}

// Of an image that has been decoded.
std::string_view kind_of(std::span<const uint8_t> bytes) {
  return bytes[0] == 0x89 ? "PNG" : is_coefficient_file(bytes) ? "coefficients" : "JPEG";
}

// Byte 25 of a PNG is the colour type in its first chunk: 0 and 4 are grey.
bool is_grey_png(std::span<const uint8_t> bytes) {
  return bytes.size() > 25 && (bytes[25] == 0 || bytes[25] == 4);
}

Checksum checksum_of(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return {};
  const std::string hex = Sha256().update(bytes.data(), bytes.size()).hex();
  return {std::stoull(hex.substr(0, 16), nullptr, 16),
          std::stoull(hex.substr(16, 16), nullptr, 16)};
}

// One thread's work on one sample after the other.
class Inspector {
 public:
  Inspector(const Dataset& dataset, uint64_t max_pixels)
      : dataset_(dataset), max_pixels_(max_pixels) {}

  // True where the sample is bad.
  bool inspect(uint64_t i, Checksum& checksum) {
    const size_t before = findings.size();
    try {
      dataset_.read(i, sample_);
      bytes += sample_.bytes.size();
      checksum = checksum_of(sample_.bytes);
      if (!dataset_.raw_shape()) decode(i);
    } catch (const BadContent& bad) {
      findings.resize(before);
      add(i, finding_of(bad.damage(), facts_), bad.what());
    } catch (const Error& error) {
      findings.resize(before);
      add(i, error.code() == ExitCode::kIo ? Finding::kUnreadable : Finding::kChanged,
          error.what());
    }
    const bool bad = findings.size() > before && is_bad(findings[before].finding);
    odd += findings.size() > before && !bad ? 1 : 0;
    return bad;
  }

  std::vector<SampleFinding> findings;
  uint64_t bytes = 0, odd = 0;

 private:
  void add(uint64_t i, Finding finding, std::string detail) {
    findings.push_back({i, finding, std::move(detail)});
  }

  void decode(uint64_t i) {
    const std::string name = dataset_.name(i);
    facts_ = jpeg_facts(sample_.bytes);
    ImageShape shape;
    ImageCodec& codec = decoder_.open(sample_.bytes, name, max_pixels_, shape);
    codec.decode({0, 0, shape.width, shape.height}, 1, image_);
    const std::string_view kind = kind_of(sample_.bytes);
    if (kind == "PNG"            ? is_grey_png(sample_.bytes)
        : kind == "coefficients" ? coefficient_file_components(sample_.bytes) == 1
                                 : facts_.components == 1)
      add(i, Finding::kGrey, "");
    if (facts_.components == 4) add(i, Finding::kCmyk, "");
    const std::string extension = extension_of(name);
    const std::string_view named = extension == "png"   ? "PNG"
                                   : extension == "cvc" ? "coefficients"
                                                        : "JPEG";
    if (!extension.empty() && kind != named) add(i, Finding::kMisnamed, fmt::format("is {}", kind));
    if (const int orientation = stored_orientation(sample_.bytes); orientation != 1)
      add(i, Finding::kOrientation, fmt::format("{} of 8", orientation));
    if (facts_.process == 2) add(i, Finding::kProgressive, "");
    const std::string size = fmt::format("{} x {}", shape.width, shape.height);
    if (uint64_t{static_cast<uint32_t>(shape.width)} * static_cast<uint32_t>(shape.height) >
        kHugePixels)
      add(i, Finding::kHuge, size);
    if (std::min(shape.width, shape.height) < kSmallSide) add(i, Finding::kSmall, size);
  }

  const Dataset& dataset_;
  const uint64_t max_pixels_;
  Sample sample_;
  ImageDecoder decoder_{Reading::kAll};
  Image image_;
  JpegFacts facts_;
};

// The work of all threads, which take samples a few at a time.
class Verification {
 public:
  Verification(const Dataset& dataset, const VerifyConfig& config)
      : dataset_(dataset), config_(config) {
    report_.checksums.resize(dataset.size());
  }

  SplitReport run() {
    {
      std::vector<std::jthread> threads;
      for (int t = 1; t < config_.threads; ++t) threads.emplace_back([this] { work(); });
      work();
    }
    if (error_) std::rethrow_exception(error_);
    std::sort(report_.findings.begin(), report_.findings.end(),
              [](const SampleFinding& a, const SampleFinding& b) {
                return std::pair(a.sample, a.finding) < std::pair(b.sample, b.finding);
              });
    return std::move(report_);
  }

 private:
  void work() {
    constexpr uint64_t kAtOnce = 8;
    Inspector inspector(dataset_, config_.max_pixels);
    try {
      while (!stop_) {
        const uint64_t first = next_.fetch_add(kAtOnce);
        if (first >= dataset_.size()) break;
        const uint64_t end = std::min(first + kAtOnce, dataset_.size());
        uint64_t bad = 0;
        for (uint64_t i = first; i < end; ++i)
          bad += inspector.inspect(i, report_.checksums[i]) ? 1 : 0;
        const std::lock_guard lock(mutex_);
        done_ += end - first;
        report_.bad += bad;
        config_.progress(done_, report_.bad);
      }
    } catch (...) {  // memory, or the caller's progress
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    report_.bytes += inspector.bytes;
    report_.odd += inspector.odd;
    std::move(inspector.findings.begin(), inspector.findings.end(),
              std::back_inserter(report_.findings));
  }

  const Dataset& dataset_;
  const VerifyConfig& config_;
  std::atomic<uint64_t> next_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;  // guards what follows, but for report_.checksums: each sample has its own
  uint64_t done_ = 0;
  std::exception_ptr error_;
  SplitReport report_;
};

}  // namespace

const char* name_of(Finding finding) {
  return row_of(finding).name;
}

const char* explain(Finding finding) {
  return row_of(finding).explanation;
}

SplitReport verify_split(const Dataset& dataset, const VerifyConfig& config) {
  return Verification(dataset, config).run();
}

std::vector<Duplicates> find_duplicates(const std::vector<SplitReport>& reports) {
  std::vector<std::pair<Checksum, Place>> all;
  for (size_t split = 0; split < reports.size(); ++split)
    for (size_t i = 0; i < reports[split].checksums.size(); ++i)
      if (const Checksum& sum = reports[split].checksums[i]; sum != Checksum{})
        all.push_back({sum, {static_cast<int>(split), i}});
  std::sort(all.begin(), all.end());
  std::vector<Duplicates> groups;
  for (size_t first = 0, end = 0; first < all.size(); first = end) {
    while (end < all.size() && all[end].first == all[first].first) ++end;
    if (end - first < 2) continue;
    Duplicates& group = groups.emplace_back();
    for (size_t i = first; i < end; ++i) group.push_back(all[i].second);
  }
  std::sort(groups.begin(), groups.end());
  return groups;
}

std::vector<int32_t> small_classes(const Dataset& dataset, std::vector<uint64_t>& counts) {
  counts.assign(dataset.classes().size(), 0);
  for (uint64_t i = 0; i < dataset.size(); ++i) ++counts[static_cast<size_t>(dataset.label(i))];
  std::vector<uint64_t> sorted = counts;
  std::sort(sorted.begin(), sorted.end());
  const uint64_t median = sorted[sorted.size() / 2];
  std::vector<int32_t> small;
  for (size_t c = 0; c < counts.size(); ++c)
    if (counts[c] <= 1 || counts[c] * 10 < median) small.push_back(static_cast<int32_t>(c));
  return small;
}

}  // namespace convoy::data
