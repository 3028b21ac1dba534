#include "comm/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

constexpr const char* kRemedy = "run the same command again";
// Silence that is worth a word where another deadline is over first.
constexpr double kNotableSilence = 5;

std::string behind(const std::string& separator, const std::string& text) {
  return text.empty() ? "" : separator + text;
}

// A deadline of 0 is never over.
bool over(double seconds, double deadline) {
  return deadline > 0 && seconds > deadline;
}

enum class Kind { kNone, kClosed, kSilent, kLate, kSaving };

bool is_late(const RankState& s, const Deadlines& d) {
  if (s.waits) return false;
  switch (s.phase) {
    case Phase::kStart:
      return over(s.seconds, d.start);
    case Phase::kInput:
      return over(s.seconds, d.input);
    case Phase::kCompute:
    case Phase::kEvaluate:
      return over(s.seconds, d.compute);
    case Phase::kSave:
    case Phase::kLeave:
      return over(s.seconds, d.save);
    case Phase::kReduce:
      return false;
  }
  return false;
}

Kind kind_of(const RankState& s, const Deadlines& d) {
  if (s.left) return Kind::kNone;
  if (s.closed > kClosedGrace) return Kind::kClosed;
  if (over(s.silence, d.silence)) return Kind::kSilent;
  if (is_late(s, d)) return Kind::kLate;
  return over(s.saving, d.save) ? Kind::kSaving : Kind::kNone;
}

// The rank whose loss explains that we hear nothing of this one: the highest of those above it that
// has been silent for long, too.
int root_of_silence(int rank, std::span<const RankState> ranks, double silence, int fan_out) {
  int blamed = rank;
  for (int above = tree_parent(rank, fan_out); above > 0; above = tree_parent(above, fan_out)) {
    const RankState& s = ranks[static_cast<size_t>(above)];
    if (s.closed >= 0 || s.silence > silence / 2) blamed = above;
  }
  return blamed;
}

const char* doing(Phase phase) {
  switch (phase) {
    case Phase::kStart:
      return "starting";
    case Phase::kInput:
      return "waiting for input";
    case Phase::kCompute:
      return "computing";
    case Phase::kReduce:
      return "in reduce";
    case Phase::kSave:
      return "saving";
    case Phase::kEvaluate:
      return "evaluating";
    case Phase::kLeave:
      return "leaving";
  }
  return "";
}

// What the culprits have done, behind their names.
std::string accusation(const RankState& s, Kind kind) {
  switch (kind) {
    case Kind::kClosed:
      return fmt::format(
          "its connection broke and it did not come back (the process died), last {}", activity(s));
    case Kind::kSilent:
      return fmt::format(
          "no heartbeat for {:.0f} s (stopped, or its host or network is down), last {}", s.silence,
          activity(s));
    case Kind::kSaving:
      return fmt::format("writing a checkpoint for {:.0f} s, step {}", s.saving, s.step);
    default:
      return fmt::format(
          "{} {:.0f} s{}{}, step {}", doing(s.phase), s.seconds, behind(", ", s.detail),
          s.silence > kNotableSilence ? fmt::format(", no heartbeat for {:.0f} s", s.silence) : "",
          s.step);
  }
}

// "; ranks 0-2 wait in reduce of bucket 4, step 812", at most three groups.
std::string bystanders(std::span<const RankState> ranks, std::span<const int> culprits) {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    const RankState& s = ranks[static_cast<size_t>(rank)];
    if (s.left || std::ranges::find(culprits, rank) != culprits.end()) continue;
    const std::string text = activity(s);
    auto group = std::ranges::find(groups, text, &decltype(groups)::value_type::first);
    if (group == groups.end()) group = groups.insert(groups.end(), {text, {}});
    group->second.push_back(rank);
  }
  std::ranges::stable_sort(groups, std::greater<>{}, [](const auto& g) { return g.second.size(); });
  std::string text;
  size_t more = 0;
  constexpr size_t kGroups = 3;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (i >= kGroups)
      more += groups[i].second.size();
    else
      text += fmt::format("; {} {}", rank_list(groups[i].second), groups[i].first);
  }
  if (more > 0) text += fmt::format("; {} more elsewhere", more);
  return text;
}

Verdict everybody_waits(std::span<const RankState> ranks, double seconds) {
  std::vector<int> silent;
  for (size_t r = 1; r < ranks.size(); ++r)
    if (!ranks[r].left && ranks[r].silence > kNotableSilence) silent.push_back(static_cast<int>(r));
  const std::string suspicion =
      silent.empty()
          ? "the network between them (or on a GPU its work) hangs"
          : fmt::format("{} send{} no heartbeat", rank_list(silent), silent.size() == 1 ? "s" : "");
  return {.exit_code = static_cast<int>(ExitCode::kRecoverable),
          .culprits = silent,
          .text = fmt::format("all ranks have waited for each other for {:.0f} s: {}{}; {}",
                              seconds, suspicion, bystanders(ranks, {}), kRemedy)};
}

}  // namespace

std::string activity(const RankState& s) {
  if (s.phase == Phase::kReduce)
    return fmt::format("waiting in reduce{}, step {}", behind(" of ", s.detail), s.step);
  return fmt::format("{}{}{}, step {}", doing(s.phase), s.waits ? " (waiting for others)" : "",
                     behind(", ", s.detail), s.step);
}

std::string rank_list(std::span<const int> ranks) {
  std::string list;
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    list += i == 0 ? "" : ", ";
    list += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return (ranks.size() == 1 ? "rank " : "ranks ") + list;
}

std::optional<Verdict> judge(std::span<const RankState> ranks, std::span<const std::string> hosts,
                             const Deadlines& deadlines, int fan_out) {
  const auto state = [&](int rank) -> const RankState& { return ranks[static_cast<size_t>(rank)]; };
  const auto host = [&](int rank) -> const std::string& {
    return hosts[static_cast<size_t>(rank)];
  };
  const int size = static_cast<int>(ranks.size());

  // The gravest kind decides; of its ranks those on the first one's host are named together.
  for (const Kind kind : {Kind::kClosed, Kind::kSilent, Kind::kLate, Kind::kSaving}) {
    std::vector<int> culprits;
    for (int rank = 0; rank < size; ++rank) {
      if (kind_of(state(rank), deadlines) != kind) continue;
      const bool lost = kind == Kind::kClosed || kind == Kind::kSilent;
      const int blamed =
          lost && rank > 0 ? root_of_silence(rank, ranks, deadlines.silence, fan_out) : rank;
      if (std::ranges::find(culprits, blamed) == culprits.end()) culprits.push_back(blamed);
    }
    if (culprits.empty()) continue;
    std::ranges::sort(culprits);
    const int first = culprits.front();
    std::vector<int> named;
    std::ranges::copy_if(culprits, std::back_inserter(named),
                         [&](int rank) { return host(rank) == host(first); });
    const size_t others = culprits.size() - named.size();
    return Verdict{
        .exit_code = static_cast<int>(ExitCode::kRecoverable),
        .culprits = culprits,
        .text = fmt::format("{} on {}{}: {}{}; {}", rank_list(named), printable(host(first)),
                            others > 0 ? fmt::format(" and {} on other hosts", others) : "",
                            accusation(state(first), kind), bystanders(ranks, culprits), kRemedy)};
  }

  double least = -1;
  for (const RankState& s : ranks) {
    if (s.left) continue;
    if (!s.waits) return std::nullopt;
    least = least < 0 ? s.seconds : std::min(least, s.seconds);
  }
  if (least >= 0 && over(least, deadlines.reduce)) return everybody_waits(ranks, least);
  return std::nullopt;
}

Verdict lost_parent(int parent, const std::string& host, double silence, const RankState& own) {
  return {.exit_code = static_cast<int>(ExitCode::kRecoverable),
          .culprits = {parent},
          .text = fmt::format("rank {} on {}: no heartbeat for {:.0f} s (stopped, or its host or "
                              "network is down); this rank: {}; {}",
                              parent, printable(host), silence, activity(own), kRemedy)};
}

std::string straggler(std::span<const OwnTime> ranks, std::span<const std::string> hosts,
                      double factor) {
  const auto of_round = [](const OwnTime& t) { return (t.input + t.compute) / t.rounds; };
  std::vector<double> times;
  size_t slowest = ranks.size();
  for (size_t r = 0; r < ranks.size(); ++r) {
    if (ranks[r].rounds == 0) continue;
    times.push_back(of_round(ranks[r]));
    if (slowest == ranks.size() || of_round(ranks[r]) > of_round(ranks[slowest])) slowest = r;
  }
  if (times.size() < 2) return "";
  // The lower one of an even number: of two ranks the faster is the measure.
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>((times.size() - 1) / 2);
  std::ranges::nth_element(times, middle);
  const OwnTime& t = ranks[slowest];
  if (*middle <= 0 || of_round(t) <= factor * *middle) return "";
  return fmt::format(
      "rank {} on {} is slow and the others wait for it: {:.0f} ms of its own a step (input "
      "{:.0f}, "
      "compute {:.0f}), {:.1f} times the median of the ranks",
      slowest, printable(hosts[slowest]), 1e3 * (t.input + t.compute), 1e3 * t.input,
      1e3 * t.compute, of_round(t) / *middle);
}

std::string slow_link(std::span<const OwnTime> ranks, std::span<const std::string> hosts,
                      double factor) {
  constexpr double kStandsOut = 3, kNoise = 2e-3;
  double own = 0, reduce = std::numeric_limits<double>::infinity();
  struct Link {
    std::string host;
    double seconds;  // of the quickest rank
    std::vector<int> ranks;
  };
  std::vector<Link> links;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const OwnTime& t = ranks[r];
    if (t.rounds > 0) {
      own = std::max(own, t.input + t.compute);
      reduce = std::min(reduce, t.reduce);
    }
    if (t.round_trip < 0 || hosts[r] == hosts[0]) continue;
    auto link = std::ranges::find(links, hosts[r], &Link::host);
    if (link == links.end()) link = links.insert(links.end(), {hosts[r], t.round_trip, {}});
    link->seconds = std::min(link->seconds, t.round_trip);
    link->ranks.push_back(static_cast<int>(r));
  }
  if (links.size() < 2 || own <= 0 || !std::isfinite(reduce) || reduce <= (factor - 1) * own)
    return "";
  std::ranges::sort(links, {}, &Link::seconds);
  const Link& slowest = links.back();
  const double middle = links[(links.size() - 2) / 2].seconds;  // of the others
  if (slowest.seconds < kStandsOut * middle || slowest.seconds < middle + kNoise) return "";
  return fmt::format(
      "the network of {} ({}) is slow and all wait for it: at least {:.0f} ms of a step in reduce, "
      "{:.0f} ms of computing; an answer through it takes {:.1f} ms, {:.1f} ms from other hosts",
      printable(slowest.host), rank_list(slowest.ranks), 1e3 * reduce, 1e3 * own,
      1e3 * slowest.seconds, 1e3 * middle);
}

}  // namespace convoy::comm
