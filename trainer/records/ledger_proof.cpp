// The proof that `convoy verify RUN` gives: every number of the ledger, computed anew.
#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
#include <thread>
#include <unordered_map>

#include "data_loader/sampler.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "trainer/records/ledger.h"

namespace convoy::trainer {
namespace {

// Pieces with the same terms, one behind the other.
struct Stretch {
  std::span<const LedgerPiece> pieces;

  const LedgerTerms& terms() const { return pieces.front().record->terms; }
  uint64_t first() const { return pieces.front().first; }
  uint64_t end() const { return pieces.back().end; }
};

[[noreturn]] void fail_at(uint64_t step, uint64_t position, const std::string& what) {
  fail(ExitCode::kFault, "ledger: fails at step {}, position {}: {}", step, position, what);
}

// Runs body(begin, end) over parts of [begin, end) on threads; small ranges on this one.
void in_parallel(uint64_t begin, uint64_t end, int threads,
                 const std::function<void(uint64_t, uint64_t)>& body) {
  constexpr uint64_t kWorthAThread = 16384;
  const uint64_t parts =
      std::clamp<uint64_t>((end - begin) / kWorthAThread, 1, static_cast<uint64_t>(threads));
  std::vector<std::jthread> others;
  const uint64_t part = (end - begin + parts - 1) / parts;
  for (uint64_t at = begin + part; at < end; at += part)
    others.emplace_back([&body, at, last = std::min(end, at + part)] { body(at, last); });
  body(begin, std::min(end, begin + part));
}

class StretchProof {
 public:
  StretchProof(const Stretch& stretch, int threads)
      : stretch_(stretch),
        terms_(stretch.terms()),
        sampler_(terms_.seed, terms_.dataset_size, terms_.windows),
        threads_(threads),
        expected_(stretch.end() - stretch.first()) {
    for (const LedgerPiece& piece : stretch.pieces) {
      for (const SubstitutedSample& s : piece.record->substituted)
        if (step_of(s.position) >= piece.first && step_of(s.position) < piece.end) take(s);
      for (const SkippedRange& s : piece.record->skipped)
        for (uint64_t step = std::max(s.first, piece.first); step < std::min(s.end, piece.end);
             ++step)
          skipped_steps_.insert(step);
    }
  }

  void run(LedgerProof& proof) {
    const uint64_t begin = stretch_.first() * terms_.global_batch;
    const uint64_t end = stretch_.end() * terms_.global_batch;
    const uint64_t n = terms_.dataset_size;
    for (uint64_t epoch = begin / n; epoch * n < end; ++epoch) {
      const uint64_t from = std::max(begin, epoch * n), to = std::min(end, (epoch + 1) * n);
      consume_epoch(from, to);
      const bool is_whole = to - from == n;
      const uint64_t skipped = skipped_in(from, to);
      if (is_whole) ++(skipped > 0 ? proof.skipped_epochs : proof.whole_epochs);
      proof.last_epoch = epoch;
      proof.last_epoch_samples = is_whole ? 0 : to - from - skipped;
      proof.last_epoch_skipped = is_whole ? 0 : skipped;
      proof.skipped_positions += skipped;
    }
    for (const LedgerPiece& piece : stretch_.pieces) compare(piece);
    proof.positions += end - begin;
    proof.samples = n;
    proof.substituted.insert(proof.substituted.end(), listed_.begin(), listed_.end());
  }

 private:
  uint64_t step_of(uint64_t position) const { return position / terms_.global_batch; }

  // Positions in [from, to) whose steps were passed over.
  uint64_t skipped_in(uint64_t from, uint64_t to) const {
    uint64_t sum = 0;
    const uint64_t batch = terms_.global_batch;
    for (auto step = skipped_steps_.lower_bound(step_of(from));
         step != skipped_steps_.end() && *step * batch < to; ++step)
      sum += std::min(to, (*step + 1) * batch) - std::max(from, *step * batch);
    return sum;
  }

  // A line's word on a substitute, which must fit the stream.
  void take(const SubstitutedSample& s) {
    const uint64_t should = sampler_.at(s.position).sample;
    if (should != s.sample || s.substitute >= terms_.dataset_size)
      fail_at(step_of(s.position), s.position,
              fmt::format("sample {} was replaced by {} there, but sample {} of {} belongs there",
                          s.sample, s.substitute, should, terms_.dataset_size));
    substitutes_[s.position] = s.substitute;
    listed_.push_back(s);
  }

  uint64_t substitute_at(uint64_t position) const {
    if (substitutes_.empty()) return data::kNoSubstitute;
    const auto found = substitutes_.find(position);
    return found == substitutes_.end() ? data::kNoSubstitute : found->second;
  }

  // Positions [from, to) of one epoch: their marks into the steps' sums, their samples into a set
  // in which none may come twice.
  void consume_epoch(uint64_t from, uint64_t to) {
    used_.assign((terms_.dataset_size + 63) / 64, 0);
    std::atomic<uint64_t> twice = ~uint64_t{0};
    const uint64_t epoch = from / terms_.dataset_size;
    const data::EpochOrder order = sampler_.order(epoch);
    in_parallel(from, to, threads_, [&](uint64_t begin, uint64_t end) {
      for (uint64_t p = begin; p < end;) {
        const uint64_t step = step_of(p);
        const uint64_t step_end = std::min(end, (step + 1) * terms_.global_batch);
        uint64_t sum = 0;
        for (; p < step_end; ++p) {
          const uint64_t sample = order.at(p - epoch * terms_.dataset_size);
          sum += sample_mark(p, epoch, sample, substitute_at(p));
          const uint64_t bit = uint64_t{1} << (sample % 64);
          const std::atomic_ref word(used_[sample / 64]);
          if ((word.fetch_or(bit, std::memory_order_relaxed) & bit) != 0) twice = p;
        }
        std::atomic_ref(expected_[step - stretch_.first()]).fetch_add(sum);
      }
    });
    if (twice != ~uint64_t{0})
      fail_at(step_of(twice), twice, "the sampler gives a sample of this epoch twice");
  }

  void compare(const LedgerPiece& piece) const {
    const LedgerRecord& record = *piece.record;
    for (uint64_t step = piece.first; step < piece.end; ++step) {
      const uint64_t recorded = record.numbers[step - record.first];
      const uint64_t expected = expected_[step - stretch_.first()];
      if (recorded == expected || (recorded == 0 && skipped_steps_.contains(step))) continue;
      const uint64_t first = step * terms_.global_batch;
      const auto [position, what] = explain(first, recorded - expected);
      fail_at(step, position,
              fmt::format("the step consumed something else than positions {} to {} of the stream "
                          "({}; recorded by life {} as {:016x}, should be {:016x})",
                          first, first + terms_.global_batch - 1, what, record.life, recorded,
                          expected));
    }
  }

  struct Explanation {
    uint64_t position;
    std::string what;
  };
  // What single change of the step's positions gives this difference, where it can be found soon.
  Explanation explain(uint64_t first, uint64_t difference) const {
    constexpr uint64_t kTries = uint64_t{1} << 28;
    const uint64_t end = first + terms_.global_batch;
    for (uint64_t p = first; p < end; ++p) {
      const data::StreamPoint point = sampler_.at(p);
      const uint64_t mark = sample_mark(p, point.epoch, point.sample, substitute_at(p));
      if (difference == mark) return {p, fmt::format("sample {} twice", point.sample)};
      if (difference == 0 - mark) return {p, fmt::format("sample {} not at all", point.sample)};
    }
    for (uint64_t p = first; p < end && (p - first) * terms_.dataset_size < kTries; ++p) {
      const data::StreamPoint point = sampler_.at(p);
      const uint64_t wanted =
          difference + sample_mark(p, point.epoch, point.sample, substitute_at(p));
      for (uint64_t other = 0; other < terms_.dataset_size; ++other) {
        if (wanted == sample_mark(p, point.epoch, other))
          return {p, fmt::format("sample {} in place of {}", other, point.sample)};
        if (wanted == sample_mark(p, point.epoch, point.sample, other))
          return {
              p, fmt::format("sample {} replaced by {}, which is not listed", point.sample, other)};
      }
    }
    return {first, "not explained by one sample"};
  }

  const Stretch stretch_;
  const LedgerTerms& terms_;
  const data::Sampler sampler_;
  const int threads_;
  std::vector<uint64_t> expected_;  // number of each step of the stretch
  std::set<uint64_t> skipped_steps_;
  std::vector<uint64_t> used_;  // samples of the epoch under way, a bit each
  std::unordered_map<uint64_t, uint64_t> substitutes_;
  std::vector<SubstitutedSample> listed_;
};

// The path cut at `end`; throws where it has a gap.
std::vector<LedgerPiece> whole_path(const LedgerText& ledger, uint64_t end) {
  std::vector<LedgerPiece> path = surviving_path(ledger.records);
  while (!path.empty() && path.back().first >= end) path.pop_back();
  if (!path.empty()) path.back().end = std::min(path.back().end, end);
  uint64_t covered = 0;
  const std::string damage =
      ledger.damaged.empty() ? "" : fmt::format(" ({})", fmt::join(ledger.damaged, "; "));
  const auto batch = [&](size_t i) {
    if (path.empty()) return uint64_t{0};
    return path[std::min(i, path.size() - 1)].record->terms.global_batch;
  };
  for (size_t i = 0; i <= path.size(); ++i) {
    const uint64_t next = i < path.size() ? path[i].first : end;
    if (next != covered)
      fail_at(covered, covered * batch(i),
              fmt::format("no whole line holds steps {} to {}{}", covered, next - 1, damage));
    if (i < path.size()) covered = path[i].end;
  }
  return path;
}

// Of the pieces from `begin` on, those with the same terms.
Stretch stretch_at(std::span<const LedgerPiece> path, size_t begin) {
  size_t end = begin + 1;
  while (end < path.size() && path[end].record->unrecorded.empty() &&
         path[end].record->terms == path[begin].record->terms)
    ++end;
  return {path.subspan(begin, end - begin)};
}

}  // namespace

LedgerProof prove(const LedgerText& ledger, uint64_t end, int threads) {
  const auto start = Clock::now();
  LedgerProof proof{.end = end};
  const std::vector<LedgerPiece> path = whole_path(ledger, end);
  std::set<uint64_t> lives;
  size_t at = 0;
  for (; at < path.size() && !path[at].record->unrecorded.empty(); ++at) {
    proof.first = path[at].end;
    proof.unrecorded = path[at].record->unrecorded;
    proof.lost = proof.lost || path[at].record->lost;
  }
  while (at < path.size()) {
    const Stretch stretch = stretch_at(path, at);
    if (!stretch.pieces.front().record->unrecorded.empty())
      fail_at(stretch.first(), stretch.first() * stretch.terms().global_batch,
              fmt::format("steps {} to {} are unrecorded: {}", stretch.first(), stretch.end() - 1,
                          printable(stretch.pieces.front().record->unrecorded)));
    if (stretch.first() > proof.first) proof.changed_at.push_back(stretch.first());
    StretchProof(stretch, std::max(1, threads)).run(proof);
    for (const LedgerPiece& piece : stretch.pieces) {
      lives.insert(piece.record->life);
      for (const SkippedRange& s : piece.record->skipped)
        if (s.first < piece.end && s.end > piece.first)
          proof.skipped.push_back(
              {std::max(s.first, piece.first), std::min(s.end, piece.end), s.reason});
    }
    at += stretch.pieces.size();
  }
  proof.lives = lives.size();
  proof.records = path.size();
  proof.seconds = seconds_since(start);
  return proof;
}

}  // namespace convoy::trainer
