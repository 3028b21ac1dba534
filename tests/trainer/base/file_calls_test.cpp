// The n-th file call of a save fails, for every n and every way to fail (R24); the disk is full at
// every 4 KiB of one (R23): what stood before stands, nothing half is left, the next save works.
#include "trainer/base/file_calls.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "ops/core/error.h"
#include "tests/support/mounts.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/base/file_size_limit.h"
#include "tests/trainer/base/torn_write.h"
#include "tests/trainer/checkpoints/test_state.h"
#include "trainer/base/file.h"
#include "trainer/base/line_log.h"

namespace convoy::trainer {
namespace {

namespace fs = std::filesystem;
using test::checkpoint_of;
using test::LogLines;
using test::names_in;
using test::read_file;
using test::TempFolder;
using test::TestState;

// A hook while it lives.
class Hooked {
 public:
  explicit Hooked(FileHook& hook) { set_file_hook(&hook); }
  ~Hooked() { set_file_hook(nullptr); }
  Hooked(const Hooked&) = delete;
  Hooked& operator=(const Hooked&) = delete;
};

const RetentionPolicy kKeepOne = {.keep = 1, .keep_best = false};

// Steps 1 and 2 are saved, then 3 with deletions; true where that succeeded.
bool save_third(const std::string& out, FailingCalls& faults, const TestState& memory) {
  const Hooked hooked(faults);
  try {
    save_checkpoint(out, memory.at(3));
    apply_retention(out, kKeepOne);
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
    EXPECT_NE(std::string(error.what()).find("/checkpoints"), std::string::npos) << error.what();
    return false;
  }
}

struct Way {
  const char* name;
  int error;
  uint64_t count;
  bool always_succeeds;
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.name;
}

class EveryCall : public testing::TestWithParam<Way> {};

TEST_P(EveryCall, FailsOnceAndNothingIsLost) {
  const Way& way = GetParam();
  const TestState memory(1), other(2);
  const LogLines log;
  bool reached_the_end = false;
  int failed = 0;
  for (uint64_t n = 1; !reached_the_end; ++n) {
    SCOPED_TRACE(fmt::format("{} at call {}", way.name, n));
    const TempFolder out(TempFolder::memory());
    save_checkpoint(out.path(), memory.at(1));
    save_checkpoint(out.path(), memory.at(2));
    FailingCalls faults({.error = way.error, .call = n, .count = way.count});
    const bool saved = save_third(out.path(), faults, other);
    reached_the_end = faults.calls() < n;
    failed += !saved;
    EXPECT_TRUE(saved || !(way.always_succeeds || reached_the_end));
    // What ended half has no step's name, and where only one call failed, it is gone.
    for (const std::string& path : list_checkpoints(out.path()))
      EXPECT_NO_THROW(verify_checkpoint(path)) << path;
    if (way.count == 1 && !saved) {
      for (const std::string& name : names_in(out.path("checkpoints")))
        EXPECT_FALSE(name.ends_with(".tmp")) << name;
    }

    const std::optional<LoadedCheckpoint> loaded = find_newest(out.path());
    ASSERT_TRUE(loaded.has_value());
    EXPECT_EQ(state_digest(loaded->state),
              state_digest(saved || loaded->state.facts.step == 3 ? other.at(3) : memory.at(2)));
    for (const std::string& name : names_in(out.path("checkpoints")))
      EXPECT_EQ(name.find('.'), std::string::npos) << name;

    save_checkpoint(out.path(), other.at(4));
    apply_retention(out.path(), kKeepOne);
    EXPECT_EQ(names_in(out.path("checkpoints")), std::vector<std::string>{"step-0000000004"});
    EXPECT_EQ(verify_checkpoint(checkpoint_of(out.path(), 4)).digest, state_digest(other.at(4)));
    ASSERT_LT(n, 1000u);
  }
  EXPECT_GE(failed, way.always_succeeds ? 0 : 16);
}

INSTANTIATE_TEST_SUITE_P(
    R24, EveryCall,
    testing::Values(Way{"ENOSPC", ENOSPC, 1, false}, Way{"EIO", EIO, 1, false},
                    Way{"EDQUOT", EDQUOT, 1, false}, Way{"ESTALE", ESTALE, 1, false},
                    Way{"EINTR", EINTR, 1, true}, Way{"short", 0, 1, true},
                    // The disk stays broken: not even the temporary folder can be removed.
                    Way{"EIO_for_ever", EIO, 0, false}, Way{"ENOSPC_for_ever", ENOSPC, 0, false},
                    Way{"short_for_ever", 0, 0, true}),
    [](const testing::TestParamInfo<Way>& way) { return std::string(way.param.name); });

// R24: a failed fsync says that the system may have thrown the data away; the next one of the same
// file would succeed. So the file must be written again.
TEST(FileCalls, R24AFailedSyncIsNeverFollowedByAnotherOfTheSameFile) {
  struct FailSync : FileHook {
    Verdict before(const FileCall& call) override {
      if (call.kind != FileCall::Kind::kSync) return {};
      if (call.path.ends_with("model.safetensors") && ++syncs == 1) return {.error = EIO};
      return {};
    }
    int syncs = 0;
  } hook;
  const TempFolder out;
  const TestState memory(1);
  const Hooked hooked(hook);
  EXPECT_THROW(save_checkpoint(out.path(), memory.at(1)), Error);
  EXPECT_EQ(hook.syncs, 1);
  EXPECT_FALSE(fs::exists(checkpoint_of(out.path(), 1)));
  EXPECT_TRUE(names_in(out.path("checkpoints")).empty());
  save_checkpoint(out.path(), memory.at(1));
  EXPECT_EQ(hook.syncs, 2);
}

TEST(FileCalls, CountsOnlyThePathsItIsToldAndWorksWithoutAHook) {
  const TempFolder out;
  FailingCalls faults({.error = EIO, .path_has = "/checkpoints"});
  {
    const Hooked hooked(faults);
    write_text(out.path("metrics"), "x");
    EXPECT_EQ(faults.calls(), 0u);
    EXPECT_THROW(make_folder(out.path("checkpoints")), Error);
    EXPECT_EQ(faults.calls(), 1u);
    make_folder(out.path("checkpoints"));
  }
  const uint64_t before = faults.calls();
  write_text(out.path("checkpoints/x"), "x");
  EXPECT_EQ(faults.calls(), before);
  inject_file_fault({.error = ENOSPC, .call = 2});
  EXPECT_THROW(write_text(out.path("checkpoints/y"), "y"), Error);
  EXPECT_NO_THROW(write_text(out.path("checkpoints/y"), "y"));
  set_file_hook(nullptr);
}

// The trial save meets every failure too, and says so before the run has begun.
TEST(FileCalls, R29ATrialSaveFailsAtEveryCallAndLeavesNothing) {
  const TestState memory(1);
  int failed = 0;
  for (uint64_t n = 1;; ++n) {
    SCOPED_TRACE(n);
    const TempFolder out(TempFolder::memory());
    FailingCalls faults({.error = EIO, .call = n});
    bool proved = false;
    {
      const Hooked hooked(faults);
      try {
        EXPECT_GT(trial_save(out.path(), memory.at(0)).bytes, 0u);
        proved = true;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
        ++failed;
      }
    }
    EXPECT_EQ(find_newest(out.path()), std::nullopt);
    EXPECT_TRUE(names_in(out.path("checkpoints")).empty());
    if (faults.calls() < n) {
      EXPECT_TRUE(proved);
      break;
    }
    ASSERT_LT(n, 1000u);
  }
  EXPECT_GT(failed, 15);
}

// What a save over an older checkpoint leaves when the disk is full; true where it succeeded.
bool save_on_a_full_disk(const std::string& out, const TestState& older, const TestState& newer) {
  bool saved = false;
  try {
    save_checkpoint(out, newer.at(2));
    saved = true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
  }
  std::vector<std::string> expected = {"step-0000000001"};
  if (saved) expected.emplace_back("step-0000000002");
  EXPECT_EQ(names_in(out + "/checkpoints"), expected);
  const std::optional<LoadedCheckpoint> loaded = find_newest(out);
  EXPECT_TRUE(loaded.has_value());
  if (!loaded) return false;
  EXPECT_EQ(state_digest(loaded->state), state_digest(saved ? newer.at(2) : older.at(1)));
  return saved;
}

constexpr size_t kFloats = 20000;  // 160 KB with the momentum
constexpr uint64_t kPage = 4096;

TEST(FullDisk, R23AtEvery4KiBOfASaveOnASmallDisk) {
  if (const std::string reason = test::why_no_mounts(); !reason.empty())
    GTEST_SKIP() << "needs root for a small disk: " << reason;
  const TempFolder folder;
  fs::create_directory(folder.path("disk"));
  const test::Mount disk(folder.path("disk"), 1 << 20);
  const std::string out = folder.path("disk/run");
  const TestState older(1, kFloats), newer(2, kFloats);
  save_checkpoint(out, older.at(1));
  const uint64_t used = disk.used();
  int failed = 0;
  for (uint64_t n = 0;; ++n) {
    SCOPED_TRACE(fmt::format("{} KiB free", 4 * n));
    disk.resize(used + n * kPage);
    if (save_on_a_full_disk(out, older, newer)) break;
    ++failed;
    EXPECT_EQ(disk.used(), used);  // all is given back
    ASSERT_LT(n, 200u);
  }
  EXPECT_GE(failed, 39);
}

TEST(FullDisk, R23AtEvery4KiBOfEachFile) {
  const TempFolder out(TempFolder::memory());
  const TestState older(1, kFloats), newer(2, kFloats);
  save_checkpoint(out.path(), older.at(1));
  int failed = 0;
  for (uint64_t n = 0;; ++n) {
    const test::FileSizeLimit limit(n * kPage);
    if (save_on_a_full_disk(out.path(), older, newer)) break;
    ++failed;
    ASSERT_LT(n, 200u);
  }
  EXPECT_GE(failed, 19);
}

// R47 and R23: lines that cannot be written are lost whole; the run is not.
TEST(LineLog, AFullDiskCostsLinesAndNoHalfOneStays) {
  const TempFolder out;
  const LogLines log;
  LineLog lines(out.path("lines"));
  lines.write("one");
  {
    const test::FileSizeLimit limit(6);
    lines.write("two three");
    lines.write("four five");
    EXPECT_EQ(lines.lost(), 2u);
  }
  EXPECT_EQ(read_file(out.path("lines")), "one\n");
  lines.write("six");
  EXPECT_EQ(lines.lost(), 0u);
  EXPECT_EQ(read_file(out.path("lines")), "one\nsix\n");
  EXPECT_TRUE(LogLines::has("the run goes on")) << log.text();
  EXPECT_TRUE(LogLines::has("2 line(s) were lost")) << log.text();
}

TEST(LineLog, R23WhatCouldNotBeCutIsCutBeforeTheNextLine) {
  const TempFolder out;
  const LogLines log;
  LineLog lines(out.path("lines"));
  lines.write("one");
  {
    const test::TornWrite torn("lines");
    EXPECT_FALSE(lines.write("a line of more than nine bytes"));
    EXPECT_EQ(read_file(out.path("lines")), "one\na line of");
    EXPECT_TRUE(lines.write("two"));
    EXPECT_TRUE(torn.was_cut_again());
  }
  EXPECT_EQ(read_file(out.path("lines")), "one\ntwo\n");
  {
    const test::TornWrite torn("lines");
    EXPECT_THROW(lines.append("three and\nfour\n", true), Error);
    lines.append("five\nsix\n", true);
  }
  EXPECT_EQ(read_file(out.path("lines")), "one\ntwo\nfive\nsix\n");
}

TEST(LineLog, R29AFileThatIsMadeAgainBeginsWithItsHeadAndHasItsNameOnTheDisk) {
  struct FolderSyncs : FileHook {
    explicit FolderSyncs(std::string path) : folder(std::move(path)) {}
    Verdict before(const FileCall& call) override {
      if (call.kind != FileCall::Kind::kSync || call.path != folder) return {};
      return {.error = ++count == 1 ? EIO : 0};
    }
    const std::string folder;
    int count = 0;
  };
  const TempFolder out;
  LineLog lines(out.path("lines"), [] { return "head\n"; });
  lines.append("one\n", true);
  EXPECT_EQ(read_file(out.path("lines")), "one\n");
  fs::remove(out.path("lines"));
  FolderSyncs syncs(out.path());
  const Hooked hooked(syncs);
  EXPECT_THROW(lines.append("two\n", true), Error);
  EXPECT_EQ(read_file(out.path("lines")), "");
  lines.append("three\n", true);
  EXPECT_EQ(syncs.count, 2);
  lines.append("four\n", true);
  EXPECT_EQ(syncs.count, 2);
  EXPECT_EQ(read_file(out.path("lines")), "head\nthree\nfour\n");
}

TEST(FileCalls, AFileThatCannotBeRewrittenStaysAndNoTemporaryOfIt) {
  const TempFolder out;
  out.write("x", "old");
  {
    const test::FileSizeLimit limit(2);
    EXPECT_THROW(rewrite_file(out.path("x"), "new"), Error);
  }
  EXPECT_EQ(names_in(out.path()), std::vector<std::string>{"x"});
  EXPECT_EQ(read_file(out.path("x")), "old");
  rewrite_file(out.path("x"), "new");
  EXPECT_EQ(names_in(out.path()), std::vector<std::string>{"x"});
  EXPECT_EQ(read_file(out.path("x")), "new");
}

TEST(LineLog, R29AFileThatWasRemovedIsMadeAgain) {
  const TempFolder out;
  const LogLines log;
  fs::create_directory(out.path("run"));
  LineLog lines(out.path("run/lines"));
  lines.write("one");
  fs::remove_all(out.path("run"));
  lines.write("two");
  EXPECT_EQ(lines.lost(), 1u);
  fs::create_directory(out.path("run"));
  lines.write("three");
  EXPECT_EQ(read_file(out.path("run/lines")), "three\n");
}

}  // namespace
}  // namespace convoy::trainer
