// The reduction tree's shape, and which rank hosts which workers.
#include "comm/worker_map.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

// Node i of a level: [i * 2^level, (i + 1) * 2^level) cut at W.
WorkerRange node_at(int level, int i, int workers) {
  return {i << level, std::min((i + 1) << level, workers)};
}

int height(int workers) {
  int levels = 0;
  while ((1 << levels) < workers) ++levels;
  return levels;
}

TEST(ReductionTree, ParentsAndSiblingsAreThoseOfAlignedRanges) {
  for (int workers = 2; workers <= 70; ++workers)
    for (int level = 0; level < height(workers); ++level)
      for (int i = 0; (i << level) < workers; ++i) {
        const WorkerRange node = node_at(level, i, workers);
        const WorkerRange parent = node_at(level + 1, i / 2, workers);
        if (parent == node) continue;  // its right half lies beyond W
        EXPECT_EQ(parent_of(node, workers), parent) << workers << " " << level << " " << i;
        EXPECT_EQ(sibling_of(node, workers), node_at(level, i ^ 1, workers));
        EXPECT_EQ(split_of(parent), (i | 1) << level);
      }
}

// A worker range is divided into as few nodes as there are.
TEST(ReductionTree, RangesDivideIntoTheLargestNodes) {
  for (int workers = 1; workers <= 33; ++workers)
    for (int begin = 0; begin <= workers; ++begin)
      for (int end = begin; end <= workers; ++end) {
        int at = begin;
        for (const WorkerRange& node : nodes_of({begin, end}, workers)) {
          EXPECT_EQ(node.begin, at);
          at = node.end;
          bool aligned = false;
          for (int level = 0; level <= height(workers); ++level)
            aligned |= (node.begin >> level << level) == node.begin &&
                       node == node_at(level, node.begin >> level, workers);
          EXPECT_TRUE(aligned) << workers << ": [" << node.begin << ", " << node.end << ")";
          if (node != WorkerRange{0, workers}) {
            const WorkerRange parent = parent_of(node, workers);
            EXPECT_TRUE(parent.begin < begin || parent.end > end);
          }
        }
        EXPECT_EQ(at, end);
      }
}

TEST(WorkerMap, EveryWorkerHasOneRankAndNobodyHostsTooMany) {
  for (int workers = 1; workers <= 64; ++workers)
    for (int ranks = 1; ranks <= 64; ++ranks) {
      const std::vector<WorkerRange> map = map_workers(workers, ranks);
      ASSERT_EQ(map.size(), static_cast<size_t>(ranks));
      int at = 0;
      for (int r = 0; r < ranks; ++r) {
        const WorkerRange range = map[static_cast<size_t>(r)];
        EXPECT_EQ(range.begin, at);
        at = range.end;
        EXPECT_LE(range.size(), (workers + ranks - 1) / ranks) << workers << " on " << ranks;
        EXPECT_EQ(range.size() > 0, r < workers) << workers << " on " << ranks;
      }
      EXPECT_EQ(at, workers);
    }
}

// Fewest nodes over all cuts, by trying every one.
int fewest_nodes(int workers, int ranks, int begin, int most) {
  if (ranks == 0) return begin == workers ? 0 : 1 << 20;
  int fewest = 1 << 20;
  for (int end = begin + 1; end <= std::min(begin + most, workers); ++end)
    fewest = std::min(fewest, static_cast<int>(nodes_of({begin, end}, workers).size()) +
                                  fewest_nodes(workers, ranks - 1, end, most));
  return fewest;
}

TEST(WorkerMap, CutsLieWhereTheExchangeSendsLeast) {
  for (int workers = 1; workers <= 16; ++workers)
    for (int ranks = 1; ranks <= std::min(workers, 6); ++ranks) {
      int nodes = 0;
      for (const WorkerRange& range : map_workers(workers, ranks))
        nodes += static_cast<int>(nodes_of(range, workers).size());
      EXPECT_EQ(nodes, fewest_nodes(workers, ranks, 0, (workers + ranks - 1) / ranks))
          << workers << " on " << ranks;
    }
  EXPECT_EQ(map_workers(5, 2), (std::vector<WorkerRange>{{0, 2}, {2, 5}}));
  EXPECT_EQ(map_workers(4, 6),
            (std::vector<WorkerRange>{{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 4}, {4, 4}}));
}

TEST(WorkerMap, RefusesNothingToHost) {
  EXPECT_THROW(map_workers(0, 2), Error);
  EXPECT_THROW(map_workers(2, 0), Error);
}

}  // namespace
}  // namespace convoy::comm
