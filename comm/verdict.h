// Who holds the job up: a pure function from what the ranks last said to one line. The watchdog
// (watchdog.h) collects the states and acts on the verdict.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace convoy::comm {

enum class Phase : uint8_t { kStart, kInput, kCompute, kReduce, kSave, kEvaluate, kLeave };

// Seconds; 0: off. What they are for: message Watchdog in proto/job.proto.
struct Deadlines {
  double start = 3600;
  double input = 600;
  double compute = 600;  // of an evaluation's batch, too
  double reduce = 300;
  double save = 1800;  // and leaving, which waits for the last save
  double silence = 60;
};

// A connection that ended without a goodbye has this long to come back; mpirun, which sees the end
// of a process itself, has it to say so and to end the job.
constexpr double kClosedGrace = 5;

// What is known of a rank at this moment.
struct RankState {
  Phase phase = Phase::kStart;
  uint64_t step = 0;
  double seconds = 0;  // in this phase, since it last got on; if it waits, since it does
  bool waits = false;  // for other ranks
  double saving = -1;  // seconds that a checkpoint has been written beside all else; < 0: none is
  double silence = 0;  // seconds since its last heartbeat
  double closed = -1;  // seconds since its connection ended without a goodbye; < 0: it did not
  bool left = false;   // it has said goodbye
  std::string detail;  // "file /x/y.JPEG", "bucket 4"; one line, may be empty
  double working[2] = {0, 0};  // its own time since the start in input and compute, seconds
  double reducing = 0;         // likewise in reduce, where it waits for sums
  // Questions that the rank it reports to has answered while it waited for others, and the seconds
  // that the answers took in all: the network's, since nobody else is asked.
  uint32_t answers = 0;
  double answering = 0;
  uint32_t rounds = 0;  // batches that one lane of it computes in a step; 0: it trains nothing
};

struct Verdict {
  int exit_code = 0;
  std::vector<int> culprits;  // empty: nobody alone
  std::string text;           // one line
};

// The rank that `rank` reports to; the tree is a star up to fan_out + 1 ranks. rank > 0.
constexpr int tree_parent(int rank, int fan_out) {
  return (rank - 1) / fan_out;
}

// As rank 0 sees it: hosts[r] is rank r's. A rank that waits for others is nobody's culprit: named
// is one whose connection broke, that is silent, or that is over its own deadline in a phase that
// waits for nobody; where all wait for each other, all. nullopt: nothing is wrong so far.
std::optional<Verdict> judge(std::span<const RankState> ranks, std::span<const std::string> hosts,
                             const Deadlines& deadlines, int fan_out);

// As the ranks below it see a parent that is silent: `silence` seconds.
Verdict lost_parent(int parent, const std::string& host, double silence, const RankState& own);

// "waiting in reduce of bucket 4, step 812"; "computing, step 812": behind "rank 3".
std::string activity(const RankState& state);

// "rank 3", "ranks 0-2, 5".
std::string rank_list(std::span<const int> ranks);

// The rank whose own time of a step is the longest, if it is more than `factor` times the median of
// all: one line; "" where there is none. Ranks that train nothing (rounds 0) do not count, and time
// is compared per round. seconds[r]: input and compute of one step.
struct OwnTime {
  double input = 0, compute = 0;
  uint32_t rounds = 0;
  double reduce = 0;       // of the same step
  double round_trip = -1;  // mean seconds of an answer; < 0: not measured
};
std::string straggler(std::span<const OwnTime> ranks, std::span<const std::string> hosts,
                      double factor);

// The host with the slowest network, if that is what the ranks wait for: even the rank that waits
// the least spends more than factor - 1 times the longest own time in reduce, and one host's round
// trips take three times the median of the other hosts' and 2 ms more. One line; "" where there is
// none, or where it cannot be told: rank 0's host, towards which all are measured, is never named,
// and two others are needed.
std::string slow_link(std::span<const OwnTime> ranks, std::span<const std::string> hosts,
                      double factor);

}  // namespace convoy::comm
