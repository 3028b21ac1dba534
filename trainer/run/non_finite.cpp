#include "trainer/run/non_finite.h"

#include <utility>
#include <vector>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/run/roll_back.h"

namespace convoy::trainer {

void NonFinite::note(uint64_t step, const Engine::Result& result) {
  if (result.updated) return;
  pending_ = LeftOut{.step = step,
                     .diverged = result.diverged,
                     .why = engine_.about_divergence(step, result),
                     .losses = fmt::format("{}", fmt::join(engine_.losses_not_finite(), ", "))};
}

void NonFinite::ask(uint64_t done) {
  int64_t ranks[] = {pending_ ? 1 : 0};
  communicator_.all_reduce_sum(ranks);
  settle(static_cast<int>(ranks[0]), done);
}

void NonFinite::settle(int ranks, uint64_t done) {
  if (ranks == 0) return;
  if (ranks < communicator_.size()) {
    const auto differ = replicas_.compare(done);
    throw RollBack{differ ? *differ : fmt::format("step {}: the ranks have parted", done),
                   std::nullopt};
  }
  const std::optional<LeftOut> left_out = std::exchange(pending_, std::nullopt);
  if (left_out && left_out->diverged) follow_policy(*left_out, done);
}

std::string NonFinite::take_apart() {
  const std::optional<LeftOut> mine = std::exchange(pending_, std::nullopt);
  const std::vector<std::string> said = communicator_.all_gather(mine ? mine->why : "");
  std::string ranks, found;
  size_t count = 0;
  for (size_t rank = 0; rank < said.size(); ++rank) {
    if (said[rank].empty()) continue;
    ranks += fmt::format("{}rank {} ({})", ranks.empty() ? "" : ", ", rank,
                         printable(communicator_.hosts()[rank]));
    if (++count == 1) found = said[rank];
  }
  if (count == 0 || count == said.size()) return "";
  return fmt::format("; {} alone found sums that are not finite: {}", ranks, found);
}

void NonFinite::follow_policy(const LeftOut& left_out, uint64_t done) {
  // A rank whose memory was hit by a flipped bit is no reason to change the run's course.
  if (const auto differ = replicas_.compare(done)) throw RollBack{*differ, std::nullopt};
  std::string why = left_out.why;
  const std::vector<std::string> workers = communicator_.all_gather(left_out.losses);
  for (size_t rank = 0; rank < workers.size(); ++rank)
    if (!workers[rank].empty())
      why += fmt::format("; not finite on rank {} ({}): the loss of worker {}", rank,
                         printable(communicator_.hosts()[rank]), workers[rank]);
  stop_or_roll_back(why, left_out.step + 1);
  ++skipped_.skips;
  if (communicator_.rank() != 0) return;
  log::warning("{}; the update is skipped, number {} of at most {} (non_finite.max_skips)", why,
               skipped_.skips, policy_.max_skips);
  folder_.write({.step = left_out.step + 1, .event = "skip", .detail = why});
}

void NonFinite::stop_or_roll_back(const std::string& why, uint64_t done) const {
  using Policy = Job::NonFinite::Policy;
  if (policy_.policy == Policy::kStop)
    fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
  if (skipped_.skips >= policy_.max_skips)
    fail(ExitCode::kFault, "{}; the run has skipped {} time(s) already (non_finite.max_skips); {}",
         why, skipped_.skips, Engine::kDivergenceRemedy);
  if (policy_.policy == Policy::kRollBack) throw RollBack{why, done};
}

}  // namespace convoy::trainer
