// convoy train --until: when a life has to be over, and whether one more step still fits in.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "comm/launch.h"
#include "ops/core/clock.h"

namespace convoy::trainer {

// What --until says.
struct Until {
  enum class Kind {
    kMoment,  // "2026-11-25T18:00", "2026-11-25T18:00:30": local time; with a Z behind it UTC
    kAfter,   // "+90m", "+2h30m", "+45s", "+1d": from the start of the program
    kJobEnd,  // "job": the end of the batch job
  };
  Kind kind = Kind::kJobEnd;
  int64_t moment = 0;   // kMoment: seconds since 1970
  int64_t seconds = 0;  // kAfter
};

// Throws Error (kUsage).
Until parse_until(std::string_view text);

// The answer of `squeue -h -j JOB -o %e`, without its newline; "" where there is none.
using AskSlurm = std::function<std::string(const std::string& job)>;
std::string ask_squeue(const std::string& job);

// Seconds from the moment `now` (since 1970, the wall clock) until the life has to be over;
// `running`: seconds since the program started. Nothing where a batch job's end cannot be found
// out or there is none, which is logged. Throws Error (kUsage) where --until job is used outside of
// a batch job, and where the moment is over.
std::optional<double> seconds_left(const Until& until, double now, double running,
                                   const comm::Environment& environment, const AskSlurm& ask);

// Decides from what steps, saves and evaluations took so far. All on the monotonic clock.
class Deadline {
 public:
  // What follows the step that begins.
  enum class Next {
    kStep,
    kEvaluation,     // and further steps
    kEndOfTraining,  // the last evaluation, and nothing else
  };

  // `save_seconds`: an estimate, until one is measured. `evaluation_steps`: an evaluation takes no
  // longer than that many steps; likewise.
  Deadline(Clock::time_point until, double save_seconds, double evaluation_steps)
      : until_(until), save_seconds_(save_seconds), evaluation_steps_(evaluation_steps) {}

  void note_step(double seconds);        // the slowest of the last 32 counts
  void note_save(double seconds);        // until it is on the disk; the last one counts
  void note_evaluation(double seconds);  // likewise

  // Must the life end with the step that begins now, and leave an evaluation behind it to the next
  // one? Yes where a further step after it, its save, another save in reserve and the evaluation
  // with its save, if one follows, would end too late; at the end of training there is no further
  // step, and where the step with its save, the evaluation and the save of that would.
  bool last_step(Clock::time_point now, Next next) const;
  // "in 95.0 s; a step takes 0.40 s, a save 12.0 s", and where one follows ", an evaluation 60.0 s"
  std::string reason(Clock::time_point now, Next next) const;

 private:
  static constexpr size_t kSteps = 32;

  double step_seconds() const;
  double evaluation_seconds() const;

  Clock::time_point until_;
  double save_seconds_;
  const double evaluation_steps_;
  double evaluation_seconds_ = 0;  // 0: none is measured
  double steps_[kSteps] = {};
  size_t next_ = 0;
};

}  // namespace convoy::trainer
