// OUT/lives.jsonl: when each life of a run began, how far it came, what its time went into and how
// it ended. `convoy report` prints it. Kept by rank 0, under the OutputLock.
//
// One JSON object per line, `event` first:
//   start      the process has the folder      host, pid, ranks, version
//   begin      the first step comes next       step, of, workers, job, ranks
//   progress   a save                          step, elapsed, seconds by phase
//   heartbeat  30 s after any other line       the same
//   end        the life ended by itself        the same, exit_code, reason
// A life without an end was killed. When a life begins, the lines of earlier ones are thinned: of
// progress and heartbeats the last one stays.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "ops/core/clock.h"

namespace convoy::trainer {

class LineLog;

// What a life's time goes into.
enum class Phase {
  kStarting,    // until the first step: data, building, loading, meeting the other ranks
  kUseful,      // steps that no life before had done, without waiting
  kRecomputed,  // steps that a life before had done already, and lost
  kWaiting,     // of useful steps: for input and for other ranks
  kEvaluating,
  kSaving,
};
constexpr size_t kPhases = 6;
using PhaseSeconds = std::array<double, kPhases>;
const char* name_of(Phase phase);

// One life as the file tells it.
struct Life {
  uint64_t number = 0;
  double started = 0;  // seconds since 1970
  double elapsed = 0;  // seconds from then to the last record
  std::string host, version, job;
  uint64_t ranks = 0, workers = 0;
  bool began = false;                      // it came to its steps
  uint64_t first_step = 0, last_step = 0;  // steps done before it, and at the last record
  uint64_t total_steps = 0;
  PhaseSeconds seconds{};  // booked until the last record; their sum is at most `elapsed`
  std::optional<int> exit_code;
  std::string reason;  // how it ended by itself

  bool ended() const { return exit_code.has_value(); }
};

struct LivesText {
  std::vector<Life> lives;  // rising numbers
  uint64_t unreadable = 0;  // lines that are none
};
// Of any bytes; never throws for them.
LivesText parse_lives(std::string_view text);
// OUT/lives.jsonl; nothing where there is no such file. Throws Error (kIo).
LivesText read_lives(const std::string& out_dir);

// The lives at the end of the list that ended by themselves without having done a step, and not
// with 0. Lives that were killed before a step are passed over: they say nothing about the next
// try.
std::vector<const Life*> idle_lives(const std::vector<Life>& lives);

// The third of them in a row does not ask to be run again.
constexpr size_t kLifeBudget = 3;

// The exit code of a life that ends with `exit_code` and did no step after `idle` lives like it:
// kRecoverable becomes kFault where the budget is used up. All ranks must call it alike.
int within_budget(int exit_code, size_t idle);

// Where the wall time of a run went: the parts sum to `wall`.
struct Goodput {
  double wall = 0;         // from the first start to the last record
  PhaseSeconds seconds{};  // of all lives
  double lost = 0;         // killed lives: a step not finished, and up to a heartbeat until death
  double down = 0;         // between lives
  uint64_t steps = 0;      // furthest
};
Goodput goodput(const std::vector<Life>& lives);

// The life that is under way. Thread-safe.
class Lives {
 public:
  // Reads and thins the file, appends the start, and beats until end() or the destructor. Throws
  // Error (kIo).
  // `start`: of the process. `at_least`: of the number, which is one more than the last one.
  Lives(const std::string& out_dir, const std::string& host, int ranks, Clock::time_point start,
        std::chrono::milliseconds heartbeat = std::chrono::seconds(30), uint64_t at_least = 1);
  ~Lives();
  Lives(const Lives&) = delete;
  Lives& operator=(const Lives&) = delete;

  uint64_t number() const { return number_; }
  // Of this run before this one.
  const std::vector<Life>& before() const { return before_; }

  // The life goes on from `step`; its own seconds are booked as kUseful or kRecomputed from here.
  void begin(uint64_t step, uint64_t total_steps, uint64_t workers, const std::string& job);
  // What comes next is of this phase.
  void enter(Phase phase);
  // A step is done; of its time since the last call, `waited` seconds went into waiting.
  void step_done(double waited);
  // The run went back, or passed steps over: `step` steps are done.
  void go_to(uint64_t step);
  // A save: appends how far the life is.
  void progress();
  // The life ends by itself. Only the first call counts.
  void end(int exit_code, const std::string& reason);

 private:
  void book(Phase phase);
  std::string line_of(const char* event, const std::string& more) const;
  void append(const char* event, const std::string& more);
  std::string state() const;

  std::vector<Life> before_;
  uint64_t number_ = 1, furthest_ = 0;  // steps that lives before had done
  const Clock::time_point start_;
  const double started_;  // the same on the wall clock, seconds since 1970

  std::mutex mutex_;  // guards all below
  std::string head_;  // the lines without which the others of this life say nothing
  std::unique_ptr<LineLog> log_;
  Phase phase_ = Phase::kStarting;
  Clock::time_point since_ = start_;  // what came before is booked
  PhaseSeconds seconds_{};
  uint64_t step_ = 0;
  bool ended_ = false;
  Clock::time_point written_ = start_;  // the last line
  std::condition_variable_any wake_;
  std::jthread heartbeat_;  // last
};

// What a watchdog needs to know of the life that it ends. Thread-safe; outlives the train loop.
class LifeUnderWatch {
 public:
  // `idle`: lives in a row before that did no step.
  void begin(std::shared_ptr<Lives> lives, size_t idle);
  void step_done() { idle_ = 0; }
  // Records the end, which takes at most two seconds whatever the disk does, and returns the exit
  // code within the budget. `text` then says why it is another one.
  int end(int exit_code, std::string& text);

 private:
  std::mutex mutex_;
  std::shared_ptr<Lives> lives_;  // guarded by mutex_
  std::atomic<size_t> idle_ = 0;
};

}  // namespace convoy::trainer
