// R3, R4, R5, R16: nobody waits for the dead. Ranks that are stopped, stuck or slow, a launcher
// that dies: the job ends in time with a line that names the culprit, or goes on.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "data_loader/sampler.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr const char* kJob = R"(
data {
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
  mean_subtraction: NONE
}
model { name: "cifar_resnet20" }
workers: 3
batch_per_worker: 2
epochs: 100000
evaluation { every_epochs: 0 }
checkpoint { every_steps: 5 keep: 2 }
log { every_steps: 1 }
watchdog { heartbeat_seconds: 0.2 }
)";
#ifdef CONVOY_SANITIZED
constexpr int kDeadline = 15;
#else
constexpr int kDeadline = 5;
#endif
// What may pass from a deadline to the end of everything, in seconds.
constexpr double kEnd = 10;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Watchdog : public RunTest {
 protected:
  Watchdog() : RunTest(kJob) {
    allow_faults();
    make_idx(folder_, "data", {.train = 96, .val = 30, .classes = 3});
  }
  void TearDown() override { ::unsetenv("LD_PRELOAD"); }

  Arguments train(const Arguments& more = {}, const std::string& data = "data",
                  const std::string& name = "a") const {
    return Runs::train(name, more, data);
  }
  static Arguments deadline(const std::string& name) {
    return {"--set", fmt::format("watchdog.{}_seconds={}", name, kDeadline)};
  }
  int step() const { return step_of("a"); }

  // The job must end by a verdict: one line, 75, nothing left, in time.
  static Outcome expect_verdict(Running& running, const std::string& words) {
    const Outcome outcome = running.finish();
    EXPECT_TRUE(outcome.in_time);
    EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, words), 1) << words << "\n" << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    return outcome;
  }

  // Stops a rank of three for ever, whose loss must be noticed in time.
  Outcome expect_end_when_stopped(int rank, const std::string& words) {
    Running running(folder_, train(deadline("silence")), 3);
    EXPECT_TRUE(running.wait_until([&] { return step() >= 3; }));
    const auto start = Clock::now();
    ::kill(running.pid_of_rank(rank), SIGSTOP);
    const Outcome outcome = expect_verdict(running, words);
    EXPECT_LT(seconds_since(start), kDeadline + kEnd) << outcome.all();
    return outcome;
  }

  // Of a run on images in the folder whose rank 1 gets no further than this file.
  Arguments train_with_stuck(const std::string& file, const Arguments& more = {}) const {
    ::setenv("CONVOY_TEST_STUCK", std::filesystem::canonical(folder_.path(file)).c_str(), 1);
    ::setenv("LD_PRELOAD", CONVOY_STUCK_FILE, 1);
    Arguments arguments = deadline("input");
    arguments.insert(arguments.end(), {"--set", "data.eval.resize=16"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return train(arguments, "");
  }
};

TEST_F(Watchdog, R3ARankThatIsStoppedForEverIsNamed) {
  const Outcome outcome = expect_end_when_stopped(2, "rank 0: error: rank 2 on ");
  EXPECT_EQ(lines_with(outcome.err, ": no heartbeat for "), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "; ranks 0-1 waiting in reduce of bucket "), 1)
      << outcome.all();
}

TEST_F(Watchdog, R3WhereRank0IsStoppedTheOthersLeaveByThemselves) {
  expect_end_when_stopped(0, "rank 1: error: rank 0 on ");
}

TEST_F(Watchdog, R3ARankThatIsStoppedForAWhileIsNotedAndTheRunGoesOn) {
  Running running(folder_, train({"--set", "watchdog.silence_seconds=40"}), 2);
  ASSERT_TRUE(running.wait_until([&] { return step() >= 3; })) << running.finish().all();
  for (const int rank : {1, 0}) {
    const pid_t pid = running.pid_of_rank(rank);
    ::kill(pid, SIGSTOP);
    const auto start = Clock::now();
    running.wait_until([&] { return seconds_since(start) > (rank == 1 ? 6 : 3); });
    ::kill(pid, SIGCONT);
    const int before = step();
    ASSERT_TRUE(running.wait_until([&] { return step() > before + 2; })) << running.finish().all();
  }
  ::kill(running.pid(), SIGUSR1);
  const Outcome outcome = running.finish();
  EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "stopped at step"), 1) << outcome.all();
  EXPECT_GE(lines_with(outcome.err, "rank 0: warning: rank 1 on "), 1) << outcome.all();
  EXPECT_GE(lines_with(outcome.err, "rank 0: warning: this rank stood still for "), 1)
      << outcome.all();
}

// Sanitizers want their own library to be the first.
#ifndef CONVOY_SANITIZED
TEST_F(Watchdog, R4AFileThatCannotBeReadIsNamed) {
  make_image_folder(folder_, 3, 8, 2);
  Running running(folder_, train_with_stuck("train/class_1/image_3.jpg"), 3);
  const bool begun = running.wait_until([&] { return step() >= 1; });
  const Outcome outcome = expect_verdict(running, "rank 1 on ");
  EXPECT_TRUE(begun) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, ": waiting for input "), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "train/class_1/image_3.jpg, step "), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "; ranks 0, 2 waiting in reduce of bucket 0, step"), 1)
      << outcome.all();
}

// Rank 1 reads the first image of worker 0, which is rank 0's, only to compute that worker again.
TEST_F(Watchdog, R4AFileThatCannotBeReadAgainIsNamed) {
  constexpr uint64_t kEach = 10;
  make_image_folder(folder_, 3, kEach, 2);
  const uint64_t sample = data::Sampler(/*seed=*/1, 3 * kEach).at(0).sample;
  const std::string file =
      fmt::format("train/class_{}/image_{}.jpg", sample / kEach, sample % kEach);
  Running running(folder_, train_with_stuck(file, {"--set", "checks.recompute_every_steps=1"}), 3);
  const Outcome outcome = expect_verdict(running, "rank 1 on ");
  EXPECT_EQ(lines_with(outcome.err, ": waiting for input "), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, file + ", step 0; ranks 0, 2 waiting in reduce"), 1)
      << outcome.all();
}
#endif

TEST_F(Watchdog, R4AFifoInPlaceOfAnImageIsRefused) {
  make_image_folder(folder_, 3, 8, 2);
  const Arguments arguments = train({"--set", "data.eval.resize=16"}, "");
  ASSERT_EQ(run(train({"--set", "data.eval.resize=16", "--dry-run"}, "")).exit_code, 0);
  // In the index, which is kept in the cache, it is still a file.
  Running running(folder_, arguments, 2);
  ASSERT_TRUE(running.wait_until([&] { return step() >= 1; })) << running.finish().all();
  const std::string file = folder_.path("train/class_1/image_3.jpg");
  // In its place at once: a rank that finds no file ends otherwise.
  const std::string fifo = folder_.path("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0666), 0);
  ASSERT_EQ(std::rename(fifo.c_str(), file.c_str()), 0);
  const Outcome outcome = running.finish();
  EXPECT_TRUE(outcome.in_time);
  EXPECT_EQ(outcome.exit_code, 65) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "image_3.jpg: not a regular file"), 1) << outcome.all();
}

// A rank that hangs, wherever it does, is told from those that wait for it.
TEST_F(Watchdog, ARankThatHangsIsNamedWithItsPhase) {
  const struct {
    const char* at;
    int step;
    const char *deadline, *first, *second;
  } cases[] = {
      {"input", 7, "input", "rank 0: error: rank 1 on ", ": waiting for input "},
      {"compute", 7, "compute", "rank 0: error: rank 1 on ", ": computing "},
      {"save", 5, "save", "rank 0: error: rank 1 on ", ": saving "},
      // It contributes nothing and says that it waits: nobody can tell it from the others.
      {"reduce", 7, "reduce", "rank 0: error: all ranks have waited for each other for ",
       "; ranks 0-2 waiting in reduce of bucket 0, step 7"},
  };
  // Side by side, because all they do is wait.
  std::vector<std::unique_ptr<Running>> running;
  for (const auto& c : cases) {
    Arguments arguments = deadline(c.deadline);
    arguments.insert(arguments.end(),
                     {"--fault", fmt::format("kind=hang rank=1 step={} at={}", c.step, c.at)});
    running.push_back(std::make_unique<Running>(folder_, train(arguments, "data", c.at), 3));
  }
  for (size_t i = 0; i < running.size(); ++i) {
    SCOPED_TRACE(cases[i].at);
    const Outcome outcome = expect_verdict(*running[i], cases[i].first);
    EXPECT_EQ(lines_with(outcome.err, cases[i].second), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "error:"), 1) << outcome.all();
  }
}

TEST_F(Watchdog, ARankThatHangsWhileItStartsIsNamed) {
  Arguments arguments = deadline("start");
  arguments.insert(arguments.end(), {"--fault", "kind=hang rank=1 step=0 at=start"});
  Running running(folder_, train(arguments), 3);
  const Outcome outcome = expect_verdict(running, "rank 0: error: rank 1 on ");
  EXPECT_EQ(lines_with(outcome.err, ": starting "), 1) << outcome.all();
}

TEST_F(Watchdog, OneRankAloneWatchesItself) {
  Arguments arguments = deadline("input");
  arguments.insert(arguments.end(), {"--fault", "kind=hang rank=0 step=2 at=input"});
  Running running(folder_, train(arguments), kAlone);
  expect_verdict(running, "rank 0 on ");
}

TEST_F(Watchdog, R5RanksLeaveWithTheirLauncher) {
  for (const bool one_is_stopped : {false, true}) {
    std::filesystem::remove_all(out("a"));
    Running running(folder_, train({"--set", "watchdog.silence_seconds=600"}), 3);
    ASSERT_TRUE(running.wait_until([&] { return step() >= 3; })) << running.finish().all();
    if (one_is_stopped) {
      ::kill(running.pid_of_rank(1), SIGSTOP);
      // All of its threads, or the system does not find it stopped when it looks for orphans.
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    ::kill(running.pid(), SIGKILL);
    const Outcome outcome = running.finish();
    EXPECT_EQ(outcome.exit_code, 137);
    EXPECT_EQ(outcome.left_running, "") << outcome.all();
  }
}

TEST_F(Watchdog, R16ASlowRankIsNamedWithItsOwnTime) {
  Running running(
      folder_,
      train({"--fault", "kind=slow rank=1 step=0 at=compute seconds=0.15 count=1000000", "--set",
             "watchdog.straggler_seconds=1.2", "--set", "watchdog.straggler_factor=1.6"}),
      2);
  EXPECT_TRUE(running.wait_until(
      [&] { return lines_with(running.err_so_far(), "is slow and the others wait") > 0; }));
  ::kill(running.pid(), SIGUSR1);
  const Outcome outcome = running.finish();
  EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "rank 0: warning: rank 1 on "), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, " is slow and the others wait for it: "), 1) << outcome.all();
}

}  // namespace
}  // namespace convoy::test
