// R1, R2, R6: ranks are killed at any moment until a run is done all the same, with the bits of an
// unbroken one. A few runs here; more by hand:
//   CONVOY_SOAK_RUNS=200 CONVOY_SOAK_SEED=7 build/release/tests/faults/kill_test
// A run that fails is repeated alone by its own seed, which is printed.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr int kSteps = 36;  // 3 epochs of 96 samples, 8 at a step
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 4
batch_per_worker: 2
epochs: 3
optimizer { learning_rate: 0.01 ema_decay: 0.9 }
schedule { kind: PLATEAU patience: 1 }
checkpoint { every_steps: 4 keep: 2 }
log { every_steps: 1 samples: true }
)";

uint64_t number_of(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

class Kill : public RunTest {
 protected:
  Kill() : RunTest(kJob) {}
  void SetUp() override {
    allow_faults();
    // Open MPI 4.1 itself hangs now and then when ranks die while they connect; the script ends it.
    ::setenv("CONVOY_TEST_LAUNCHER", CONVOY_SOURCE "/cluster/mpirun.sh", 1);
    make_idx(folder_, "data", {.train = 96, .val = 30, .classes = 3});
  }

  // What `convoy verify RUN` says: everything whole, and the digest of the end.
  std::string digest(const std::string& name) {
    json object = verified(out(name));
    EXPECT_EQ(object["step"], kSteps);
    EXPECT_TRUE(object["ledger"].is_object()) << object;
    EXPECT_EQ(object["ledger"]["first_step"], 0);
    EXPECT_EQ(object["ledger"]["whole_epochs"], 3);
    return object["digest"];
  }

  std::string unbroken_digest() {
    if (!unbroken_.empty()) return unbroken_;
    const Outcome outcome = run(train("unbroken"), 2);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    return unbroken_ = digest("unbroken");
  }

  // One life of a run. The random numbers say on how many ranks, what dies, and when: at a moment
  // of the clock, or at a named point of a step. Returns its exit code.
  int live(const std::string& name, std::mt19937_64& random) {
    const auto below = [&](uint64_t n) { return static_cast<int>(random() % n); };
    const int ranks = 2 + below(3);
    const int victim = below(static_cast<uint64_t>(ranks));
    const int how = below(10);
    std::string plan = fmt::format("{} ranks, ", ranks);
    Arguments arguments = train(name);
    std::chrono::milliseconds moment{0};
    if (how < 5) {
      constexpr const char* kPoints[] = {"start", "input", "compute", "reduce", "save", "evaluate"};
      const char* point = kPoints[below(6)];
      // Saves are at multiples of 4, evaluations of 12; the step counter has moved on by then.
      const int step = std::string_view(point) == "start"      ? 0
                       : std::string_view(point) == "save"     ? 4 * (1 + below(9))
                       : std::string_view(point) == "evaluate" ? 12 * (1 + below(3))
                                                               : below(kSteps);
      const std::string fault = fmt::format("kind=kill rank={} step={} at={}", victim, step, point);
      arguments.insert(arguments.end(), {"--fault", fault});
      plan += fault;
    } else {
      moment = std::chrono::milliseconds(below(2500));
      plan += fmt::format("{} at {} ms",
                          how < 8    ? fmt::format("rank {}", victim)
                          : how == 8 ? fmt::format("ranks {} and {}", victim, (victim + 1) % ranks)
                                     : "mpirun",
                          moment.count());
    }
    SCOPED_TRACE(plan);
    if (how == 9) ::unsetenv("CONVOY_TEST_LAUNCHER");  // what is started is mpirun itself
    Running running(folder_, arguments, ranks);
    if (how >= 5) {
      const auto end = Clock::now() + moment;
      running.wait_until([&] { return Clock::now() >= end; });
      // The ranks may not be there yet, or no longer.
      const pid_t first = running.pid_of_rank(victim);
      const pid_t second = how == 8 ? running.pid_of_rank((victim + 1) % ranks) : 0;
      for (const pid_t pid : {how == 9 ? running.pid() : first, second})
        if (pid > 0) ::kill(pid, SIGKILL);
    }
    const Outcome outcome = running.finish();
    ::setenv("CONVOY_TEST_LAUNCHER", CONVOY_SOURCE "/cluster/mpirun.sh", 1);
    EXPECT_TRUE(outcome.in_time) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    EXPECT_TRUE(outcome.exit_code == 0 || outcome.exit_code == 75 || outcome.exit_code == 137)
        << outcome.all();
    if (outcome.exit_code != 0) ++killed_;
    return outcome.exit_code;
  }

  std::string unbroken_;
  uint64_t killed_ = 0;  // lives
};

TEST_F(Kill, AnyRankAtAnyMomentAndTheRunEndsWithTheSameBits) {
  const uint64_t runs = number_of("CONVOY_SOAK_RUNS", 4);
  const uint64_t seed = number_of("CONVOY_SOAK_SEED", 1);
  for (uint64_t r = 0; r < runs; ++r) {
    SCOPED_TRACE(fmt::format("to repeat: CONVOY_SOAK_RUNS=1 CONVOY_SOAK_SEED={}", seed + r));
    std::mt19937_64 random(seed + r);
    const std::string name = fmt::format("seed-{}", seed + r);
    int lives = 0, code = -1;
    // Faults stop after some lives, so that every run comes to its end.
    for (; code != 0 && lives < 6; ++lives) code = live(name, random);
    if (code != 0) {
      const Outcome last = run(train(name), 2 + static_cast<int>(random() % 3));
      ASSERT_EQ(last.exit_code, 0) << last.all();
    }
    ASSERT_EQ(digest(name), unbroken_digest());
    ASSERT_FALSE(HasFailure());
    fs::remove_all(out(name));
  }
  EXPECT_GT(killed_, 0u);
  std::cout << runs << " runs, " << killed_ << " lives that were killed, seeds " << seed << " to "
            << seed + runs - 1 << std::endl;
}

// At epoch 1, which is step 12, layer3 is trained, too: networks and sums are built anew. Around
// that a rank dies at every point of a step.
TEST_F(Kill, AroundAnUnfreezing) {
  const std::string job =
      folder_.write("unfreeze.txtpb", std::string(kJob) +
                                          "transfer { freeze: \"conv1\" freeze: \"bn1\" "
                                          "freeze: \"layer?\" "
                                          "unfreeze { epoch: 1 pattern: \"layer3\" } }");
  const auto life = [&](const std::string& name, const Arguments& more, int ranks) {
    Arguments arguments = {"train", "--job",  job, "--data", folder_.path("data"),
                           "--out", out(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments, ranks);
  };
  const Outcome outcome = life("unfrozen", {}, 2);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "from step 12 on"), 1) << outcome.all();
  const std::string expected = digest("unfrozen");
  const bool soaks = number_of("CONVOY_SOAK_RUNS", 0) > 0;
  int ranks = 0;
  for (const int step : {11, 12, 13})
    for (const char* point : {"input", "compute", "reduce"}) {
      if (!soaks && step != 12 && std::string_view(point) != "reduce") continue;
      const std::string name = fmt::format("{}-{}", point, step);
      SCOPED_TRACE(name);
      const std::string fault = fmt::format("kind=kill rank=1 step={} at={}", step, point);
      const Outcome killed = life(name, {"--fault", fault}, 2 + ranks % 2);
      EXPECT_NE(killed.exit_code, 0) << killed.all();
      EXPECT_EQ(killed.left_running, "");
      EXPECT_EQ(life(name, {}, 1 + ++ranks % 3).exit_code, 0);
      EXPECT_EQ(digest(name), expected);
    }
}

// R6: the message of the rank that failed is there once and whole.
TEST_F(Kill, AnExceptionOnOneRankEndsAllAndIsSaidOnce) {
  const Outcome outcome = run(train("thrown", {"--fault", "kind=throw rank=1 step=6"}), 3);
  EXPECT_TRUE(outcome.in_time);
  EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
  EXPECT_EQ(outcome.left_running, "");
  EXPECT_EQ(lines_with(outcome.err, "a fault was asked for at step 6"), 1) << outcome.all();
  // Rank 0 keeps the book of lives; it learns of it before it ends.
  const std::string lives = read_file(out("thrown") + "/lives.jsonl");
  EXPECT_EQ(lines_with(lives, R"("event":"end")"), 1) << lives;
  EXPECT_EQ(lines_with(lives, "a fault was asked for at step 6"), 1) << lives;
  EXPECT_EQ(run(train("thrown"), 2).exit_code, 0);
  EXPECT_EQ(digest("thrown"), unbroken_digest());
}

// R24: one call of a save fails; the run goes on and saves again. The first save: before another
// one calls could be those of the one before, which is still under way.
TEST_F(Kill, ASaveThatFailsDoesNotEndTheRun) {
  for (const char* kind : {"enospc", "eio", "short"}) {
    const std::string name = fmt::format("full-{}", kind);
    const Outcome outcome =
        run(train(name, {"--fault", fmt::format("kind={} step=4 at=save call=5", kind)}), 2);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    // What a short write leaves is written by the next call.
    EXPECT_EQ(lines_with(outcome.err, "trying again") > 0, std::string_view(kind) != "short")
        << outcome.all();
    EXPECT_EQ(digest(name), unbroken_digest());
  }
}

TEST_F(Kill, FaultsMustBeAllowed) {
  ::unsetenv("CONVOY_ALLOW_FAULTS");
  const Outcome outcome = run(train("refused", {"--fault", "kind=kill step=0"}), 2);
  EXPECT_EQ(outcome.exit_code, 64) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "CONVOY_ALLOW_FAULTS=1"), 1) << outcome.all();
}

}  // namespace
}  // namespace convoy::test
