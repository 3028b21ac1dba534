// Nobody waits for the dead: a thread of its own, which never calls MPI or a GPU, sends a heartbeat
// with this rank's phase over TCP connections of our own. Rank 0 judges (verdict.h); its verdict
// travels the same way, and every rank leaves with _exit. Ranks that no longer hear rank 0 leave by
// themselves. All times are the monotonic clock's.
//
//   Watchdog watchdog(communicator, config);        // collective
//   watchdog.enter(Phase::kCompute, step);
//   { const auto wait = watchdog.input(); ... }     // a lane that waits for a batch
//   const auto words = watchdog.describe(Phase::kInput, [&] { return "file " + ...; });
//
// Every member function may be called from any thread and blocks for no longer than a short mutex.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "comm/communicator.h"
#include "comm/verdict.h"
#include "ops/core/error.h"

namespace convoy::comm {

struct WatchdogConfig {
  Deadlines deadlines;
  double heartbeat = 1;   // seconds between heartbeats
  std::string interface;  // see choose_addresses(); "": automatic
  // Ranks that report to one: rank r > 0 reports to (r - 1) / fan_out.
  int fan_out = 256;
  // Seconds that an address has to answer when the ranks first connect.
  double connect = 3;
  // One warning where a rank's own time per step is more than this many times the median over
  // `straggler_window` seconds, twice in a row; then none for ten windows. Likewise where all wait
  // for the network of one host (slow_link in verdict.h). 0: off.
  double straggler_factor = 1.3;
  double straggler_window = 60;
  // Called on rank 0's watchdog thread before a verdict is passed on, which it may change. Must
  // return soon, whatever hangs.
  std::function<void(Verdict&)> judged;
  // Called on the watchdog's thread in place of _exit; for tests. The thread then ends.
  std::function<void(const Verdict&)> end;
};

// Before the ranks have met there is no watchdog: where this is not destroyed within `seconds`, the
// process says that it has waited for the others and ends with kRecoverable.
class StartAlarm {
 public:
  explicit StartAlarm(double seconds = Deadlines{}.start);

 private:
  std::jthread thread_;
};

class Watchdog {
 public:
  // Collective; the ranks connect. Throws the same Error on all ranks: kBadJob where a host has
  // nothing of what config.interface names, kIo where a rank cannot reach the one it reports to,
  // naming both, the addresses that were tried and what can be changed. The communicator must
  // outlive the watchdog.
  Watchdog(Communicator& communicator, const WatchdogConfig& config);
  // Says goodbye: the others no longer expect to hear from this rank.
  ~Watchdog();

  // The phase of this rank's main thread, and that it got on. `bucket`: of a reduction, -1: none.
  void enter(Phase phase, uint64_t step, int bucket = -1);
  // It still does the same, but got on: its deadline begins anew.
  void progress();
  // Batches that one lane of this rank computes in a step; 0 (the default): it trains nothing.
  void set_rounds(uint32_t rounds);

  // Undoes, when it is destroyed, what it came from. Must not outlive the watchdog.
  class Scope {
   public:
    Scope() = default;
    explicit Scope(std::function<void()> undo) : undo_(std::move(undo)) {}
    ~Scope() {
      if (undo_) undo_();
    }
    Scope(Scope&& other) noexcept : undo_(std::exchange(other.undo_, nullptr)) {}
    Scope& operator=(Scope&& other) noexcept {
      std::swap(undo_, other.undo_);
      return *this;
    }

   private:
    std::function<void()> undo_;
  };

  // A thread waits for input, which then is the phase of the rank; when it no longer does, the rank
  // got on.
  [[nodiscard]] Scope input();
  // A checkpoint is being written in the background.
  [[nodiscard]] Scope saving();
  // Asked on the watchdog's thread, not often, for a few words about the phase: must neither block
  // nor throw. When the scope is gone they are not running, and what was asked before is again.
  [[nodiscard]] Scope describe(Phase phase, std::function<std::string()> words);

  // Ends the job: all ranks leave with this code, rank 0 says the text.
  [[noreturn]] void verdict(ExitCode code, const std::string& text);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::comm
