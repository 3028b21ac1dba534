#include "trainer/run/stopping.h"

#include <cstdlib>

#include "ops/core/log.h"
#include "trainer/base/text.h"
#include "trainer/run/signals.h"

namespace convoy::trainer {

void Stopping::end_by(const Until& until, Clock::time_point started) {
  const std::optional<double> left = seconds_left(
      until, unix_now(), seconds_since(started), [](const char* name) { return std::getenv(name); },
      ask_squeue);
  if (!left) return;
  log::info("--until: this life ends by itself within {}", duration(*left));
  until_ = Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*left));
}

void Stopping::begin(double state_bytes, double evaluation_steps) {
  constexpr double kBytesPerSecond = 100e6;  // until a save is measured
  if (until_) deadline_.emplace(*until_, 1 + state_bytes / kBytesPerSecond, evaluation_steps);
}

bool Stopping::asked(bool idle_ranks, Deadline::Next next) {
  bool asked = stop_requested();
  if (idle_ranks) asked = communicator_.all_reduce_max(asked) > 0;
  return asked || time_is_up(next);
}

bool Stopping::time_is_up(Deadline::Next next) {
  const auto now = Clock::now();
  if (!deadline_ || !deadline_->last_step(now, next)) return false;
  log::info("--until: time is up {}: stopping", deadline_->reason(now, next));
  time_is_up_ = true;
  return true;
}

void Stopping::note_step(double seconds) {
  if (deadline_) deadline_->note_step(seconds);
}

void Stopping::note_save(double seconds) {
  if (deadline_) deadline_->note_save(seconds);
}

void Stopping::note_evaluation(double seconds) {
  if (deadline_) deadline_->note_evaluation(seconds);
}

}  // namespace convoy::trainer
