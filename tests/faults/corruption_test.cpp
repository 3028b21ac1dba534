// R42, R43, R44: flipped bits are found, the rank and the tensor named, and the run goes back and
// ends with the bits of an unbroken one; what is not finite follows the job's policy, on all ranks
// alike.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/random.h"
#include "tests/end_to_end/program.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kSteps = 18;  // 3 epochs of 48 samples, 8 at a step
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" dropout: 0.1 }
workers: 4
batch_per_worker: 2
epochs: 3
optimizer { learning_rate: 0.01 ema_decay: 0.9 }
schedule { kind: PLATEAU patience: 1 }
checkpoint { every_steps: 5 keep: 100 }
checks { replicas_every_steps: 4 }
log { every_steps: 1 samples: true }
)";

int last_of(int ranks) {
  return ranks == kAlone ? 0 : ranks - 1;
}

class Corruption : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ::setenv("CONVOY_ALLOW_FAULTS", "1", 1);
    runs_ = std::make_unique<Runs>(kJob);
    make_idx(runs_->folder(), "data", {.train = 48, .val = 20, .classes = 3});
    EXPECT_EQ(train("unbroken", kAlone).exit_code, 0);
  }
  static void TearDownTestSuite() { runs_.reset(); }

  static std::string out(const std::string& name) { return runs_->out(name); }

  static Outcome train(const std::string& name, int ranks, const Arguments& more = {},
                       const std::string& data = "data") {
    const Outcome outcome = runs_->run(runs_->train(name, more, data), ranks);
    EXPECT_TRUE(outcome.in_time) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    return outcome;
  }

  static std::string digest(const std::string& name, int step = kSteps) {
    json object = runs_->verified(out(name));
    EXPECT_EQ(object["step"], step) << name;
    return object["digest"];
  }

  static std::string manifest(const std::string& name, int step) {
    return read_file(runs_->checkpoint(name, step) + "/manifest.txtpb");
  }

  // They must rise by one but for what was passed over.
  static std::vector<int> steps_of(const std::string& name) { return runs_->steps_of(name); }

  static std::string event(const std::string& name, const std::string& event) {
    for (const json& line : runs_->metrics(name))
      if (line.value("event", "") == event) return line.value("detail", "");
    return "";
  }

  static std::vector<int> all_steps() {
    std::vector<int> steps;
    for (int step = 1; step <= kSteps; ++step) steps.push_back(step);
    return steps;
  }

  static std::unique_ptr<Runs> runs_;
};
std::unique_ptr<Runs> Corruption::runs_;

struct Flip {
  const char* what;
  const char* expected;  // part of the line that names it
};
constexpr Flip kFlips[] = {{"weights", "other bits than the other ranks in fc.weight"},
                           {"momentum", "fc.weight"},
                           {"running", ".running_mean"}};

// R43: three ranks have a majority.
TEST_F(Corruption, AFlippedBitIsFoundAndTheMajorityNamesRankAndTensor) {
  for (const Flip& flip : kFlips) {
    const std::string name = fmt::format("flip-{}", flip.what);
    const Outcome outcome = train(
        name, 3,
        {"--fault", fmt::format("kind=bitflip rank=2 step=6 what={} index=5 bit=22", flip.what)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    // Looked for after 8 steps: at most 4 after it happened.
    EXPECT_EQ(lines_with(outcome.err, "step 8: the replicas differ: rank 2 ("), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, flip.expected), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "goes on at step 6 of 18"), 1) << outcome.all();
    EXPECT_EQ(digest(name), digest("unbroken")) << flip.what;
    EXPECT_EQ(steps_of(name), all_steps());
    EXPECT_NE(event(name, "roll_back").find("rank 2"), std::string::npos);
  }
}

// R43: two have none, so both are named, and the replay says who was wrong.
TEST_F(Corruption, OfTwoRanksTheReplayNamesTheOneThatWasWrong) {
  // 6 is where the run will go back to.
  int step = 6;
  for (const Flip& flip : kFlips) {
    const std::string name = fmt::format("flip-of-two-{}", flip.what);
    const Outcome outcome =
        train(name, 2,
              {"--fault",
               fmt::format("kind=bitflip rank=1 step={} what={} index=5 bit=22", step, flip.what)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "step 8: the replicas differ: no majority: rank 0 ("), 1)
        << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, fmt::format("a replay will decide at step {}", step)), 1)
        << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, fmt::format("step {}: the replay decides: rank 1 (", step)),
              1)
        << outcome.all();
    EXPECT_EQ(digest(name), digest("unbroken")) << flip.what;
    step = 7;
  }
}

// Before the first checkpoint there is only the start to go back to.
TEST_F(Corruption, WithoutACheckpointTheRunStartsAgain) {
  const Outcome outcome =
      train("early", 3, {"--fault", "kind=bitflip rank=0 step=2 index=900 bit=3"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "step 4: the replicas differ: rank 0 ("), 1) << outcome.all();
  EXPECT_EQ(digest("early"), digest("unbroken"));
  EXPECT_EQ(steps_of("early"), all_steps());
}

// What is found by the comparison before a save is not saved.
TEST_F(Corruption, NothingCorruptIsSaved) {
  const Outcome outcome =
      train("save", 3,
            {"--fault", "kind=bitflip rank=1 step=9 bit=1", "--set", "checks.max_roll_backs=0",
             "--set", "checks.replicas_every_steps=0"});
  EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "step 10: the replicas differ: rank 1 ("), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "max_roll_backs"), 1) << outcome.all();
  EXPECT_FALSE(fs::exists(out("save") + "/checkpoints/step-0000000010"));
}

TEST_F(Corruption, ARankThatFailsAgainAndAgainEndsTheRun) {
  const Outcome ended = train("again-ended", 3,
                              {"--set", "checks.max_roll_backs=1",             //
                               "--fault", "kind=bitflip rank=1 step=6 bit=1",  //
                               "--fault", "kind=bitflip rank=1 step=12 bit=1"});
  EXPECT_EQ(ended.exit_code, 70) << ended.all();
  EXPECT_EQ(lines_with(ended.err, "max_roll_backs"), 1) << ended.all();
}

// R43: a wrong gradient is summed by all ranks alike; only computing it again shows it.
TEST_F(Corruption, AWrongGradientIsOutvoted) {
  for (const int ranks : {kAlone, 2, 3}) {
    const std::string name = fmt::format("gradient-{}", ranks);
    // Worker 0, the first of rank 0, has its turn in step 12.
    const Outcome outcome = train(name, ranks,
                                  {"--set", "checks.recompute_every_steps=3", "--fault",
                                   "kind=bitflip rank=0 step=12 what=gradient index=5 bit=20"});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "rank 0 ("), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "gradient of fc.weight"), 1) << outcome.all();
    EXPECT_EQ(digest(name), digest("unbroken")) << ranks;
  }
}

Arguments with_nan(const char* policy, int rank, int step) {
  return {"--set", fmt::format("non_finite.policy={}", policy), "--fault",
          fmt::format("kind=nan rank={} step={} what=gradient index=5", rank, step)};
}

// R42, and R31: nothing that is not finite is saved.
TEST_F(Corruption, NotANumberStopsAllRanksAlike) {
  for (const int ranks : {kAlone, 3}) {
    const std::string name = fmt::format("nan-stop-{}", ranks);
    const Outcome outcome = train(name, ranks, with_nan("stop", last_of(ranks), 7));
    EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "step 7: the loss is"), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "not finite: the gradient of fc.weight"), 1) << outcome.all();
    digest(name, 6);
    // What the fault was is gone: the same command comes to the end.
    EXPECT_EQ(train(name, ranks).exit_code, 0);
    EXPECT_EQ(digest(name), digest("unbroken"));
  }
}

TEST_F(Corruption, NotANumberIsSkippedOnAllRanksAlike) {
  std::set<std::string> digests;
  for (const int ranks : {kAlone, 3}) {
    const std::string name = fmt::format("nan-skip-{}", ranks);
    const Outcome outcome = train(name, ranks, with_nan("skip", last_of(ranks), 7));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "the update is skipped, number 1 of at most 10"), 1)
        << outcome.all();
    digests.insert(digest(name));
    EXPECT_NE(manifest(name, kSteps).find("skips: 1"), std::string::npos);
    EXPECT_NE(event(name, "skip"), "");
  }
  EXPECT_EQ(digests.size(), 1u);
  EXPECT_FALSE(digests.contains(digest("unbroken")));
}

TEST_F(Corruption, NotANumberTooOftenStops) {
  Arguments arguments = with_nan("skip", 1, 7);
  arguments.insert(arguments.end(), {"--set", "non_finite.max_skips=1", "--fault",
                                     "kind=nan rank=0 step=8 what=gradient"});
  const Outcome outcome = train("nan-often", 2, arguments);
  EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "the run has skipped 1 time(s) already"), 1) << outcome.all();
}

// The roll-back passes over steps 10 and 11, and the evaluation after step 12 is made behind them.
TEST_F(Corruption, NotANumberRollsAllRanksBackAlike) {
  std::set<std::string> digests;
  for (const int ranks : {kAlone, 3}) {
    const std::string name = fmt::format("nan-back-{}", ranks);
    const Outcome outcome = train(name, ranks, with_nan("roll_back", last_of(ranks), 11));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "steps 10 to 11 are passed over"), 1) << outcome.all();
    digests.insert(digest(name));
    for (const int step : {10, 12, kSteps})
      EXPECT_NE(manifest(name, step).find("begin: 10\n  end: 12"), std::string::npos)
          << manifest(name, step);
    std::vector<int> expected = all_steps();
    expected.erase(expected.begin() + 10, expected.begin() + 12);
    EXPECT_EQ(steps_of(name), expected);
    int evaluations = 0;
    for (const json& line : runs_->metrics(name)) evaluations += line.contains("top1");
    EXPECT_EQ(evaluations, 3);
  }
  EXPECT_EQ(digests.size(), 1u);
  EXPECT_FALSE(digests.contains(digest("unbroken")));

  // A life that was stopped right behind the roll-back, and goes on on other ranks.
  Arguments first = with_nan("roll_back", 1, 11);
  first.insert(first.end(), {"--set", "stop_after_steps=13"});
  EXPECT_EQ(train("nan-back-resumed", 2, first).exit_code, 0);
  fs::remove_all(out("nan-back-resumed") + "/checkpoints/step-0000000013");
  fs::remove_all(out("nan-back-resumed") + "/checkpoints/step-0000000012");
  const Outcome resumed = train("nan-back-resumed", 3, {"--set", "non_finite.policy=ROLL_BACK"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
  EXPECT_EQ(lines_with(resumed.err, "resumed at step 10"), 1) << resumed.all();
  digests.insert(digest("nan-back-resumed"));
  EXPECT_EQ(digests.size(), 1u);
}

// The checkpoint that says so is then that of step 0.
TEST_F(Corruption, NotANumberBeforeTheFirstCheckpointRollsBackToTheStart) {
  std::set<std::string> digests;
  for (const int ranks : {kAlone, 2}) {
    const std::string name = fmt::format("nan-first-{}", ranks);
    Arguments arguments = with_nan("roll_back", last_of(ranks), 2);
    arguments.insert(arguments.end(), {"--set", "stop_after_steps=4"});
    EXPECT_EQ(train(name, ranks, arguments).exit_code, 0);
    fs::remove_all(out(name) + "/checkpoints/step-0000000004");
    EXPECT_NE(manifest(name, 0).find("end: 3"), std::string::npos) << manifest(name, 0);
    EXPECT_EQ(
        train(name, ranks == 2 ? kAlone : 2, {"--set", "non_finite.policy=ROLL_BACK"}).exit_code,
        0);
    digests.insert(digest(name));
    std::vector<int> expected = all_steps();
    expected.erase(expected.begin(), expected.begin() + 3);
    EXPECT_EQ(steps_of(name), expected);
  }
  EXPECT_EQ(digests.size(), 1u);
}

// The last step, and none before: the end is reached all the same, evaluated and saved.
TEST_F(Corruption, NotANumberInTheLastStepRollsBackToo) {
  std::set<std::string> digests;
  for (const int ranks : {kAlone, 2}) {
    const std::string name = fmt::format("nan-last-{}", ranks);
    const Outcome outcome = train(name, ranks, with_nan("roll_back", 0, kSteps - 1));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.out, "top-1"), 1) << outcome.all();
    digests.insert(digest(name));
  }
  EXPECT_EQ(digests.size(), 1u);
}

// R43: a bit that flips in the sums as one rank has received them, in the middle of the run and in
// its last step; on the workers' ranks, and on one that hosts none.
TEST_F(Corruption, NotANumberInWhatOneRankHasReceivedIsNamedByAll) {
  const struct {
    const char* name;
    int ranks, rank, step;
    const char* policy;
  } cases[] = {{"sum-2", 2, 1, 7, "STOP"},
               {"sum-3", 3, 2, 6, "SKIP"},
               {"sum-last", 3, 0, kSteps - 1, "ROLL_BACK"},
               {"sum-idle", 5, 4, 7, "STOP"}};
  for (const auto& c : cases) {
    const Outcome outcome =
        train(c.name, c.ranks,
              {"--set", fmt::format("non_finite.policy={}", c.policy), "--fault",
               fmt::format("kind=nan rank={} step={} what=sum index=5", c.rank, c.step)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, " alone found sums that are not finite: "), 1)
        << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "not finite: the gradient of fc.weight"), 1) << outcome.all();
    EXPECT_NE(event(c.name, "roll_back").find(fmt::format("; rank {} (", c.rank)),
              std::string::npos)
        << event(c.name, "roll_back");
    EXPECT_EQ(digest(c.name), digest("unbroken")) << c.name;
    EXPECT_EQ(steps_of(c.name), all_steps());
  }
}

// Where the value stays finite that rank's update is wrong, and its replica with it.
TEST_F(Corruption, AFlippedBitInWhatOneRankHasReceivedIsFoundInItsReplica) {
  const Outcome outcome =
      train("sum-bit", 3, {"--fault", "kind=bitflip rank=1 step=6 what=sum index=5 bit=22"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "step 8: the replicas differ: rank 1 ("), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "fc.weight"), 1) << outcome.all();
  EXPECT_EQ(digest("sum-bit"), digest("unbroken"));
}

// What decides how a run goes on, beside weights and their like, is compared as well.
TEST_F(Corruption, AFlippedBitInTheScheduleOrTheSkippedStepsIsFound) {
  const std::pair<const char*, const char*> cases[] = {{"plateau", "the plateau schedule"},
                                                       {"skips", "the skipped steps"}};
  for (const auto& [what, name] : cases) {
    const Outcome outcome =
        train(what, 3, {"--fault", fmt::format("kind=bitflip rank=2 step=6 what={} bit=3", what)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "step 8: the replicas differ: rank 2 ("), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, name), 1) << outcome.all();
    EXPECT_EQ(digest(what), digest("unbroken")) << what;
  }
}

// R44: images that are all black (their standard deviation is zero), labels that are all the same,
// and inputs that are all denormal: the run trains, to something finite and the same on any ranks.
TEST_F(Corruption, DegenerateDataTrains) {
  constexpr int kSide = 12;
  const auto make = [&](const std::string& name, bool black) {
    for (const auto& [prefix, n] : {std::pair("/train", 48), std::pair("/t10k", 20)}) {
      std::vector<uint8_t> pixels(static_cast<size_t>(n * kSide * kSide)), labels;
      for (size_t i = 0; i < pixels.size() && !black; ++i)
        pixels[i] = static_cast<uint8_t>(random4(7, Purpose::kSyntheticData, i, 0)[0]);
      for (int i = 0; i < n; ++i) labels.push_back(static_cast<uint8_t>(black ? i % 3 : 2));
      runs_->folder().write(name + prefix + "-images-idx3-ubyte",
                            encode_idx_images(n, kSide, kSide, pixels));
      runs_->folder().write(name + prefix + "-labels-idx1-ubyte", encode_idx_labels(labels));
    }
  };
  make("black", true);
  make("constant", false);
  const std::pair<const char*, Arguments> cases[] = {
      {"black", {}},
      {"constant", {}},
      {"data", {"--set", "data.mean=0", "--set", "data.std=1e37"}}};
  for (const auto& [data, sets] : cases) {
    std::set<std::string> digests;
    for (const int ranks : {kAlone, 2}) {
      const std::string name = fmt::format("degenerate-{}-{}", data, ranks);
      const Outcome outcome = train(name, ranks, sets, data);
      EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
      digests.insert(digest(name));
    }
    EXPECT_EQ(digests.size(), 1u) << data;
  }
}

// A rank whose weights were hit is no reason to change the run's course.
TEST_F(Corruption, NotANumberInOneRanksWeightsIsCorruption) {
  const Outcome outcome =
      train("nan-weights", 3, {"--fault", "kind=nan rank=1 step=6 what=weights index=5"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "the replicas differ: rank 1 ("), 1) << outcome.all();
  EXPECT_EQ(digest("nan-weights"), digest("unbroken"));
}

}  // namespace
}  // namespace convoy::test
