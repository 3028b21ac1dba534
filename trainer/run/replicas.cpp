#include "trainer/run/replicas.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/core/digest_term.h"
#include "ops/core/error.h"

namespace convoy::trainer {
namespace {

// The value that more than half of the ranks have.
std::optional<uint64_t> majority(const std::vector<Digests>& digests, size_t tensor) {
  for (const Digests& candidate : digests) {
    const auto same = [&](const Digests& d) { return d[tensor] == candidate[tensor]; };
    if (2 * std::ranges::count_if(digests, same) > static_cast<int64_t>(digests.size()))
      return candidate[tensor];
  }
  return std::nullopt;
}

std::string list_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + printable(names[i], 100);
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

std::string ranks_text(const std::vector<int>& ranks, const std::vector<std::string>& hosts) {
  std::vector<std::string> names;
  for (const int rank : ranks)
    names.push_back(fmt::format("rank {} ({})", rank, printable(hosts[static_cast<size_t>(rank)])));
  return list_of(names);
}

std::string pack(const Digests& digests) {
  return {reinterpret_cast<const char*>(digests.data()), digests.size() * sizeof(uint64_t)};
}

// A rank may have none.
Digests unpack(const std::string& text) {
  Digests digests(text.size() / sizeof(uint64_t));
  if (!digests.empty()) std::memcpy(digests.data(), text.data(), digests.size() * sizeof(uint64_t));
  return digests;
}

}  // namespace

Difference compare_digests(const std::vector<Digests>& digests) {
  for (const Digests& d : digests)
    if (d.size() != digests[0].size())
      fail(ExitCode::kFault, "a rank has digests of {} tensors, rank 0 of {}", d.size(),
           digests[0].size());
  Difference difference;
  std::vector<bool> differs(digests.size());
  for (size_t t = 0; t < digests[0].size(); ++t) {
    if (std::ranges::all_of(digests, [&](const Digests& d) { return d[t] == digests[0][t]; }))
      continue;
    difference.tensors.push_back(t);
    const std::optional<uint64_t> right = majority(digests, t);
    difference.decided = difference.decided && right;
    for (size_t r = 0; r < digests.size(); ++r)
      differs[r] = differs[r] || !right || digests[r][t] != *right;
  }
  for (size_t r = 0; r < digests.size(); ++r)
    if (differs[r]) difference.ranks.push_back(static_cast<int>(r));
  return difference;
}

std::string to_text(const Difference& difference, const std::vector<std::string>& names,
                    const std::vector<std::string>& hosts, const std::string& others) {
  std::vector<std::string> tensors;
  for (const size_t t : difference.tensors) tensors.push_back(names[t]);
  const std::string ranks = ranks_text(difference.ranks, hosts);
  if (!difference.decided)
    return fmt::format("no majority: {} differ in {}", ranks, list_of(tensors));
  return fmt::format("{} {} other bits than {} in {}", ranks,
                     difference.ranks.size() == 1 ? "has" : "have", others, list_of(tensors));
}

uint64_t joined(const Digests& digests) {
  uint64_t all = 0;
  for (const uint64_t digest : digests) all = digest_join(all, digest);
  return all;
}

std::vector<Digests> gather(comm::Communicator& communicator, const Digests& mine) {
  std::vector<Digests> all;
  for (const std::string& text : communicator.all_gather(pack(mine))) all.push_back(unpack(text));
  return all;
}

Replicas::Replicas(comm::Communicator& communicator, Engine& engine, uint32_t every, Beside beside)
    : communicator_(communicator), engine_(engine), every_(every), beside_(std::move(beside)) {}

Digests Replicas::digests() const {
  Digests all = beside_.digests();
  const Digests more = engine_.state_digests();
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<std::string> Replicas::names() const {
  std::vector<std::string> all = beside_.names;
  const std::vector<std::string> more = engine_.state_names();
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

void Replicas::before_update(uint64_t done) {
  if (communicator_.size() != 2 || every_ == 0) return;
  // Where no comparison was due for long, the oldest go.
  if (noted_.size() >= 2 * static_cast<size_t>(every_)) noted_.erase(noted_.begin());
  noted_.push_back({done, digests()});
}

std::optional<std::string> Replicas::after_update(uint64_t done) {
  if (!compares()) return std::nullopt;
  settle(done);
  if (every_ == 0 || done % every_ != 0) return std::nullopt;
  return compare(done);
}

std::optional<std::string> Replicas::compare(uint64_t done) {
  if (!compares()) return std::nullopt;
  if (noted_.empty() || noted_.back().done != done) noted_.push_back({done, digests()});
  const std::vector<Digests> all = gather(communicator_, {joined(noted_.back().digests)});
  if (compare_digests(all).all_equal()) {
    noted_.clear();
    return std::nullopt;
  }
  return find_first_difference();
}

std::string Replicas::find_first_difference() {
  std::vector<Digests> all;
  Difference difference;
  uint64_t done = 0;
  for (const Noted& noted : noted_) {
    done = noted.done;
    all = gather(communicator_, noted.digests);
    difference = compare_digests(all);
    if (!difference.all_equal()) break;
  }
  if (!difference.decided) dispute_ = {done, all};
  return fmt::format(
      "step {}: the replicas differ: {}{}", noted_.back().done,
      to_text(difference, names(), communicator_.hosts()),
      difference.decided ? "" : fmt::format("; a replay will decide at step {}", done));
}

void Replicas::went_back(uint64_t done) {
  noted_.clear();
  settle(done);
}

// Has the replay reached the moment at which the replicas first differed?
void Replicas::settle(uint64_t done) {
  if (!dispute_ || dispute_->done != done) return;
  const Digests replayed = digests();
  if (!compare_digests(gather(communicator_, replayed)).all_equal()) {
    judgement_ = fmt::format("step {}: the replays differ, too: they cannot say who was wrong",
                             dispute_->done);
    dispute_.reset();
    return;
  }
  std::vector<int> wrong;
  std::vector<bool> tensor_wrong(replayed.size());
  for (size_t r = 0; r < dispute_->digests.size(); ++r) {
    const Digests& before = dispute_->digests[r];
    if (before == replayed) continue;
    wrong.push_back(static_cast<int>(r));
    for (size_t t = 0; t < replayed.size(); ++t)
      tensor_wrong[t] = tensor_wrong[t] || before[t] != replayed[t];
  }
  std::vector<std::string> tensors;
  const std::vector<std::string> all_names = names();
  for (size_t t = 0; t < all_names.size(); ++t)
    if (tensor_wrong[t]) tensors.push_back(all_names[t]);
  judgement_ =
      wrong.size() == dispute_->digests.size()
          ? fmt::format("step {}: the replay agrees with no rank: it cannot say who was wrong",
                        dispute_->done)
          : fmt::format("step {}: the replay decides: {} was wrong in {}", dispute_->done,
                        ranks_text(wrong, communicator_.hosts()), list_of(tensors));
  dispute_.reset();
}

std::optional<std::string> Replicas::take_judgement() {
  return std::exchange(judgement_, std::nullopt);
}

}  // namespace convoy::trainer
