// Checkpoints of a run under way: saved in the background from a copy, never more than one in
// flight. A failure is logged, counted and tried again; it never ends the run while it trains.
//
// All members but save_seconds() and failures() are for one thread, that of the train loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <string>

#include "ops/core/clock.h"
#include "trainer/checkpoints/checkpoint.h"

namespace convoy::trainer {

// Is there room for what the policy keeps, when a checkpoint takes `bytes`, `standing` of them lie
// there already and `free` bytes are left? Returns a warning with the numbers, "" where all is
// well; throws Error (kIo) where the next one does not fit beside one that stands.
std::string check_space(const std::string& out_dir, uint64_t bytes, uint64_t free, size_t standing,
                        const RetentionPolicy& policy);

class CheckpointWriter {
 public:
  // `expect_ours`: see save_checkpoint(). Called on the writer's thread.
  CheckpointWriter(
      std::string out_dir, RetentionPolicy policy, std::function<void()> expect_ours = [] {});
  // Waits for the save in flight.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Before the first step: compares the space with what the policy keeps, then saves on trial and
  // reads back. Throws as check_space and trial_save.
  void prove(const CheckpointState& state);

  // Called when a save begins to write (true) and has ended (false), on the thread that writes.
  void on_writing(std::function<void(bool)> tell) { tell_ = std::move(tell); }
  // Waits for the save in flight, copies the state, starts to save the copy and returns; the caller
  // may change its memory at once. Does not throw for what went wrong.
  void save(const CheckpointState& state);
  // Returns when nothing is in flight; false where the last save failed.
  bool wait();
  // The last save failed and it is time for another: after 1 s, then twice as long each time, at
  // most 5 minutes.
  bool retry_due();
  // At the end: waits for the save in flight; where it failed, saves what `state` returns twice
  // more without a copy. Throws Error (kIo) saying what stands, where all failed.
  void finish(const std::function<CheckpointState()>& state);

  // The text of a failure that has not been asked for yet.
  std::optional<std::string> take_failure();
  // Saves that failed, since construction.
  uint64_t failures() const;
  // The longest that a save has taken so far, that of prove() included; 0: none yet.
  double save_seconds() const;

 private:
  bool attempt(const CheckpointState& state);
  void note_failure(uint64_t step, const std::string& reason);
  std::string what_stands() const;

  const std::string out_dir_;
  const RetentionPolicy policy_;
  const std::function<void()> expect_ours_;
  std::function<void(bool)> tell_ = [](bool) {};
  std::future<void> in_flight_;
  mutable std::mutex mutex_;  // of all that follows
  uint64_t failures_ = 0, failures_in_a_row_ = 0;
  std::string last_reason_;
  std::optional<std::string> failure_;
  Clock::time_point retry_at_;
  double save_seconds_ = 0;
};

}  // namespace convoy::trainer
