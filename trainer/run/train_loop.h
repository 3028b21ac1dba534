// The training loop of a life: from the state it begins with to the step at which it ends.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "trainer/base/fault.h"
#include "trainer/base/safetensors.h"
#include "trainer/engine/engine.h"
#include "trainer/engine/freezing.h"
#include "trainer/evaluation/evaluation.h"
#include "trainer/job/job.h"
#include "trainer/run/cross_check.h"
#include "trainer/run/non_finite.h"
#include "trainer/run/replicas.h"
#include "trainer/run/resume.h"
#include "trainer/run/roll_back.h"
#include "trainer/run/run_folder.h"
#include "trainer/run/run_plan.h"
#include "trainer/run/step_report.h"
#include "trainer/run/stopping.h"
#include "trainer/run/train_options.h"

namespace convoy::trainer {

// What a life has once its ranks have met; all of it outlives the loop.
struct RunContext {
  comm::Communicator& communicator;
  comm::Watchdog& watchdog;
  const TrainOptions& options;
  const Job& job;
  const Fingerprint& fingerprint;
  const RunPlan& plan;
  Faults& faults;
  RunFolder& folder;
  Stopping& stopping;
  Resume& resume;
  std::optional<TensorList> initial_weights;  // rank 0's, at the first start of a run that has some
};

class TrainLoop {
 public:
  // Collective. Builds the engine.
  explicit TrainLoop(RunContext context);
  TrainLoop(const TrainLoop&) = delete;
  TrainLoop& operator=(const TrainLoop&) = delete;

  // Collective; in place of run().
  void dry_run();
  // Collective; `checkpoint`: rank 0's, where one was found. Returns the exit code: 0 (done, or
  // stop_after_steps reached) or 75 (stopped, saved). Everything is on the disk then.
  int run(std::optional<CheckpointState> checkpoint);

  uint64_t step() const { return step_; }                // optimizer steps done
  const std::string& ending() const { return ending_; }  // how the life has ended

 private:
  bool is_root() const { return communicator_.rank() == 0; }
  bool evaluation_due(uint64_t done) const;

  PlanConfig plan_config() const;
  std::unique_ptr<Engine> make_engine(const EngineConfig& config) const;
  void begin_anew();
  void follow_freezing();
  void restore_state(const std::optional<CheckpointState>& checkpoint, const char* how);
  void open_folder();
  void go_back(const RollBack& reason);
  void pass_over(uint64_t end, const std::string& why);

  int run_steps();
  Engine::Control control_word();
  Engine::Control train_step(const Engine::Source& source);
  const data::Batch& acquire(data::Loader& loader, uint64_t worker);
  void apply(const Fault& fault);
  void report_judgement();

  void evaluate_and_save();
  double evaluate();
  void save(std::optional<double> top1);
  [[noreturn]] void refuse_to_save();
  RunFolder::MakeState state_to_save(std::optional<double> top1);
  CheckpointState checkpoint_state(std::optional<double> top1);

  void report_substitutions() const;
  int leave(bool stopped);
  void say_end(bool stopped);

  comm::Communicator& communicator_;
  comm::Watchdog& watchdog_;
  const TrainOptions& options_;
  const Job& job_;
  const Fingerprint& fingerprint_;
  const RunPlan& plan_;
  Faults& faults_;
  RunFolder& folder_;
  Stopping& stopping_;
  Resume& resume_;

  // Where the run begins; kept, as it may have to go back there.
  const std::optional<TensorList> initial_weights_;
  ops::Graph graph_;
  TrainingPlan training_;

  ops::ImageInput input_;
  std::unique_ptr<Engine> engine_;
  std::optional<Evaluation> evaluation_;  // of the engine's own network
  std::optional<Replicas> replicas_;
  std::optional<CrossCheck> cross_check_;
  std::optional<NonFinite> non_finite_;
  std::optional<StepReport> report_;
  const data::Loader* loader_ = nullptr;  // while run_steps() runs

  uint64_t step_ = 0;  // optimizer steps done
  PlateauState plateau_;
  SkippedSteps skipped_;
  std::optional<double> saved_top1_;  // as in the last save
  uint32_t roll_backs_ = 0;           // of this life, because of corruption
  std::optional<Accuracy> result_;
  std::string ending_;  // how this life ends
};

}  // namespace convoy::trainer
