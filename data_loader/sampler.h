// Which sample stands at position p of the endless training stream: a pure function of the seed,
// the number of samples and, with windows, of the shards' sizes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "ops/core/random.h"

namespace convoy::data {

// permute(seed, epoch, n, ·) is a permutation of 0 ... n - 1 (n >= 1, i < n): a Feistel network
// keyed by Philox over the next power of two, walked until it lands below n (Black and Rogaway,
// "Ciphers with arbitrary finite domains", CT-RSA 2002). Other purposes give other permutations.
uint64_t permute(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i,
                 Purpose purpose = Purpose::kShuffle);

struct StreamPoint {
  uint64_t epoch = 0;
  uint64_t sample = 0;
};

// How samples of shards are shuffled in windows: in each epoch the shards are visited in an order
// of their own, `window` of them at a time, and the samples of these are shuffled among each other.
// The samples are numbered as they lie in the shards.
struct Windows {
  std::vector<uint64_t> shards;  // samples of each; empty: all samples are shuffled as one
  uint64_t window = 0;           // shards in a window, at least 1 where there are shards

  bool operator==(const Windows&) const = default;
};

// One epoch's order. Cheap to copy.
class EpochOrder {
 public:
  // i < samples.
  uint64_t at(uint64_t i) const;

 private:
  friend class Sampler;
  // Where the windows of an epoch begin, and where its shards do.
  struct Visits {
    std::vector<uint64_t> first;  // of each shard, in the order of visits: its first sample
    std::vector<uint64_t> begin;  // [shards + 1], in positions of the epoch, as if not shuffled
  };
  EpochOrder(uint64_t seed, uint64_t samples, uint64_t epoch)
      : seed_(seed), samples_(samples), epoch_(epoch) {}

  uint64_t seed_, samples_, epoch_;
  uint64_t window_ = 0;
  std::shared_ptr<const Visits> visits_;  // nullptr: no windows
};

// Any thread may call any member.
class Sampler {
 public:
  // `samples` >= 1, else Error (kBadData). The shards have so many samples together.
  Sampler(uint64_t seed, uint64_t samples, Windows windows = {});
  StreamPoint at(uint64_t position) const {
    const uint64_t epoch = position / samples_;
    return {epoch, order(epoch).at(position % samples_)};
  }
  // For many positions of one epoch.
  EpochOrder order(uint64_t epoch) const;
  uint64_t samples() const { return samples_; }

 private:
  std::shared_ptr<const EpochOrder::Visits> visits(uint64_t epoch) const;

  uint64_t seed_, samples_;
  Windows windows_;
  std::vector<uint64_t> first_;  // of each shard: its first sample

  // The visits of the epochs that were asked for last: they are a function of the epoch, but take
  // the time of all shards.
  struct Remembered {
    uint64_t epoch = 0;
    std::shared_ptr<const EpochOrder::Visits> visits;
  };
  mutable std::mutex mutex_;
  mutable std::array<Remembered, 4> remembered_;  // guarded by mutex_; at epoch % 4
};

}  // namespace convoy::data
