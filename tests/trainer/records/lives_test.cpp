// Lives: what is recorded of each, the budget, and where the time went.
#include "trainer/records/lives.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/base/torn_write.h"

namespace convoy::trainer {
namespace {

using test::read_file;
using test::TempFolder;

double sum(const PhaseSeconds& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

double sum(const Goodput& g) {
  return sum(g.seconds) + g.lost + g.down;
}

double of(const PhaseSeconds& seconds, Phase phase) {
  return seconds[static_cast<size_t>(phase)];
}

// A life as the file would tell it.
Life life_of(uint64_t first, uint64_t last, std::optional<int> code) {
  Life life;
  life.began = true;
  life.first_step = first;
  life.last_step = last;
  life.exit_code = code;
  return life;
}

TEST(LifeBudget, CountsLivesThatEndedByThemselvesWithoutAStep) {
  const auto count = [](const std::vector<Life>& lives) { return idle_lives(lives).size(); };
  const Life idle = life_of(5, 5, 75), killed = life_of(5, 5, std::nullopt);
  EXPECT_EQ(count({}), 0u);
  EXPECT_EQ(count({idle, idle}), 2u);
  EXPECT_EQ(count({idle, killed, killed, idle}), 2u);  // a kill is none, and clears nothing
  EXPECT_EQ(count({killed, killed, killed}), 0u);
  EXPECT_EQ(count({idle, life_of(5, 6, 75), idle}), 1u);
  EXPECT_EQ(count({idle, life_of(5, 6, std::nullopt)}), 0u);  // killed after a step
  EXPECT_EQ(count({idle, life_of(5, 5, 0)}), 0u);
}

// R13.
TEST(LifeBudget, TheThirdDoesNotAskToBeRunAgain) {
  EXPECT_EQ(within_budget(75, 0), 75);
  EXPECT_EQ(within_budget(75, 1), 75);
  EXPECT_EQ(within_budget(75, 2), 70);
  EXPECT_EQ(within_budget(75, 9), 70);
  EXPECT_EQ(within_budget(74, 9), 74);
  EXPECT_EQ(within_budget(0, 9), 0);
}

TEST(Goodput, SumsToTheWallTime) {
  std::vector<Life> lives = {life_of(0, 12, std::nullopt), life_of(10, 20, 75), life_of(20, 30, 0)};
  const double times[][2] = {{1000, 50}, {1100, 30}, {1140, 20}};
  for (size_t i = 0; i < lives.size(); ++i) {
    lives[i].started = times[i][0];
    lives[i].elapsed = times[i][1];
    lives[i].seconds = {1, 10, 2, 3, 1, 2};
  }
  const Goodput g = goodput(lives);
  EXPECT_DOUBLE_EQ(g.wall, 160);  // 1000 to 1160
  EXPECT_DOUBLE_EQ(sum(g), g.wall);
  EXPECT_DOUBLE_EQ(of(g.seconds, Phase::kUseful), 30);
  // 31, 11 and 1 s of the lives are booked nowhere; the first was killed and is silent for 50 s, of
  // which it may have lived 30.
  EXPECT_DOUBLE_EQ(g.lost, 31 + 11 + 1 + 30);
  EXPECT_DOUBLE_EQ(g.down, 20 + 10);
  EXPECT_EQ(g.steps, 30u);

  lives[1].started = 900;  // a clock that was set back
  const Goodput back = goodput(lives);
  EXPECT_DOUBLE_EQ(sum(back), back.wall);
}

class LivesFile : public testing::Test {
 protected:
  std::string path() const { return folder_.path("lives.jsonl"); }
  std::unique_ptr<Lives> live(std::chrono::milliseconds heartbeat = std::chrono::seconds(30)) {
    return std::make_unique<Lives>(folder_.path(), "node7", 3, Clock::now(), heartbeat);
  }
  std::vector<Life> lives() const { return read_lives(folder_.path()).lives; }
  static void wait() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

  TempFolder folder_;
};

TEST_F(LivesFile, ALifeIsToldFromStartToEnd) {
  {
    const auto life = live();
    EXPECT_EQ(life->number(), 1u);
    wait();
    life->begin(4, 100, 8, "jobdigest");
    life->enter(Phase::kUseful);
    for (int i = 0; i < 3; ++i) {
      wait();
      life->step_done(0.001);
    }
    life->enter(Phase::kEvaluating);
    wait();
    life->enter(Phase::kSaving);
    wait();
    life->progress();
    life->end(75, "stopped by a signal");
    life->end(70, "only the first counts");
  }
  ASSERT_EQ(lives().size(), 1u);
  const Life life = lives()[0];
  EXPECT_EQ(life.host, "node7");
  EXPECT_EQ(life.ranks, 3u);
  EXPECT_EQ(life.workers, 8u);
  EXPECT_EQ(life.job, "jobdigest");
  EXPECT_EQ(life.first_step, 4u);
  EXPECT_EQ(life.last_step, 7u);
  EXPECT_EQ(life.total_steps, 100u);
  EXPECT_EQ(life.exit_code, 75);
  EXPECT_EQ(life.reason, "stopped by a signal");
  for (const Phase phase : {Phase::kStarting, Phase::kUseful, Phase::kEvaluating, Phase::kSaving})
    EXPECT_GE(of(life.seconds, phase), 0.004) << name_of(phase);
  EXPECT_NEAR(of(life.seconds, Phase::kWaiting), 0.003, 1e-6);
  EXPECT_EQ(of(life.seconds, Phase::kRecomputed), 0);
  EXPECT_NEAR(sum(life.seconds), life.elapsed, 1e-6);
}

TEST_F(LivesFile, StepsThatAKilledLifeHadDoneAreRecomputed) {
  {
    const auto life = live();
    life->begin(0, 100, 8, "");
    life->enter(Phase::kUseful);
    for (int i = 0; i < 6; ++i) life->step_done(0);
    life->progress();
  }
  const auto life = live();
  EXPECT_EQ(life->number(), 2u);
  life->begin(4, 100, 8, "");
  life->enter(Phase::kUseful);
  wait();
  life->step_done(0);
  life->step_done(0);
  wait();
  wait();
  life->step_done(0);
  life->end(0, "done");
  ASSERT_EQ(lives().size(), 2u);
  EXPECT_FALSE(lives()[0].ended());
  EXPECT_GE(of(lives()[1].seconds, Phase::kRecomputed), 0.004);
  EXPECT_GE(of(lives()[1].seconds, Phase::kUseful), 0.008);
}

TEST_F(LivesFile, AStepThatIsNotDoneIsLost) {
  {
    const auto life = live();
    life->begin(0, 100, 8, "");
    life->enter(Phase::kUseful);
    wait();
    life->end(70, "step 0 failed");
  }
  EXPECT_EQ(of(lives()[0].seconds, Phase::kUseful), 0);
  EXPECT_GE(goodput(lives()).lost, 0.004);
}

TEST_F(LivesFile, HeartbeatsBoundWhatAKilledLifeLoses) {
  {
    const auto life = live(std::chrono::milliseconds(1));
    for (int i = 0; i < 1000 && lives()[0].elapsed == 0; ++i) wait();
  }
  EXPECT_GT(lives()[0].elapsed, 0);
  EXPECT_FALSE(lives()[0].ended());
}

TEST_F(LivesFile, ATornLineIsCutAndOldProgressThinned) {
  {
    const auto life = live();
    life->begin(0, 100, 8, "");
    for (int i = 0; i < 50; ++i) life->progress();
    life->end(75, "x");
  }
  folder_.write("lives.jsonl", read_file(path()) + R"({"event":"start","li)");
  EXPECT_EQ(lives().size(), 1u);
  const auto life = live();
  const std::string text = read_file(path());
  EXPECT_EQ(std::ranges::count(text, '\n'), 4);  // start, begin, end; start
  EXPECT_EQ(life->before().size(), 1u);
  EXPECT_EQ(life->before()[0].exit_code, 75);
}

// R23: a line that a full disk took half of is not glued to the next one.
TEST_F(LivesFile, R23AHalfLineIsNotGluedToTheEnd) {
  {
    const auto life = live();
    life->begin(0, 100, 8, "");
    const test::TornWrite torn("lives.jsonl");
    life->progress();
    life->end(74, "the disk is full");
    EXPECT_TRUE(torn.was_cut_again());
  }
  const LivesText text = read_lives(folder_.path());
  EXPECT_EQ(text.unreadable, 0u);
  ASSERT_EQ(text.lives.size(), 1u);
  EXPECT_EQ(text.lives[0].exit_code, 74);
}

// R29.
TEST_F(LivesFile, R29AFolderThatWasRemovedIsWrittenToWhenItIsThereAgain) {
  const auto life = live();
  life->begin(4, 100, 8, "jobdigest");
  std::filesystem::remove_all(folder_.path());
  life->progress();
  std::filesystem::create_directories(folder_.path());
  life->enter(Phase::kUseful);
  life->step_done(0);
  life->progress();
  life->end(75, "stopped");
  const LivesText text = read_lives(folder_.path());
  EXPECT_EQ(text.unreadable, 0u);
  ASSERT_EQ(text.lives.size(), 1u);
  EXPECT_EQ(text.lives[0].host, "node7");
  EXPECT_EQ(text.lives[0].job, "jobdigest");
  EXPECT_EQ(text.lives[0].last_step, 5u);
  EXPECT_EQ(text.lives[0].exit_code, 75);
}

// R50: any bytes.
TEST(LivesText, HostileLinesAreCountedAndPassedOver) {
  const std::string start = R"({"event":"start","life":1,"time":5,"host":"h","ranks":1})";
  for (const std::string bad :
       {R"([1])", R"({"event":"start","life":0})", R"({"event":"begin","life":7,"step":3})",
        R"({"event":"end","life":1,"exit_code":1000})", R"({"event":"what","life":1})", "", "\x01",
        R"({"event":7,"life":"1"})"}) {
    const LivesText text = parse_lives(start + "\n" + bad + "\n");
    EXPECT_EQ(text.lives.size(), 1u) << bad;
    EXPECT_EQ(text.unreadable, 1u) << bad;
    EXPECT_FALSE(text.lives[0].ended()) << bad;
  }
  EXPECT_EQ(parse_lives(std::string(100000, '[') + "\n").unreadable, 1u);
  // More seconds than there were, negative ones, none.
  for (const std::string state : {R"("elapsed":1,"useful":5)", R"("elapsed":-1)",
                                  R"("elapsed":1e300)", R"("elapsed":null,"useful":"x")"}) {
    const LivesText text =
        parse_lives(fmt::format("{}\n{{\"event\":\"progress\",\"life\":1,{}}}\n", start, state));
    EXPECT_EQ(sum(text.lives[0].seconds), 0) << state;
    const Goodput g = goodput(text.lives);
    EXPECT_DOUBLE_EQ(sum(g), g.wall) << state;
  }
}

}  // namespace
}  // namespace convoy::trainer
