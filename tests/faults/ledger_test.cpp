// Exactly once, over lives: runs are killed and go on, and `convoy verify` proves what they
// consumed; a ledger that lies is found. Lives, the report, --until, signals, changed jobs:
// R2, R9, R10, R13, R14, R48.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "data_loader/sampler.h"
#include "ops/core/digest.h"
#include "tests/end_to_end/program.h"
#include "trainer/records/ledger.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using trainer::LedgerRecord;

constexpr int kSamples = 97, kBatch = 8;
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 4
batch_per_worker: 2
epochs: 1000
optimizer { learning_rate: 0.01 }
schedule { kind: COSINE }
evaluation { every_epochs: 0 }
checkpoint { every_steps: 3 keep: 2 }
log { every_steps: 1 }
)";

class LedgerRun : public RunTest {
 protected:
  LedgerRun() : RunTest(kJob) {
    allow_faults();
    make_idx(folder_, "data", {.train = kSamples, .val = 30, .classes = 3});
  }

  // Most tests have one run.
  std::string out(const std::string& name = "a") const { return Runs::out(name); }
  Arguments train(const Arguments& more = {}, const std::string& name = "a") const {
    return Runs::train(name, more);
  }
  std::string checkpoint(int step) const { return Runs::checkpoint("a", step); }
  int step_of() const { return Runs::step_of("a"); }
  json verified(const std::string& name = "a") const { return Runs::verified(out(name)); }
  json reported(const std::string& name = "a") {
    return output_of({"report", out(name), "--json"});
  }

  void expect_flaw(const std::string& words) {
    const Outcome outcome = run({"verify", out()});
    EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, words), 1) << outcome.all();
  }

  std::string ledger_path() const { return out() + "/ledger.jsonl"; }
  std::vector<LedgerRecord> ledger() const { return trainer::read_ledger(out()).records; }
  void write_ledger(const std::vector<LedgerRecord>& records) const {
    std::string text;
    for (const LedgerRecord& record : records) text += to_line(record) + "\n";
    write_file(ledger_path(), text);
  }
};

// R1, R2: five lives on 1 to 3 ranks, four of them killed somewhere.
TEST_F(LedgerRun, KilledLivesAddUpToEachSampleOnce) {
  constexpr int kSteps = 29;
  std::mt19937_64 random(11);
  const auto below = [&](uint64_t n) { return static_cast<int>(random() % n); };
  constexpr const char* kPoints[] = {"input", "compute", "save"};
  int killed = 0;
  for (int life = 0; life < 4; ++life) {
    const int ranks = 1 + below(3);
    const char* point = kPoints[below(3)];
    const int step = point == kPoints[2] ? 6 * (life + 1) : 6 * life + 2 + below(5);
    const std::string fault = fmt::format("kind=kill rank={} step={} at={}",
                                          below(static_cast<uint64_t>(ranks)), step, point);
    const Outcome outcome = run(train({"--fault", fault}), ranks);
    ASSERT_EQ(outcome.exit_code, 137) << fault << outcome.all();
    ++killed;
  }
  // Without its newest checkpoint the last life does again what a life before has booked.
  std::set<fs::path> checkpoints;
  for (const auto& entry : fs::directory_iterator(out() + "/checkpoints"))
    if (entry.path().extension().empty()) checkpoints.insert(entry.path());
  ASSERT_GE(checkpoints.size(), 2u);
  fs::remove_all(*checkpoints.rbegin());
  const Outcome last = run(train(until(kSteps)), 2);
  ASSERT_EQ(last.exit_code, 0) << last.all();
  ASSERT_EQ(run(train(until(kSteps), "unbroken"), 1).exit_code, 0);

  const json proof = verified();
  EXPECT_EQ(proof["digest"], verified("unbroken")["digest"]);
  const json& ledger = proof["ledger"];
  EXPECT_EQ(ledger["first_step"], 0);
  EXPECT_EQ(ledger["end_step"], kSteps);
  EXPECT_EQ(ledger["positions"], kSteps * kBatch);
  EXPECT_EQ(ledger["whole_epochs"], kSteps * kBatch / kSamples);
  EXPECT_EQ(ledger["last_epoch_samples"], kSteps * kBatch % kSamples);
  EXPECT_GE(ledger["lives"], 2);
  EXPECT_EQ(verified("unbroken")["ledger"]["lives"], 1);

  const json report = reported();
  ASSERT_EQ(report["lives"].size(), static_cast<size_t>(killed + 1));
  double sum = 0;
  for (const auto& [name, seconds] : report["seconds"].items())
    if (name != "wall") sum += seconds.get<double>();
  const double wall = report["seconds"]["wall"];
  EXPECT_NEAR(sum, wall, 1e-6 * wall);
  const json& first = report["lives"].front();
  const json& end = report["lives"].back();
  EXPECT_NEAR(
      wall,
      end["started"].get<double>() + end["elapsed"].get<double>() - first["started"].get<double>(),
      0.01);
  EXPECT_GT(report["seconds"]["recomputed"], 0);
  EXPECT_GT(report["seconds"]["useful"], 0);
  EXPECT_EQ(first["end"], "killed");
  EXPECT_EQ(end["exit_code"], 0);
  const Outcome table = run({"report", out()});
  EXPECT_EQ(lines_with(table.out, "  killed"), killed) << table.all();
  EXPECT_EQ(lines_with(table.out, "wall time"), 1) << table.all();
}

TEST_F(LedgerRun, ALedgerThatLiesIsFoundAtThePlace) {
  ASSERT_EQ(run(train(until(14)), 2).exit_code, 0);
  const std::vector<LedgerRecord> whole = ledger();
  ASSERT_EQ(whole.size(), 5u);
  EXPECT_EQ(whole[3].first, 9u);

  // A sample at position 83 = 10 * 8 + 3 in place of another, checksums made anew.
  std::vector<LedgerRecord> changed = whole;
  const data::Sampler sampler(changed[3].terms.seed, kSamples);
  const data::StreamPoint at = sampler.at(83);
  const uint64_t other = (at.sample + 1) % kSamples;
  changed[3].numbers[1] +=
      trainer::sample_mark(83, at.epoch, other) - trainer::sample_mark(83, at.epoch, at.sample);
  write_ledger(changed);
  expect_flaw("fails at step 10, position 83");
  expect_flaw(fmt::format("sample {} in place of {}", other, at.sample));

  changed = whole;
  changed.erase(changed.begin() + 2);
  write_ledger(changed);
  expect_flaw("fails at step 6, position 48: no whole line holds steps 6 to 8");

  changed = whole;
  changed.pop_back();
  write_ledger(changed);
  expect_flaw("fails at step 12, position 96: no whole line holds steps 12 to 13");

  write_ledger(whole);
  std::string text = read_file(ledger_path());
  text[text.find("\"first\":3") + 8] = '4';
  write_file(ledger_path(), text);
  expect_flaw("fails at step 3, position 24");
  expect_flaw("line 2: it does not match its own checksum");

  // Of the same numbers, but another run's.
  changed = whole;
  for (LedgerRecord& record : changed) record.terms.dataset_digest = "another";
  write_ledger(changed);
  expect_flaw("are of another run");

  // A life that goes on after such a line neither stops at it nor hides it.
  write_file(ledger_path(), text);
  EXPECT_EQ(run(train(until(16)), 2).exit_code, 0);
  expect_flaw("fails at step 3, position 24");

  // One that is gone proves nothing, whenever it went.
  fs::remove(ledger_path());
  expect_flaw("steps 0 to 15 are not proven: the run has no ledger any more; --allow-unrecorded");
  const Arguments allowed = {"verify", out(), "--allow-unrecorded", "--json"};
  EXPECT_EQ(output_of(allowed)["ledger"], nullptr);
  const Outcome none = run({"verify", out(), "--allow-unrecorded"});
  EXPECT_EQ(lines_with(none.out, "ledger: none"), 1) << none.all();
  // Of a checkpoint there is nothing more to prove.
  EXPECT_FALSE(output_of({"verify", checkpoint(16), "--json"}).contains("ledger"));
  EXPECT_EQ(run(train(until(18)), 1).exit_code, 0);
  expect_flaw("steps 0 to 15 are not proven: life 3 found no ledger: it was removed, or");
  const json proof = output_of(allowed)["ledger"];
  EXPECT_EQ(proof["first_step"], 16);
  EXPECT_EQ(proof["positions"], 2 * kBatch);

  // A run of a Convoy without ledgers: it told no lives.
  fs::remove(ledger_path());
  fs::remove(out() + "/lives.jsonl");
  EXPECT_EQ(verified()["ledger"], nullptr);
  // One that begins from it need not know what it did.
  Arguments more = until(20);
  more.insert(more.end(), {"--resume", out()});
  ASSERT_EQ(run(train(more, "b"), 1).exit_code, 0);
  EXPECT_EQ(verified("b")["ledger"]["first_step"], 18);
}

TEST_F(LedgerRun, ARunThatBeginsFromAnotherTakesItsLedgerOver) {
  ASSERT_EQ(run(train(until(8)), 2).exit_code, 0);
  Arguments more = until(11);
  more.insert(more.end(), {"--resume", checkpoint(6)});
  const Outcome outcome = run(train(more, "b"), 1);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.all();
  const json proof = verified("b")["ledger"];
  EXPECT_EQ(proof["first_step"], 0);
  EXPECT_EQ(proof["positions"], 11 * kBatch);
}

// R13, R14: `--resume auto` with nothing there starts; the third life in a row without a step says
// what the others ended with; a life that does a step clears the count.
TEST_F(LedgerRun, LivesWithoutAStepAreCounted) {
  Arguments more = until(3);
  more.insert(more.end(), {"--resume", "auto", "--fault", "kind=throw rank=0 step=0 at=compute"});
  for (int life = 1; life <= 3; ++life) {
    const Outcome outcome = run(train(more), life == 3 ? 2 : kAlone);
    EXPECT_EQ(outcome.exit_code, 70) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "a fault was asked for at step 0"), 1) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "life 1: 70 a fault was asked for at step 0; life 2: 70"),
              life == 3)
        << outcome.all();
  }
  ASSERT_EQ(run(train(until(3)), 2).exit_code, 0);
  more = until(6);
  more.insert(more.end(), {"--fault", "kind=throw rank=0 step=3 at=compute"});
  const Outcome next = run(train(more));
  EXPECT_EQ(next.exit_code, 70);
  EXPECT_EQ(lines_with(next.err, "life 1"), 0) << next.all();
  const json lives = reported()["lives"];
  ASSERT_EQ(lives.size(), 5u);
  EXPECT_EQ(lives[0]["exit_code"], 70);
  EXPECT_EQ(lives[3]["reason"], "stop_after_steps");
}

// R13: a verdict of the watchdog ends a life by itself, too, and the third without a step is 70.
TEST_F(LedgerRun, ARunThatAlwaysHangsDoesNotAskForEver) {
  const Arguments more = {"--set", "watchdog.input_seconds=2", "--fault",
                          "kind=hang rank=0 step=0 at=input"};
  for (int life = 1; life <= 3; ++life) {
    const Outcome outcome = run(train(more), life == 2 ? kAlone : 2);
    EXPECT_EQ(outcome.exit_code, life == 3 ? 70 : 75) << outcome.all();
    EXPECT_EQ(lines_with(outcome.err, "does not ask to be run again"), life == 3) << outcome.all();
  }
  const json lives = reported()["lives"];
  ASSERT_EQ(lives.size(), 3u);
  for (const json& life : lives)
    EXPECT_NE(life["reason"].get<std::string>().find("waiting for input"), std::string::npos)
        << life;
  EXPECT_EQ(lives[2]["exit_code"], 70);
}

// R10.
TEST_F(LedgerRun, UntilLeavesInTimeSaved) {
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = run(train({"--until", "+3s"}), 2);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
  EXPECT_LT(took.count(), 30);
  EXPECT_EQ(lines_with(outcome.err, "--until: time is up"), 1) << outcome.all();
  const int step = step_of();
  EXPECT_TRUE(fs::exists(checkpoint(step)));
  EXPECT_EQ(verified()["ledger"]["end_step"], step);
  EXPECT_EQ(reported()["lives"][0]["reason"], "stopped by --until");
  // A moment that has come already still does a step, so that lives get on.
  const Outcome late = run(train({"--until", "+1s", "--fault",
                                  fmt::format("kind=slow seconds=1.5 rank=0 step={} "
                                              "at=input count=1",
                                              step)}),
                           1);
  EXPECT_EQ(late.exit_code, 75) << late.all();
  EXPECT_GT(step_of(), step);

  for (const char* wrong : {"soon", "2020-01-01T00:00", "job"}) {
    const Outcome refused = run(train({"--until", wrong}));
    EXPECT_EQ(refused.exit_code, 64) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "--until"), 1) << refused.all();
  }
}

// R10: the steps fit in and the evaluation behind the last one does not. None is measured yet, so
// it counts as many steps as its images fill: 250, of more than a second.
TEST_F(LedgerRun, AnEvaluationAtTheEndThatDoesNotFitIsLeftToTheNextLife) {
  make_idx(folder_, "data", {.train = kSamples, .val = 2000, .classes = 3});
  const Outcome first = run(train({"--set", "epochs=1", "--until", "+200s", "--fault",
                                   "kind=slow seconds=1 rank=0 step=2 at=input count=1"}),
                            2);
  EXPECT_EQ(first.exit_code, 75) << first.all();
  EXPECT_EQ(lines_with(first.err, "--until: time is up"), 1) << first.all();
  EXPECT_EQ(lines_with(first.err, "stopped at step 13 of 13, saved; "), 1) << first.all();
  EXPECT_EQ(lines_with(first.out, "top-1"), 0) << first.all();
  EXPECT_TRUE(fs::exists(checkpoint(13)));
  const Outcome second = run(train({"--set", "epochs=1"}), 1);
  EXPECT_EQ(second.exit_code, 0) << second.all();
  EXPECT_EQ(lines_with(second.out, "top-1"), 1) << second.all();
  EXPECT_EQ(step_of(), 13);
}

// R9: signals that come twice, and while the run is saved because of the first one.
TEST_F(LedgerRun, FurtherSignalsDoNotCorruptTheSave) {
  int before = 0;
  for (const auto& [first, second] : {std::pair{SIGUSR1, SIGUSR1}, {SIGUSR2, SIGUSR1}}) {
    Running running(folder_, train(), 2);
    ASSERT_TRUE(running.wait_until([&] { return step_of() > before; })) << running.finish().all();
    ::kill(running.pid(), first);
    ::kill(running.pid(), second);
    const Outcome outcome = running.finish();
    EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
    EXPECT_EQ(outcome.left_running, "");
    EXPECT_EQ(verified()["ledger"]["end_step"], step_of());
    before = step_of();
  }
  // Without mpirun: the last save takes a second, and every signal comes while it does.
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    Arguments arguments = train();
    for (int step = before + 1; step < before + 40; ++step)
      arguments.insert(
          arguments.end(),
          {"--fault", fmt::format("kind=slow seconds=1 rank=0 step={} at=save", step)});
    Running running(folder_, arguments, kAlone);
    ASSERT_TRUE(running.wait_until([&] { return step_of() > before; })) << running.finish().all();
    for (int i = 0; i < 20; ++i) {
      ::kill(running.pid(), signal);
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
      running.wait_until([&] { return std::chrono::steady_clock::now() > end; });
    }
    const Outcome outcome = running.finish();
    EXPECT_EQ(outcome.exit_code, 75) << outcome.all();
    EXPECT_EQ(verified()["step"], step_of());
    EXPECT_EQ(verified()["ledger"]["end_step"], step_of());
    before = step_of();
  }
}

// R48.
TEST_F(LedgerRun, AChangedJobIsShownAndRefusedWhereItChangesTheResult) {
  ASSERT_EQ(run(train(until(3)), 2).exit_code, 0);
  // Harmless: shown, and on it goes; other ranks as well.
  Arguments more = until(6);
  more.insert(more.end(), {"--set", "checkpoint.keep=7", "--set", "log.every_steps=2"});
  const Outcome harmless = run(train(more), 3);
  EXPECT_EQ(harmless.exit_code, 0) << harmless.all();
  EXPECT_EQ(lines_with(harmless.err, "resume with checkpoint.keep: 2 -> 7"), 1) << harmless.all();
  EXPECT_EQ(lines_with(harmless.err, "resume with stop_after_steps: 3 -> 6"), 1);
  EXPECT_EQ(lines_with(harmless.err, "resume with ranks: 2 -> 3"), 1);

  more = until(9);
  more.insert(more.end(), {"--set", "optimizer.learning_rate=0.02", "--set", "batch_per_worker=4",
                           "--set", "seed=9"});
  const Outcome refused = run(train(more), 2);
  EXPECT_EQ(refused.exit_code, 78) << refused.all();
  for (const char* change : {"batch_per_worker: 2 -> 4", "optimizer.learning_rate: 0.01 -> 0.02",
                             "seed: 1 -> 9", "--allow-change"})
    EXPECT_EQ(lines_with(refused.err, change), 1) << change << refused.all();
  EXPECT_EQ(verified()["step"], 6);

  more.emplace_back("--allow-change");
  const Outcome allowed = run(train(more), 2);
  EXPECT_EQ(allowed.exit_code, 0) << allowed.all();
  EXPECT_EQ(lines_with(allowed.err, "resume with changed results"), 1) << allowed.all();
  EXPECT_EQ(verified()["ledger"]["changed_at"], json({6}));

  // Another training set under the same name.
  make_idx(folder_, "data", {.train = kSamples + 1, .val = 30, .classes = 3});
  more = until(12);
  more.insert(more.end(), {"--set", "optimizer.learning_rate=0.02", "--set", "batch_per_worker=4",
                           "--set", "seed=9"});
  const Outcome data = run(train(more), 2);
  EXPECT_EQ(data.exit_code, 78) << data.all();
  EXPECT_EQ(lines_with(data.err, "training set: "), 1) << data.all();
}

// R48: another build or machine is no other job; it is said.
TEST_F(LedgerRun, AnotherFingerprintIsSaid) {
  ASSERT_EQ(run(train(until(3)), 1).exit_code, 0);
  const std::string path = checkpoint(3) + "/manifest.txtpb";
  std::string text = read_file(path);
  const std::string key = "instruction_set: \"";
  text.insert(text.find(key) + key.size(), "strange-");
  const std::string trailer = "# SHA-256 of the lines above: ";
  text.resize(text.find(trailer));
  write_file(path, text + trailer + sha256_hex(text) + "\n");
  const Outcome outcome = run(train(until(4)), 1);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "resume on another machine or build"), 1) << outcome.all();
  EXPECT_EQ(lines_with(outcome.err, "strange-"), 1);
}

}  // namespace
}  // namespace convoy::test
