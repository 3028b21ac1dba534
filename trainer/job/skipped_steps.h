// Steps that were not computed: what a roll-back after numbers that were not finite passed over,
// so that the run does not meet them again. Beside the job this list decides a run's result; it is
// part of every checkpoint.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace convoy::trainer {

struct SkippedSteps {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;  // [begin, end), in the order of the run
  uint32_t skips = 0;  // how often the policy has acted: ranges passed over, or updates left out

  // Where a run that has done `step` steps goes on: behind the range that holds it, if one does.
  uint64_t next(uint64_t step) const {
    for (const auto& [begin, end] : ranges)
      if (begin <= step && step < end) step = end;
    return step;
  }
  // How many steps were done before the last one, or the last range, made it `step` (at least 1).
  uint64_t previous(uint64_t step) const {
    for (const auto& [begin, end] : ranges)
      if (end == step) return begin;
    return step - 1;
  }
  // From now on [begin, end) is passed over. A longer range from the same step takes the place of a
  // shorter one.
  void add(uint64_t begin, uint64_t end) {
    if (!ranges.empty() && ranges.back().first == begin)
      ranges.back().second = end;
    else
      ranges.emplace_back(begin, end);
  }
  bool operator==(const SkippedSteps&) const = default;
};

}  // namespace convoy::trainer
