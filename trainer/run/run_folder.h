// What a run writes into its folder (--out), and the folder while this life has it: lock, lives,
// metrics, checkpoints, ledger, log of samples. Rank 0 keeps it; of the other ranks come what they
// consumed and their logs of samples. For the thread of the train loop, but for consumed() and
// judged().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "data_loader/loader.h"
#include "ops/core/clock.h"
#include "trainer/base/output_lock.h"
#include "trainer/checkpoints/checkpoint_writer.h"
#include "trainer/job/job.h"
#include "trainer/records/gradient_log.h"
#include "trainer/records/ledger.h"
#include "trainer/records/lives.h"
#include "trainer/records/metrics.h"
#include "trainer/records/sample_log.h"
#include "trainer/run/resume.h"
#include "trainer/run/run_plan.h"
#include "trainer/run/train_options.h"

namespace convoy::trainer {

class RunFolder {
 public:
  using MakeState = std::function<CheckpointState()>;  // borrows the engine's memory

  // All of it must outlive this; the job's open fields may still be filled in until open().
  RunFolder(comm::Communicator& communicator, const TrainOptions& options, const Job& job)
      : communicator_(communicator), options_(options), job_(job) {}

  // Rank 0: takes the folder and records that a life starts. Fills in `resume`'s idle lives.
  void claim(Resume& resume);
  // Ranks of the life before this one; nothing where there was none or it is not known.
  std::optional<uint64_t> ranks_before() const;
  // For the watchdog: it ends the life with this verdict, which may change.
  std::function<void(comm::Verdict&)> judged() const;

  // Collective; before the first step, which is `step`. Writes the job and proves that a checkpoint
  // can be saved and read back.
  void open(comm::Watchdog& watchdog, const RunPlan& plan, uint64_t step,
            const std::string& resumed_from, const MakeState& state);
  // The plans that this run decided before it had a checkpoint, on such a machine; none where it
  // has not come so far.
  std::optional<std::string> stored_plans(const Fingerprint& machine) const;
  // For stored_plans() of the next life; nothing on other ranks than 0.
  void keep_plans(const Fingerprint& machine, const std::string& plans) const;
  // Collective: the run goes back to `step`, so what is written as it goes says nothing of steps
  // from there on.
  void go_back(uint64_t step);

  // How the life goes (lives.h); nothing where this rank keeps no lives.
  void begin(uint64_t step, const RunPlan& plan);
  void enter(Phase phase);
  void step_done(double waited);
  void end(int exit_code, const std::string& reason);

  // Into the metrics; nothing on other ranks than 0.
  void write(MetricsLine line);
  // Likewise into the log of gradients, where the job has one.
  void write(const GradientRecord& record);
  // Any thread. A batch that this rank computes.
  void consumed(const data::Batch& batch);
  // Steps that count but are not computed.
  void passed_over(uint64_t first, uint64_t end);

  // Rank 0. Throws Error (kIo) where another job has taken the folder over.
  void expect_held() { lock_->expect_held(); }
  // Rank 0: a save by time, or again because the last one failed.
  bool save_due();
  // Collective. Begins a save in the background. Returns true on rank 0, where it did.
  bool save(uint64_t step, std::optional<double> top1,
            const std::vector<data::Substitution>& substitutions, const MakeState& state);
  // Rank 0: seconds from the begin of the last save, and the longest that the disk has taken.
  double save_seconds() const { return seconds_since(last_save_) + writer_->save_seconds(); }
  // The minutes to the next save count from now.
  void restart_save_clock() { last_save_ = Clock::now(); }
  // Rank 0: returns when no save is in flight.
  void wait_for_save() { writer_->wait(); }
  // Rank 0: a state that must not be used, for whoever wants to know how it came to that.
  void keep_apart(const MakeState& state);

  // Rank 0: returns when everything is on the disk. Throws Error (kIo) where that cannot be.
  void close(uint64_t step, const char* event, const MakeState& state);

 private:
  bool logs_samples() const { return job_.log.samples || job_.log.batch_digests; }
  bool is_root() const { return communicator_.rank() == 0; }
  void rewind(uint64_t step);
  // The last save was left out because the ledger could not be written.
  void record_at_last(uint64_t step, const MakeState& state);

  comm::Communicator& communicator_;
  const TrainOptions& options_;
  const Job& job_;
  std::optional<OutputLock> lock_;  // rank 0
  std::shared_ptr<Lives> lives_;    // rank 0
  const std::shared_ptr<LifeUnderWatch> watched_ = std::make_shared<LifeUnderWatch>();
  std::unique_ptr<MetricsWriter> metrics_;    // rank 0
  std::unique_ptr<GradientLog> gradients_;    // rank 0
  comm::Watchdog::Scope writing_;             // of the writer's thread
  std::unique_ptr<CheckpointWriter> writer_;  // rank 0
  std::unique_ptr<SampleLog> samples_;
  std::unique_ptr<Ledger> ledger_;
  bool unrecorded_ = false;  // rank 0: the ledger refused the last save
  Clock::time_point last_save_;
};

}  // namespace convoy::trainer
