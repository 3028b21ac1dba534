#include "trainer/commands/train.h"

#include <utility>

#include "comm/handshake.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/fault.h"
#include "trainer/base/version.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/setup.h"
#include "trainer/job/limits.h"
#include "trainer/run/initial_weights.h"
#include "trainer/run/resume.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/run_plan.h"
#include "trainer/run/signals.h"
#include "trainer/run/stopping.h"
#include "trainer/run/train_loop.h"

namespace convoy::trainer {
namespace {

class Run {
 public:
  Run(comm::Communicator& communicator, std::unique_ptr<comm::Watchdog>& watchdog,
      const TrainOptions& options)
      : communicator_(communicator),
        watchdog_(watchdog),
        options_(options),
        job_(load_job(options.job_file, options.sets, options.device)),
        fingerprint_(fingerprint(options.device, communicator.local_rank())),
        faults_(options.faults) {
    faults_.set_rank(communicator.rank());
  }

  // However the life ends by itself is recorded.
  int main() {
    try {
      const int code = live();
      folder_.end(code, loop_->ending());
      return code;
    } catch (const std::exception& e) {
      const Error error = as_error(e);
      end_by_error(error.code(), error.what());
    }
  }

 private:
  int live() {
    meet();
    comm::WatchdogConfig watch = watchdog_config(job_);
    watch.judged = folder_.judged();
    watchdog_ = std::make_unique<comm::Watchdog>(communicator_, watch);
    alarm_.reset();
    faults_.at(FaultPoint::kStart, 0);
    if (is_root() && !options_.dry_run) claim_folder();
    std::optional<CheckpointState> checkpoint = find_resume(communicator_, options_, resume_);
    std::optional<TensorList> weights = find_initial_weights(communicator_, resume_, job_);
    plan_ = make_plan(communicator_, *watchdog_, options_, resume_, job_);
    if (resume_.found) check_resume();
    loop_.emplace(RunContext{communicator_, *watchdog_, options_, job_, fingerprint_, plan_,
                             faults_, folder_, stopping_, resume_, std::move(weights)});
    if (!options_.dry_run) return loop_->run(std::move(checkpoint));
    loop_->dry_run();
    return 0;
  }

  // Of usage, data and the job the error itself says what to do.
  static bool says_so(ExitCode code) {
    return code == ExitCode::kFault || code == ExitCode::kIo || code == ExitCode::kRecoverable;
  }

  [[noreturn]] void end_by_error(ExitCode code, std::string message) {
    const bool idle = !loop_ || loop_->step() <= resume_.step;
    const int within =
        idle ? within_budget(static_cast<int>(code), resume_.idle_lives) : static_cast<int>(code);
    if (idle && says_so(code) && resume_.idle_lives + 1 >= kLifeBudget)
      message += fmt::format(
          " (the {} lives before, too, ended without a step: {}; so this one does not ask to be "
          "run again. Mend the cause and start it: a life that does a step clears the count)",
          resume_.idle_lives, resume_.idle);
    folder_.end(within, message);
    throw Error(static_cast<ExitCode>(within), message);
  }

  bool is_root() const { return communicator_.rank() == 0; }

  // Before anything that all ranks must do alike: do they run the same program with the same job?
  // Only the data may lie elsewhere on another host.
  void meet() {
    Job shared = job_;
    shared.data.path.clear();
    comm::handshake(communicator_,
                    {{"version", kVersion},
                     {"job", sha256_hex(to_text(shared))},
                     {"options", fmt::format("{} {} {}", options_.resume, options_.dry_run,
                                             options_.allow_change)},
                     {"device", fingerprint_.device},
                     {"instruction set", fingerprint_.instruction_set},
                     {"libraries", fingerprint_.libraries},
                     {"build", fingerprint_.build},
                     {"caches", fingerprint_.caches}});
  }

  void claim_folder() {
    expect_no_import(options_.out);
    folder_.claim(resume_);
    if (options_.until) stopping_.end_by(*options_.until, options_.started);
    expect_fresh_folder(options_);
  }

  void check_resume() const {
    const std::optional<uint64_t> before = folder_.ranks_before();
    if (before && *before != static_cast<uint64_t>(communicator_.size()))
      log::info("resume with ranks: {} -> {} (the result does not depend on them)", *before,
                communicator_.size());
    expect_same_run(resume_, job_, plan_.train->digest(), fingerprint_, options_.allow_change,
                    is_root());
  }

  std::optional<comm::StartAlarm> alarm_{std::in_place};  // until there is a watchdog
  comm::Communicator& communicator_;
  std::unique_ptr<comm::Watchdog>& watchdog_;  // once the ranks have met
  const TrainOptions options_;
  Job job_;
  Fingerprint fingerprint_;
  Faults faults_;
  RunFolder folder_{communicator_, options_, job_};
  Stopping stopping_{communicator_};
  Resume resume_;
  RunPlan plan_;
  std::optional<TrainLoop> loop_;
};

}  // namespace

int train(comm::Communicator& communicator, std::unique_ptr<comm::Watchdog>& watchdog,
          const TrainOptions& options) {
  return Run(communicator, watchdog, options).main();
}

int train_command(const Arguments& arguments) {
  // Before the ranks meet: a signal that comes early stops the run after its first step.
  install_stop_signals();
  return run_on_ranks(arguments, parse_train_options, train);
}

}  // namespace convoy::trainer
