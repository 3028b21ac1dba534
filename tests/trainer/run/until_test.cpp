// --until: what it may say, and when a step is the last one that fits. R10.
#include "trainer/run/until.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include <map>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"

namespace convoy::trainer {
namespace {

using std::chrono::seconds;

// The local time zone of these tests.
class UntilText : public testing::Test {
 protected:
  void SetUp() override { set("EST5EDT,M3.2.0,M11.1.0"); }
  void TearDown() override { set("UTC0"); }
  static void set(const char* zone) {
    ::setenv("TZ", zone, 1);
    ::tzset();
  }
};

TEST_F(UntilText, MomentsAreLocalTimeOrUtc) {
  EXPECT_EQ(parse_until("2026-11-25T18:00Z").moment, 1795629600);
  EXPECT_EQ(parse_until("2026-11-25T18:00:30Z").moment, 1795629630);
  EXPECT_EQ(parse_until("2026-11-25T18:00").moment, 1795629600 + 5 * 3600);
  EXPECT_EQ(parse_until("2026-07-01T00:00").moment, parse_until("2026-07-01T04:00Z").moment);
  EXPECT_EQ(parse_until("2028-02-29T00:00Z").kind, Until::Kind::kMoment);
}

TEST_F(UntilText, TimesFromTheStart) {
  EXPECT_EQ(parse_until("+90m").seconds, 5400);
  EXPECT_EQ(parse_until("+2h30m").seconds, 9000);
  EXPECT_EQ(parse_until("+1d1s").seconds, 86401);
  EXPECT_EQ(parse_until("+90m").kind, Until::Kind::kAfter);
  EXPECT_EQ(parse_until("job").kind, Until::Kind::kJobEnd);
}

TEST_F(UntilText, AnythingElseIsRefused) {
  for (const char* text : {"",
                           "now",
                           "18:00",
                           "2026-11-25",
                           "2026-11-25 18:00",
                           "2026-13-25T18:00",
                           "2026-02-31T18:00",
                           "2026-11-25T24:00",
                           "2026-11-25T18:60",
                           "2026-11-25T18:00:00+01",
                           "2026-11-25T1x:00",
                           "+",
                           "+90",
                           "+m",
                           "+0m",
                           "+-5m",
                           "+5x",
                           "+99999999999999999999m",
                           "+3651d",
                           "+9m ",
                           "job ",
                           "90m"}) {
    try {
      parse_until(text);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage) << text;
    }
  }
}

class UntilJob : public testing::Test {
 protected:
  std::optional<double> left() {
    return seconds_left(
        parse_until("job"), 1000, 5,
        [this](const char* name) -> const char* {
          const auto found = variables_.find(name);
          return found == variables_.end() ? nullptr : found->second.c_str();
        },
        [this](const std::string& job) {
          asked_ += job + ";";
          return answer_;
        });
  }
  std::map<std::string, std::string> variables_;
  std::string answer_, asked_;
};

TEST_F(UntilJob, TheVariableCountsWhereThereIsOne) {
  variables_ = {{"SLURM_JOB_END_TIME", "1600"}, {"SLURM_JOB_ID", "7"}};
  EXPECT_EQ(left(), 600);
  EXPECT_EQ(asked_, "");
}

TEST_F(UntilJob, ElseSlurmIsAskedOnce) {
  variables_ = {{"SLURM_JOB_ID", "7"}};
  ::setenv("TZ", "UTC0", 1);
  ::tzset();
  answer_ = "1970-01-01T00:20:00";
  EXPECT_EQ(left(), 200);
  EXPECT_EQ(asked_, "7;");
}

TEST_F(UntilJob, NoEndIsNoDeadline) {
  variables_ = {{"SLURM_JOB_ID", "7"}};
  for (const char* answer : {"", "NONE", "N/A", "UNLIMITED", "slurm_load_jobs error"}) {
    answer_ = answer;
    EXPECT_EQ(left(), std::nullopt) << answer;
  }
}

TEST_F(UntilJob, TheNumberOfTheJobIsNoCommand) {
  variables_ = {{"SLURM_JOB_ID", "7; touch x"}};
  EXPECT_EQ(left(), std::nullopt);
  EXPECT_EQ(asked_, "");
}

TEST_F(UntilJob, OutsideOfAJobItIsRefused) {
  EXPECT_THROW(left(), Error);
}

TEST(UntilSlurm, TheCommandIsStartedWithoutAShell) {
  const test::TempFolder folder;
  folder.write("squeue", "#!/bin/sh\necho \"$#:$*\"\n");
  ::chmod(folder.path("squeue").c_str(), 0755);
  const std::string before = ::getenv("PATH");
  ::setenv("PATH", (folder.path() + ":" + before).c_str(), 1);
  EXPECT_EQ(ask_squeue("7; touch x"), "5:-h -j 7; touch x -o %e");
  ::setenv("PATH", folder.path("none").c_str(), 1);
  EXPECT_EQ(ask_squeue("7"), "");
  ::setenv("PATH", before.c_str(), 1);
}

TEST(UntilMoment, OneThatIsOverIsRefused) {
  const auto none = [](const char*) -> const char* { return nullptr; };
  const Until moment{.kind = Until::Kind::kMoment, .moment = 500, .seconds = 0};
  EXPECT_THROW(seconds_left(moment, 501, 0, none, ask_squeue), Error);
  EXPECT_EQ(seconds_left(moment, 400, 0, none, ask_squeue), 100);
  EXPECT_EQ(seconds_left(parse_until("+100s"), 0, 30, none, ask_squeue), 70);
}

using Next = Deadline::Next;

TEST(Deadline, LeavesWhenAnotherStepAndTwoSavesNoLongerFit) {
  const Clock::time_point start;
  Deadline deadline(start + seconds(1000), 50, 0);
  EXPECT_FALSE(deadline.last_step(start + seconds(899), Next::kStep));  // no step is measured
  EXPECT_TRUE(deadline.last_step(start + seconds(901), Next::kStep));
  for (int i = 0; i < 40; ++i) deadline.note_step(3);
  EXPECT_FALSE(deadline.last_step(start + seconds(893), Next::kStep));
  EXPECT_TRUE(deadline.last_step(start + seconds(895), Next::kStep));
  deadline.note_save(10);
  EXPECT_FALSE(deadline.last_step(start + seconds(973), Next::kStep));
  EXPECT_TRUE(deadline.last_step(start + seconds(975), Next::kStep));
  deadline.note_save(0);  // nothing measured: it stays
  EXPECT_FALSE(deadline.last_step(start + seconds(973), Next::kStep));
  // An evaluation after this step needs its own time and a save.
  deadline.note_evaluation(100);
  EXPECT_FALSE(deadline.last_step(start + seconds(863), Next::kEvaluation));
  EXPECT_TRUE(deadline.last_step(start + seconds(865), Next::kEvaluation));
  // One slow step counts while it is among the last 32.
  deadline.note_step(20);
  EXPECT_TRUE(deadline.last_step(start + seconds(941), Next::kStep));
  for (int i = 0; i < 32; ++i) deadline.note_step(3);
  EXPECT_FALSE(deadline.last_step(start + seconds(941), Next::kStep));
}

TEST(Deadline, AtTheEndOfTrainingOnlyTheLastEvaluationMustFit) {
  const Clock::time_point start;
  Deadline deadline(start + seconds(1000), 10, 30);
  deadline.note_step(3);
  // None is measured: 30 steps.
  EXPECT_FALSE(deadline.last_step(start + seconds(886), Next::kEndOfTraining));
  EXPECT_TRUE(deadline.last_step(start + seconds(888), Next::kEndOfTraining));
  EXPECT_FALSE(deadline.last_step(start + seconds(873), Next::kEvaluation));
  EXPECT_TRUE(deadline.last_step(start + seconds(875), Next::kEvaluation));
  EXPECT_NE(deadline.reason(start, Next::kEndOfTraining).find("an evaluation 90.0 s"),
            std::string::npos);
  deadline.note_evaluation(40);
  EXPECT_FALSE(deadline.last_step(start + seconds(936), Next::kEndOfTraining));
  EXPECT_TRUE(deadline.last_step(start + seconds(938), Next::kEndOfTraining));
}

}  // namespace
}  // namespace convoy::trainer
