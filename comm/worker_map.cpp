#include "comm/worker_map.h"

#include <algorithm>
#include <limits>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

int64_t count_nodes(WorkerRange range, int workers) {
  int64_t count = 0;
  for (; range.begin < range.end; ++count) range.begin = first_node_of(range, workers).end;
  return count;
}

}  // namespace

std::vector<WorkerRange> map_workers(int workers, int ranks) {
  if (workers < 1 || ranks < 1)
    fail(ExitCode::kFault, "{} workers on {} ranks: both must be at least 1", workers, ranks);
  const int hosts = std::min(workers, ranks);
  const int most = (workers + hosts - 1) / hosts;

  // Dynamic programming: the cut after rank r may lie in [low(r), high(r)], a window of at most
  // `hosts` places; fewest[r][p - low(r)] counts the nodes of ranks [0, r) when they end at p.
  const auto low = [&](int r) {
    return std::max<int64_t>(r, int64_t{workers} - int64_t{hosts - r} * most);
  };
  const auto high = [&](int r) {
    return std::min<int64_t>(int64_t{r} * most, int64_t{workers} - (hosts - r));
  };
  std::vector<int64_t> fewest{0};
  std::vector<std::vector<int>> size_of_last(static_cast<size_t>(hosts) + 1);
  for (int r = 1; r <= hosts; ++r) {
    const size_t places = static_cast<size_t>(high(r) - low(r) + 1);
    std::vector<int64_t> next(places, std::numeric_limits<int64_t>::max());
    size_of_last[static_cast<size_t>(r)].resize(places);
    for (int64_t end = low(r); end <= high(r); ++end)
      for (int size = most; size >= 1; --size) {
        const int64_t begin = end - size;
        if (begin < low(r - 1) || begin > high(r - 1)) continue;
        const WorkerRange range{static_cast<int>(begin), static_cast<int>(end)};
        const int64_t nodes =
            fewest[static_cast<size_t>(begin - low(r - 1))] + count_nodes(range, workers);
        const size_t place = static_cast<size_t>(end - low(r));
        if (nodes < next[place]) {
          next[place] = nodes;
          size_of_last[static_cast<size_t>(r)][place] = size;
        }
      }
    fewest = std::move(next);
  }

  std::vector<WorkerRange> map(static_cast<size_t>(ranks), WorkerRange{workers, workers});
  int end = workers;
  for (int r = hosts; r >= 1; --r) {
    const int size = size_of_last[static_cast<size_t>(r)][static_cast<size_t>(end - low(r))];
    map[static_cast<size_t>(r - 1)] = {end - size, end};
    end -= size;
  }
  return map;
}

}  // namespace convoy::comm
