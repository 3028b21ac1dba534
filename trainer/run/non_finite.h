// What a run does about a loss or a gradient that is not finite: decided by all ranks alike.
//
// A rank that finds one leaves its update out. Whether the others found it too it cannot know: a
// bit that flips in the sums as one rank has received them is that rank's alone. So it goes on, and
// says what it found in the control word of its next step; at the end of that step all ranks know
// how many of them said so. All: the policy of the job decides. Some: their replicas have parted;
// the run goes back, and they are named. Before a save, and where ranks that host no worker have no
// control word, the ranks ask each other at once.
//
// The step in between changes nothing in this: it was computed on the weights that the update which
// was left out has left.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "trainer/engine/engine.h"
#include "trainer/job/job.h"
#include "trainer/job/skipped_steps.h"
#include "trainer/run/replicas.h"
#include "trainer/run/run_folder.h"

namespace convoy::trainer {

class NonFinite {
 public:
  // All of it must outlive this. Where an update is left out, it is counted in `skipped`.
  NonFinite(comm::Communicator& communicator, Engine& engine, Replicas& replicas, RunFolder& folder,
            const Job::NonFinite& policy, SkippedSteps& skipped)
      : communicator_(communicator),
        engine_(engine),
        replicas_(replicas),
        folder_(folder),
        policy_(policy),
        skipped_(skipped) {}

  // Right after the update of step `step` (the first is 0).
  void note(uint64_t step, const Engine::Result& result);
  // This rank has left out an update, and not all know it.
  bool pending() const { return pending_.has_value(); }

  // `ranks` have said that they left out the last update but one; all ranks call it alike when
  // `done` steps are done. Throws RollBack, or Error (kFault), on all ranks alike.
  void settle(int ranks, uint64_t done);
  // Collective: the ranks ask each other of the last update, and settle it.
  void ask(uint64_t done);
  // Collective: the run goes back, and what was pending never was. Names the ranks, where some but
  // not all of them had left out an update: "; rank 1 (node7) alone found ...", else "".
  std::string take_apart();

  // The state cannot be saved after `done` steps, on all ranks alike. Returns where the policy
  // goes on without an update; throws as settle().
  void stop_or_roll_back(const std::string& why, uint64_t done) const;

 private:
  struct LeftOut {
    uint64_t step;
    bool diverged;       // and no loss scale helps
    std::string why;     // the same on all ranks, where all left it out
    std::string losses;  // workers of this rank whose loss was not finite, "" for none
  };

  void follow_policy(const LeftOut& left_out, uint64_t done);

  comm::Communicator& communicator_;
  Engine& engine_;
  Replicas& replicas_;
  RunFolder& folder_;
  const Job::NonFinite& policy_;
  SkippedSteps& skipped_;
  std::optional<LeftOut> pending_;
};

}  // namespace convoy::trainer
