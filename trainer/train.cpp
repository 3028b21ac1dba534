#include "trainer/train.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>

#include "comm/handshake.h"
#include "comm/launch.h"
#include "comm/worker_map.h"
#include "ops/core/clock.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/fusion.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/commands.h"
#include "trainer/cross_check.h"
#include "trainer/dry_run.h"
#include "trainer/evaluate.h"
#include "trainer/fault.h"
#include "trainer/file.h"
#include "trainer/ledger.h"
#include "trainer/limits.h"
#include "trainer/lives.h"
#include "trainer/metrics.h"
#include "trainer/model_state.h"
#include "trainer/output_lock.h"
#include "trainer/replicas.h"
#include "trainer/sample_log.h"
#include "trainer/signals.h"
#include "trainer/text.h"
#include "trainer/version.h"

namespace convoy::trainer {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Fingerprint, device, instruction_set, libraries, build, caches)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PlateauState, drops, best_error, evaluations_since)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SkippedSteps, ranges, skips)

namespace {

namespace po = boost::program_options;
using nlohmann::json;

// A running mean that forgets: 5 % of each new value.
class Smoothed {
 public:
  void add(double value) { value_ = value_ ? 0.95 * *value_ + 0.05 * value : value; }
  std::optional<double> value() const { return value_; }

 private:
  std::optional<double> value_;
};

// Averages since the last line of metrics, and the smoothed values of the progress line.
class Meter {
 public:
  void add(const Engine::Result& r, double seconds) {
    ++steps_;
    smooth_seconds_.add(seconds);
    if (!r.updated) return;  // FP16 has overflowed: the loss may be no number
    loss_ += r.loss;
    top1_ += r.top1;
    ++updates_;
    smooth_loss_.add(r.loss);
    smooth_top1_.add(r.top1);
  }
  void start_line() { loss_ = top1_ = steps_ = updates_ = 0; }

  double loss() const { return loss_ / updates_; }
  double top1() const { return top1_ / updates_; }
  double steps() const { return steps_; }
  // None before the first update.
  std::optional<double> smooth_loss() const { return smooth_loss_.value(); }
  std::optional<double> smooth_top1() const { return smooth_top1_.value(); }
  double smooth_seconds() const { return smooth_seconds_.value().value_or(0); }

 private:
  double loss_ = 0, top1_ = 0, steps_ = 0, updates_ = 0;
  Smoothed smooth_loss_, smooth_top1_, smooth_seconds_;
};

// What rank 0 found in the output folder, as all ranks learn it.
struct Resume {
  bool found = false;
  uint64_t step = 0;
  std::string folder;
  bool evaluated = false;  // the evaluation of that step, were one due, has been made
  double top1 = 0;         // what it gave
  std::string job;         // text of the checkpoint's job
  std::string dataset_digest;
  Fingerprint fingerprint;
  PlateauState plateau;
  SkippedSteps skipped;
  // Lives in a row before this one that ended by themselves without a step, and how.
  size_t idle_lives = 0;
  std::string idle;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Resume, found, step, folder, evaluated, top1, job,
                                   dataset_digest, fingerprint, plateau, skipped, idle_lives, idle)

// "life 3: 75 lost peer ...; life 4: ..."
std::string to_text(const std::vector<const Life*>& lives) {
  std::string text;
  for (const Life* life : lives)
    text += fmt::format("{}life {}: {} {}", text.empty() ? "" : "; ", life->number,
                        life->exit_code.value_or(0), printable(life->reason, 200));
  return text;
}

// The wall clock is read here, once.
std::optional<Clock::time_point> moment_of(const Until& until, Clock::time_point started) {
  const std::optional<double> left = seconds_left(
      until, unix_now(), seconds_since(started), [](const char* name) { return std::getenv(name); },
      ask_squeue);
  if (!left) return std::nullopt;
  log::info("--until: this life ends by itself within {}", duration(*left));
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*left));
}

// Thrown on all ranks alike, between two steps: the state is not to be trusted, or not worth
// keeping, and the run goes on from its last checkpoint.
struct RollBack {
  std::string why;
  std::optional<uint64_t> pass_over;  // the steps from the checkpoint to this one
};

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
      if (lives_) lives_->end(code, ending_);
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
    watch.judged = [life = watched_](comm::Verdict& v) {
      v.exit_code = life->end(v.exit_code, v.text);
    };
    watchdog_ = std::make_unique<comm::Watchdog>(communicator_, watch);
    alarm_.reset();
    faults_.at(FaultPoint::kStart, 0);
    if (is_root() && !options_.dry_run) claim_folder();
    if (is_root() && !options_.dry_run) expect_fresh_folder();
    find_resume();
    open_data();
    check_job();
    build();
    if (options_.dry_run) return dry_run();
    restore_state("resumed");
    open_outputs();
    return loop();
  }

  // Of usage, data and the job the error itself says what to do.
  static bool says_so(ExitCode code) {
    return code == ExitCode::kFault || code == ExitCode::kIo || code == ExitCode::kRecoverable;
  }

  [[noreturn]] void end_by_error(ExitCode code, std::string message) {
    const bool idle = step_ <= resume_.step;
    const int within =
        idle ? within_budget(static_cast<int>(code), resume_.idle_lives) : static_cast<int>(code);
    if (idle && says_so(code) && resume_.idle_lives + 1 >= kLifeBudget)
      message += fmt::format(
          " (the {} lives before, too, ended without a step: {}; so this one does not ask to be "
          "run "
          "again. Mend the cause and start it: a life that does a step clears the count)",
          resume_.idle_lives, resume_.idle);
    if (lives_) lives_->end(within, message);
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
    if (options_.out.empty())
      fail(ExitCode::kUsage, "convoy train needs --out DIR, the folder of the run");
    const std::chrono::duration<double> lease(job_.checkpoint.lease_seconds);
    lock_.emplace(
        options_.out,
        LeaseOptions{.lease = std::chrono::duration_cast<std::chrono::milliseconds>(lease),
                     .give_up = stop_requested});
    lives_ = std::make_shared<Lives>(options_.out, communicator_.host(), communicator_.size(),
                                     options_.started, std::chrono::seconds(30), lock_->life());
    if (options_.until) until_ = moment_of(*options_.until, options_.started);
    const std::vector<const Life*> idle = idle_lives(lives_->before());
    resume_.idle_lives = idle.size();
    resume_.idle = to_text(idle);
    watched_->begin(lives_, resume_.idle_lives);
  }

  // Rank 0 looks for a checkpoint and loads it; the others learn what they need before they build.
  void find_resume() {
    std::string text;
    if (is_root()) {
      if (!options_.dry_run) load_checkpoint_to_resume();
      json::to_cbor(resume_, text);
    }
    communicator_.broadcast(text, 0);
    resume_ = json::from_cbor(text);
  }

  void expect_fresh_folder() const {
    if (options_.resume == "never" && !list_checkpoints(options_.out).empty())
      fail(ExitCode::kUsage,
           "--resume never: {} holds checkpoints of an earlier run; choose another --out or "
           "--resume auto",
           printable(options_.out));
  }

  void load_checkpoint_to_resume() {
    resume_ = {.idle_lives = resume_.idle_lives, .idle = resume_.idle};
    const bool has_own = !list_checkpoints(options_.out).empty();
    // What --out holds comes first, so that the same command goes on after a stop.
    std::optional<LoadedCheckpoint> loaded;
    if (has_own)
      loaded = find_newest(options_.out);
    else if (options_.resume != "auto" && options_.resume != "never")
      loaded = load_resume(options_.resume);
    if (!loaded) return;
    checkpoint_ = std::move(loaded->state);
    const CheckpointFacts& f = checkpoint_->facts;
    resume_ = {.found = true,
               .step = f.step,
               .folder = loaded->folder,
               .evaluated = f.top1.has_value(),
               .top1 = f.top1.value_or(0),
               .job = f.job,
               .dataset_digest = f.dataset_digest,
               .fingerprint = f.fingerprint,
               .plateau = f.plateau,
               .skipped = f.skipped,
               .idle_lives = resume_.idle_lives,
               .idle = resume_.idle};
  }

  // --resume DIR, whose mistakes must name it.
  static LoadedCheckpoint load_resume(const std::string& folder) {
    try {
      return load_newest(folder);
    } catch (const Error& e) {
      fail(e.code(), "--resume: {}", e.what());
    }
  }

  void open_data() {
    train_ = open_split(job_, data::Split::kTrain);
    if (job_.data.classes == 0) job_.data.classes = static_cast<uint32_t>(train_->classes().size());
    val_ = open_split(job_, data::Split::kVal);
    comm::handshake(communicator_, {{"training set digest", train_->digest()},
                                    {"validation set digest", val_->digest()}});
    const int cpus = usable_cpus();
    choose_workers(cpus);
    const int hosted = comm::map_workers(static_cast<int>(job_.workers), communicator_.size())
                           .at(static_cast<size_t>(communicator_.rank()))
                           .size();
    lanes_ = lanes_for(options_.device, hosted, cpus, static_cast<int>(job_.threads_per_worker));
    // On a GPU the host computes nothing: one thread enqueues.
    const int computing =
        options_.device == "cpu" ? lanes_ * static_cast<int>(job_.threads_per_worker) : 1;
    data_threads_ = options_.data_threads >= 0
                        ? options_.data_threads
                        : std::max(1, cpu_share(cpus, communicator_.local_size()) - computing);
    comm::warn_of_too_few_cpus(communicator_, hosted > 0 ? computing : 0);
    watchdog_->set_rounds(static_cast<uint32_t>((hosted + lanes_ - 1) / lanes_));
    normalisation_ =
        resolve(job_, *train_, communicator_, std::max(1, cpus), [this] { watchdog_->progress(); });
    length_ = {.dataset_size = train_->size(),
               .global_batch = uint64_t{job_.workers} * job_.batch_per_worker,
               .epochs = job_.epochs};
    if (length_.dataset_size < length_.global_batch)
      fail(ExitCode::kBadData,
           "the training set has {} samples, one step takes {} ({} workers x {}); lower workers or "
           "batch_per_worker",
           length_.dataset_size, length_.global_batch, job_.workers, job_.batch_per_worker);
    total_steps_ = total_steps(length_);
    last_step_ =
        job_.stop_after_steps > 0 ? std::min(job_.stop_after_steps, total_steps_) : total_steps_;
    if (is_root() && communicator_.size() > static_cast<int>(job_.workers))
      log::warning("{} of {} ranks host no worker (workers: {}); they only evaluate",
                   communicator_.size() - static_cast<int>(job_.workers), communicator_.size(),
                   job_.workers);
  }

  // What the job leaves open about workers is decided at the first start of a run.
  void choose_workers(int cpus) {
    if (job_.workers > 0) {
      job_.threads_per_worker = std::max(1u, job_.threads_per_worker);
      return;
    }
    // The CPUs of the rank with the fewest. Ranks that nobody bound share those of their host.
    const int share = cpu_share(cpus, communicator_.local_size());
    auto threads = static_cast<uint32_t>(-communicator_.all_reduce_max(-std::min(share, 1024)));
    job_.workers = static_cast<uint32_t>(communicator_.size());
    if (resume_.found) {
      const Job before = parse_job(resume_.job, resume_.folder, {}, "");
      job_.workers = before.workers;
      threads = before.threads_per_worker;
    }
    if (job_.threads_per_worker == 0) job_.threads_per_worker = threads;
  }

  // All ranks must run the same job, and a resumed run the one it was.
  void check_job() {
    job_digest_ = identity_digest(job_, train_->digest());
    comm::handshake(communicator_, {{"job digest", job_digest_}});
    if (!resume_.found) return;
    if (lives_ && !lives_->before().empty() &&
        lives_->before().back().ranks != static_cast<uint64_t>(communicator_.size()))
      log::info("resume with ranks: {} -> {} (the result does not depend on them)",
                lives_->before().back().ranks, communicator_.size());
    std::string changed;
    for (const JobDifference& d : differing_keys(resume_.job, to_text(job_))) {
      const std::string text = fmt::format("{}: {} -> {}", d.key, d.old_value, d.new_value);
      if (d.changes_result)
        changed += (changed.empty() ? "" : "; ") + text;
      else if (is_root())
        log::info("resume with {}", text);
    }
    if (resume_.dataset_digest != train_->digest())
      changed += fmt::format("{}training set: {} -> {}", changed.empty() ? "" : "; ",
                             resume_.dataset_digest.substr(0, 12), train_->digest().substr(0, 12));
    if (!changed.empty() && !options_.allow_change)
      fail(ExitCode::kBadJob,
           "{} was trained by another job ({}); use another --out, or --allow-change to go on with "
           "the change",
           printable(resume_.folder), changed);
    if (!changed.empty() && is_root()) log::warning("resume with changed results: {}", changed);
    if (is_root() && !(resume_.fingerprint == fingerprint_))
      log::warning(
          "resume on another machine or build: results are no longer bit for bit those of the "
          "first "
          "({}, {}, {}, {} -> {}, {}, {}, {})",
          resume_.fingerprint.instruction_set, resume_.fingerprint.libraries,
          resume_.fingerprint.build, resume_.fingerprint.caches, fingerprint_.instruction_set,
          fingerprint_.libraries, fingerprint_.build, fingerprint_.caches);
  }

  void build() {
    const data::ImageShape shape = data::output_shape(train_transform(job_), *train_);
    input_ = image_input(job_, normalisation_, shape, job_.batch_per_worker);
    evaluator_.emplace(*val_, job_, normalisation_, data_threads_);
    const ops::Graph graph = graph_of(job_, shape);
    EngineConfig config =
        engine_config(job_, options_.device, communicator_.local_rank(), input_, lanes_);
    config.hooks = {.compute = [this] { watchdog_->enter(comm::Phase::kCompute, step_); },
                    .reduce =
                        [this](int bucket) {
                          watchdog_->enter(comm::Phase::kReduce, step_, bucket);
                          faults_.at(FaultPoint::kReduce, step_);
                        }};
    if (options_.device == "cpu") warn_of_too_little_memory(graph, config);
    engine_ = std::make_unique<Engine>(communicator_, graph, config);
    replicas_.emplace(communicator_, *engine_, job_.checks.replicas_every_steps);
    cross_check_.emplace(communicator_, *engine_, static_cast<int>(job_.workers),
                         job_.checks.recompute_every_steps, [this](uint64_t step, int worker) {
                           return open_loader(step, step + 1, {worker, worker + 1}, 0);
                         });
  }

  // Before the system kills us for it.
  void warn_of_too_little_memory(const ops::Graph& graph, const EngineConfig& config) {
    const auto lanes = static_cast<uint64_t>(config.lanes);
    const uint64_t floats = ops::layout_of(ops::fuse(graph)).parameter_floats;
    const uint64_t arena =
        ops::planned_arena(graph, config.batch_per_worker, config.type, true,
                           ops::make_device("cpu", config.threads_per_worker)->slice_bytes())
            .bytes;
    const std::string warning = memory_warning(lanes * arena + (2 + lanes) * floats * sizeof(float),
                                               communicator_.local_size(), memory_limit());
    if (communicator_.local_rank() == 0 && !warning.empty()) log::warning("{}", warning);
  }

  LoaderPlan loader_plan() const {
    const comm::WorkerRange hosted = engine_->hosted();
    return {
        .threads = data_threads_,
        .training_bytes = hosted.size() == 0
                              ? 0
                              : data::Loader::ring_bytes(
                                    *train_, loader_config(0, total_steps_, hosted, data_threads_)),
        .evaluation_bytes =
            data::EvalLoader::ring_bytes(*val_, {.transform = eval_transform(job_),
                                                 .batch = static_cast<int>(job_.evaluation.batch),
                                                 .slices = {},
                                                 .lanes = engine_->lanes(),
                                                 .threads = data_threads_})};
  }

  int dry_run() {
    print_dry_run(communicator_, *engine_, job_, length_, input_, val_->size(), loader_plan());
    return 0;
  }

  void restore_state(const char* how) {
    step_ = resume_.step;
    plateau_ = resume_.plateau;
    skipped_ = resume_.skipped;
    if (!resume_.found) return;
    if (checkpoint_) restore(*engine_, *checkpoint_, false);
    checkpoint_.reset();
    for (const std::span<float> flat : engine_->state().all()) {
      std::vector<std::byte> bytes(is_root() ? flat.size_bytes() : 0);
      if (is_root() && !bytes.empty()) std::memcpy(bytes.data(), flat.data(), bytes.size());
      communicator_.broadcast(bytes, 0);
      if (!bytes.empty()) std::memcpy(flat.data(), bytes.data(), bytes.size());
    }
    engine_->put_state();
    std::vector<std::byte> scale(sizeof(LossScale));
    std::memcpy(scale.data(), &engine_->loss_scale(), scale.size());
    communicator_.broadcast(scale, 0);
    std::memcpy(&engine_->loss_scale(), scale.data(), scale.size());
    if (is_root())
      log::info("{} at step {} of {} from {}", how, step_, total_steps_, printable(resume_.folder));
  }

  void open_outputs() {
    if (is_root()) {
      write_text(options_.out + "/job.txtpb", to_text(job_));
      writer_ = std::make_unique<CheckpointWriter>(
          options_.out,
          RetentionPolicy{.keep = job_.checkpoint.keep,
                          .keep_best = job_.checkpoint.keep_best,
                          .keep_every_steps = job_.checkpoint.keep_every_steps},
          [this] { lock_->expect_held(); });
      writer_->on_writing([this](bool begins) {
        writing_ = begins ? watchdog_->saving() : comm::Watchdog::Scope();
      });
      writer_->prove(checkpoint_state(std::nullopt));
      log::info("{} on {}: {} parameters, {} workers x {} images, {} steps, {} ranks x {} lane(s)",
                job_.model.name, printable(job_.data.path), engine_->layout().parameter_floats,
                job_.workers, job_.batch_per_worker, total_steps_, communicator_.size(), lanes_);
    }
    ledger_ =
        std::make_unique<Ledger>(Ledger::Config{.out_dir = options_.out,
                                                .terms = {.dataset_size = length_.dataset_size,
                                                          .global_batch = length_.global_batch,
                                                          .seed = job_.seed,
                                                          .dataset_digest = train_->digest(),
                                                          .windows = windows_of(job_, *train_)},
                                                .workers = job_.workers,
                                                .batch_per_worker = job_.batch_per_worker,
                                                .life = lives_ ? lives_->number() : 0,
                                                .step = step_,
                                                .resumed_from = resume_.folder},
                                 is_root());
    rewind_outputs();
    if (is_root())
      metrics_->write(
          {.step = step_,
           .event = resume_.found ? "resume" : "start",
           .detail = fmt::format("{} ranks, {} workers", communicator_.size(), job_.workers)});
  }

  // What is written as the run goes says nothing of steps from `step_` on.
  void rewind_outputs() {
    samples_.reset();
    communicator_.barrier();
    try {
      if (is_root()) {
        metrics_ = std::make_unique<MetricsWriter>(options_.out, step_);
        if (logs_samples()) SampleLog::rewind(options_.out, step_);
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
  bool logs_samples() const { return job_.log.samples || job_.log.batch_digests; }

  // Is `done` steps the first number of them to reach a further epoch?
  bool evaluation_due(uint64_t done) const {
    if (done == total_steps_) return true;
    if (job_.evaluation.every_epochs == 0) return false;
    const auto epochs = [&](uint64_t step) {
      return step * length_.global_batch / length_.dataset_size / job_.evaluation.every_epochs;
    };
    return epochs(done) != epochs(skipped_.previous(done));
  }

  // Leaves room for --until, and says so.
  bool time_is_up() {
    const auto now = Clock::now();
    if (!deadline_ || !deadline_->last_step(now, evaluation_due(step_ + 1))) return false;
    log::info("--until: time is up {}: stopping", deadline_->reason(now));
    ending_ = "stopped by --until";
    return true;
  }

  void begin_life() {
    if (!is_root()) return;
    lives_->begin(step_, total_steps_, job_.workers, job_digest_);
    if (!until_) return;
    double bytes = 0;
    for (const std::span<float> flat : engine_->state().all())
      bytes += static_cast<double>(flat.size_bytes());
    constexpr double kBytesPerSecond = 100e6;  // until a save is measured
    deadline_.emplace(*until_, 1 + bytes / kBytesPerSecond);
  }

  void enter(Phase phase) {
    if (lives_) lives_->enter(phase);
  }

  // `seconds` of the step that is done; how much of it was waiting is in the loader's and the
  // engine's counters.
  void book_step(const data::Loader* loader, double seconds) {
    if (!lives_) return;
    const double input = loader ? loader->stats().wait_seconds : 0;
    const double reduce = engine_->exposed_seconds();
    watched_->step_done();
    lives_->step_done((input - booked_input_) / lanes_ + reduce - booked_reduce_);
    booked_input_ = input;
    booked_reduce_ = reduce;
    if (deadline_) deadline_->note_step(seconds);
  }

  // Batches of these workers from step `first` on; none where there is nothing to load.
  data::LoaderConfig loader_config(uint64_t first, uint64_t end, const comm::WorkerRange& workers,
                                   int threads) const {
    data::LoaderConfig config = trainer::loader_config(job_);
    config.first_worker = workers.begin;
    config.end_worker = workers.end;
    config.first_step = first;
    config.end_step = end;
    config.threads = threads;
    config.lanes = lanes_;
    return config;
  }

  std::unique_ptr<data::Loader> open_loader(uint64_t first, uint64_t end,
                                            const comm::WorkerRange& workers, int threads) const {
    if (workers.size() == 0 || first >= end) return nullptr;
    return std::make_unique<data::Loader>(*train_, loader_config(first, end, workers, threads));
  }

  int loop() {
    begin_life();
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
  void go_back(const RollBack& reason) {
    if (!reason.pass_over && roll_backs_++ >= job_.checks.max_roll_backs)
      fail(ExitCode::kFault,
           "{}; this life of the run has gone back {} time(s) already (checks.max_roll_backs): "
           "leave out the host that is named and start again",
           reason.why, job_.checks.max_roll_backs);
    watchdog_->enter(comm::Phase::kStart, step_);
    enter(Phase::kStarting);
    if (is_root()) {
      log::warning("{}; going back to the last checkpoint", reason.why);
      writer_->wait();
      lock_->expect_held();
    }
    loader_ = nullptr;
    booked_input_ = 0;  // the next loader counts from zero
    engine_->reset();
    find_resume();
    restore_state("goes on");
    replicas_->went_back(step_);
    meter_ = {};
    ledger_->rewind(step_);
    if (lives_) lives_->go_to(step_);
    rewind_outputs();
    if (is_root()) metrics_->write({.step = step_, .event = "roll_back", .detail = reason.why});
    report_judgement();
    if (reason.pass_over) pass_over(*reason.pass_over, reason.why);
  }

  // The steps from here to `end` will count but not be computed.
  void pass_over(uint64_t end, const std::string& why) {
    if (end <= step_) fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
    skipped_.add(step_, end);
    ++skipped_.skips;
    if (is_root())
      log::warning("steps {} to {} are passed over, number {} of at most {} (non_finite.max_skips)",
                   step_, end - 1, skipped_.skips, job_.non_finite.max_skips);
    // The checkpoint says so, too: a life that begins there does the same.
    save(resume_.evaluated ? std::optional(resume_.top1) : std::nullopt);
  }

  int run_steps() {
    const std::unique_ptr<data::Loader> loader =
        open_loader(skipped_.next(step_), last_step_, engine_->hosted(), data_threads_);
    std::vector<const data::Batch*> held(job_.workers);
    const Engine::Source source{[&](uint64_t worker) {
                                  const data::Batch& batch = acquire(*loader, worker);
                                  held[worker] = &batch;
                                  ledger_->add(batch);
                                  if (samples_) samples_->write(batch);
                                  faults_.at(FaultPoint::kCompute, step_);
                                  return Engine::Images{batch.pixels, batch.labels.data()};
                                },
                                [&](uint64_t worker) { loader->release(*held[worker]); },
                                [&](const std::exception_ptr& error) { loader->stop(error); }};

    const auto words = watchdog_->describe(comm::Phase::kInput, [&] {
      return loader ? file_in_progress(loader->in_progress()) : std::string();
    });
    loader_ = loader.get();
    // A life that stopped when an evaluation was due left it to us.
    if (resume_.found && step_ > 0 && evaluation_due(step_) && !resume_.evaluated)
      evaluate_and_save();
    std::optional<Progress> progress;
    if (is_root()) progress.emplace();
    start_line(loader.get());
    last_save_ = Clock::now();
    bool stopped = false;
    while (step_ < last_step_ && !stopped) {
      enter(Phase::kUseful);
      Engine::Control asked;
      // Only a life, or a roll-back, begins in front of steps that are passed over.
      if (const uint64_t next = skipped_.next(step_); next > step_) {
        ledger_->skip(step_, next, "loss or gradient not finite");
        step_ = next;
        if (lives_) lives_->go_to(step_);
      } else {
        asked = train_step(source, loader.get(), progress ? &*progress : nullptr);
        stopped = asked.stop;
      }
      const bool evaluate_now = evaluation_due(step_) && (!stopped || step_ == total_steps_);
      const bool by_steps =
          job_.checkpoint.every_steps > 0 && step_ % job_.checkpoint.every_steps == 0;
      // Before an evaluation too: whatever happens in it, the steps before are safe.
      if (asked.save || by_steps || evaluate_now || stopped || step_ >= last_step_)
        save(std::nullopt);
      if (evaluate_now) {
        if (progress) progress->finish();
        evaluate_and_save();
        if (is_root()) progress.emplace();
        start_line(loader.get());
      }
    }
    if (progress) progress->finish();
    report_substitutions(loader.get());
    return leave(stopped && step_ < last_step_);
  }

  const data::Batch& acquire(data::Loader& loader, uint64_t worker) {
    const auto wait = watchdog_->input();
    faults_.at(FaultPoint::kInput, step_);
    return loader.acquire(step_, static_cast<int>(worker));
  }

  // A flag travels with the contribution of a hosted worker; ranks that host none need another way.
  bool stop_asked() {
    const bool asked = stop_requested();
    if (communicator_.size() <= static_cast<int>(job_.workers)) return asked;
    watchdog_->enter(comm::Phase::kReduce, step_);
    return communicator_.all_reduce_max(asked) > 0;
  }

  // One step. Returns what the ranks have agreed on.
  Engine::Control train_step(const Engine::Source& source, const data::Loader* loader,
                             Progress* progress) {
    const auto start = Clock::now();
    const double rate = learning_rate(step_, length_, job_.optimizer, job_.schedule, plateau_);
    const double minutes = seconds_since(last_save_) / 60;
    const Engine::Control control{.stop = stop_asked() || time_is_up(),
                                  .save = is_root() && save_due(minutes)};
    while (const Fault* fault = faults_.change(step_)) engine_->apply(*fault);
    engine_->compute(step_, control, source, cross_check_->worker_of(step_));
    watchdog_->enter(comm::Phase::kReduce, step_);  // all ranks compare
    if (const auto wrong = cross_check_->check(step_)) throw RollBack{*wrong, std::nullopt};
    replicas_->before_update(step_);
    const Engine::Result result = engine_->update(rate);
    ++step_;
    book_step(loader, seconds_since(start));
    if (result.diverged) skip_or_stop(result);
    watchdog_->enter(comm::Phase::kReduce, step_);
    if (const auto differ = replicas_->after_update(step_)) throw RollBack{*differ, std::nullopt};
    report_judgement();
    meter_.add(result, seconds_since(start));
    const bool log_line = step_ % std::max(1u, job_.log.every_steps) == 0 || step_ == last_step_;
    if (progress) report(*progress, loader, rate, result, log_line);
    return result.control;
  }

  void report_judgement() {
    const std::optional<std::string> judgement = replicas_->take_judgement();
    if (!judgement || !is_root()) return;
    log::warning("{}", *judgement);
    metrics_->write({.step = step_, .event = "judgement", .detail = *judgement});
  }

  // The last step had a loss or a gradient that is not finite, and has changed nothing.
  void skip_or_stop(const Engine::Result& result) {
    // A rank whose memory was hit by a flipped bit is no reason to change the run's course.
    if (const auto differ = replicas_->compare(step_)) throw RollBack{*differ, std::nullopt};
    std::string why = engine_->about_divergence(step_ - 1, result);
    const std::vector<std::string> workers =
        communicator_.all_gather(fmt::format("{}", fmt::join(engine_->losses_not_finite(), ", ")));
    for (size_t rank = 0; rank < workers.size(); ++rank)
      if (!workers[rank].empty())
        why += fmt::format("; not finite on rank {} ({}): the loss of worker {}", rank,
                           printable(communicator_.hosts()[rank]), workers[rank]);
    stop_or_roll_back(why);
    ++skipped_.skips;
    if (!is_root()) return;
    log::warning("{}; the update is skipped, number {} of at most {} (non_finite.max_skips)", why,
                 skipped_.skips, job_.non_finite.max_skips);
    metrics_->write({.step = step_, .event = "skip", .detail = why});
  }

  // Returns where the policy goes on without an update.
  void stop_or_roll_back(const std::string& why) const {
    using Policy = Job::NonFinite::Policy;
    if (job_.non_finite.policy == Policy::kStop)
      fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
    if (skipped_.skips >= job_.non_finite.max_skips)
      fail(ExitCode::kFault,
           "{}; the run has skipped {} time(s) already (non_finite.max_skips); {}", why,
           skipped_.skips, Engine::kDivergenceRemedy);
    if (job_.non_finite.policy == Policy::kRollBack) throw RollBack{why, step_};
  }

  void start_line(const data::Loader* loader) {
    meter_.start_line();
    line_start_ = Clock::now();
    line_input_wait_ = loader ? loader->stats().wait_seconds : 0;
    line_reduce_wait_ = engine_->reduce_wait_seconds();
  }

  void report(Progress& progress, const data::Loader* loader, double rate,
              const Engine::Result& result, bool log_line) {
    const double epoch = epoch_at(step_, length_);
    const double elapsed = std::max(1e-9, seconds_since(line_start_));
    const double wait = loader ? loader->stats().wait_seconds - line_input_wait_ : 0;
    const double input_share = std::min(1.0, wait / lanes_ / elapsed);
    const auto batch = static_cast<double>(length_.global_batch);
    progress.update(
        {.step = step_,
         .total_steps = total_steps_,
         .epoch = epoch,
         .epochs = job_.epochs,
         .loss = meter_.smooth_loss(),
         .top1 = meter_.smooth_top1(),
         .images_per_second = batch / meter_.smooth_seconds(),
         .input_wait_share = input_share,
         .seconds_left = static_cast<double>(last_step_ - step_) * meter_.smooth_seconds()});
    if (!log_line) return;
    metrics_->write(
        {.step = step_,
         .epoch = epoch,
         .train_loss = meter_.loss(),
         .train_top1 = meter_.top1(),
         .learning_rate = rate,
         .images_per_second = meter_.steps() * batch / elapsed,
         .input_wait_share = input_share,
         .reduce_wait_share = (engine_->reduce_wait_seconds() - line_reduce_wait_) / elapsed,
         .gradient_norm = result.gradient_norm,
         .loss_scale =
             engine_->scales_loss() ? std::optional(engine_->loss_scale().scale) : std::nullopt});
    start_line(loader);
  }

  void evaluate_and_save() {
    const double top1 = evaluate();
    note_evaluation(plateau_, 1 - top1, job_.schedule);
    save(top1);
  }

  // Returns top-1, of 0 to 1.
  double evaluate() {
    watchdog_->enter(comm::Phase::kEvaluate, step_);
    enter(Phase::kEvaluating);
    const auto start = Clock::now();
    faults_.at(FaultPoint::kEvaluate, step_);
    const auto accuracy_of = [&](Engine::Weights weights) {
      return evaluator_->run(communicator_, *engine_, weights, *watchdog_, step_);
    };
    const Accuracy a = accuracy_of(Engine::Weights::kTrained);
    std::optional<Accuracy> ema;
    if (engine_->has_ema()) ema = accuracy_of(Engine::Weights::kAverage);
    result_ = a;
    if (deadline_) deadline_->note_evaluation(seconds_since(start));
    if (is_root()) {
      log::info("epoch {:.2f}: {}", epoch_at(step_, length_), to_text(a));
      if (ema) log::info("moving average: {}", to_text(*ema));
      MetricsLine line{.step = step_,
                       .epoch = epoch_at(step_, length_),
                       .top1 = a.top1_share(),
                       .top5 = a.top5_share(),
                       .loss = a.loss,
                       .images = a.images,
                       .correct = a.top1};
      if (ema) {
        line.ema_top1 = ema->top1_share();
        line.ema_top5 = ema->top5_share();
      }
      metrics_->write(line);
    }
    return a.top1_share();
  }

  // Rank 0: by time, or because the last save failed.
  bool save_due(double minutes) {
    if (lock_->lost()) lock_->expect_held();
    const bool by_time =
        job_.checkpoint.every_minutes > 0 && minutes >= job_.checkpoint.every_minutes;
    const bool ledger_again = unrecorded_ && minutes * 60 >= 5;
    return by_time || ledger_again || writer_->retry_due();
  }

  void save(std::optional<double> top1) {
    watchdog_->enter(comm::Phase::kSave, step_);
    enter(Phase::kSaving);
    last_save_ = Clock::now();
    saved_top1_ = top1;
    if (const auto differ = replicas_->compare(step_)) throw RollBack{*differ, std::nullopt};
    if (!engine_->state_is_finite()) {
      const std::string why = fmt::format(
          "step {}: weights or batch-norm statistics are no longer finite, so they are not saved",
          step_);
      if (is_root()) keep_apart();
      communicator_.barrier();
      if (job_.non_finite.policy == Job::NonFinite::Policy::kRollBack) stop_or_roll_back(why);
      fail(ExitCode::kFault, "{}; {}", why, Engine::kDivergenceRemedy);
    }
    faults_.at(FaultPoint::kSave, step_);
    if (is_root()) lock_->expect_held();
    // Before the checkpoint has its name: no step is ever published that the ledger does not hold.
    unrecorded_ =
        !ledger_->save(communicator_, step_,
                       loader_ ? loader_->substitutions() : std::vector<data::Substitution>());
    if (!is_root() || unrecorded_) return;
    writer_->save(checkpoint_state(top1));
    if (const auto failure = writer_->take_failure())
      metrics_->write({.step = step_, .event = "save failed", .detail = *failure});
    if (!top1) metrics_->write({.step = step_, .event = "save"});
    lives_->progress();
    if (deadline_) deadline_->note_save(seconds_since(last_save_) + writer_->save_seconds());
  }

  // For whoever wants to know how it came to that.
  void keep_apart() {
    try {
      writer_->wait();
      lock_->expect_held();
      log::warning("kept apart in {}",
                   printable(save_apart(options_.out, checkpoint_state(std::nullopt))));
    } catch (const std::exception& e) {
      log::warning("not kept apart: {}", e.what());
    }
  }

  // Borrows the engine's memory.
  CheckpointState checkpoint_state(std::optional<double> top1) {
    CheckpointState state;
    state.facts = {.step = step_,
                   .job_digest = job_digest_,
                   .job = to_text(job_),
                   .dataset_digest = train_->digest(),
                   .fingerprint = fingerprint_,
                   .dataset_size = length_.dataset_size,
                   .global_batch = length_.global_batch,
                   .plateau = plateau_,
                   .top1 = top1,
                   .confirmed_by_ranks = static_cast<uint32_t>(communicator_.size()),
                   .skipped = skipped_};
    state.model = model_tensors(*engine_, step_);
    state.optimizer = optimizer_tensors(*engine_, normalisation_);
    state.ema = ema_tensors(*engine_);
    return state;
  }

  void report_substitutions(const data::Loader* loader) {
    if (!loader) return;
    const std::vector<data::Substitution> list = loader->substitutions();
    for (const data::Substitution& s : list)
      log::warning("epoch {}: sample {} was replaced by {}: {}", s.epoch, s.sample, s.substitute,
                   s.reason);
  }

  // The last save was left out because the ledger could not be written.
  void record_at_last() {
    if (!ledger_->save(communicator_, step_, {}))
      fail(ExitCode::kIo,
           "{}: the ledger could not be written, so step {} is not saved: make room and run the "
           "same command again",
           printable(options_.out), step_);
    writer_->save(checkpoint_state(saved_top1_));
  }

  // Everything is on the disk when this returns.
  int leave(bool stopped) {
    watchdog_->enter(comm::Phase::kLeave, step_);
    if (is_root()) {
      enter(Phase::kSaving);
      if (unrecorded_) record_at_last();
      writer_->finish([this] { return checkpoint_state(saved_top1_); });
      metrics_->write({.step = step_, .event = stopped ? "stop" : "end"});
      if (!stopped)
        ending_ = step_ < total_steps_ ? "stop_after_steps" : "done";
      else if (ending_.empty())
        ending_ = "stopped by a signal";
      if (stopped)
        log::info("stopped at step {} of {}, saved; run the same command again to go on", step_,
                  total_steps_);
      else if (step_ < total_steps_)
        log::info("stop_after_steps: {} of {} steps done, saved", step_, total_steps_);
      else
        std::cout << (result_ ? to_text(*result_) : std::string("this run was already complete"))
                  << std::endl;
    }
    communicator_.barrier();
    return static_cast<int>(stopped ? ExitCode::kRecoverable : ExitCode::kDone);
  }

  std::optional<comm::StartAlarm> alarm_{std::in_place};  // until there is a watchdog
  comm::Communicator& communicator_;
  std::unique_ptr<comm::Watchdog>& watchdog_;  // once the ranks have met
  const TrainOptions options_;
  Job job_;
  Fingerprint fingerprint_;
  Faults faults_;
  std::optional<OutputLock> lock_;  // rank 0
  std::shared_ptr<Lives> lives_;    // rank 0
  const std::shared_ptr<LifeUnderWatch> watched_ = std::make_shared<LifeUnderWatch>();
  Resume resume_;
  std::optional<CheckpointState> checkpoint_;  // rank 0, until it is restored
  std::unique_ptr<data::Dataset> train_, val_;
  Normalisation normalisation_;
  int lanes_ = 1, data_threads_ = 1;
  RunLength length_;
  uint64_t total_steps_ = 0, last_step_ = 0;  // of the schedule; of this life
  std::string job_digest_;
  ops::ImageInput input_;
  std::optional<Evaluator> evaluator_;
  std::unique_ptr<Engine> engine_;
  uint64_t step_ = 0;  // optimizer steps done
  PlateauState plateau_;
  std::optional<double> saved_top1_;  // as in the last save
  SkippedSteps skipped_;
  std::optional<Replicas> replicas_;
  std::optional<CrossCheck> cross_check_;
  uint32_t roll_backs_ = 0;                   // of this life, because of corruption
  std::unique_ptr<MetricsWriter> metrics_;    // rank 0
  comm::Watchdog::Scope writing_;             // of the writer's thread
  std::unique_ptr<CheckpointWriter> writer_;  // rank 0
  std::unique_ptr<SampleLog> samples_;
  std::unique_ptr<Ledger> ledger_;
  bool unrecorded_ = false;               // rank 0: the ledger refused the last save
  const data::Loader* loader_ = nullptr;  // while loop() runs
  double booked_input_ = 0, booked_reduce_ = 0;
  std::optional<Clock::time_point> until_;  // rank 0
  std::optional<Deadline> deadline_;        // rank 0
  std::string ending_;                      // how this life ends
  Meter meter_;
  Clock::time_point line_start_, last_save_;
  double line_input_wait_ = 0, line_reduce_wait_ = 0;
  std::optional<Accuracy> result_;
};

std::optional<TrainOptions> parse_train_options(const Arguments& arguments) {
  TrainOptions o;
  std::string data, until;
  po::options_description options("Training");
  options.add_options()("job", po::value(&o.job_file)->required(),
                        "job file (proto/job.proto in text format; see trainer/recipes)")(
      "data", po::value(&data), "folder of the dataset, in place of data.path")(
      "out", po::value(&o.out), "folder of the run: checkpoints, metrics.jsonl, job.txtpb")(
      "set", po::value(&o.sets)->composing(),
      "key=value for a field of the job, e.g. optimizer.learning_rate=0.1; may be repeated")(
      "data-threads", po::value(&o.data_threads),
      "threads that read and decode images; default: the CPUs that computing leaves, at least 1")(
      "device", po::value(&o.device)->default_value(o.device), "cpu or cuda")(
      "resume", po::value(&o.resume)->default_value(o.resume),
      "auto: go on where --out stands, or start; never: start; DIR: from that checkpoint or run")(
      "allow-change", po::bool_switch(&o.allow_change),
      "resume although the job changed in a way that changes the result")(
      "until", po::value(&until),
      "leave by itself in time, saved, with exit code 75: a moment (2026-11-25T18:00), a time from "
      "the start (+90m, +2h30m), or job: the end of the Slurm job")(
      "dry-run", po::bool_switch(&o.dry_run), "print the plan and leave")(
      "fault", po::value(&o.faults)->composing(),
      "break this run on purpose, e.g. \"rank=2 step=40 kind=kill\" (docs/faults.md)");
  const auto values = parse_options(
      arguments, options, "train --job FILE --out DIR [OPTIONS]",
      "One process is one rank; several are started by mpirun or srun (cluster/README.md). The "
      "result\n"
      "is a function of the job alone: the same bits on any number of ranks. USR1, USR2, INT or "
      "TERM\n"
      "stop a run at the end of a step: it is saved, and the exit code is 75 (run me again).\n");
  if (!values) return std::nullopt;
  if (values->count("data-threads") > 0 && o.data_threads < 0)
    fail(ExitCode::kUsage, "--data-threads {}: must not be negative", o.data_threads);
  if (!until.empty()) o.until = parse_until(until);
  if (!data.empty()) o.sets.push_back("data.path=" + data);
  [[maybe_unused]] const Faults refused_now(o.faults);
  return o;
}

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
