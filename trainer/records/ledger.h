// OUT/ledger.jsonl: what each step consumed, as the loader delivered it; `convoy verify RUN` proves
// from it that every sample of every epoch was used once.
//
// Each step has one 64-bit number: the sum mod 2^64 of sample_mark() over its samples. It does not
// depend on ranks, lanes or order. A line of the file, one JSON object, holds the numbers of the
// steps of one save and is on the disk before that save's checkpoint has its name. Lines are only
// appended: a line from step s on replaces what lines before it say of steps s, s + 1, ... (a life
// that died had gone further than its last checkpoint).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "data_loader/loader.h"
#include "data_loader/sampler.h"

namespace convoy::trainer {

// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits.
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// The four numbers go one after the other through mix64, so that each bit of each changes half of
// the result. `substitute`: data::kNoSubstitute where the sample itself was used.
constexpr uint64_t sample_mark(uint64_t position, uint64_t epoch, uint64_t sample,
                               uint64_t substitute = data::kNoSubstitute) {
  uint64_t mark = 0x9E3779B97F4A7C15u;
  for (const uint64_t number : {position, epoch, sample, substitute}) mark = mix64(mark ^ number);
  return mark;
}

// What turns a position into a sample; --allow-change may change it in the middle of a run.
struct LedgerTerms {
  uint64_t dataset_size = 1;  // N
  uint64_t global_batch = 1;  // G
  uint64_t seed = 0;
  std::string dataset_digest;  // of the training set
  data::Windows windows;

  bool operator==(const LedgerTerms&) const = default;
};

struct SubstitutedSample {
  uint64_t position = 0, sample = 0, substitute = 0;
  std::string reason;
};

// Steps that count, but whose samples trained nothing (a roll-back went past them).
struct SkippedRange {
  uint64_t first = 0, end = 0;
  std::string reason;
};

// A line. Steps [first, end).
struct LedgerRecord {
  uint64_t life = 0, first = 0, end = 0;
  LedgerTerms terms;
  std::vector<uint64_t> numbers;  // [end - first]
  std::vector<SubstitutedSample> substituted;
  std::vector<SkippedRange> skipped;
  // Not "": nobody has recorded steps [first, end), and this is why; there are no numbers.
  std::string unrecorded;
  bool lost = false;  // where unrecorded: this run had trained them, so its ledger should know them
};

// One JSON object with a checksum, without a newline.
std::string to_line(const LedgerRecord& record);

// Of what to_line() writes, without the checksum: any bytes. Throws Error: kFault where they are no
// record, kBadData where a later Convoy wrote them.
LedgerRecord parse_record(std::string_view json);

struct LedgerText {
  std::vector<LedgerRecord> records;  // whole lines, in the order of the file
  std::vector<std::string> damaged;   // "line 7: ...": the first 16 lines that are not whole
  size_t whole_bytes = 0;             // up to the last newline: what follows is a torn line
};

// Of any bytes. Throws Error (kBadData) where a later Convoy wrote them.
LedgerText parse_ledger(std::string_view text);
// OUT/ledger.jsonl; nothing where there is no such file. Throws Error (kIo), and as parse_ledger.
LedgerText read_ledger(const std::string& out_dir);

// Steps [first, end) as `record` has them.
struct LedgerPiece {
  const LedgerRecord* record = nullptr;
  uint64_t first = 0, end = 0;
};
// What is left of the records when later ones replaced earlier ones, rising; there may be gaps.
std::vector<LedgerPiece> surviving_path(std::span<const LedgerRecord> records);

// What was proven of steps [0, end).
struct LedgerProof {
  uint64_t first = 0, end = 0;       // steps of the proof; first > 0: earlier ones are unrecorded
  std::string unrecorded;            // why, where first > 0
  bool lost = false;                 // this run had trained them
  uint64_t positions = 0;            // samples, including those
  uint64_t skipped_positions = 0;    // of steps that were passed over and trained nothing
  uint64_t whole_epochs = 0;         // epochs of which each sample was consumed exactly once
  uint64_t skipped_epochs = 0;       // whole ones of which some steps were passed over
  uint64_t samples = 0;              // N, in the end
  uint64_t last_epoch = 0;           // the partial one, counted from 0
  uint64_t last_epoch_samples = 0;   // of it consumed, each once
  uint64_t last_epoch_skipped = 0;   // of it passed over; both 0: there is no partial epoch
  std::vector<uint64_t> changed_at;  // steps where the terms changed
  std::vector<SubstitutedSample> substituted;
  std::vector<SkippedRange> skipped;
  uint64_t lives = 0, records = 0;  // of the surviving path
  double seconds = 0;
};
// Recomputes all numbers of steps [0, end) from the sampler. Throws Error (kFault) naming the first
// position and step where the ledger has a gap or another number.
LedgerProof prove(const LedgerText& ledger, uint64_t end, int threads);

// Counts what this rank consumes; on rank 0 keeps the file.
class Ledger {
 public:
  struct Config {
    std::string out_dir;  // of rank 0
    LedgerTerms terms;
    uint64_t workers = 1, batch_per_worker = 1;
    uint64_t life = 0, step = 0;  // the step from which this life goes on
    std::string resumed_from;     // folder of the checkpoint; "": none
  };
  // On rank 0: cuts a torn last line; a file that begins here with step > 0 takes over the ledger
  // of the run of `resumed_from`, or says that earlier steps are unrecorded. Throws Error (kIo).
  Ledger(const Config& config, bool is_root);
  ~Ledger();

  // Once for each batch that is consumed. Thread-safe.
  void add(const data::Batch& batch);
  // Steps [first, end) count but train nothing: whenever the run passes steps over, so that no gap
  // is left. Before they are saved; what rank 0 says counts.
  void skip(uint64_t first, uint64_t end, const std::string& reason);
  // The run goes back to `step` within this life.
  void rewind(uint64_t step);
  // Collective: sums the numbers of the steps up to `end` over the ranks, and rank 0 appends them
  // and syncs. False (on rank 0) where that failed, which is logged: then nothing of these steps
  // may be published; the next call tries again. `substitutions`: the loader's, for their reasons.
  bool save(comm::Communicator& communicator, uint64_t end,
            std::span<const data::Substitution> substitutions);

 private:
  class Appender;

  std::string substitutions_of(uint64_t end,
                               std::span<const data::Substitution> substitutions) const;
  void take(uint64_t end, std::span<const int64_t> numbers,
            std::vector<SubstitutedSample> substituted);

  const Config config_;
  std::mutex mutex_;                       // of the next four
  uint64_t first_;                         // step of numbers_[0]
  std::vector<uint64_t> numbers_;          // of this rank, since the last save
  std::vector<SubstitutedSample> listed_;  // likewise
  std::vector<SkippedRange> skipped_;
  std::vector<LedgerRecord> unwritten_;  // rank 0
  std::unique_ptr<Appender> file_;       // rank 0
};

}  // namespace convoy::trainer
