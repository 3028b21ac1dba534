// The exchange, run for all ranks in one process: every message that is received was sent, every
// sum's operands are there, and all ranks end with the bits of the tree evaluated directly.
#include "comm/schedule.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <deque>
#include <map>

#include "comm/worker_map.h"
#include "ops/core/error.h"
#include "ops/core/random.h"

namespace convoy::comm {
namespace {

// One float per worker and chunk, of magnitudes so different that every order of a sum shows.
float leaf(int worker, int chunk) {
  const Random4 words = random4(11, Purpose::kSyntheticData, static_cast<uint64_t>(worker),
                                static_cast<uint64_t>(chunk));
  const float sign = (words[2] & 1) ? 1.0f : -1.0f;
  return sign * std::ldexp(1.0f + uniform_float(words[0]), static_cast<int>(words[1] % 30));
}

// The definition, level by level: node i = left + right, alone where there is no right.
float tree_value(WorkerRange node, int chunk) {
  std::vector<float> values;
  for (int w = node.begin; w < node.end; ++w) values.push_back(leaf(w, chunk));
  while (values.size() > 1) {
    std::vector<float> next;
    for (size_t i = 0; i < values.size(); i += 2)
      next.push_back(i + 1 < values.size() ? values[i] + values[i + 1] : values[i]);
    values = std::move(next);
  }
  return values[0];
}

class Simulation {
 public:
  Simulation(int workers, int ranks, ScheduleKind kind)
      : workers_(workers), worker_map_(map_workers(workers, ranks)) {
    for (int r = 0; r < ranks; ++r) {
      plans_.push_back(make_plan(worker_map_, r, kind));
      values_.emplace_back();
      for (const WorkerRange& node : nodes_of(worker_map_[static_cast<size_t>(r)], workers))
        for (int chunk = 0; chunk < plans_.back().chunks; ++chunk)
          values_.back()[key(node, chunk)] = tree_value(node, chunk);
    }
  }

  // False, with a failed assertion, where the plans do not fit together.
  void run() {
    for (const Plan& plan : plans_) ASSERT_EQ(plan.rounds.size(), plans_[0].rounds.size());
    for (size_t round = 0; round < plans_[0].rounds.size(); ++round) {
      struct Message {
        Transfer transfer;
        std::vector<float> data;
      };
      std::map<std::pair<int, int>, std::deque<Message>> wire;  // (from, to)
      for (int r = 0; r < static_cast<int>(plans_.size()); ++r)
        for (const Transfer& t : plans_[static_cast<size_t>(r)].rounds[round].sends) {
          Message message{t, {}};
          for (int chunk = t.first; chunk < t.last; ++chunk) {
            ASSERT_TRUE(has(r, t.node, chunk)) << "rank " << r << " sends what it does not have";
            message.data.push_back(value(r, t.node, chunk));
          }
          sent_ += message.data.size();
          wire[{r, t.peer}].push_back(std::move(message));
        }
      for (int r = 0; r < static_cast<int>(plans_.size()); ++r) {
        const Round& now = plans_[static_cast<size_t>(r)].rounds[round];
        for (const Transfer& t : now.receives) {
          auto& queue = wire[{t.peer, r}];
          ASSERT_FALSE(queue.empty()) << "rank " << r << " waits for rank " << t.peer;
          const Message message = std::move(queue.front());
          queue.pop_front();
          ASSERT_TRUE(message.transfer.node == t.node && message.transfer.first == t.first &&
                      message.transfer.last == t.last);
          for (int chunk = t.first; chunk < t.last; ++chunk)
            values_[static_cast<size_t>(r)][key(t.node, chunk)] =
                message.data[static_cast<size_t>(chunk - t.first)];
        }
        for (const Sum& sum : now.sums) {
          const WorkerRange left{sum.node.begin, split_of(sum.node)};
          const WorkerRange right{split_of(sum.node), sum.node.end};
          for (int chunk = sum.first; chunk < sum.last; ++chunk) {
            ASSERT_TRUE(has(r, left, chunk) && has(r, right, chunk)) << "rank " << r;
            values_[static_cast<size_t>(r)][key(sum.node, chunk)] =
                value(r, left, chunk) + value(r, right, chunk);
          }
        }
      }
      for (const auto& [pair, queue] : wire)
        ASSERT_TRUE(queue.empty()) << pair.first << " -> " << pair.second << ": nobody receives";
    }
    const WorkerRange root{0, workers_};
    for (int chunk = 0; chunk < plans_[0].chunks; ++chunk) {
      const uint32_t bits = std::bit_cast<uint32_t>(tree_value(root, chunk));
      for (int r = 0; r < static_cast<int>(plans_.size()); ++r) {
        ASSERT_TRUE(has(r, root, chunk)) << "rank " << r << " misses chunk " << chunk;
        ASSERT_EQ(std::bit_cast<uint32_t>(value(r, root, chunk)), bits)
            << "rank " << r << " chunk " << chunk;
      }
    }
    // What was sent, counted, is what the factor says.
    const double ranks = static_cast<double>(plans_.size());
    if (plans_.size() > 1) {
      const double ring = 2.0 * (ranks - 1) * plans_[0].chunks;
      const bool halving = plans_[0].rounds.size() != 2;
      EXPECT_DOUBLE_EQ(
          static_cast<double>(sent_) / ring,
          redundancy(worker_map_, halving ? ScheduleKind::kHalving : ScheduleKind::kAllToAll));
    }
  }

 private:
  static uint64_t key(WorkerRange node, int chunk) {
    return (static_cast<uint64_t>(node.begin) << 40) | (static_cast<uint64_t>(node.end) << 20) |
           static_cast<uint64_t>(chunk);
  }
  bool has(int rank, WorkerRange node, int chunk) const {
    return values_[static_cast<size_t>(rank)].count(key(node, chunk)) != 0;
  }
  float value(int rank, WorkerRange node, int chunk) const {
    return values_[static_cast<size_t>(rank)].at(key(node, chunk));
  }

  int workers_;
  std::vector<WorkerRange> worker_map_;
  std::vector<Plan> plans_;
  std::vector<std::map<uint64_t, float>> values_;
  size_t sent_ = 0;
};

TEST(Schedule, AllToAllGivesTheTreesBitsOnAnyRanks) {
  for (int workers : {1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 33, 64})
    for (int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 20}) {
      SCOPED_TRACE(::testing::Message() << workers << " workers on " << ranks << " ranks");
      Simulation(workers, ranks, ScheduleKind::kAllToAll).run();
      if (HasFatalFailure()) return;
    }
}

TEST(Schedule, HalvingGivesTheTreesBitsWhereItFits) {
  int fits = 0;
  for (int workers : {2, 3, 4, 5, 7, 8, 12, 15, 16, 31, 32, 64, 128})
    for (int ranks : {2, 4, 8, 16, 32, 64, 128}) {
      if (!halving_fits(map_workers(workers, ranks))) continue;
      ++fits;
      SCOPED_TRACE(::testing::Message() << workers << " workers on " << ranks << " ranks");
      Simulation(workers, ranks, ScheduleKind::kHalving).run();
      if (HasFatalFailure()) return;
    }
  EXPECT_GE(fits, 25);
}

TEST(Schedule, ManyRanks) {
  Simulation(1024, 1024, ScheduleKind::kHalving).run();
  if (HasFatalFailure()) return;
  Simulation(500, 128, ScheduleKind::kAllToAll).run();
  if (HasFatalFailure()) return;
  Simulation(60, 200, ScheduleKind::kAllToAll).run();
  if (HasFatalFailure()) return;
  // All plans of the largest all-to-all name each message once on either side.
  const std::vector<WorkerRange> map = map_workers(1000, 1024);
  size_t sends = 0, receives = 0;
  for (int r = 0; r < 1024; r += 31) {
    const Plan plan = make_plan(map, r, ScheduleKind::kAllToAll);
    sends += plan.rounds[1].sends.size();
    receives += plan.rounds[1].receives.size();
    EXPECT_EQ(plan.rounds[0].sends.size(), r < 1000 ? 1023u : 0u);
    EXPECT_EQ(plan.rounds[0].receives.size(), r < 1000 ? 999u : 1000u);
    EXPECT_EQ(plan.rounds[0].sums.size(), 999u);
  }
  EXPECT_EQ(sends, receives);
}

TEST(Schedule, HalvingIsTakenForManyAlignedRanksAndRefusedElsewhere) {
  EXPECT_EQ(choose_schedule(map_workers(64, 16)), ScheduleKind::kHalving);
  EXPECT_EQ(choose_schedule(map_workers(64, 8)), ScheduleKind::kAllToAll);
  EXPECT_EQ(choose_schedule(map_workers(64, 24)), ScheduleKind::kAllToAll);
  EXPECT_EQ(choose_schedule(map_workers(16, 32)), ScheduleKind::kAllToAll);
  EXPECT_FALSE(halving_fits(map_workers(5, 4)));
  EXPECT_THROW(make_plan(map_workers(5, 4), 0, ScheduleKind::kHalving), Error);
}

TEST(Schedule, AlignedRanksSendWhatARingSends) {
  EXPECT_DOUBLE_EQ(redundancy(map_workers(64, 4), ScheduleKind::kAllToAll), 1.0);
  EXPECT_DOUBLE_EQ(redundancy(map_workers(7, 1), ScheduleKind::kAllToAll), 1.0);
  EXPECT_GT(redundancy(map_workers(64, 3), ScheduleKind::kAllToAll), 1.5);
}

TEST(Schedule, ChunksCoverABucketInOrder) {
  for (size_t floats :
       {size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{1000}, size_t{1} << 33})
    for (int chunks : {1, 2, 3, 7, 1024}) {
      EXPECT_EQ(chunk_begin(floats, chunks, 0), 0u);
      EXPECT_EQ(chunk_begin(floats, chunks, chunks), floats);
      for (int c = 0; c < chunks; ++c) {
        EXPECT_LE(chunk_begin(floats, chunks, c), chunk_begin(floats, chunks, c + 1));
        EXPECT_LE(chunk_begin(floats, chunks, c + 1) - chunk_begin(floats, chunks, c),
                  floats / static_cast<size_t>(chunks) + 16);
      }
    }
}

}  // namespace
}  // namespace convoy::comm
