// How a run stops and goes on: signals, killed ranks, damaged checkpoints, two runs in one folder.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Longer than any test lets it run.
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 4
batch_per_worker: 4
epochs: 1000
optimizer { learning_rate: 0.01 ema_decay: 0.9 }
schedule { kind: COSINE }
evaluation { every_epochs: 0 }
checkpoint { every_steps: 5 keep: 1000 }
log { every_steps: 1 samples: true }
)";

class Stop : public RunTest {
 protected:
  Stop() : RunTest(kJob) { make_idx(folder_, "data", {}); }

  // An unbroken run to that step, on one rank.
  std::string unbroken_digest(int step) {
    const std::string name = fmt::format("unbroken-{}", step);
    const Outcome outcome = run(train(name, until(step)));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    return digest(checkpoint(name, step));
  }
};

TEST_F(Stop, ASignalToMpirunStopsAllRanksAtTheSameStep) {
  Running running(folder_, train("usr1"), 3);
  ASSERT_TRUE(running.wait_until([&] { return step_of("usr1") >= 4; })) << running.finish().all();
  ::kill(running.pid(), SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_TRUE(stopped.in_time);
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
  EXPECT_EQ(stopped.left_running, "");
  const int step = step_of("usr1");
  EXPECT_EQ(lines_with(stopped.err, fmt::format("stopped at step {} of", step)), 1)
      << stopped.all();
  EXPECT_TRUE(fs::exists(checkpoint("usr1", step))) << step;
  for (int rank = 0; rank < 3; ++rank) {
    const std::vector<std::string> lines =
        lines_of(read_file(fmt::format("{}/samples.rank{}.jsonl", out("usr1"), rank)));
    ASSERT_FALSE(lines.empty());
    EXPECT_EQ(json::parse(lines.back())["step"], step - 1) << "rank " << rank;
  }

  const Outcome resumed = run(train("usr1", until(step + 6)), 2);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
  EXPECT_EQ(digest(checkpoint("usr1", step + 6)), unbroken_digest(step + 6));
}

TEST_F(Stop, ASignalToOneRankStopsThemAll) {
  Running running(folder_, train("usr2"), 3);
  ASSERT_TRUE(running.wait_until([&] { return step_of("usr2") >= 2; })) << running.finish().all();
  const pid_t rank = running.pid_of_rank(2);
  ASSERT_GT(rank, 0);
  ::kill(rank, SIGUSR2);
  const Outcome stopped = running.finish();
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
  EXPECT_TRUE(fs::exists(checkpoint("usr2", step_of("usr2"))));
}

TEST_F(Stop, ASignalToARankThatHostsNoWorkerStopsThemAll) {
  Running running(folder_, train("idle", {"--set", "workers=1"}), 2);
  ASSERT_TRUE(running.wait_until([&] { return step_of("idle") >= 2; })) << running.finish().all();
  const pid_t rank = running.pid_of_rank(1);
  ASSERT_GT(rank, 0);
  ::kill(rank, SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_TRUE(stopped.in_time);
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
}

TEST_F(Stop, WithoutMpirunInterruptAndTerminateSaveToo) {
  int before = 0;
  for (const int signal : {SIGINT, SIGTERM}) {
    Running running(folder_, train("alone"), kAlone);
    ASSERT_TRUE(running.wait_until([&] { return step_of("alone") > before; }))
        << running.finish().all();
    ::kill(running.pid(), signal);
    const Outcome stopped = running.finish();
    EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
    EXPECT_TRUE(fs::exists(checkpoint("alone", step_of("alone"))));
    before = step_of("alone");
  }
}

TEST_F(Stop, ASignalBeforeTheFirstStepIsHeard) {
  Running running(folder_, train("early"), 2);
  ASSERT_TRUE(running.wait_until([&] { return fs::exists(out("early") + "/lock"); }))
      << running.finish().all();
  ::kill(running.pid(), SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_TRUE(stopped.in_time);
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
  EXPECT_EQ(stopped.left_running, "");
}

TEST_F(Stop, AKilledRankEndsTheJobAndTheRunGoesOn) {
  Running running(folder_, train("killed"), 3);
  ASSERT_TRUE(running.wait_until([&] { return fs::exists(checkpoint("killed", 5)); }))
      << running.finish().all();
  const pid_t rank = running.pid_of_rank(1);
  ASSERT_GT(rank, 0);
  ::kill(rank, SIGKILL);
  const Outcome killed = running.finish();
  EXPECT_TRUE(killed.in_time);
  EXPECT_EQ(killed.exit_code, 137) << killed.all();
  EXPECT_EQ(killed.left_running, "");

  const int step = step_of("killed") + 5;
  const Outcome resumed = run(train("killed", until(step)), 2);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
  EXPECT_EQ(digest(checkpoint("killed", step)), unbroken_digest(step));

  // What was logged after the checkpoint and then done again is there once.
  std::map<int, int> lines;
  for (const std::string& line : lines_of(read_file(out("killed") + "/metrics.jsonl"))) {
    const json object = json::parse(line, nullptr, false);
    ASSERT_TRUE(object.is_object()) << line;
    if (object.contains("train_loss")) ++lines[object["step"].get<int>()];
  }
  EXPECT_EQ(lines.size(), static_cast<size_t>(step));
  for (const auto& [at, count] : lines) EXPECT_EQ(count, 1) << "step " << at;
  std::map<std::pair<int, int>, int> batches;
  for (int r = 0; r < 3; ++r)
    for (const std::string& line :
         lines_of(read_file(fmt::format("{}/samples.rank{}.jsonl", out("killed"), r)))) {
      const json object = json::parse(line, nullptr, false);
      ASSERT_TRUE(object.is_object()) << line;
      ++batches[{object["step"].get<int>(), object["worker"].get<int>()}];
    }
  EXPECT_EQ(batches.size(), static_cast<size_t>(4 * step));
  for (const auto& [at, count] : batches) EXPECT_EQ(count, 1) << "step " << at.first;
}

TEST_F(Stop, ADamagedCheckpointIsNamedAndTheOneBeforeIsUsed) {
  for (const int ranks : {1, 3}) {
    const std::string name = fmt::format("damaged-{}", ranks);
    ASSERT_EQ(run(train(name, until(13)), ranks).exit_code, 0);
    const std::string newest = checkpoint(name, 13);
    std::string bytes = read_file(newest + "/model.safetensors");
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    folder_.write(fmt::format("run-{}/checkpoints/step-0000000013/model.safetensors", name), bytes);

    const Outcome verified = run({"verify", out(name), "--json"});
    EXPECT_EQ(verified.exit_code, 70) << verified.all();
    EXPECT_EQ(verified.out, "");
    EXPECT_EQ(lines_with(verified.err, newest + "/model.safetensors: damaged"), 1)
        << verified.all();

    const Outcome resumed = run(train(name, until(13)), ranks);
    EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
    EXPECT_EQ(lines_with(resumed.err, "model.safetensors: damaged"), 1) << resumed.all();
    EXPECT_EQ(lines_with(resumed.err, "resumed at step 10 of"), 1) << resumed.all();
    EXPECT_TRUE(fs::exists(newest + ".damaged-1"));
    EXPECT_EQ(digest(newest), unbroken_digest(13));
  }
}

// --resume DIR starts from another run, whose newest checkpoint may be damaged; the same command
// goes on with what --out then holds.
TEST_F(Stop, ResumeFromAnotherRunGoesOnWhenItIsRepeated) {
  ASSERT_EQ(run(train("origin", until(8)), 2).exit_code, 0);
  std::string bytes = read_file(checkpoint("origin", 8) + "/manifest.txtpb");
  folder_.write("run-origin/checkpoints/step-0000000008/manifest.txtpb", bytes.substr(1));
  Arguments more = {"--resume", out("origin")};
  const auto with = [&](int step) {
    Arguments arguments = train("copy", until(step));
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const Outcome first = run(with(7), 2);
  EXPECT_EQ(first.exit_code, 0) << first.all();
  EXPECT_EQ(lines_with(first.err, "resumed at step 5 of"), 1) << first.all();
  const Outcome second = run(with(9), 3);
  EXPECT_EQ(second.exit_code, 0) << second.all();
  EXPECT_EQ(lines_with(second.err, "resumed at step 7 of"), 1) << second.all();
  EXPECT_EQ(digest(out("copy")), unbroken_digest(9));
  EXPECT_TRUE(fs::exists(checkpoint("origin", 8)));  // another run's folder is left as it is
}

TEST_F(Stop, WhatIsNotFiniteIsNotSaved) {
  for (const int ranks : {1, 3}) {
    Arguments arguments = train(fmt::format("infinite-{}", ranks), until(1));
    arguments.insert(arguments.end(), {"--set", "optimizer.learning_rate=1e300"});
    const Outcome outcome = run(arguments, ranks);
    EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "no longer finite"), 1) << outcome.all();
    EXPECT_FALSE(fs::exists(checkpoint(fmt::format("infinite-{}", ranks), 1)));
  }
}

TEST_F(Stop, ASecondRunInTheSameFolderIsRefused) {
  Running first(folder_, train("shared"), kAlone);
  ASSERT_TRUE(first.wait_until([&] { return step_of("shared") >= 1; })) << first.finish().all();
  for (const int ranks : {1, 3}) {
    const Outcome second = run(train("shared"), ranks);
    EXPECT_EQ(second.exit_code, 74) << second.all();
    EXPECT_EQ(lines_with(second.err, out("shared")), 1) << second.all();
    EXPECT_EQ(lines_with(second.err, fmt::format("{}", first.pid())), 1) << second.all();
  }
  const int step = step_of("shared");
  EXPECT_TRUE(first.wait_until([&] { return step_of("shared") > step; }));  // it runs on
  ::kill(first.pid(), SIGTERM);
  EXPECT_EQ(first.finish().exit_code, 75);
}

}  // namespace
}  // namespace convoy::test
