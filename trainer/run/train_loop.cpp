#include "trainer/run/train_loop.h"

#include <bit>
#include <iostream>
#include <utility>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/freezing.h"
#include "trainer/run/dry_run.h"
#include "trainer/run/initial_weights.h"
#include "trainer/weights/model_state.h"

namespace convoy::trainer {
namespace {

uint64_t digest_of(const PlateauState& plateau) {
  return joined(
      {plateau.drops, std::bit_cast<uint64_t>(plateau.best_error), plateau.evaluations_since});
}

uint64_t digest_of(const SkippedSteps& skipped) {
  Digests numbers = {skipped.skips};
  for (const auto& [begin, end] : skipped.ranges) numbers.insert(numbers.end(), {begin, end});
  return joined(numbers);
}

}  // namespace

TrainLoop::TrainLoop(RunContext run)
    : communicator_(run.communicator),
      watchdog_(run.watchdog),
      options_(run.options),
      job_(run.job),
      fingerprint_(run.fingerprint),
      plan_(run.plan),
      faults_(run.faults),
      folder_(run.folder),
      stopping_(run.stopping),
      resume_(run.resume),
      initial_weights_(std::move(run.initial_weights)) {
  // Whether the images of evaluation fit is said before the engine takes its time.
  const data::EvalTransform transform = eval_transform(job_);
  const data::ImageShape look = data::output_shape(transform, *plan_.val);
  const ops::ImageInput evaluated =
      image_input(job_, plan_.normalisation, look, job_.evaluation.batch);
  const data::ImageShape shape = data::output_shape(train_transform(job_), *plan_.train);
  input_ = image_input(job_, plan_.normalisation, shape, job_.batch_per_worker);
  graph_ = graph_of(job_, shape);
  training_ = plan_training(job_, graph_, plan_.length);
  EngineConfig config =
      engine_config(job_, options_.device, communicator_.local_rank(), input_, plan_.lanes);
  config.frozen = training_.frozen_at(resume_.step);
  config.factors = training_.factors;
  for (const FrozenFrom& phase : training_.phases) config.frozen_later.push_back(phase.frozen);
  config.evaluation = evaluated;
  config.plans = plan_config();
  config.hooks = {.compute = [this] { watchdog_.enter(comm::Phase::kCompute, step_); },
                  .reduce =
                      [this](int bucket) {
                        watchdog_.enter(comm::Phase::kReduce, step_, bucket);
                        faults_.at(FaultPoint::kReduce, step_);
                      }};
  if (options_.device == "cpu") {
    // At the end least is frozen.
    warn_of_too_little_memory(communicator_, ops::freeze(graph_, training_.last().frozen), config);
  }
  engine_ = make_engine(config);
  evaluation_.emplace(communicator_, watchdog_,
                      std::vector<ImageNetwork>{{job_.name, *engine_, job_, plan_.normalisation,
                                                 transform, look, int64_t{job_.data.classes}}},
                      *plan_.val, EvaluationConfig{.data_threads = plan_.data_threads});
  replicas_.emplace(communicator_, *engine_, job_.checks.replicas_every_steps,
                    Replicas::Beside{{"the plateau schedule", "the skipped steps"}, [this] {
                                       return Digests{digest_of(plateau_), digest_of(skipped_)};
                                     }});
  cross_check_.emplace(
      communicator_, watchdog_, *engine_, static_cast<int>(job_.workers),
      job_.checks.recompute_every_steps, [this](uint64_t step, int worker) {
        return open_loader(plan_, job_, step, step + 1, {worker, worker + 1}, 0, {});
      });
  non_finite_.emplace(communicator_, *engine_, *replicas_, folder_, job_.non_finite, skipped_);
  report_.emplace(plan_, job_, *engine_);
}

// The plans of the checkpoint, else what the run decided before its first one.
PlanConfig TrainLoop::plan_config() const {
  PlanConfig config = {.stored = std::nullopt,
                       .refused = options_.allow_change ? Refused::kReplace : Refused::kStop,
                       .tune = job_.gpu.autotune,
                       .cache_folder = cache_folder()};
  if (resume_.found)
    config.stored = resume_.plans;
  else if (is_root() && !options_.dry_run)
    config.stored = folder_.stored_plans(fingerprint_);
  return config;
}

std::unique_ptr<Engine> TrainLoop::make_engine(const EngineConfig& config) const {
  std::unique_ptr<Engine> engine;
  try {
    engine = std::make_unique<Engine>(communicator_, graph_, config);
  } catch (const PlanRefused& e) {
    if (!is_root())
      fail(
          e.code(),
          "rank {} ({}): {}; rank 0 uses it: all ranks need GPUs and libraries that do what its do",
          communicator_.rank(), printable(communicator_.host()), e.what());
    fail(e.code(),
         "{}; the run cannot go on with the same bits: use the libraries that it began with{}, or "
         "--allow-change to go on with other engines",
         e.what(), resume_.found ? fmt::format(" ({})", resume_.fingerprint.libraries) : "");
  }
  if (!is_root() || !resume_.found) return engine;
  const std::vector<std::string> changed = changed_plans(resume_.plans, engine->plans());
  if (!changed.empty())
    log::warning(
        "a new numerical identity from step {} on: results are no longer bit for bit those of the "
        "engines before ({} of them changed; {})",
        resume_.step, changed.size(), printable(changed.front()));
  return engine;
}

void TrainLoop::dry_run() {
  begin_anew();
  print_dry_run(communicator_, *engine_, job_, plan_.length, input_, plan_.val->size(), training_,
                loader_plan(plan_, job_, engine_->hosted()));
}

void TrainLoop::begin_anew() {
  if (job_.transfer.init_from.empty()) return;
  // This life began at a checkpoint, and did not read it.
  if (is_root() && !initial_weights_)
    fail(ExitCode::kRecoverable,
         "no checkpoint is left, and the start of the run needs transfer.init_from: run again");
  start_from(communicator_, *engine_, graph_, job_, initial_weights_);
}

// What is frozen is a function of the step.
void TrainLoop::follow_freezing() {
  const auto& frozen = training_.frozen_at(step_);
  if (frozen == engine_->frozen()) return;
  watchdog_.enter(comm::Phase::kStart, step_);
  engine_->freeze(frozen);
  if (!is_root()) return;
  const std::string now = trained_share(engine_->layout(), frozen);
  log::info("from step {} on {}", step_, now);
  folder_.write({.step = step_, .event = "unfreeze", .detail = now});
}

void TrainLoop::restore_state(const std::optional<CheckpointState>& checkpoint, const char* how) {
  step_ = resume_.step;
  plateau_ = resume_.plateau;
  skipped_ = resume_.skipped;
  engine_->freeze(training_.frozen_at(step_));
  if (!resume_.found) return begin_anew();
  restore_on_all(communicator_, *engine_, checkpoint);
  if (is_root())
    log::info("{} at step {} of {} from {}", how, step_, plan_.total_steps,
              printable(resume_.folder));
}

void TrainLoop::open_folder() {
  folder_.open(watchdog_, plan_, step_, resume_.folder, state_to_save(std::nullopt));
  folder_.keep_plans(fingerprint_, engine_->plans());
  folder_.write(
      {.step = step_,
       .event = resume_.found ? "resume" : "start",
       .detail = fmt::format("{} ranks, {} workers", communicator_.size(), job_.workers)});
  folder_.begin(step_, plan_);
  if (!is_root()) return;
  log::info("{} on {}: {}, {} workers x {} images, {} steps, {} ranks x {} lane(s)",
            job_.model.name, printable(job_.data.path),
            trained_share(engine_->layout(), training_.frozen_at(step_)), job_.workers,
            job_.batch_per_worker, plan_.total_steps, communicator_.size(), plan_.lanes);
  double bytes = 0;
  for (const std::span<float> flat : engine_->state().all())
    bytes += static_cast<double>(flat.size_bytes());
  const auto evaluated = static_cast<double>(plan_.val->size()) * (engine_->has_ema() ? 2 : 1);
  stopping_.begin(bytes, evaluated / static_cast<double>(plan_.length.global_batch));
}

int TrainLoop::run(std::optional<CheckpointState> checkpoint) {
  restore_state(std::exchange(checkpoint, std::nullopt), "resumed");
  open_folder();
  for (std::optional<RollBack> back;;) {
    try {
      if (back) go_back(*std::exchange(back, std::nullopt));
      return run_steps();
    } catch (const RollBack& reason) {
      back = reason;
    }
  }
}

// In this process, to the newest whole checkpoint, or to the start where there is none.
void TrainLoop::go_back(const RollBack& reason) {
  watchdog_.enter(comm::Phase::kReduce, step_);
  const std::string why = reason.why + non_finite_->take_apart();
  if (!reason.pass_over && roll_backs_++ >= job_.checks.max_roll_backs)
    fail(ExitCode::kFault,
         "{}; this life of the run has gone back {} time(s) already (checks.max_roll_backs): "
         "leave out the host that is named and start again",
         why, job_.checks.max_roll_backs);
  watchdog_.enter(comm::Phase::kStart, step_);
  folder_.enter(Phase::kStarting);
  if (is_root()) {
    log::warning("{}; going back to the last checkpoint", why);
    folder_.wait_for_save();
    folder_.expect_held();
  }
  loader_ = nullptr;
  engine_->reset();
  restore_state(find_resume(communicator_, options_, resume_), "goes on");
  replicas_->went_back(step_);
  report_->went_back();
  folder_.go_back(step_);
  folder_.write({.step = step_, .event = "roll_back", .detail = why});
  report_judgement();
  if (reason.pass_over) pass_over(*reason.pass_over, why);
}

// The steps from here to `end` will count but not be computed.
void TrainLoop::pass_over(uint64_t end, const std::string& why) {
  if (end <= step_) fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
  skipped_.add(step_, end);
  ++skipped_.skips;
  if (is_root())
    log::warning("steps {} to {} are passed over, number {} of at most {} (non_finite.max_skips)",
                 step_, end - 1, skipped_.skips, job_.non_finite.max_skips);
  // The checkpoint says so, too: a life that begins there does the same.
  save(resume_.evaluated ? std::optional(resume_.top1) : std::nullopt);
}

bool TrainLoop::evaluation_due(uint64_t done) const {
  return trainer::evaluation_due(plan_, job_, skipped_, done);
}

int TrainLoop::run_steps() {
  const std::unique_ptr<data::Loader> loader = open_loader(
      plan_, job_, skipped_.next(step_), plan_.last_step, engine_->hosted(), plan_.data_threads,
      [&](void* memory, size_t bytes) { return engine_->pin(memory, bytes); });
  std::vector<const data::Batch*> held(job_.workers);
  const Engine::Source source{[&](uint64_t worker) {
                                const data::Batch& batch = acquire(*loader, worker);
                                held[worker] = &batch;
                                folder_.consumed(batch);
                                faults_.at(FaultPoint::kCompute, step_);
                                return Engine::Images{batch.pixels, batch.labels.data()};
                              },
                              [&](uint64_t worker) { loader->release(*held[worker]); },
                              [&](const std::exception_ptr& error) { loader->stop(error); },
                              [&](uint64_t worker) -> const uint8_t* {
                                const auto* next =
                                    loader->peek(step_ + 1, static_cast<int>(worker));
                                return next ? next->pixels : nullptr;
                              }};

  const auto words = watchdog_.describe(comm::Phase::kInput, [&] {
    return loader ? file_in_progress(loader->in_progress()) : std::string();
  });
  loader_ = loader.get();
  // A life that stopped when an evaluation was due left it to us.
  if (resume_.found && step_ > 0 && evaluation_due(step_) && !resume_.evaluated)
    evaluate_and_save();
  if (is_root()) report_->begin(loader_);
  folder_.restart_save_clock();
  bool stopped = false;
  while (step_ < plan_.last_step && !stopped) {
    folder_.enter(Phase::kUseful);
    Engine::Control asked;
    // Only a life, or a roll-back, begins in front of steps that are passed over.
    if (const uint64_t next = skipped_.next(step_); next > step_) {
      folder_.passed_over(step_, next);
      step_ = next;
    } else {
      asked = train_step(source);
      stopped = asked.stop;
    }
    // Who stops has no time for it: the next life evaluates first of all.
    const bool evaluate_now = evaluation_due(step_) && !stopped;
    const bool by_steps =
        job_.checkpoint.every_steps > 0 && step_ % job_.checkpoint.every_steps == 0;
    // Before an evaluation too: whatever happens in it, the steps before are safe.
    if (asked.save || by_steps || evaluate_now || stopped || step_ >= plan_.last_step)
      save(std::nullopt);
    if (evaluate_now) {
      report_->finish();
      evaluate_and_save();
      if (is_root()) report_->begin(loader_);
    }
  }
  report_->finish();
  report_substitutions();
  return leave(stopped && (step_ < plan_.last_step || evaluation_due(step_)));
}

const data::Batch& TrainLoop::acquire(data::Loader& loader, uint64_t worker) {
  const auto wait = watchdog_.input();
  faults_.at(FaultPoint::kInput, step_);
  return loader.acquire(step_, static_cast<int>(worker));
}

// What this rank says in the step that begins. It travels with the contribution of a hosted worker,
// so where ranks host none, all need another way.
Engine::Control TrainLoop::control_word() {
  const bool idle_ranks = communicator_.size() > static_cast<int>(job_.workers);
  if (idle_ranks) {
    watchdog_.enter(comm::Phase::kReduce, step_);
    non_finite_->ask(step_);
  }
  using Next = Deadline::Next;
  const Next next = step_ + 1 == plan_.total_steps ? Next::kEndOfTraining
                    : evaluation_due(step_ + 1)    ? Next::kEvaluation
                                                   : Next::kStep;
  const bool stop = stopping_.asked(idle_ranks, next);
  return {
      .stop = stop, .save = is_root() && folder_.save_due(), .left_out = non_finite_->pending()};
}

// One step. Returns what the ranks have agreed on.
Engine::Control TrainLoop::train_step(const Engine::Source& source) {
  follow_freezing();
  const auto start = Clock::now();
  const double rate = learning_rate(step_, plan_.length, job_.optimizer, job_.schedule, plateau_);
  const Engine::Control control = control_word();
  while (const Fault* fault = faults_.change(step_)) apply(*fault);
  engine_->compute(step_, control, source, cross_check_->worker_of(step_));
  watchdog_.enter(comm::Phase::kReduce, step_);  // all ranks compare
  if (const auto wrong = cross_check_->check(step_)) throw RollBack{*wrong, std::nullopt};
  replicas_->before_update(step_);
  GradientRecord layers;
  const bool logs_layers = is_root() && GradientLog::due(step_, job_.log.gradients);
  const Engine::Result result =
      engine_->update(rate, logs_layers ? &layers.layers : nullptr, &source);
  ++step_;
  const double seconds = seconds_since(start);
  stopping_.note_step(seconds);
  folder_.step_done(report_->take_waited(loader_));
  non_finite_->settle(result.left_out, step_);
  non_finite_->note(step_ - 1, result);
  watchdog_.enter(comm::Phase::kReduce, step_);
  if (const auto differ = replicas_->after_update(step_)) throw RollBack{*differ, std::nullopt};
  report_judgement();
  if (logs_layers) {
    layers.step = step_;
    layers.epoch = epoch_at(step_, plan_.length);
    folder_.write(layers);
  }
  if (is_root())
    if (const auto line = report_->add(step_, rate, result, seconds_since(start), loader_))
      folder_.write(*line);
  return result.control;
}

void TrainLoop::apply(const Fault& fault) {
  if (fault.what == FaultTarget::kPlateau)
    plateau_.drops ^= 1u << fault.bit;
  else if (fault.what == FaultTarget::kSkips)
    skipped_.skips ^= 1u << fault.bit;
  else
    engine_->apply(fault);
}

void TrainLoop::report_judgement() {
  const std::optional<std::string> judgement = replicas_->take_judgement();
  if (!judgement || !is_root()) return;
  log::warning("{}", *judgement);
  folder_.write({.step = step_, .event = "judgement", .detail = *judgement});
}

void TrainLoop::evaluate_and_save() {
  const double top1 = evaluate();
  note_evaluation(plateau_, 1 - top1, job_.schedule);
  save(top1);
}

// Returns top-1, of 0 to 1.
double TrainLoop::evaluate() {
  watchdog_.enter(comm::Phase::kEvaluate, step_);
  folder_.enter(Phase::kEvaluating);
  const auto start = Clock::now();
  faults_.at(FaultPoint::kEvaluate, step_);
  const Accuracy accuracy = evaluation_->run(Engine::Weights::kTrained, step_);
  std::optional<Accuracy> ema;
  if (engine_->has_ema()) ema = evaluation_->run(Engine::Weights::kAverage, step_);
  result_ = accuracy;
  stopping_.note_evaluation(seconds_since(start));
  if (is_root()) folder_.write(report_evaluation(step_, plan_, accuracy, ema));
  return accuracy.top1_share();
}

void TrainLoop::save(std::optional<double> top1) {
  watchdog_.enter(comm::Phase::kSave, step_);
  folder_.enter(Phase::kSaving);
  folder_.restart_save_clock();
  saved_top1_ = top1;
  non_finite_->ask(step_);
  if (const auto differ = replicas_->compare(step_)) throw RollBack{*differ, std::nullopt};
  if (!engine_->state_is_finite()) refuse_to_save();
  faults_.at(FaultPoint::kSave, step_);
  const bool saves = folder_.save(
      step_, top1, loader_ ? loader_->substitutions() : std::vector<data::Substitution>(),
      state_to_save(top1));
  if (saves) stopping_.note_save(folder_.save_seconds());
}

void TrainLoop::refuse_to_save() {
  const std::string why = fmt::format(
      "step {}: weights or batch-norm statistics are no longer finite, so they are not saved",
      step_);
  if (is_root()) folder_.keep_apart(state_to_save(std::nullopt));
  communicator_.barrier();
  if (job_.non_finite.policy == Job::NonFinite::Policy::kRollBack)
    non_finite_->stop_or_roll_back(why, step_);
  fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
}

RunFolder::MakeState TrainLoop::state_to_save(std::optional<double> top1) {
  return [this, top1] { return checkpoint_state(top1); };
}

// Borrows the engine's memory.
CheckpointState TrainLoop::checkpoint_state(std::optional<double> top1) {
  CheckpointState state;
  state.facts = {.step = step_,
                 .job_digest = plan_.job_digest,
                 .job = to_text(job_),
                 .dataset_digest = plan_.train->digest(),
                 .fingerprint = fingerprint_,
                 .dataset_size = plan_.length.dataset_size,
                 .global_batch = plan_.length.global_batch,
                 .plateau = plateau_,
                 .top1 = top1,
                 .confirmed_by_ranks = static_cast<uint32_t>(communicator_.size()),
                 .skipped = skipped_,
                 .plans = engine_->plans(),
                 .class_names = plan_.train->classes()};
  state.model = model_tensors(*engine_, step_);
  state.optimizer = optimizer_tensors(*engine_, plan_.normalisation);
  state.ema = ema_tensors(*engine_);
  return state;
}

void TrainLoop::report_substitutions() const {
  if (!loader_) return;
  for (const data::Substitution& s : loader_->substitutions())
    log::warning("epoch {}: sample {} was replaced by {}: {}", s.epoch, s.sample, s.substitute,
                 s.reason);
}

// Everything is on the disk when this returns.
int TrainLoop::leave(bool stopped) {
  watchdog_.enter(comm::Phase::kLeave, step_);
  if (is_root()) {
    folder_.enter(Phase::kSaving);
    folder_.close(step_, stopped ? "stop" : "end", state_to_save(saved_top1_));
    say_end(stopped);
  }
  communicator_.barrier();
  return static_cast<int>(stopped ? ExitCode::kRecoverable : ExitCode::kDone);
}

void TrainLoop::say_end(bool stopped) {
  if (stopped) {
    ending_ = stopping_.reason();
    log::info("stopped at step {} of {}, saved; run the same command again to {}", step_,
              plan_.total_steps, step_ < plan_.last_step ? "go on" : "evaluate");
  } else if (step_ < plan_.total_steps) {
    ending_ = "stop_after_steps";
    log::info("stop_after_steps: {} of {} steps done, saved", step_, plan_.total_steps);
  } else {
    ending_ = "done";
    std::cout << (result_ ? to_text(*result_) : std::string("this run was already complete"))
              << std::endl;
  }
}

}  // namespace convoy::trainer
