#include "comm/schedule.h"

#include <algorithm>
#include <bit>

#include "ops/core/cache_line.h"
#include "ops/core/error.h"

namespace convoy::comm {
namespace {

int workers_of(std::span<const WorkerRange> map) {
  return map.back().end;
}

// Appends the sums that make `node` over one chunk from the nodes that ranks have.
void append_sums(WorkerRange node, std::span<const WorkerRange> given, int chunk,
                 std::vector<Sum>& sums) {
  // `given` lies in order and divides [0, W) into nodes: the one that begins where `node` does
  // either covers it or is a part of it.
  const auto at =
      std::lower_bound(given.begin(), given.end(), node.begin,
                       [](const WorkerRange& range, int begin) { return range.begin < begin; });
  if (*at == node) return;
  append_sums({node.begin, split_of(node)}, given, chunk, sums);
  append_sums({split_of(node), node.end}, given, chunk, sums);
  sums.push_back({node, chunk, chunk + 1});
}

Plan plan_all_to_all(std::span<const WorkerRange> map, int rank) {
  const int ranks = static_cast<int>(map.size());
  const int workers = workers_of(map);
  const WorkerRange root{0, workers};
  Plan plan{.chunks = ranks, .rounds = std::vector<Round>(2)};
  Round& scatter = plan.rounds[0];
  Round& gather = plan.rounds[1];
  std::vector<WorkerRange> given;
  const std::vector<WorkerRange> mine = nodes_of(map[static_cast<size_t>(rank)], workers);
  for (int peer = 0; peer < ranks; ++peer) {
    const std::vector<WorkerRange> theirs = nodes_of(map[static_cast<size_t>(peer)], workers);
    given.insert(given.end(), theirs.begin(), theirs.end());
    if (peer == rank) continue;
    for (const WorkerRange& node : theirs) scatter.receives.push_back({peer, node, rank, rank + 1});
    gather.receives.push_back({peer, root, peer, peer + 1});
  }
  // Every rank begins with its right-hand neighbour, so that no rank is everybody's first.
  for (int step = 1; step < ranks; ++step) {
    const int peer = (rank + step) % ranks;
    for (const WorkerRange& node : mine) scatter.sends.push_back({peer, node, peer, peer + 1});
    gather.sends.push_back({peer, root, rank, rank + 1});
  }
  append_sums(root, given, rank, scatter.sums);
  return plan;
}

Plan plan_halving(std::span<const WorkerRange> map, int rank) {
  const int ranks = static_cast<int>(map.size());
  const int workers = workers_of(map);
  const WorkerRange root{0, workers};
  Plan plan{.chunks = ranks, .rounds = {}};
  WorkerRange node = map[static_cast<size_t>(rank)];
  int first = 0, last = ranks;
  for (int bit = 1; bit < ranks; bit *= 2) {
    const int peer = rank ^ bit;
    const int middle = (first + last) / 2;
    const bool upper = (rank & bit) != 0;
    Round round;
    round.sends.push_back({peer, node, upper ? first : middle, upper ? middle : last});
    (upper ? first : last) = middle;
    round.receives.push_back({peer, sibling_of(node, workers), first, last});
    node = parent_of(node, workers);
    round.sums.push_back({node, first, last});
    plan.rounds.push_back(std::move(round));
  }
  for (int bit = ranks / 2; bit >= 1; bit /= 2) {
    const int peer = rank ^ bit;
    const int length = last - first;
    const int theirs = (rank & bit) ? first - length : last;
    Round round;
    round.sends.push_back({peer, root, first, last});
    round.receives.push_back({peer, root, theirs, theirs + length});
    first = std::min(first, theirs);
    last = first + 2 * length;
    plan.rounds.push_back(std::move(round));
  }
  return plan;
}

}  // namespace

size_t chunk_begin(size_t floats, int chunks, int chunk) {
  const size_t even = floats / static_cast<size_t>(chunks) * static_cast<size_t>(chunk) +
                      floats % static_cast<size_t>(chunks) * static_cast<size_t>(chunk) /
                          static_cast<size_t>(chunks);
  return std::min(floats, round_up(even, kCacheLineFloats));
}

bool halving_fits(std::span<const WorkerRange> map) {
  if (!std::has_single_bit(map.size())) return false;
  // Level by level, neighbours must be left and right child of one node.
  const int workers = workers_of(map);
  std::vector<WorkerRange> level(map.begin(), map.end());
  for (const WorkerRange& range : level)
    if (nodes_of(range, workers).size() != 1) return false;
  while (level.size() > 1) {
    std::vector<WorkerRange> next;
    for (size_t i = 0; i < level.size(); i += 2) {
      if (sibling_of(level[i], workers) != level[i + 1]) return false;
      next.push_back(parent_of(level[i], workers));
    }
    level = std::move(next);
  }
  return true;
}

ScheduleKind choose_schedule(std::span<const WorkerRange> map) {
  // Below 16 ranks the messages of the all-to-all are few, and two hops beat six.
  return map.size() >= 16 && halving_fits(map) ? ScheduleKind::kHalving : ScheduleKind::kAllToAll;
}

Plan make_plan(std::span<const WorkerRange> map, int rank, ScheduleKind kind) {
  if (map.size() == 1) return {};
  if (kind != ScheduleKind::kHalving) return plan_all_to_all(map, rank);
  if (!halving_fits(map))
    fail(ExitCode::kFault, "recursive halving does not fit {} workers on {} ranks", workers_of(map),
         map.size());
  return plan_halving(map, rank);
}

double redundancy(std::span<const WorkerRange> map, ScheduleKind kind) {
  if (map.size() == 1 || kind == ScheduleKind::kHalving) return 1.0;
  size_t nodes = 0;
  for (const WorkerRange& range : map) nodes += nodes_of(range, workers_of(map)).size();
  // Each node goes to R - 1 owners in pieces of 1 / R, and so does each of the R chunks of the
  // root.
  const double ranks = static_cast<double>(map.size());
  return (static_cast<double>(nodes) + ranks) / (2.0 * ranks);
}

}  // namespace convoy::comm
