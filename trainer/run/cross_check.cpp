#include "trainer/run/cross_check.h"

#include <algorithm>

#include "ops/core/error.h"
#include "trainer/engine/setup.h"
#include "trainer/run/replicas.h"

namespace convoy::trainer {

CrossCheck::CrossCheck(comm::Communicator& communicator, comm::Watchdog& watchdog, Engine& engine,
                       int workers, uint32_t every, MakeLoader make_loader)
    : communicator_(communicator),
      watchdog_(watchdog),
      engine_(engine),
      workers_(workers),
      every_(every),
      make_loader_(std::move(make_loader)),
      map_(comm::map_workers(workers, communicator.size())) {
  for (int rank = 0; rank < communicator.size(); ++rank)
    if (map_[static_cast<size_t>(rank)].size() > 0) computing_.push_back(rank);
}

int CrossCheck::worker_of(uint64_t step) const {
  if (every_ == 0 || step % every_ != 0) return -1;
  return static_cast<int>(step / every_ % static_cast<uint64_t>(workers_));
}

// Every pair of ranks meets in the course of time.
std::vector<CrossCheck::Attempt> CrossCheck::first_two(uint64_t step, int worker) const {
  const auto host = std::ranges::find_if(computing_, [&](int rank) {
    const comm::WorkerRange& range = map_[static_cast<size_t>(rank)];
    return range.begin <= worker && worker < range.end;
  });
  if (computing_.size() == 1) {
    // Lanes of this rank; all ranks know only their own, and only this one computes.
    const int lane = worker % engine_.lanes();
    return {{*host, lane}, {*host, (lane + 1) % engine_.lanes()}};
  }
  const uint64_t others = computing_.size() - 1;
  const uint64_t round = step / every_ / static_cast<uint64_t>(workers_);
  const auto at = static_cast<uint64_t>(host - computing_.begin());
  return {{*host, 0}, {computing_[(at + 1 + round % others) % computing_.size()], 0}};
}

std::vector<CrossCheck::Attempt> CrossCheck::more(const std::vector<Attempt>& first) const {
  if (computing_.size() == 1) return {first[0]};
  for (const int rank : computing_)
    if (rank != first[0].rank && rank != first[1].rank) return {{rank, 0}};
  return first;
}

std::vector<uint64_t> CrossCheck::compute(uint64_t step, int worker, const Attempt& attempt) {
  if (attempt.rank != communicator_.rank()) return {};
  const std::unique_ptr<data::Loader> loader = make_loader_(step, worker);
  const auto words = watchdog_.describe(comm::Phase::kInput,
                                        [&] { return file_in_progress(loader->in_progress()); });
  const data::Batch* batch = nullptr;
  const Engine::Source source{[&](uint64_t) {
                                const auto wait = watchdog_.input();
                                batch = &loader->acquire(step, worker);
                                return Engine::Images{batch->pixels, batch->labels.data()};
                              },
                              [&](uint64_t) { loader->release(*batch); },
                              [&](const std::exception_ptr& error) { loader->stop(error); }};
  return engine_.compute_again(step, worker, attempt.lane, source);
}

std::optional<std::string> CrossCheck::check(uint64_t step) {
  const int worker = worker_of(step);
  if (worker < 0) return std::nullopt;
  std::vector<Attempt> attempts = first_two(step, worker);
  std::vector<Digests> found;  // of each attempt
  // Of the last attempts that are not in `found` yet; each rank has made its own.
  const auto share = [&](const std::vector<Digests>& mine) {
    for (const Digests& digests : mine) {
      const std::vector<Digests> all = gather(communicator_, digests);
      found.push_back(all[static_cast<size_t>(attempts[found.size()].rank)]);
    }
  };
  const std::vector<Digests> mine = {
      attempts[0].rank == communicator_.rank() ? engine_.contribution() : Digests(),
      compute(step, worker, attempts[1])};
  // In most cases two numbers say that all is well.
  const auto number = [](const Digests& d) { return d.empty() ? Digests() : Digests{joined(d)}; };
  share({number(mine[0]), number(mine[1])});
  if (found[0] == found[1]) return std::nullopt;

  found.clear();
  share(mine);
  std::vector<Digests> again;
  for (const Attempt& attempt : more(attempts)) {
    attempts.push_back(attempt);
    again.push_back(compute(step, worker, attempt));
  }
  share(again);
  const Difference of_attempts = compare_digests(found);
  Difference difference = of_attempts;
  difference.ranks.clear();
  for (const int attempt : of_attempts.ranks)
    difference.ranks.push_back(attempts[static_cast<size_t>(attempt)].rank);
  std::ranges::sort(difference.ranks);
  difference.ranks.erase(std::unique(difference.ranks.begin(), difference.ranks.end()),
                         difference.ranks.end());
  return fmt::format("step {}: worker {} was computed {} times: {}", step, worker, attempts.size(),
                     to_text(difference, engine_.contribution_names(), communicator_.hosts(),
                             computing_.size() == 1 ? "its other tries" : "the other ranks"));
}

}  // namespace convoy::trainer
