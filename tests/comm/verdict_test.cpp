// Who is the culprit: tables of states, and the line that is said.
#include "comm/verdict.h"

#include <gtest/gtest.h>

namespace convoy::comm {
namespace {

constexpr Deadlines kDeadlines{
    .start = 100, .input = 30, .compute = 40, .reduce = 60, .save = 50, .silence = 20};

RankState in_reduce(double seconds) {
  RankState s;
  s.phase = Phase::kReduce;
  s.step = 812;
  s.seconds = seconds;
  s.waits = true;
  s.detail = "bucket 4";
  return s;
}

RankState in(Phase phase, double seconds) {
  RankState s;
  s.phase = phase;
  s.step = 812;
  s.seconds = seconds;
  return s;
}

std::vector<std::string> hosts(size_t n, size_t per_host = 1) {
  std::vector<std::string> names;
  for (size_t r = 0; r < n; ++r) names.push_back("node" + std::to_string(r / per_host));
  return names;
}

std::string text(const std::vector<RankState>& ranks, const Deadlines& deadlines = kDeadlines) {
  const auto verdict = judge(ranks, hosts(ranks.size()), deadlines, 256);
  return verdict ? verdict->text : "";
}

TEST(Verdict, NothingIsWrongBelowTheDeadlines) {
  EXPECT_EQ(text({in_reduce(29), in_reduce(59), in(Phase::kInput, 29), in(Phase::kCompute, 39),
                  in(Phase::kSave, 49), in(Phase::kStart, 99), in(Phase::kLeave, 49)}),
            "");
}

TEST(Verdict, TheRankThatWaitsForNobodyIsTheCulprit) {
  RankState culprit = in(Phase::kInput, 42.3);
  culprit.detail = "file /x/y.JPEG";
  EXPECT_EQ(
      text({in_reduce(500), in_reduce(500), in_reduce(500), culprit}),
      "rank 3 on node3: waiting for input 42 s, file /x/y.JPEG, step 812; ranks 0-2 waiting in "
      "reduce of bucket 4, step 812; run the same command again");
}

TEST(Verdict, EveryPhaseHasItsOwnDeadline) {
  for (const auto& [phase, deadline] : std::vector<std::pair<Phase, double>>{{Phase::kStart, 100},
                                                                             {Phase::kInput, 30},
                                                                             {Phase::kCompute, 40},
                                                                             {Phase::kEvaluate, 40},
                                                                             {Phase::kSave, 50},
                                                                             {Phase::kLeave, 50}}) {
    EXPECT_EQ(text({in_reduce(1), in(phase, deadline - 1)}), "");
    EXPECT_NE(text({in_reduce(1), in(phase, deadline + 1)}).find("rank 1 on node1: "),
              std::string::npos);
    // A rank that waits for others there is not late.
    RankState waits = in(phase, deadline + 1);
    waits.waits = true;
    EXPECT_EQ(text({in(Phase::kCompute, 1), waits}), "");
    EXPECT_EQ(text({in_reduce(1), in(phase, 1e9)}, {0, 0, 0, 0, 0, 0}), "") << "0 is never";
  }
}

TEST(Verdict, ASilentRankIsNamedThoughItWaitedWhenItWasLastHeard) {
  RankState silent = in_reduce(22);
  silent.silence = 21;
  EXPECT_EQ(
      text({in_reduce(22), in_reduce(22), silent}),
      "rank 2 on node2: no heartbeat for 21 s (stopped, or its host or network is down), last "
      "waiting in reduce of bucket 4, step 812; ranks 0-1 waiting in reduce of bucket 4, step "
      "812; run the same command again");
  silent.left = true;
  EXPECT_EQ(text({in_reduce(22), in_reduce(22), silent}), "") << "it has said goodbye";
}

TEST(Verdict, ABrokenConnectionHasAMomentToComeBack) {
  RankState closed = in(Phase::kCompute, 1);
  closed.closed = kClosedGrace - 1;
  EXPECT_EQ(text({in_reduce(1), closed}), "");
  closed.closed = kClosedGrace + 1;
  EXPECT_NE(text({in_reduce(1), closed}).find("rank 1 on node1: its connection broke"),
            std::string::npos);
}

TEST(Verdict, WhereAllWaitForEachOtherNobodyIsNamed) {
  const std::string line = text({in_reduce(100), in_reduce(61)});
  EXPECT_EQ(line.find("all ranks have waited for each other for 61 s"), 0u) << line;
  EXPECT_NE(line.find("ranks 0-1 waiting in reduce of bucket 4"), std::string::npos) << line;
  EXPECT_EQ(text({in_reduce(100), in_reduce(100), in(Phase::kCompute, 5)}), "")
      << "one of them works";
  // One that has not been heard for a while is more suspect than the network.
  RankState quiet = in_reduce(61);
  quiet.silence = 10;
  EXPECT_NE(text({in_reduce(100), quiet}).find("rank 1 sends no heartbeat"), std::string::npos);
}

TEST(Verdict, ACheckpointThatIsWrittenBesideHasItsDeadline) {
  RankState saves = in_reduce(3);
  saves.saving = 51;
  EXPECT_NE(text({saves, in_reduce(3)}).find("rank 0 on node0: writing a checkpoint for 51 s"),
            std::string::npos);
}

TEST(Verdict, ALostHostIsOneName) {
  std::vector<RankState> ranks(12, in_reduce(25));
  for (size_t r = 4; r < 8; ++r) ranks[r].silence = 21 + static_cast<double>(r) / 10;
  const auto verdict = judge(ranks, hosts(12, 4), kDeadlines, 256);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->exit_code, 75);
  EXPECT_EQ(verdict->culprits, (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(verdict->text.find("ranks 4-7 on node1: no heartbeat for 21 s"), 0u) << verdict->text;
  EXPECT_NE(verdict->text.find("; ranks 0-3, 8-11 waiting in reduce"), std::string::npos)
      << verdict->text;
}

// With fan-out 2: 1 and 2 report to 0; 3 and 4 to 1; 7 and 8 to 3.
TEST(Verdict, BelowALostRankNobodyElseIsBlamed) {
  std::vector<RankState> ranks(9, in_reduce(25));
  for (const int r : {3, 7, 8}) ranks[static_cast<size_t>(r)].silence = 20.5;
  ranks[3].silence = 19.5;  // heard a little later than those below it
  const auto verdict = judge(ranks, hosts(9), kDeadlines, 2);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->culprits, (std::vector<int>{3}));
}

TEST(Verdict, NamesFromOutsideAreEscaped) {
  std::vector<std::string> names = {"a", "evil\nhost"};
  const auto verdict =
      judge(std::vector<RankState>{in_reduce(1), in(Phase::kCompute, 41)}, names, kDeadlines, 256);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->text.find('\n'), std::string::npos);
}

TEST(Verdict, StragglersAreComparedPerRoundWithTheMedian) {
  const auto ms = [](double input, double compute, uint32_t rounds = 1) {
    return OwnTime{.input = input / 1e3, .compute = compute / 1e3, .rounds = rounds};
  };
  EXPECT_EQ(straggler(std::vector{ms(0, 100), ms(0, 120), ms(10, 115)}, hosts(3), 1.3), "");
  EXPECT_EQ(straggler(std::vector{ms(0, 100), ms(0, 100), ms(200, 112)}, hosts(3), 1.3),
            "rank 2 on node2 is slow and the others wait for it: 312 ms of its own a step (input "
            "200, compute 112), 3.1 times the median of the ranks");
  // Twice the work is no sloth, no work at all no measure.
  EXPECT_EQ(straggler(std::vector{ms(0, 100), ms(0, 200, 2), ms(0, 0, 0)}, hosts(3), 1.3), "");
  // Of two ranks the faster is the measure.
  EXPECT_NE(straggler(std::vector{ms(0, 200), ms(0, 100)}, hosts(2), 1.3), "");
  EXPECT_EQ(straggler(std::vector{ms(0, 200)}, hosts(1), 1.3), "");
  EXPECT_EQ(straggler({}, hosts(0), 1.3), "");
}

// R16: what all wait for, and whose network answers late.
TEST(Verdict, ASlowNetworkIsToldFromASlowRank) {
  const auto ms = [](double compute, double reduce, double round_trip) {
    return OwnTime{.compute = compute / 1e3,
                   .rounds = 1,
                   .reduce = reduce / 1e3,
                   .round_trip = round_trip / 1e3};
  };
  const std::vector slow = {ms(20, 90, -1), ms(21, 92, 0.5), ms(19, 91, 48)};
  EXPECT_EQ(
      slow_link(slow, hosts(3), 1.3),
      "the network of node2 (rank 2) is slow and all wait for it: at least 90 ms of a step in "
      "reduce, 21 ms of computing; an answer through it takes 48.0 ms, 0.5 ms from other "
      "hosts");
  EXPECT_EQ(straggler(slow, hosts(3), 1.3), "");
  // A rank that computes for long waits for nobody, so it is not the network.
  EXPECT_EQ(slow_link(std::vector{ms(20, 90, -1), ms(110, 2, 0.5), ms(19, 91, 48)}, hosts(3), 1.3),
            "");
  // A rank that trains nothing always waits: it neither hides nor makes one.
  std::vector idle = {ms(100, 1, -1), ms(100, 1, 0.5), ms(0, 100, 48)};
  idle[2].rounds = 0;
  EXPECT_EQ(slow_link(idle, hosts(3), 1.3), "");
  // All are alike; too little to tell; nobody to compare with; not measured.
  EXPECT_EQ(slow_link(std::vector{ms(20, 90, -1), ms(20, 90, 40), ms(20, 90, 48)}, hosts(3), 1.3),
            "");
  EXPECT_EQ(slow_link(std::vector{ms(20, 90, -1), ms(20, 90, 0.1), ms(20, 90, 1)}, hosts(3), 1.3),
            "");
  EXPECT_EQ(slow_link(std::vector{ms(20, 90, -1), ms(20, 90, 48)}, hosts(2), 1.3), "");
  EXPECT_EQ(slow_link(std::vector{ms(20, 90, -1), ms(20, 90, -1), ms(20, 90, 48)}, hosts(3), 1.3),
            "");
  EXPECT_EQ(slow_link({}, hosts(0), 1.3), "");
  // Of a host's ranks the quickest answer counts: the other one had no processor.
  std::vector<std::string> names = {"a", "b", "c", "c"};
  std::vector two = {ms(20, 90, -1), ms(20, 90, 0.5), ms(20, 90, 48), ms(20, 90, 0.6)};
  EXPECT_EQ(slow_link(two, names, 1.3), "");
  two[3].round_trip = 0.05;
  EXPECT_NE(slow_link(two, names, 1.3).find("the network of c (ranks 2-3) is slow"),
            std::string::npos);
  // Ranks of rank 0's host have no network between them and it.
  names = {"a", "a", "b", "c"};
  EXPECT_EQ(slow_link(two, names, 1.3).find("the network of a"), std::string::npos);
}

}  // namespace
}  // namespace convoy::comm
