#include "trainer/commands/verify_dataset.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "data_loader/verify.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using data::Duplicates;
using data::Finding;
using data::Place;
using nlohmann::ordered_json;

constexpr size_t kShown = 5;  // of each kind, without --all

struct CheckedSplit {
  std::string name;  // "train", "val", or "images" where one folder serves both
  std::unique_ptr<data::Dataset> dataset;
  std::string error;  // why it could not be opened
  std::vector<int32_t> small_classes;
  std::vector<uint64_t> class_sizes;
};

struct Report {
  std::vector<CheckedSplit> splits;
  std::vector<data::SplitReport> found;  // of each split
  // Each a group of samples with the same bytes.
  std::vector<Duplicates> within, across, other_label;
  double seconds = 0;

  int32_t label(const Place& p) const {
    return splits[static_cast<size_t>(p.split)].dataset->label(p.sample);
  }
  std::string class_of(const Place& p) const {
    return splits[static_cast<size_t>(p.split)].dataset->classes()[static_cast<size_t>(label(p))];
  }
  std::string name(const Place& p) const {
    return splits[static_cast<size_t>(p.split)].dataset->name(p.sample);
  }
  uint64_t count(Finding finding) const {
    uint64_t n = 0;
    for (const data::SplitReport& split : found)
      for (const data::SampleFinding& f : split.findings) n += f.finding == finding ? 1 : 0;
    return n;
  }
  bool is_bad() const {
    return std::any_of(found.begin(), found.end(), [](const auto& s) { return s.bad > 0; }) ||
           std::any_of(splits.begin(), splits.end(),
                       [](const auto& s) { return !s.error.empty(); });
  }
};

// The splits that are there, by the names they are reported under. A folder of images without
// train/ and val/ serves both with the same images; one of the two alone is no fault.
std::vector<std::pair<data::Split, std::string>> splits_at(const VerifyDatasetOptions& options) {
  using data::Split;
  std::vector<std::pair<Split, std::string>> all = {{Split::kTrain, "train"}, {Split::kVal, "val"}};
  if (options.format.format != data::Format::kImageFolder &&
      options.format.format != data::Format::kTarShards)
    return all;
  std::erase_if(all, [&](const auto& split) {
    std::error_code error;
    return !fs::is_directory(options.path + "/" + split.second, error);
  });
  if (all.empty()) all = {{Split::kTrain, "images"}};
  return all;
}

// Throws the first error where no split can be opened.
void open_splits(const VerifyDatasetOptions& options, Report& report) {
  const data::DatasetSpec spec{.format = options.format.format,
                               .path = options.path,
                               .cache_folder = "",  // what is there now, not what was indexed
                               .follow_links = options.follow_links,
                               .synthetic_shape = {}};
  std::optional<Error> first_error;
  for (const auto& [split, name] : splits_at(options)) {
    CheckedSplit& s = report.splits.emplace_back();
    s.name = name;
    try {
      s.dataset = open_dataset(spec, split);
    } catch (const Error& error) {
      s.error = error.what();
      if (!first_error) first_error = error;
    }
  }
  if (std::none_of(report.splits.begin(), report.splits.end(),
                   [](const CheckedSplit& s) { return s.dataset != nullptr; }))
    throw Error(*first_error);
}

void sort_duplicates(Report& report) {
  for (Duplicates& group : data::find_duplicates(report.found)) {
    const auto differs = [&](auto of) {
      return std::any_of(group.begin(), group.end(),
                         [&](const Place& p) { return of(p) != of(group.front()); });
    };
    if (differs([&](const Place& p) { return report.label(p); }))
      report.other_label.push_back(group);
    (differs([](const Place& p) { return p.split; }) ? report.across : report.within)
        .push_back(std::move(group));
  }
}

Report inspect(const VerifyDatasetOptions& options) {
  Report report;
  const auto start = Clock::now();
  open_splits(options, report);
  std::optional<Progress> progress;
  if (::isatty(2) == 1) progress.emplace();
  for (CheckedSplit& split : report.splits) {
    data::SplitReport& found = report.found.emplace_back();
    if (!split.dataset) continue;
    const auto begin = Clock::now();
    const uint64_t total = split.dataset->size();
    found = data::verify_split(
        *split.dataset,
        {.threads = options.threads,
         .max_pixels = options.max_pixels,
         .progress = [&](uint64_t done, uint64_t bad) {
           if (progress)
             progress->update(to_line("verify " + split.name, done, total, seconds_since(begin),
                                      bad > 0 ? fmt::format(" | {} bad", bad) : ""));
         }});
    split.small_classes = data::small_classes(*split.dataset, split.class_sizes);
  }
  if (progress) progress->finish();
  sort_duplicates(report);
  report.seconds = seconds_since(start);
  return report;
}

// ---- Text ----

// The line of a kind, then its first entries.
class Section {
 public:
  Section(std::string title, bool all) : title_(std::move(title)), all_(all) {}

  void kind(const std::string& name, uint64_t count, const std::string& explanation) {
    more();
    if (text_.empty()) text_ = title_ + "\n";
    text_ += fmt::format("  {:<18} {:>7}   {}\n", name, count, explanation);
  }
  void entry(const std::string& line) {
    if (shown_ < kShown || all_) text_ += "    " + line + "\n";
    ++shown_;
  }
  std::string text() {
    more();
    return text_;
  }

 private:
  void more() {
    if (shown_ > kShown && !all_)
      text_ += fmt::format("    ... and {} more (--all)\n", shown_ - kShown);
    shown_ = 0;
  }

  const std::string title_;
  const bool all_;
  std::string text_;
  uint64_t shown_ = 0;
};

void add_findings(const Report& report, bool bad, Section& section) {
  for (size_t k = 0; k < data::kFindings; ++k) {
    const auto finding = static_cast<Finding>(k);
    const uint64_t count = data::is_bad(finding) == bad ? report.count(finding) : 0;
    if (count == 0) continue;
    section.kind(name_of(finding), count, explain(finding));
    for (size_t s = 0; s < report.found.size(); ++s)
      for (const data::SampleFinding& f : report.found[s].findings) {
        if (f.finding != finding) continue;
        // The error names its file; what is odd is only called so.
        const std::string name = printable(report.splits[s].dataset->name(f.sample));
        section.entry(bad                ? f.detail
                      : f.detail.empty() ? name
                                         : fmt::format("{}: {}", name, f.detail));
      }
  }
}

void add_duplicates(const Report& report, const char* name, const char* explanation,
                    const std::vector<Duplicates>& groups, Section& section) {
  if (groups.empty()) return;
  section.kind(name, groups.size(), explanation);
  for (const Duplicates& group : groups) {
    constexpr size_t kNamed = 4;
    std::string line;
    for (size_t i = 0; i < std::min(kNamed, group.size()); ++i)
      line += fmt::format("{}{} ({})", i == 0 ? "" : " = ", printable(report.name(group[i])),
                          printable(report.class_of(group[i])));
    if (group.size() > kNamed) line += fmt::format(" = {} more", group.size() - kNamed);
    section.entry(line);
  }
}

std::string to_text(const Report& report, const VerifyDatasetOptions& options) {
  std::string text =
      fmt::format("{}: {} ({}; {})\n", printable(options.path), options.format.name,
                  options.format.certain ? "certain" : "a guess", options.format.because);
  for (size_t s = 0; s < report.splits.size(); ++s) {
    const CheckedSplit& split = report.splits[s];
    if (!split.dataset) continue;
    text += fmt::format("{}: {} images in {} classes, {:.1f} MB; {} bad, {} odd\n", split.name,
                        split.dataset->size(), split.dataset->classes().size(),
                        static_cast<double>(report.found[s].bytes) / 1e6, report.found[s].bad,
                        report.found[s].odd);
  }
  Section bad("bad:", options.all), odd("odd:", options.all);
  for (const CheckedSplit& split : report.splits) {
    if (split.error.empty()) continue;
    bad.kind("split", 1, fmt::format("{} cannot be opened", split.name));
    bad.entry(split.error);
  }
  add_findings(report, true, bad);
  add_findings(report, false, odd);
  add_duplicates(report, "duplicates", "groups of images with the same bytes in one split",
                 report.within, odd);
  add_duplicates(report, "across_splits", "groups of images with the same bytes in train and val",
                 report.across, odd);
  add_duplicates(report, "other_label", "of these groups, those under more than one class",
                 report.other_label, odd);
  for (const CheckedSplit& split : report.splits) {
    if (split.small_classes.empty()) continue;
    odd.kind(
        "small_classes", split.small_classes.size(),
        fmt::format("of {}: one image or none, or less than a tenth of the median", split.name));
    for (const int32_t c : split.small_classes)
      odd.entry(fmt::format("{}: {}", printable(split.dataset->classes()[static_cast<size_t>(c)]),
                            split.class_sizes[static_cast<size_t>(c)]));
  }
  text += bad.text() + odd.text();
  return text + fmt::format("{} ({:.1f} s, {} thread(s))\n",
                            report.is_bad() ? "bad" : "every image is whole", report.seconds,
                            options.threads);
}

// ---- JSON ----

ordered_json to_json(const Report& report, const std::vector<Duplicates>& groups, bool all) {
  ordered_json array = ordered_json::array();
  for (const Duplicates& group : groups) {
    if (!all && array.size() == kShown) break;
    ordered_json one = ordered_json::array();
    for (const Place& p : group)
      one.push_back({{"split", report.splits[static_cast<size_t>(p.split)].name},
                     {"sample", p.sample},
                     {"name", printable(report.name(p))},
                     {"class", printable(report.class_of(p))}});
    array.push_back(std::move(one));
  }
  return {{"groups", groups.size()}, {"list", std::move(array)}};
}

ordered_json to_json(const Report& report, const VerifyDatasetOptions& options) {
  ordered_json out = {{"dataset", printable(options.path)},
                      {"format", options.format.name},
                      {"format_certain", options.format.certain},
                      {"format_because", options.format.because},
                      {"bad", report.is_bad()},
                      {"splits", ordered_json::array()},
                      {"findings", ordered_json::array()}};
  for (size_t s = 0; s < report.splits.size(); ++s) {
    const CheckedSplit& split = report.splits[s];
    ordered_json one = {{"name", split.name}};
    if (!split.dataset) {
      one["error"] = split.error;
    } else {
      one["samples"] = split.dataset->size();
      one["classes"] = split.dataset->classes().size();
      one["bytes"] = report.found[s].bytes;
      one["bad"] = report.found[s].bad;
      one["odd"] = report.found[s].odd;
      one["dataset_digest"] = split.dataset->digest();
      one["small_classes"] = ordered_json::array();
      for (const int32_t c : split.small_classes)
        one["small_classes"].push_back(
            {{"class", printable(split.dataset->classes()[static_cast<size_t>(c)])},
             {"samples", split.class_sizes[static_cast<size_t>(c)]}});
    }
    out["splits"].push_back(std::move(one));
  }
  for (size_t k = 0; k < data::kFindings; ++k) {
    const auto finding = static_cast<Finding>(k);
    ordered_json list = ordered_json::array();
    for (size_t s = 0; s < report.found.size(); ++s)
      for (const data::SampleFinding& f : report.found[s].findings)
        if (f.finding == finding && (options.all || list.size() < kShown))
          list.push_back({{"split", report.splits[s].name},
                          {"sample", f.sample},
                          {"name", printable(report.splits[s].dataset->name(f.sample))},
                          {"detail", f.detail}});
    if (!list.empty())
      out["findings"].push_back({{"kind", name_of(finding)},
                                 {"bad", data::is_bad(finding)},
                                 {"count", report.count(finding)},
                                 {"list", std::move(list)}});
  }
  out["duplicates"] = to_json(report, report.within, options.all);
  out["across_splits"] = to_json(report, report.across, options.all);
  out["other_label"] = to_json(report, report.other_label, options.all);
  out["seconds"] = report.seconds;
  out["threads"] = options.threads;
  return out;
}

}  // namespace

int verify_dataset(const VerifyDatasetOptions& options) {
  const Report report = inspect(options);
  if (options.json)
    std::cout << to_json(report, options).dump(2) << std::endl;
  else
    std::cout << to_text(report, options);
  return report.is_bad() ? static_cast<int>(ExitCode::kBadData) : 0;
}

}  // namespace convoy::trainer
