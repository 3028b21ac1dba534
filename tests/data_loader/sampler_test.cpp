// The sample stream: each epoch a permutation, and one that looks random.
#include "data_loader/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "ops/core/error.h"

namespace convoy::data {
namespace {

bool is_permutation(uint64_t seed, uint64_t epoch, uint64_t n) {
  std::vector<bool> seen(n);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t to = permute(seed, epoch, n, i);
    if (to >= n || seen[to]) return false;
    seen[to] = true;
  }
  return true;
}

// Of counts that should be equal.
double chi_square(const std::vector<uint64_t>& counts) {
  double total = 0, sum = 0;
  for (const uint64_t count : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(counts.size());
  for (const uint64_t count : counts) {
    const double difference = static_cast<double>(count) - expected;
    sum += difference * difference / expected;
  }
  return sum;
}

// Six standard deviations above the mean of a chi-square of that many degrees of freedom.
double limit(size_t cells) {
  const double freedom = static_cast<double>(cells - 1);
  return freedom + 6 * std::sqrt(2 * freedom);
}

TEST(Sampler, EveryEpochIsAPermutation) {
  for (uint64_t n = 1; n <= 1000; ++n) ASSERT_TRUE(is_permutation(7, n % 5, n)) << n;
  EXPECT_TRUE(is_permutation(1, 0, 1281167));
  EXPECT_TRUE(is_permutation(~uint64_t{0}, 89, 60000));
}

TEST(Sampler, DisplacementsAndNeighboursAreUniform) {
  for (const uint64_t n : {uint64_t{1000}, uint64_t{60000}, uint64_t{1281167}}) {
    constexpr uint64_t kCells = 64;
    std::vector<uint64_t> displacement(kCells), neighbour(kCells), next_epoch(kCells);
    uint64_t fixed = 0;
    const uint64_t epochs = n < 10000 ? 50 : 1;
    for (uint64_t epoch = 0; epoch < epochs; ++epoch)
      for (uint64_t i = 0; i < n; ++i) {
        const uint64_t to = permute(3, epoch, n, i);
        fixed += to == i ? 1 : 0;
        const auto cell = [n](uint64_t difference) { return difference % n * kCells / n; };
        ++displacement[cell(to + n - i)];
        if (i + 1 < n) ++neighbour[cell(permute(3, epoch, n, i + 1) + n - to)];
        if (n < 100000) ++next_epoch[cell(permute(3, epoch + 1000, n, i) + n - to)];
      }
    EXPECT_LT(chi_square(displacement), limit(kCells)) << n;
    EXPECT_LT(chi_square(neighbour), limit(kCells)) << n;
    if (n < 100000) {
      EXPECT_LT(chi_square(next_epoch), limit(kCells)) << n;
    }
    // Poisson with mean `epochs`.
    EXPECT_LE(static_cast<double>(fixed),
              static_cast<double>(epochs) + 7 * std::sqrt(static_cast<double>(epochs)))
        << n;
  }
}

TEST(Sampler, SmallSetsSeeAllTheirOrders) {
  std::map<std::vector<uint64_t>, uint64_t> orders;
  for (uint64_t epoch = 0; epoch < 4800; ++epoch) {
    std::vector<uint64_t> order;
    for (uint64_t i = 0; i < 4; ++i) order.push_back(permute(11, epoch, 4, i));
    ++orders[order];
  }
  ASSERT_EQ(orders.size(), 24u);
  std::vector<uint64_t> counts;
  for (const auto& [order, count] : orders) counts.push_back(count);
  EXPECT_LT(chi_square(counts), limit(counts.size()));
}

// Feistel rounds over exactly n = 16 would only ever give even permutations.
TEST(Sampler, SmallSetsSeeOddAndEvenOrders) {
  int odd = 0;
  for (uint64_t epoch = 0; epoch < 400; ++epoch) {
    int inversions = 0;
    for (uint64_t i = 0; i < 16; ++i)
      for (uint64_t j = 0; j < i; ++j)
        inversions += permute(5, epoch, 16, j) > permute(5, epoch, 16, i) ? 1 : 0;
    odd += inversions % 2;
  }
  EXPECT_NEAR(odd, 200, 60);
}

TEST(Sampler, SeedAndEpochChangeTheOrder) {
  const auto order = [](uint64_t seed, uint64_t epoch) {
    std::vector<uint64_t> out;
    for (uint64_t i = 0; i < 100; ++i) out.push_back(permute(seed, epoch, 100, i));
    return out;
  };
  EXPECT_NE(order(1, 0), order(2, 0));
  EXPECT_NE(order(1, 0), order(1, 1));
  EXPECT_NE(order(1, 0), order(1, uint64_t{1} << 32));
}

// The stream is part of every run's identity: a change here breaks resuming old runs.
TEST(Sampler, TheStreamIsPinned) {
  const Sampler sampler(1, 60000);
  std::vector<uint64_t> got;
  for (const uint64_t position : {0, 1, 59999, 60000, 123456}) {
    const StreamPoint point = sampler.at(position);
    EXPECT_EQ(point.epoch, position / 60000);
    got.push_back(point.sample);
  }
  EXPECT_EQ(got, (std::vector<uint64_t>{10105, 24045, 19818, 198, 31697}));
}

bool is_epoch_of_windows(uint64_t seed, uint64_t epoch, const Windows& windows) {
  uint64_t n = 0;
  for (const uint64_t shard : windows.shards) n += shard;
  const EpochOrder order = Sampler(seed, n, windows).order(epoch);
  std::vector<bool> seen(n);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t to = order.at(i);
    if (to >= n || seen[to]) return false;
    seen[to] = true;
  }
  return true;
}

TEST(Windows, EveryEpochIsAPermutation) {
  for (uint64_t shards = 1; shards <= 24; ++shards)
    for (const uint64_t window : {1, 2, 3, 7, 24, 1000})
      for (uint64_t epoch = 0; epoch < 3; ++epoch) {
        Windows windows{.shards = {}, .window = window};
        // Uneven, some empty.
        for (uint64_t k = 0; k < shards; ++k)
          windows.shards.push_back((k * 7 + epoch * 5 + shards) % 11);
        windows.shards.push_back(3);
        ASSERT_TRUE(is_epoch_of_windows(shards, epoch, windows)) << shards << " " << window;
      }
  EXPECT_TRUE(is_epoch_of_windows(1, 7, {std::vector<uint64_t>(533, 2403), 16}));
}

TEST(Windows, ReadFewShardsAtATime) {
  const Windows windows{.shards = std::vector<uint64_t>(40, 25), .window = 4};
  const Sampler sampler(3, 1000, windows);
  std::set<std::set<uint64_t>> groups;
  std::set<std::vector<uint64_t>> orders;
  for (uint64_t epoch = 0; epoch < 4; ++epoch)
    for (uint64_t window = 0; window < 10; ++window) {
      std::set<uint64_t> shards;
      std::vector<uint64_t> order;
      for (uint64_t i = 0; i < 100; ++i) {
        const StreamPoint point = sampler.at(epoch * 1000 + window * 100 + i);
        EXPECT_EQ(point.epoch, epoch);
        shards.insert(point.sample / 25);
        order.push_back(point.sample);
      }
      EXPECT_EQ(shards.size(), 4u);
      groups.insert(shards);
      EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
      for (uint64_t& sample : order) sample %= 25;
      orders.insert(order);
    }
  EXPECT_EQ(groups.size(), 40u) << "each epoch has other windows";
  EXPECT_EQ(orders.size(), 40u) << "each window has an order of its own";
}

// Samples of the shards of one window follow each other as in any shuffle.
TEST(Windows, MixAllShardsOfAWindow) {
  constexpr uint64_t kShards = 8, kEach = 2000;
  const Windows windows{.shards = std::vector<uint64_t>(kShards, kEach), .window = kShards};
  const EpochOrder order = Sampler(9, kShards * kEach, windows).order(2);
  std::vector<uint64_t> pairs(kShards * kShards);
  for (uint64_t i = 0; i + 1 < kShards * kEach; ++i)
    ++pairs[order.at(i) / kEach * kShards + order.at(i + 1) / kEach];
  EXPECT_LT(chi_square(pairs), limit(pairs.size()));
}

// As TheStreamIsPinned: never to change.
TEST(Windows, TheStreamIsPinned) {
  const Sampler sampler(1, 60000, {.shards = std::vector<uint64_t>(60, 1000), .window = 16});
  std::vector<uint64_t> got;
  for (const uint64_t position : {0, 1, 59999, 60000, 123456})
    got.push_back(sampler.at(position).sample);
  EXPECT_EQ(got, (std::vector<uint64_t>{33556, 49988, 34839, 37835, 18136}));
}

TEST(Windows, ShardsOfAnotherNumberOfSamplesAreAFault) {
  EXPECT_THROW(Sampler(1, 10, {.shards = {4, 5}, .window = 1}), Error);
  EXPECT_THROW(Sampler(1, 9, {.shards = {4, 5}, .window = 0}), Error);
}

TEST(Sampler, AnEmptyDatasetIsAnError) {
  try {
    Sampler(1, 0);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
  }
}

}  // namespace
}  // namespace convoy::data
