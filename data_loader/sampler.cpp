#include "data_loader/sampler.h"

#include <algorithm>
#include <bit>

#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::data {

uint64_t permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i, Purpose purpose) {
  // Rounds mix the two halves of the index in turn. Halves of less than 4 bits would leave few
  // different permutations, so small n walk more.
  constexpr uint64_t kRounds = 8;
  const int bits = std::max(8, static_cast<int>(std::bit_width(n - 1)));
  const int low_bits = bits / 2;
  const uint64_t low_mask = (uint64_t{1} << low_bits) - 1;
  const uint64_t high_mask = (uint64_t{1} << (bits - low_bits)) - 1;
  uint64_t x = i;
  do {
    uint64_t low = x & low_mask, high = x >> low_bits;
    for (uint64_t round = 0; round < kRounds; round += 2) {
      high ^= random4(seed, purpose, epoch, round << 32 | low)[0] & high_mask;
      low ^= random4(seed, purpose, epoch, (round + 1) << 32 | high)[0] & low_mask;
    }
    x = high << low_bits | low;
  } while (x >= n);
  return x;
}

namespace {

// The k-th window of an epoch has a permutation of its own.
uint64_t window_key(uint64_t epoch, uint64_t k) {
  return k << 32 ^ epoch;
}

}  // namespace

uint64_t EpochOrder::at(uint64_t i) const {
  if (!visits_) return permute(seed_, epoch_, samples_, i);
  const std::vector<uint64_t>& begin = visits_->begin;
  // The last visit that begins at or before i: empty shards are passed over.
  const auto visit_at = [&](uint64_t position) {
    return static_cast<uint64_t>(std::upper_bound(begin.begin(), begin.end(), position) -
                                 begin.begin()) -
           1;
  };
  const uint64_t k = visit_at(i) / window_;
  const uint64_t from = begin[k * window_];
  const uint64_t to = begin[std::min<uint64_t>((k + 1) * window_, begin.size() - 1)];
  const uint64_t place =
      from + permute(seed_, window_key(epoch_, k), to - from, i - from, Purpose::kShuffleWindow);
  const uint64_t visit = visit_at(place);
  return visits_->first[visit] + place - begin[visit];
}

Sampler::Sampler(uint64_t seed, uint64_t samples, Windows windows)
    : seed_(seed), samples_(samples), windows_(std::move(windows)) {
  if (samples == 0) fail(ExitCode::kBadData, "the dataset has no samples");
  uint64_t sum = 0;
  for (const uint64_t shard : windows_.shards) {
    first_.push_back(sum);
    sum += shard;
  }
  if (!windows_.shards.empty() && (sum != samples || windows_.window == 0))
    fail(ExitCode::kFault, "sampler: shards of {} samples, {} in the dataset, windows of {} shards",
         sum, samples, windows_.window);
}

EpochOrder Sampler::order(uint64_t epoch) const {
  EpochOrder order(seed_, samples_, epoch);
  if (windows_.shards.empty()) return order;
  order.window_ = windows_.window;
  order.visits_ = visits(epoch);
  return order;
}

std::shared_ptr<const EpochOrder::Visits> Sampler::visits(uint64_t epoch) const {
  const std::lock_guard lock(mutex_);
  Remembered& here = remembered_[epoch % remembered_.size()];
  if (here.visits && here.epoch == epoch) return here.visits;
  auto visits = std::make_shared<EpochOrder::Visits>();
  const uint64_t shards = windows_.shards.size();
  uint64_t sum = 0;
  for (uint64_t k = 0; k < shards; ++k) {
    const uint64_t shard = permute(seed_, epoch, shards, k, Purpose::kShuffleShards);
    visits->first.push_back(first_[shard]);
    visits->begin.push_back(sum);
    sum += windows_.shards[shard];
  }
  visits->begin.push_back(sum);
  here = {epoch, visits};
  return visits;
}

}  // namespace convoy::data
