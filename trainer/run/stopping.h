// Ways in which a life of a run stops before its work is done and nothing is wrong: a signal to any
// rank, and --until on rank 0's clock. What a rank asks for here travels in the control word of the
// step that begins; at its end all ranks stop.
#pragma once

#include <optional>
#include <string>

#include "comm/communicator.h"
#include "ops/core/clock.h"
#include "trainer/run/until.h"

namespace convoy::trainer {

class Stopping {
 public:
  explicit Stopping(comm::Communicator& communicator) : communicator_(communicator) {}

  // Rank 0: --until. The wall clock is read here, once.
  void end_by(const Until& until, Clock::time_point started);
  // Rank 0: the first step comes next. `state_bytes`: what a save writes. evaluation_steps: see
  // Deadline.
  void begin(double state_bytes, double evaluation_steps);

  // Does this rank want the step that begins to be the last one? idle_ranks: there are ranks whose
  // word does not travel; then it is collective, and the ranks agree on signals here.
  bool asked(bool idle_ranks, Deadline::Next next);

  // What they took, in seconds; rank 0.
  void note_step(double seconds);
  void note_save(double seconds);  // until it is on the disk
  void note_evaluation(double seconds);

  // Why the life ends, where asked() has said so on this rank.
  std::string reason() const { return time_is_up_ ? "stopped by --until" : "stopped by a signal"; }

 private:
  bool time_is_up(Deadline::Next next);

  comm::Communicator& communicator_;
  std::optional<Clock::time_point> until_;
  std::optional<Deadline> deadline_;
  bool time_is_up_ = false;
};

}  // namespace convoy::trainer
