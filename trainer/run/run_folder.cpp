#include "trainer/run/run_folder.h"

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/engine/plans.h"
#include "trainer/engine/setup.h"
#include "trainer/run/signals.h"

namespace convoy::trainer {
namespace {

constexpr const char* kPlans = "/plans.txt";

// "life 3: 75 lost peer ...; life 4: ..."
std::string to_text(const std::vector<const Life*>& lives) {
  std::string text;
  for (const Life* life : lives)
    text += fmt::format("{}life {}: {} {}", text.empty() ? "" : "; ", life->number,
                        life->exit_code.value_or(0), printable(life->reason, 200));
  return text;
}

}  // namespace

void RunFolder::claim(Resume& resume) {
  if (options_.out.empty())
    fail(ExitCode::kUsage, "convoy train needs --out DIR, the folder of the run");
  const std::chrono::duration<double> lease(job_.checkpoint.lease_seconds);
  lock_.emplace(options_.out,
                LeaseOptions{.lease = std::chrono::duration_cast<std::chrono::milliseconds>(lease),
                             .give_up = stop_requested});
  lives_ = std::make_shared<Lives>(options_.out, communicator_.host(), communicator_.size(),
                                   options_.started, std::chrono::seconds(30), lock_->life());
  const std::vector<const Life*> idle = idle_lives(lives_->before());
  resume.idle_lives = idle.size();
  resume.idle = to_text(idle);
  watched_->begin(lives_, resume.idle_lives);
}

std::optional<uint64_t> RunFolder::ranks_before() const {
  if (!lives_ || lives_->before().empty()) return std::nullopt;
  return lives_->before().back().ranks;
}

std::function<void(comm::Verdict&)> RunFolder::judged() const {
  return [life = watched_](comm::Verdict& v) { v.exit_code = life->end(v.exit_code, v.text); };
}

void RunFolder::open(comm::Watchdog& watchdog, const RunPlan& plan, uint64_t step,
                     const std::string& resumed_from, const MakeState& state) {
  if (is_root()) {
    write_text(options_.out + "/job.txtpb", to_text(job_));
    writer_ = std::make_unique<CheckpointWriter>(
        options_.out,
        RetentionPolicy{.keep = job_.checkpoint.keep,
                        .keep_best = job_.checkpoint.keep_best,
                        .keep_every_steps = job_.checkpoint.keep_every_steps},
        [this] { lock_->expect_held(); });
    writer_->on_writing([this, &watchdog](bool begins) {
      writing_ = begins ? watchdog.saving() : comm::Watchdog::Scope();
    });
    writer_->prove(state());
  }
  ledger_ =
      std::make_unique<Ledger>(Ledger::Config{.out_dir = options_.out,
                                              .terms = {.dataset_size = plan.train->size(),
                                                        .global_batch = plan.length.global_batch,
                                                        .seed = job_.seed,
                                                        .dataset_digest = plan.train->digest(),
                                                        .windows = windows_of(job_, *plan.train)},
                                              .workers = job_.workers,
                                              .batch_per_worker = job_.batch_per_worker,
                                              .life = lives_ ? lives_->number() : 0,
                                              .step = step,
                                              .resumed_from = resumed_from},
                               is_root());
  rewind(step);
}

std::optional<std::string> RunFolder::stored_plans(const Fingerprint& machine) const {
  return read_plans(options_.out + kPlans, plan_target(machine.instruction_set, machine.libraries));
}

void RunFolder::keep_plans(const Fingerprint& machine, const std::string& plans) const {
  if (is_root() && !plans.empty())
    write_plans(options_.out + kPlans, plan_target(machine.instruction_set, machine.libraries),
                plans);
}

void RunFolder::rewind(uint64_t step) {
  samples_.reset();
  communicator_.barrier();
  try {
    if (is_root()) {
      if (job_.log.gradients > 0) gradients_ = std::make_unique<GradientLog>(options_.out, step);
      metrics_ = std::make_unique<MetricsWriter>(options_.out, step);
      if (logs_samples()) SampleLog::rewind(options_.out, step);
    }
  } catch (const Error& e) {
    if (!metrics_) throw;  // the run has not begun
    log::warning("{}; lines of steps that are done again will be there twice", e.what());
  }
  communicator_.barrier();
  if (logs_samples())
    samples_ =
        std::make_unique<SampleLog>(options_.out, communicator_.rank(), job_.log.batch_digests);
}

void RunFolder::go_back(uint64_t step) {
  ledger_->rewind(step);
  if (lives_) lives_->go_to(step);
  rewind(step);
}

void RunFolder::begin(uint64_t step, const RunPlan& plan) {
  if (lives_) lives_->begin(step, plan.total_steps, job_.workers, plan.job_digest);
}

void RunFolder::enter(Phase phase) {
  if (lives_) lives_->enter(phase);
}

void RunFolder::step_done(double waited) {
  if (!lives_) return;
  watched_->step_done();
  lives_->step_done(waited);
}

void RunFolder::end(int exit_code, const std::string& reason) {
  if (lives_) lives_->end(exit_code, reason);
}

void RunFolder::write(MetricsLine line) {
  if (metrics_) metrics_->write(std::move(line));
}

void RunFolder::write(const GradientRecord& record) {
  if (gradients_) gradients_->write(record);
}

void RunFolder::consumed(const data::Batch& batch) {
  ledger_->add(batch);
  if (samples_) samples_->write(batch);
}

void RunFolder::passed_over(uint64_t first, uint64_t end) {
  ledger_->skip(first, end, "loss or gradient not finite");
  if (lives_) lives_->go_to(end);
}

bool RunFolder::save_due() {
  if (lock_->lost()) lock_->expect_held();
  const double minutes = seconds_since(last_save_) / 60;
  const bool by_time =
      job_.checkpoint.every_minutes > 0 && minutes >= job_.checkpoint.every_minutes;
  const bool ledger_again = unrecorded_ && minutes * 60 >= 5;
  return by_time || ledger_again || writer_->retry_due();
}

bool RunFolder::save(uint64_t step, std::optional<double> top1,
                     const std::vector<data::Substitution>& substitutions, const MakeState& state) {
  if (is_root()) lock_->expect_held();
  // Before the checkpoint has its name: no step is ever published that the ledger does not hold.
  unrecorded_ = !ledger_->save(communicator_, step, substitutions);
  if (!is_root() || unrecorded_) return false;
  writer_->save(state());
  if (const auto failure = writer_->take_failure())
    write({.step = step, .event = "save failed", .detail = *failure});
  if (!top1) write({.step = step, .event = "save"});
  lives_->progress();
  return true;
}

void RunFolder::keep_apart(const MakeState& state) {
  try {
    writer_->wait();
    lock_->expect_held();
    log::warning("kept apart in {}", printable(save_apart(options_.out, state())));
  } catch (const std::exception& e) {
    log::warning("not kept apart: {}", e.what());
  }
}

void RunFolder::record_at_last(uint64_t step, const MakeState& state) {
  if (!ledger_->save(communicator_, step, {}))
    fail(ExitCode::kIo,
         "{}: the ledger could not be written, so step {} is not saved: make room and run the "
         "same command again",
         printable(options_.out), step);
  writer_->save(state());
}

void RunFolder::close(uint64_t step, const char* event, const MakeState& state) {
  if (unrecorded_) record_at_last(step, state);
  writer_->finish(state);
  write({.step = step, .event = event});
}

}  // namespace convoy::trainer
