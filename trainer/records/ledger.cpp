#include "trainer/records/ledger.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/base/line_log.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;
using Wide = unsigned __int128;

constexpr uint64_t kFormat = 2;  // 1: without windows, and still written for runs that have none
constexpr size_t kMaxFileBytes = size_t{1} << 30;
constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr uint64_t kMaxDataset = uint64_t{1} << 33;
constexpr uint64_t kMaxBatch = uint64_t{1} << 26;
constexpr uint64_t kMaxShards = 10'000'000;
constexpr size_t kMaxText = 300;
// A save of more becomes several lines.
constexpr size_t kStepsPerLine = 65536, kSubstitutedPerLine = 16384;
constexpr size_t kDigits = 16;  // of a step's number, and of the checksum
constexpr std::string_view kCheck = ",\"check\":\"", kEnd = "\"}";

std::string path_of(const std::string& out_dir) {
  return (fs::path(out_dir) / "ledger.jsonl").string();
}

std::string checksum(std::string_view text) {
  return sha256_hex(text).substr(0, kDigits);
}

std::string hex_of(std::span<const uint64_t> numbers) {
  std::string text;
  text.reserve(numbers.size() * kDigits);
  for (const uint64_t number : numbers) fmt::format_to(std::back_inserter(text), "{:016x}", number);
  return text;
}

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kFault, what);
}

const json& member(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) refuse(fmt::format("it has no \"{}\"", key));
  return *found;
}

uint64_t number_in(const json& value, const char* what, uint64_t most) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > most)
    refuse(fmt::format("\"{}\" is no whole number from 0 to {}", what, most));
  return value.get<uint64_t>();
}

uint64_t number(const json& object, const char* key, uint64_t most) {
  return number_in(member(object, key), key, most);
}

std::string text_in(const json& value, const char* what) {
  if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxText)
    refuse(fmt::format("\"{}\" is no text of at most {} bytes", what, kMaxText));
  return value.get<std::string>();
}

// The list `key` of arrays of `width` elements; none where there is no such key.
std::vector<json> rows(const json& object, const char* key, size_t width) {
  const auto found = object.find(key);
  if (found == object.end()) return {};
  if (!found->is_array()) refuse(fmt::format("\"{}\" is no list", key));
  for (const json& row : *found)
    if (!row.is_array() || row.size() != width)
      refuse(fmt::format("an entry of \"{}\" has not {} elements", key, width));
  return found->get<std::vector<json>>();
}

std::vector<uint64_t> parse_numbers(const json& value, uint64_t steps) {
  if (!value.is_string() || value.get_ref<const std::string&>().size() / kDigits != steps ||
      value.get_ref<const std::string&>().size() % kDigits != 0)
    refuse(fmt::format("\"steps\" has not {} digits for each of {} steps", kDigits, steps));
  const std::string& text = value.get_ref<const std::string&>();
  std::vector<uint64_t> numbers(steps);
  for (size_t i = 0; i < steps; ++i) {
    const char* begin = text.data() + i * kDigits;
    const auto [end, error] = std::from_chars(begin, begin + kDigits, numbers[i], 16);
    if (error != std::errc() || end != begin + kDigits)
      refuse(fmt::format("\"steps\" holds what is no hexadecimal digit, in step {}", i));
  }
  return numbers;
}

std::vector<SubstitutedSample> parse_substituted(const json& object, const LedgerRecord& record) {
  std::vector<SubstitutedSample> list;
  const uint64_t first = record.first * record.terms.global_batch;
  const uint64_t end = record.end * record.terms.global_batch;
  for (const json& row : rows(object, "substituted", 4)) {
    SubstitutedSample s{number_in(row[0], "position", ~uint64_t{0}),
                        number_in(row[1], "sample", kMaxDataset),
                        number_in(row[2], "substitute", kMaxDataset), text_in(row[3], "reason")};
    if (s.position < first || s.position >= end ||
        (!list.empty() && s.position <= list.back().position))
      refuse(fmt::format("substituted position {} is not in its place", s.position));
    list.push_back(std::move(s));
  }
  return list;
}

std::vector<SkippedRange> parse_skipped(const json& object, const LedgerRecord& record) {
  std::vector<SkippedRange> list;
  for (const json& row : rows(object, "skipped", 3)) {
    SkippedRange s{number_in(row[0], "first", record.end), number_in(row[1], "end", record.end),
                   text_in(row[2], "reason")};
    if (s.first < record.first || s.first >= s.end)
      refuse(fmt::format("skipped steps {} to {} are not in its steps", s.first, s.end));
    list.push_back(std::move(s));
  }
  return list;
}

// Equal shards that follow each other are one entry: how many, and the samples of each.
data::Windows parse_windows(const json& object, uint64_t samples) {
  data::Windows windows;
  if (!object.contains("window")) return windows;
  windows.window = number(object, "window", kMaxShards);
  uint64_t sum = 0;
  for (const json& row : rows(object, "shards", 2)) {
    const uint64_t count = number_in(row[0], "shards", kMaxShards - windows.shards.size());
    const uint64_t each = number_in(row[1], "samples of a shard", samples);
    if (Wide{count} * each > samples - sum) refuse("its shards have more samples than it");
    windows.shards.insert(windows.shards.end(), count, each);
    sum += count * each;
  }
  if (windows.window == 0 || sum != samples)
    refuse(fmt::format("its shards have {} of {} samples, in windows of {}", sum, samples,
                       windows.window));
  return windows;
}

ordered_json to_json(std::span<const uint64_t> shards) {
  ordered_json list = ordered_json::array();
  for (size_t i = 0, end = 0; i < shards.size(); i = end) {
    while (end < shards.size() && shards[end] == shards[i]) ++end;
    list.push_back(ordered_json::array({end - i, shards[i]}));
  }
  return list;
}

// A whole line without its newline.
LedgerRecord parse_line(std::string_view line) {
  const size_t tail = kCheck.size() + kDigits + kEnd.size();
  if (line.size() > kMaxLineBytes) refuse(fmt::format("it has {} bytes", line.size()));
  if (line.size() < tail || !line.ends_with(kEnd) ||
      line.substr(line.size() - tail, kCheck.size()) != kCheck)
    refuse("its end, the checksum, is missing");
  const std::string_view body = line.substr(0, line.size() - tail);
  if (line.substr(line.size() - tail + kCheck.size(), kDigits) != checksum(body))
    refuse("it does not match its own checksum");
  return parse_record(std::string(body) + "}");
}

// At most `max` bytes of text that stays whole in JSON, also where escapes make it longer.
std::string short_text(std::string_view text, size_t max) {
  std::string out = printable(text, max);
  if (out.size() <= max) return out;
  out.resize(max - 3);
  while ((static_cast<unsigned char>(out.back()) & 0xC0) == 0x80) out.pop_back();  // a cut UTF-8
  if (static_cast<unsigned char>(out.back()) >= 0xC0) out.pop_back();
  return out + "...";
}

}  // namespace

LedgerRecord parse_record(std::string_view text) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) refuse("it is no JSON object");
  const uint64_t format = number(object, "ledger", ~uint64_t{0});
  if (format > kFormat)
    fail(ExitCode::kBadData,
         "written by a later Convoy (format {}, this one reads {}); use that one", format, kFormat);
  LedgerRecord record;
  record.life = number(object, "life", uint64_t{1} << 32);
  record.first = number(object, "first", uint64_t{1} << 48);
  record.end = number(object, "end", uint64_t{1} << 48);
  if (record.first >= record.end)
    refuse(fmt::format("it has no steps: {} to {}", record.first, record.end));
  record.terms = {.dataset_size = number(object, "samples", kMaxDataset),
                  .global_batch = number(object, "batch", kMaxBatch),
                  .seed = number(object, "seed", ~uint64_t{0}),
                  .dataset_digest = text_in(member(object, "dataset"), "dataset")};
  if (record.terms.dataset_size == 0 || record.terms.global_batch == 0)
    refuse("its data set or its batch is empty");
  record.terms.windows = parse_windows(object, record.terms.dataset_size);
  if (Wide{record.end} * record.terms.global_batch > Wide{~uint64_t{0} >> 1})
    refuse(fmt::format("step {} has no position of 63 bits", record.end));
  if (object.contains("unrecorded")) {
    record.unrecorded = text_in(object["unrecorded"], "unrecorded");
    if (record.unrecorded.empty()) refuse("\"unrecorded\" gives no reason");
    record.lost = object.value("lost", json()) == true;
    return record;
  }
  record.numbers = parse_numbers(member(object, "steps"), record.end - record.first);
  record.substituted = parse_substituted(object, record);
  record.skipped = parse_skipped(object, record);
  return record;
}

std::string to_line(const LedgerRecord& record) {
  const data::Windows& windows = record.terms.windows;
  ordered_json object = {{"ledger", windows.shards.empty() ? 1 : kFormat},
                         {"life", record.life},
                         {"first", record.first},
                         {"end", record.end},
                         {"samples", record.terms.dataset_size},
                         {"batch", record.terms.global_batch},
                         {"seed", record.terms.seed},
                         {"dataset", record.terms.dataset_digest}};
  if (!windows.shards.empty()) {
    object["window"] = windows.window;
    object["shards"] = to_json(windows.shards);
  }
  if (!record.unrecorded.empty())
    object["unrecorded"] = short_text(record.unrecorded, kMaxText);
  else
    object["steps"] = hex_of(record.numbers);
  if (record.lost) object["lost"] = true;
  for (const SubstitutedSample& s : record.substituted)
    object["substituted"].push_back(
        ordered_json::array({s.position, s.sample, s.substitute, s.reason}));
  for (const SkippedRange& s : record.skipped)
    object["skipped"].push_back(
        ordered_json::array({s.first, s.end, short_text(s.reason, kMaxText)}));
  std::string text = object.dump(-1, ' ', true, ordered_json::error_handler_t::replace);
  text.pop_back();
  return fmt::format("{}{}{}{}", text, kCheck, checksum(text), kEnd);
}

LedgerText parse_ledger(std::string_view text) {
  constexpr size_t kDamagedKept = 16;
  LedgerText ledger;
  for (size_t begin = 0, line = 1; begin < text.size(); ++line) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) break;
    try {
      ledger.records.push_back(parse_line(text.substr(begin, end - begin)));
    } catch (const Error& error) {
      if (error.code() == ExitCode::kBadData)
        fail(ExitCode::kBadData, "line {}: {}", line, error.what());
      if (ledger.damaged.size() < kDamagedKept)
        ledger.damaged.push_back(fmt::format("line {}: {}", line, error.what()));
    }
    ledger.whole_bytes = begin = end + 1;
  }
  return ledger;
}

LedgerText read_ledger(const std::string& out_dir) {
  const std::string path = path_of(out_dir);
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  try {
    return parse_ledger(read_text(path, kMaxFileBytes));
  } catch (const Error& e) {
    if (e.code() != ExitCode::kBadData) throw;
    fail(ExitCode::kBadData, "{}: {}", printable(path), e.what());
  }
}

std::vector<LedgerPiece> surviving_path(std::span<const LedgerRecord> records) {
  std::vector<LedgerPiece> path;
  for (const LedgerRecord& record : records) {
    while (!path.empty() && path.back().first >= record.first) path.pop_back();
    if (!path.empty()) path.back().end = std::min(path.back().end, record.first);
    path.push_back({&record, record.first, record.end});
  }
  return path;
}

// Rank 0's file, open for appending.
class Ledger::Appender {
 public:
  explicit Appender(const Config& config)
      : path_(path_of(config.out_dir)), log_(path_, [this] { return head(); }) {
    const LedgerText there = read_ledger(config.out_dir);
    if (!there.damaged.empty())
      log::warning("{}: {}; convoy verify says whether it matters", printable(path_),
                   there.damaged.front());
    log_.cut(there.whole_bytes);
    sync_folder(config.out_dir);
    if (config.step == 0) return;  // the first line will replace all that is there
    const fs::path run =
        fs::absolute(config.resumed_from).lexically_normal().parent_path().parent_path();
    std::error_code ignored;
    if (!fs::equivalent(run, config.out_dir, ignored))
      begin_at(config, read_ledger(run.string()), "they were trained by a run without a ledger",
               false);
    else if (there.records.empty() && there.damaged.empty())
      begin_at(config, {},
               fmt::format("life {} found no ledger: it was removed, or a Convoy without ledgers "
                           "began the run",
                           config.life),
               true);
  }

  // Throws Error (kIo); the file is then as it was, or is cut to that by the next call.
  void append(std::span<const LedgerRecord> records) {
    std::string text;
    for (const LedgerRecord& record : records) text += to_line(record) + "\n";
    make_folder(fs::path(path_).parent_path());
    next_ = &records.front();
    log_.append(text, true);
  }

 private:
  // The file was removed under the run: what it held is gone.
  std::string head() const {
    if (next_->first == 0) return "";
    return to_line({.life = next_->life,
                    .first = 0,
                    .end = next_->first,
                    .terms = next_->terms,
                    .numbers = {},
                    .substituted = {},
                    .skipped = {},
                    .unrecorded = "the ledger was removed while the run went on",
                    .lost = true}) +
           "\n";
  }

  // Takes over what another run recorded; `why` where it did not.
  void begin_at(const Config& config, const LedgerText& before, const std::string& why, bool lost) {
    log_.cut(0);
    std::vector<LedgerRecord> taken;
    for (const LedgerPiece& piece : surviving_path(before.records)) {
      if (piece.first >= config.step) break;
      taken.push_back(*piece.record);
      taken.back().lost = false;  // not by this run
    }
    if (taken.empty())
      taken.push_back({.life = config.life,
                       .first = 0,
                       .end = config.step,
                       .terms = config.terms,
                       .numbers = {},
                       .substituted = {},
                       .skipped = {},
                       .unrecorded = why,
                       .lost = lost});
    append(taken);
  }

  const std::string path_;
  LineLog log_;
  const LedgerRecord* next_ = nullptr;  // while it is appended
};

Ledger::Ledger(const Config& config, bool is_root) : config_(config), first_(config.step) {
  if (is_root) file_ = std::make_unique<Appender>(config_);
}

Ledger::~Ledger() = default;

void Ledger::add(const data::Batch& batch) {
  const auto size = static_cast<uint64_t>(batch.size);
  const uint64_t first =
      (batch.step * config_.workers + static_cast<uint64_t>(batch.worker)) * size;
  uint64_t sum = 0;
  std::vector<SubstitutedSample> substituted;
  for (size_t i = 0; i < size; ++i) {
    sum += sample_mark(first + i, batch.epochs[i], batch.sample_ids[i], batch.substitutes[i]);
    if (batch.substitutes[i] != data::kNoSubstitute)
      substituted.push_back({first + i, batch.sample_ids[i], batch.substitutes[i], ""});
  }
  const std::lock_guard lock(mutex_);
  if (batch.step < first_)
    fail(ExitCode::kFault, "ledger: step {} comes after step {} was saved", batch.step, first_);
  numbers_.resize(std::max<size_t>(numbers_.size(), batch.step - first_ + 1));
  numbers_[batch.step - first_] += sum;
  std::ranges::move(substituted, std::back_inserter(listed_));
}

void Ledger::skip(uint64_t first, uint64_t end, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  skipped_.push_back({first, end, reason});
}

void Ledger::rewind(uint64_t step) {
  const std::lock_guard lock(mutex_);
  if (step < first_) {
    first_ = step;
    numbers_.clear();
  } else {
    numbers_.resize(std::min<size_t>(numbers_.size(), step - first_));
  }
  const uint64_t position = step * config_.terms.global_batch;
  std::erase_if(listed_, [&](const SubstitutedSample& s) { return s.position >= position; });
  std::erase_if(skipped_, [&](const SkippedRange& s) { return s.first >= step; });
}

// This rank's, as text for the other ranks.
std::string Ledger::substitutions_of(uint64_t end,
                                     std::span<const data::Substitution> substitutions) const {
  json list = json::array();
  for (const SubstitutedSample& s : listed_) {
    if (s.position >= end * config_.terms.global_batch) continue;
    const auto said = std::ranges::find(substitutions, s.position, &data::Substitution::position);
    constexpr size_t kReason = 100;
    list.push_back(
        {s.position, s.sample, s.substitute,
         short_text(said == substitutions.end() ? std::string() : said->reason, kReason)});
  }
  return list.dump(-1, ' ', true, json::error_handler_t::replace);
}

bool Ledger::save(comm::Communicator& communicator, uint64_t end,
                  std::span<const data::Substitution> substitutions) {
  const std::lock_guard lock(mutex_);
  if (end > first_) {
    const size_t steps = end - first_;
    numbers_.resize(std::max(numbers_.size(), steps));
    std::vector<int64_t> sums(numbers_.begin(), numbers_.begin() + static_cast<ptrdiff_t>(steps));
    sums.push_back(static_cast<int64_t>(listed_.size()));
    communicator.all_reduce_sum(sums);
    std::vector<SubstitutedSample> all;
    if (sums.back() > 0)
      for (const std::string& text : communicator.all_gather(substitutions_of(end, substitutions)))
        for (const json& s : json::parse(text)) all.push_back({s[0], s[1], s[2], s[3]});
    std::ranges::sort(all, {}, &SubstitutedSample::position);
    sums.pop_back();
    if (file_) take(end, sums, std::move(all));
    numbers_.erase(numbers_.begin(), numbers_.begin() + static_cast<ptrdiff_t>(steps));
    const uint64_t position = end * config_.terms.global_batch;
    std::erase_if(listed_, [&](const SubstitutedSample& s) { return s.position < position; });
    std::erase_if(skipped_, [&](const SkippedRange& s) { return s.end <= end; });
    first_ = end;
  }
  if (!file_ || unwritten_.empty()) return true;
  try {
    file_->append(unwritten_);
    unwritten_.clear();
    return true;
  } catch (const Error& error) {
    log::error(
        "the ledger cannot be written, so step {} is not saved: {}; trying again with the "
        "next save",
        end, error.what());
    return false;
  }
}

// As lines of bounded length into unwritten_.
void Ledger::take(uint64_t end, std::span<const int64_t> numbers,
                  std::vector<SubstitutedSample> substituted) {
  auto next = substituted.begin();
  for (uint64_t step = first_; step < end;) {
    LedgerRecord record{.life = config_.life,
                        .first = step,
                        .end = step,
                        .terms = config_.terms,
                        .numbers = {},
                        .substituted = {},
                        .skipped = {},
                        .unrecorded = {},
                        .lost = false};
    while (record.end < end && record.numbers.size() < kStepsPerLine &&
           record.substituted.size() < kSubstitutedPerLine) {
      record.numbers.push_back(static_cast<uint64_t>(numbers[record.end - first_]));
      ++record.end;
      while (next != substituted.end() && next->position < record.end * config_.terms.global_batch)
        record.substituted.push_back(std::move(*next++));
    }
    for (const SkippedRange& s : skipped_)
      if (s.first < record.end && s.end > record.first)
        record.skipped.push_back(
            {std::max(s.first, record.first), std::min(s.end, record.end), s.reason});
    step = record.end;
    unwritten_.push_back(std::move(record));
  }
}

}  // namespace convoy::trainer
