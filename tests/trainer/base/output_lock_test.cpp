// Two jobs, one folder (R30, R18): flock on this machine, a lease from others.
#include "trainer/base/output_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/checkpoints/test_state.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using test::LogLines;
using test::read_file;
using test::TempFolder;

// Short, but long beside the moments that a loaded machine takes.
const LeaseOptions kQuick = {.lease = milliseconds(600), .settle = milliseconds(50)};

Error error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {ExitCode::kDone, ""};
}

bool says(const Error& error, const std::string& words) {
  return std::string(error.what()).find(words) != std::string::npos;
}

std::string line_of(const std::string& host, const std::string& boot, int renewed) {
  return fmt::format(
      "pid 71 on host {} life 3 lease 600 ms boot {} space 1 start 5 nonce abc renewed {}\n", host,
      boot, renewed);
}

const char* const kElsewhere = "00000000-1111-2222-3333-444444444444";

TEST(OutputLock, KeepsAnotherOutAndNamesTheHolder) {
  const TempFolder out;
  {
    const OutputLock lock(out.path("new/run"));
    EXPECT_EQ(lock.life(), 1u);
    // Another open file of the same process is another holder to flock.
    const Error error = error_of([&] { OutputLock second(out.path("new/run")); });
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_TRUE(says(error, fmt::format("in use by pid {} on host ", ::getpid()))) << error.what();
    EXPECT_TRUE(says(error, "(life 1)")) << error.what();
  }
  EXPECT_TRUE(read_file(out.path("new/run/lock")).starts_with("free life 1 "));
  EXPECT_EQ(OutputLock(out.path("new/run")).life(), 2u);
  out.write("file", "");
  EXPECT_EQ(error_of([&] { OutputLock lock(out.path("file/run")); }).code(), ExitCode::kIo);
}

TEST(OutputLock, R30IsFreeAtOnceWhenItsHolderWasKilled) {
  const TempFolder out;
  const LogLines log;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const OutputLock lock(out.path());
    [[maybe_unused]] const ssize_t sent = ::write(ready[1], "x", 1);
    for (;;) ::pause();
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const Error error = error_of([&] { OutputLock lock(out.path()); });
  EXPECT_TRUE(says(error, fmt::format("pid {} ", child))) << error.what();
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(OutputLock(out.path()).life(), 2u);
  EXPECT_TRUE(LogLines::has(fmt::format("pid {} on host", child))) << log.text();
  EXPECT_TRUE(LogLines::has("has ended; this is life 2")) << log.text();
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(OutputLock, R30AHolderOnAnotherHostThatShowsNoLifeIsSucceeded) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 12));
  const auto start = Clock::now();
  const OutputLock lock(out.path(), kQuick);
  EXPECT_GE(seconds_since(start), 0.6);
  EXPECT_EQ(lock.life(), 4u);
  EXPECT_TRUE(LogLines::has("last used by pid 71 on host node7 (life 3), another machine"))
      << log.text();
}

TEST(OutputLock, R30AHolderOnAnotherHostThatRenewsKeepsTheFolder) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 0));
  std::jthread holder([&](const std::stop_token& stop) {
    for (int renewed = 1; !stop.stop_requested(); ++renewed) {
      std::this_thread::sleep_for(milliseconds(50));
      const int fd = ::open(out.path("lock").c_str(), O_WRONLY);
      const std::string line = line_of("node7", kElsewhere, renewed);
      EXPECT_EQ(::write(fd, line.data(), line.size()), static_cast<ssize_t>(line.size()));
      ::close(fd);
    }
  });
  const Error error = error_of([&] { OutputLock lock(out.path(), kQuick); });
  EXPECT_EQ(error.code(), ExitCode::kIo);
  EXPECT_TRUE(says(error, "in use by pid 71 on host node7 (life 3)")) << error.what();
}

// flock of a dead host may be held by the server for ever: the lease decides all the same.
TEST(OutputLock, R30TheLeaseDecidesWhereFlockDoesNot) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 12));
  const int fd = ::open(out.path("lock").c_str(), O_RDONLY);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  EXPECT_EQ(OutputLock(out.path(), kQuick).life(), 4u);
  ::close(fd);
}

// The holder says how long its silence may be; ours may not be shorter.
TEST(OutputLock, TheLongerLeaseCounts) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 12));
  const auto start = Clock::now();
  const OutputLock lock(out.path(), {.lease = milliseconds(60), .settle = milliseconds(10)});
  EXPECT_GE(seconds_since(start), 0.6);
}

TEST(OutputLock, WaitingForAnotherHostEndsWhenAskedTo) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 12));
  LeaseOptions options;
  options.give_up = [] { return true; };
  EXPECT_EQ(error_of([&] { OutputLock lock(out.path(), options); }).code(), ExitCode::kRecoverable);
}

// R18: two hosts come to the same conclusion at the same moment; the last to write has it.
TEST(OutputLock, R18OneOfTwoSuccessorsWins) {
  const TempFolder out;
  const LogLines log;
  out.write("lock", line_of("node7", kElsewhere, 12));
  std::jthread rival([&] {
    // Waits for our claim, then makes its own.
    const std::string dead = line_of("node7", kElsewhere, 12);
    while (read_file(out.path("lock")).starts_with(dead.substr(0, dead.size() - 1)))
      std::this_thread::sleep_for(milliseconds(5));
    out.write("lock", line_of("node8", kElsewhere, 0));
  });
  const Error error = error_of([&] {
    OutputLock lock(out.path(), {.lease = milliseconds(600), .settle = milliseconds(3000)});
  });
  EXPECT_TRUE(says(error, "in use by pid 71 on host node8")) << error.what();
}

// R18: a job that was stopped for longer than its lease finds itself succeeded.
TEST(OutputLock, R18WhoHasBeenSucceededKnows) {
  const TempFolder out;
  const LogLines log;
  {
    OutputLock lock(out.path(), kQuick);
    lock.expect_held();
    EXPECT_FALSE(lock.lost());
    out.write("lock", line_of("node8", kElsewhere, 0));
    const Error error = error_of([&] { lock.expect_held(); });
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_TRUE(says(error, "taken this folder over")) << error.what();
    EXPECT_TRUE(lock.lost());
    EXPECT_TRUE(LogLines::has("pid 71 on host node8")) << log.text();
  }
  // And leaves the successor's lock alone.
  EXPECT_EQ(read_file(out.path("lock")), line_of("node8", kElsewhere, 0));
}

TEST(OutputLock, TheThreadRenewsSeesASuccessorAndMakesARemovedLockAgain) {
  const TempFolder out;
  const LogLines log;
  const auto wait_for = [](const std::function<bool()>& condition) {
    for (const auto start = Clock::now(); !condition() && seconds_since(start) < 20;)
      std::this_thread::sleep_for(milliseconds(10));
    return condition();
  };
  const OutputLock lock(out.path("run"), {.lease = milliseconds(120)});
  const std::string first = read_file(out.path("run/lock"));
  EXPECT_TRUE(wait_for([&] { return read_file(out.path("run/lock")) != first; }));
  fs::remove(out.path("run/lock"));
  EXPECT_TRUE(wait_for([&] { return read_file(out.path("run/lock")).size() == first.size(); }));
  error_of([&] { OutputLock second(out.path("run")); });
  fs::remove_all(out.path("run"));
  EXPECT_TRUE(wait_for([] { return LogLines::has("could take this folder over"); }));
  EXPECT_FALSE(lock.lost());
  out.write("run/lock", line_of("node8", kElsewhere, 0));
  EXPECT_TRUE(wait_for([&] { return lock.lost(); }));
}

// What an earlier version or a torn write left, and rubbish.
TEST(OutputLock, AnyTextIsRead) {
  const LogLines log;
  for (const std::string& text :
       {std::string("pid 71 on host ") +
            [] {
              char host[256] = "";
              ::gethostname(host, sizeof host - 1);
              return std::string(host);
            }() +
            "\n",
        std::string("free life 18446744073709551615"), std::string("\n\n"), std::string(512, '\0'),
        std::string("life"), std::string("pid"), std::string("pid 1 lease 99999999999999999999")}) {
    const TempFolder out;
    out.write("lock", text);
    try {
      const OutputLock lock(out.path(), kQuick);
      EXPECT_FALSE(lock.lost());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
    }
  }
}

}  // namespace
}  // namespace convoy::trainer
