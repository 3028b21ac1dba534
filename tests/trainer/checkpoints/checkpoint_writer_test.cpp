// Saving in the background: a copy, one at a time, failures that are seen and tried again (R23).
#include "trainer/checkpoints/checkpoint_writer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <thread>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "tests/trainer/checkpoints/test_state.h"
#include "trainer/base/file.h"
#include "trainer/base/file_calls.h"

namespace convoy::trainer {
namespace {

using test::checkpoint_of;
using test::LogLines;
using test::names_in;
using test::TempFolder;
using test::TestState;

const RetentionPolicy kKeepTwo = {.keep = 2, .keep_best = false};

// Every file call below checkpoints/ fails while it lives.
class BrokenDisk {
 public:
  explicit BrokenDisk(int error = ENOSPC) : calls_({.error = error, .count = 0}) {
    set_file_hook(&calls_);
  }
  ~BrokenDisk() { set_file_hook(nullptr); }
  BrokenDisk(const BrokenDisk&) = delete;
  BrokenDisk& operator=(const BrokenDisk&) = delete;

 private:
  FailingCalls calls_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(CheckpointWriter, SavesACopyInTheBackgroundAndKeepsTheNewest) {
  const TempFolder out;
  TestState memory(1);
  std::vector<std::string> digests;
  {
    CheckpointWriter writer(out.path(), kKeepTwo);
    EXPECT_EQ(writer.save_seconds(), 0);
    for (uint64_t step = 1; step <= 4; ++step) {
      memory.weight[0] = static_cast<float>(step);
      digests.push_back(state_digest(memory.at(step)));
      writer.save(memory.at(step));
      memory.weight.assign(16, -1.0f);  // training goes on
    }
    EXPECT_TRUE(writer.wait());
    EXPECT_EQ(writer.failures(), 0u);
    EXPECT_FALSE(writer.retry_due());
    EXPECT_EQ(writer.take_failure(), std::nullopt);
    EXPECT_GT(writer.save_seconds(), 0);
  }
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000003", "step-0000000004"}));
  EXPECT_EQ(verify_checkpoint(checkpoint_of(out.path(), 3)).digest, digests[2]);
  EXPECT_EQ(verify_checkpoint(checkpoint_of(out.path(), 4)).digest, digests[3]);
}

// R26: the run goes on from an older checkpoint while one of a later step lies there unread.
TEST(CheckpointWriter, R26WhatIsSavedIsNotDeletedForACheckpointOfALaterStep) {
  const TempFolder out;
  const TestState memory(1);
  save_checkpoint(out.path(), memory.at(900));
  CheckpointWriter writer(out.path(), {.keep = 1, .keep_best = false});
  for (const uint64_t step : {1, 2}) writer.save(memory.at(step));
  EXPECT_TRUE(writer.wait());
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000002", "step-0000000900"}));
}

TEST(CheckpointWriter, R23AFailureIsSeenCountedAndTriedAgain) {
  const TempFolder out;
  const TestState memory(1);
  const LogLines log;
  CheckpointWriter writer(out.path(), kKeepTwo);
  writer.save(memory.at(1));
  EXPECT_TRUE(writer.wait());
  {
    const BrokenDisk broken;
    writer.save(memory.at(2));
    EXPECT_FALSE(writer.wait());
    EXPECT_FALSE(writer.retry_due());  // not at once
    writer.save(memory.at(3));         // a second one in a row ends nothing either
    EXPECT_FALSE(writer.wait());
  }
  EXPECT_EQ(writer.failures(), 2u);
  const std::optional<std::string> failure = writer.take_failure();
  ASSERT_TRUE(failure.has_value());
  EXPECT_NE(failure->find("step 3: not saved"), std::string::npos) << *failure;
  EXPECT_NE(failure->find("No space left"), std::string::npos) << *failure;
  EXPECT_EQ(writer.take_failure(), std::nullopt);
  EXPECT_TRUE(LogLines::has("step-0000000001 stands; trying again in 1 s")) << log.text();
  EXPECT_TRUE(LogLines::has("(2 in a row)")) << log.text();

  while (!writer.retry_due()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  writer.save(memory.at(4));
  EXPECT_TRUE(writer.wait());
  EXPECT_FALSE(writer.retry_due());
  EXPECT_TRUE(LogLines::has("step 4: saved, after 2 save(s) that failed")) << log.text();
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000001", "step-0000000004"}));
}

TEST(CheckpointWriter, AtTheEndItTriesTwiceMoreAndThenSaysWhatStands) {
  const TempFolder out;
  const TestState memory(1);
  const LogLines log;
  CheckpointWriter writer(out.path(), kKeepTwo);
  writer.save(memory.at(1));
  writer.wait();
  {
    const BrokenDisk broken(EIO);
    writer.save(memory.at(2));
    int asked = 0;
    const std::string message = error_of([&] {
      writer.finish([&] {
        ++asked;
        return memory.at(2);
      });
    });
    EXPECT_EQ(asked, 2);
    EXPECT_NE(message.find("step-0000000001 stands"), std::string::npos) << message;
    EXPECT_NE(message.find("Input/output error"), std::string::npos) << message;
  }
  writer.finish([&] { return memory.at(2); });
  EXPECT_EQ(verify_checkpoint(checkpoint_of(out.path(), 2)).digest, state_digest(memory.at(2)));
}

// What is whole stays whole, and what could not be removed is removed by the next save.
TEST(CheckpointWriter, AFailedDeletionIsNoFailedSave) {
  struct NoUnlink : FileHook {
    Verdict before(const FileCall& call) override {
      return {.error = broken && call.kind == FileCall::Kind::kUnlink ? EIO : 0};
    }
    std::atomic<bool> broken = true;
  } hook;
  const TempFolder out;
  const TestState memory(1);
  const LogLines log;
  set_file_hook(&hook);
  CheckpointWriter writer(out.path(), {.keep = 1, .keep_best = false});
  for (uint64_t step = 1; step <= 2; ++step) writer.save(memory.at(step));
  EXPECT_TRUE(writer.wait());
  EXPECT_TRUE(LogLines::has("was not removed")) << log.text();
  EXPECT_EQ(names_in(out.path("checkpoints")),
            (std::vector<std::string>{"step-0000000001.deleting", "step-0000000002"}));
  hook.broken = false;
  writer.save(memory.at(3));
  EXPECT_TRUE(writer.wait());
  set_file_hook(nullptr);
  EXPECT_EQ(names_in(out.path("checkpoints")), std::vector<std::string>{"step-0000000003"});
}

// R18: who has been succeeded gives no name to a checkpoint any more.
TEST(CheckpointWriter, R18WhoHasLostTheFolderPublishesNothing) {
  const TempFolder out;
  const LogLines log;
  CheckpointWriter writer(out.path(), kKeepTwo,
                          [] { fail(ExitCode::kIo, "another job has taken this folder over"); });
  writer.save(TestState(1).at(1));
  EXPECT_FALSE(writer.wait());
  EXPECT_TRUE(names_in(out.path("checkpoints")).empty());
}

TEST(CheckpointWriter, ProvesThatItCanSaveAndMeasures) {
  const TempFolder out;
  CheckpointWriter writer(out.path("run"), kKeepTwo);
  writer.prove(TestState(1).at(0));
  EXPECT_GT(writer.save_seconds(), 0);
  EXPECT_TRUE(names_in(out.path("run/checkpoints")).empty());
  const BrokenDisk broken;
  error_of([&] { writer.prove(TestState(1).at(0)); });
}

TEST(Space, IsComparedWithWhatThePolicyKeeps) {
  const auto space = [](uint64_t free, size_t standing, uint32_t keep, bool best) {
    return check_space("run", 1 << 20, free, standing, {.keep = keep, .keep_best = best});
  };
  constexpr uint64_t kMib = 1 << 20;
  EXPECT_EQ(space(4 * kMib, 0, 3, false), "");  // three, and one being written
  EXPECT_EQ(space(kMib, 3, 3, false), "");
  EXPECT_EQ(space(5 * kMib, 0, 3, true), "");
  const std::string warning = space(4 * kMib, 0, 3, true);
  EXPECT_NE(warning.find("takes 1.0 MiB, 4.0 MiB are free and 0 lie there"), std::string::npos)
      << warning;
  EXPECT_NE(warning.find("keep: 3 and the best needs room for 5"), std::string::npos) << warning;
  EXPECT_NE(warning.find("free 1.0 MiB"), std::string::npos) << warning;
  EXPECT_NE(space(2 * kMib, 0, 3, false), "");
  const std::string refusal = error_of([&] { space(2 * kMib - 1, 0, 1, false); });
  EXPECT_NE(refusal.find("no room for one beside the one before"), std::string::npos) << refusal;
  error_of([&] { space(kMib - 1, 1, 1, false); });
  EXPECT_NE(space(kMib, 1, 2, false), "");
  error_of([&] { space(kMib - 1, 5, 1, false); });
}

}  // namespace
}  // namespace convoy::trainer
