// The disk under a run: full, broken, read-only, removed, wanted by two (R23, R28, R29, R30, R47).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "tests/end_to_end/program.h"
#include "tests/support/mounts.h"

namespace convoy::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Longer than any test lets it run. A checkpoint has 3.3 MB.
constexpr const char* kJob = R"(
data {
  format: IDX
  train { crop: PAD_AND_CROP size: 12 pad: 2 }
  eval { resize: 0 }
}
model { name: "cifar_resnet20" }
workers: 2
batch_per_worker: 4
epochs: 1000
optimizer { learning_rate: 0.01 ema_decay: 0.9 }
evaluation { every_epochs: 0 }
checkpoint { every_steps: 5 keep: 2 keep_best: false }
log { every_steps: 1 samples: true }
)";

class Disk : public RunTest {
 protected:
  Disk() : RunTest(kJob) { make_idx(folder_, "data", {}); }

  static std::vector<int> steps_in(const std::string& out) {
    std::vector<int> steps;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(out + "/checkpoints", error))
      if (const std::string name = entry.path().filename(); name.size() == 15)
        steps.push_back(std::stoi(name.substr(5)));
    std::sort(steps.begin(), steps.end());
    return steps;
  }

  static int newest_in(const std::string& out) {
    const std::vector<int> steps = steps_in(out);
    return steps.empty() ? 0 : steps.back();
  }
};

// A disk fills up under a run, is freed, fills up again until the end. 24 MiB: two checkpoints, one
// being written, and the program's other files.
TEST_F(Disk, R23AFullDiskIsOutlivedAndNothingIsLost) {
  if (const std::string reason = why_no_mounts(); !reason.empty())
    GTEST_SKIP() << "needs root for a small disk: " << reason;
  fs::create_directory(folder_.path("disk"));
  const Mount disk(folder_.path("disk"), 24 << 20);
  const std::string out = folder_.path("disk/run");
  Running running(folder_, train_in(out), 2);
  ASSERT_TRUE(running.wait_until([&] { return newest_in(out) >= 10; })) << running.finish().all();

  disk.resize(disk.used());
  ASSERT_TRUE(running.wait_until([&] { return lines_with(said(), "(2 in a row)") > 0; }))
      << running.finish().all();
  const int stood = newest_in(out);
  EXPECT_GE(stood, 10);
  for (const auto& entry : fs::directory_iterator(out + "/checkpoints"))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  EXPECT_EQ(run({"verify", out}).exit_code, 0);

  disk.resize(24 << 20);
  ASSERT_TRUE(running.wait_until([&] { return newest_in(out) > stood; })) << running.finish().all();
  ASSERT_TRUE(running.wait_until([&] { return lines_with(said(), "that failed") > 0; }));

  disk.resize(disk.used());
  ::kill(running.pid(), SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_TRUE(stopped.in_time);
  EXPECT_EQ(stopped.left_running, "");
  const int left = newest_in(out);
  // The deletion of old ones may have made room in time.
  EXPECT_TRUE(stopped.exit_code == 74 || stopped.exit_code == 75) << stopped.all();
  if (stopped.exit_code == 74) {
    EXPECT_EQ(lines_with(stopped.err, fmt::format("the last state could not be saved")), 1)
        << stopped.all();
    EXPECT_GE(lines_with(stopped.err, fmt::format("step-{:010} stands", left)), 1) << stopped.all();
  }
  EXPECT_GE(lines_with(stopped.err, "No space left on device"), 2) << stopped.all();

  disk.resize(24 << 20);
  const Outcome resumed = run(train_in(out, until(left + 3)));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
  EXPECT_EQ(lines_with(resumed.err, fmt::format("resumed at step {} of", left)), 1)
      << resumed.all();
  EXPECT_EQ(run(train_in(folder_.path("unbroken"), until(left + 3))).exit_code, 0);
  EXPECT_EQ(digest(out), digest(folder_.path("unbroken")));
}

TEST_F(Disk, R23NoRoomForTwoIsSaidBeforeTheFirstStep) {
  if (const std::string reason = why_no_mounts(); !reason.empty())
    GTEST_SKIP() << "needs root for a small disk: " << reason;
  fs::create_directory(folder_.path("disk"));
  const Mount disk(folder_.path("disk"), 5 << 20);
  const std::string out = folder_.path("disk/run");
  for (const int ranks : {kAlone, 2}) {
    const Outcome refused = run(train_in(out, until(3)), ranks);
    EXPECT_EQ(refused.exit_code, 74) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "no room for one beside the one before"), 1) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "a checkpoint takes 3."), 1) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "step 1/"), 0) << refused.all();
  }
  disk.resize(9 << 20);
  const Outcome warned = run(train_in(out, until(3)));
  EXPECT_EQ(warned.exit_code, 0) << warned.all();
  EXPECT_EQ(lines_with(warned.err, "checkpoint.keep: 2 needs room for 3"), 1) << warned.all();
}

TEST_F(Disk, R29AReadOnlyFolderIsRefusedAndOneThatBecomesSoIsOutlived) {
  if (const std::string reason = why_no_mounts(); !reason.empty())
    GTEST_SKIP() << "needs root for a read-only folder: " << reason;
  const std::string out = folder_.path("run");
  fs::create_directories(out + "/checkpoints");
  {
    const Mount read_only(out);
    const Outcome refused = run(train_in(out, until(3)), 2);
    EXPECT_EQ(refused.exit_code, 74) << refused.all();
    EXPECT_EQ(lines_with(refused.err, out), 1) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "Read-only file system"), 1) << refused.all();
  }
  {
    const Mount read_only(out + "/checkpoints");
    const Outcome refused = run(train_in(out, until(3)));
    EXPECT_EQ(refused.exit_code, 74) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "checkpoints/trial."), 1) << refused.all();
    EXPECT_EQ(lines_with(refused.err, "step 1/"), 0) << refused.all();
  }
  // A failed save does not wait for the next one that is due: here 50 slowed steps, 1.5 s, away.
  constexpr int kApart = 50;
  ::setenv("CONVOY_ALLOW_FAULTS", "1", 1);
  Running running(folder_,
                  train_in(out, {"--set", fmt::format("checkpoint.every_steps={}", kApart),
                                 "--fault", "rank=0 step=1 kind=slow seconds=0.03 count=100000"}),
                  2);
  ASSERT_TRUE(running.wait_until([&] { return lines_with(said(), "step 1/") > 0; }))
      << running.finish().all();
  {
    const Mount read_only(out + "/checkpoints");
    ASSERT_TRUE(running.wait_until([&] { return lines_with(said(), "step 50: not saved") > 0; }))
        << running.finish().all();
  }
  EXPECT_TRUE(running.wait_until([&] { return newest_in(out) > kApart; }));
  EXPECT_NE(steps_in(out).front() % kApart, 0);
  ::kill(running.pid(), SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
  EXPECT_GE(lines_with(stopped.err, "saved, after 1 save(s) that failed"), 1) << stopped.all();
  EXPECT_EQ(lines_with(read_file(out + "/metrics.jsonl"), "\"save failed\""), 1);
}

TEST_F(Disk, R29AFolderThatIsRemovedIsMadeAgain) {
  const std::string out = folder_.path("run");
  Running running(folder_, train_in(out), 2);
  ASSERT_TRUE(running.wait_until([&] { return newest_in(out) >= 5; })) << running.finish().all();
  // A save under way may make it again at any moment.
  std::error_code error;
  do {
    fs::remove_all(out, error);
  } while (error);
  const int before = newest_in(out);
  ASSERT_TRUE(running.wait_until([&] { return newest_in(out) > before; }))
      << running.finish().all();
  ::kill(running.pid(), SIGUSR1);
  const Outcome stopped = running.finish();
  EXPECT_EQ(stopped.exit_code, 75) << stopped.all();
  const int left = newest_in(out);
  EXPECT_EQ(lines_with(stopped.err, fmt::format("stopped at step {} of", left)), 1)
      << stopped.all();
  const Outcome resumed = run(train_in(out, until(left + 2)));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.all();
  EXPECT_EQ(lines_with(resumed.err, fmt::format("resumed at step {} of", left)), 1)
      << resumed.all();
}

// The lock of another host: dead, then alive.
TEST_F(Disk, R30TheLockOfAnotherHostIsWatchedForItsLease) {
  const std::string out = folder_.path("run");
  const auto write_lock = [&](int renewed) {
    // In place, as a holder does: a file that is empty for a moment would be free.
    if (!fs::exists(out + "/lock")) folder_.write("run/lock", "");
    std::fstream(out + "/lock", std::ios::in | std::ios::out) << fmt::format(
        "{:511}\n",
        fmt::format("pid 71 on host node7 life 3 lease 1000 ms boot x renewed {:08}", renewed));
  };
  Arguments more = until(2);
  more.insert(more.end(), {"--set", "checkpoint.lease_seconds=2"});
  write_lock(1);
  const Outcome taken = run(train_in(out, more), 2);
  EXPECT_EQ(taken.exit_code, 0) << taken.all();
  EXPECT_EQ(lines_with(taken.err, "last used by pid 71 on host node7 (life 3)"), 1) << taken.all();
  EXPECT_EQ(lines_with(taken.err, "this is life 4"), 1) << taken.all();

  int renewed = 2;
  write_lock(renewed);
  Running running(folder_, train_in(out, more), 2);
  EXPECT_TRUE(running.wait_until([&] {
    write_lock(++renewed);
    return lines_with(said(), "in use by pid 71 on host node7 (life 3)") > 0;
  }));
  const Outcome refused = running.finish();
  EXPECT_EQ(refused.exit_code, 74) << refused.all();
}

// R18: a life that was stopped while another one took over its folder ends without writing.
TEST_F(Disk, R18AStoppedLifeThatWasSucceededWritesNothingMore) {
  const std::string out = folder_.path("run");
  Arguments more = {"--set", "checkpoint.lease_seconds=1"};
  Running running(folder_, train_in(out, more), kAlone);
  ASSERT_TRUE(running.wait_until([&] { return newest_in(out) >= 5; })) << running.finish().all();
  // Not in the middle of a save, which may have looked into the lock already.
  const auto saving = [&] {
    for (const auto& entry : fs::directory_iterator(out + "/checkpoints"))
      if (entry.path().extension() == ".tmp") return true;
    return false;
  };
  for (bool stopped = false; !stopped;) {
    ::kill(running.pid(), SIGSTOP);
    ::usleep(50000);  // until it has stopped
    stopped = !saving();
    if (!stopped) ::kill(running.pid(), SIGCONT);
  }
  const std::string successor = "pid 72 on host node8 life 2 lease 1000 ms boot x renewed 1\n";
  folder_.write("run/lock", successor);
  const std::vector<int> stood = steps_in(out);
  ::kill(running.pid(), SIGCONT);
  const Outcome ended = running.finish();
  EXPECT_TRUE(ended.in_time);
  EXPECT_EQ(ended.exit_code, 74) << ended.all();
  EXPECT_GE(lines_with(ended.err, "pid 72 on host node8 (life 2) has taken the folder over"), 1)
      << ended.all();
  EXPECT_EQ(steps_in(out).back(), stood.back());
  EXPECT_EQ(read_file(out + "/lock"), successor);
}

// R47: closed and full outputs, and R28: a stray `latest`.
TEST_F(Disk, R47AClosedOrFullOutputDoesNotEndTheRun) {
  const std::string out = folder_.path("run");
  int step = 0;
  for (const char* redirection : {">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true", "<&- >&-"}) {
    SCOPED_TRACE(redirection);
    step += 2;
    std::string command = "set -o pipefail; exec " + program();
    for (const std::string& argument : train_in(out, until(step))) command += " '" + argument + "'";
    // With a pipe the shell waits for the program, whose exit code pipefail hands on.
    command = "bash -c \"" + command + " " + redirection + "\"";
    const int status = std::system(command.c_str());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_EQ(newest_in(out), step);
    EXPECT_EQ(run({"verify", out}).exit_code, 0);  // nothing was printed into a file of it
    std::error_code ignored;
    fs::create_symlink("checkpoints/step-0000000099", out + "/latest", ignored);
    fs::create_symlink("latest", out + "/checkpoints/latest", ignored);
  }
  const Outcome resumed = run(train_in(out, until(step)));
  EXPECT_EQ(lines_with(resumed.err, fmt::format("resumed at step {} of", step)), 1)
      << resumed.all();
}

}  // namespace
}  // namespace convoy::test
