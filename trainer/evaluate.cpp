#include "trainer/evaluate.h"

#include <iostream>
#include <nlohmann/json.hpp>

#include "comm/handshake.h"
#include "comm/launch.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/commands.h"
#include "trainer/limits.h"
#include "trainer/model_state.h"
#include "trainer/version.h"

namespace convoy::trainer {

namespace po = boost::program_options;

std::string to_text(const Accuracy& a) {
  return fmt::format("top-1 {:.2f} % ({} of {} images), top-5 {:.2f} %, loss {:.4f}",
                     100 * a.top1_share(), a.top1, a.images, 100 * a.top5_share(), a.loss);
}

Evaluator::Evaluator(const data::Dataset& val, const Job& job, const Normalisation& normalisation,
                     int data_threads)
    : val_(val),
      loader_(eval_loader_config(job)),
      input_(image_input(job, normalisation, data::output_shape(loader_.transform, val),
                         job.evaluation.batch)),
      data_threads_(data_threads) {
  if (val_.size() == 0) fail(ExitCode::kBadData, "the validation set has no images");
}

Accuracy Evaluator::run(comm::Communicator& communicator, Engine& engine, Engine::Weights weights,
                        comm::Watchdog& watchdog, uint64_t step) const {
  watchdog.enter(comm::Phase::kEvaluate, step);
  const auto batch = static_cast<int>(input_.shape.n);
  const auto ranks = static_cast<uint64_t>(communicator.size());
  const uint64_t slices = data::EvalLoader::slices(val_.size(), batch);
  std::vector<uint64_t> mine;
  for (auto k = static_cast<uint64_t>(communicator.rank()); k < slices; k += ranks)
    mine.push_back(k);

  // Each rank's slices as text, doubles in hexadecimal: exact, and a few bytes.
  std::string text;
  if (!mine.empty()) {
    data::EvalLoaderConfig config = loader_;
    config.slices = mine;
    config.lanes = engine.lanes();
    config.threads = data_threads_;
    data::EvalLoader loader(val_, config);
    std::vector<const data::Batch*> held(mine.size());
    const auto words = watchdog.describe(comm::Phase::kInput,
                                         [&] { return file_in_progress(loader.in_progress()); });
    const Engine::Source source{[&](uint64_t n) {
                                  const auto wait = watchdog.input();
                                  held[n] = &loader.acquire(n);
                                  return Engine::Images{held[n]->pixels, held[n]->labels.data()};
                                },
                                [&](uint64_t n) { loader.release(*held[n]); },
                                [&](const std::exception_ptr& error) { loader.stop(error); }};
    for (const ops::LossResult& s : engine.evaluate(mine.size(), input_, weights, source))
      text += fmt::format("{:a} {} {} {}\n", s.loss_sum, s.count, s.top1, s.top5);
  }
  const std::vector<std::string> all = communicator.all_gather(text);

  // Sums in the order of the slices: slice k is line k / ranks of rank k % ranks.
  std::vector<const char*> next;
  for (const std::string& t : all) next.push_back(t.c_str());
  Accuracy out;
  double loss = 0;
  for (uint64_t k = 0; k < slices; ++k) {
    const char*& at = next[k % ranks];
    char* end = nullptr;
    loss += std::strtod(at, &end);
    out.images += std::strtoull(end, &end, 10);
    out.top1 += std::strtoull(end, &end, 10);
    out.top5 += std::strtoull(end, &end, 10);
    at = end;
  }
  out.loss = loss / static_cast<double>(out.images);
  return out;
}

namespace {

struct EvalOptions {
  std::string checkpoint, data, device;
  int data_threads = -1;
  bool json = false;
};

int evaluate_checkpoint(comm::Communicator& communicator, OwnedWatchdog& watchdog,
                        const EvalOptions& o) {
  std::optional<comm::StartAlarm> alarm(std::in_place);  // until there is a watchdog
  // Rank 0 chooses, because a run that is being trained has a newer checkpoint every moment.
  LoadedCheckpoint loaded;
  if (communicator.rank() == 0) loaded = load_newest(o.checkpoint);
  communicator.broadcast(loaded.folder, 0);
  if (communicator.rank() != 0) loaded.state = load_checkpoint(loaded.folder);
  const std::string& dir = loaded.folder;
  const CheckpointState& state = loaded.state;
  Job job = parse_job(state.facts.job, dir + "/manifest.txtpb", {}, "");
  if (o.device == "cpu" &&
      (job.precision == Job::Precision::kFp16 || job.precision == Job::Precision::kTf32)) {
    if (communicator.rank() == 0)
      log::info("trained in a precision that GPUs alone have; evaluated in FP32");
    job.precision = Job::Precision::kFp32;
  }
  if (!o.data.empty()) job.data.path = o.data;
  watchdog = std::make_unique<comm::Watchdog>(communicator, watchdog_config(job));
  alarm.reset();
  const auto val = open_split(job, data::Split::kVal);
  const Fingerprint own = fingerprint(o.device, communicator.local_rank());
  comm::handshake(communicator, {{"version", kVersion},
                                 {"checkpoint digest", state_digest(state)},
                                 {"validation set digest", val->digest()},
                                 {"device", own.device},
                                 {"instruction set", own.instruction_set},
                                 {"libraries", own.libraries}});
  const Normalisation normalisation = stored_normalisation(state);
  const int cpus = usable_cpus();
  job.workers = 1;
  job.threads_per_worker = std::max(1u, job.threads_per_worker);
  const int threads = static_cast<int>(job.threads_per_worker);
  const int lanes = lanes_for(o.device, cpus, cpus, threads);
  const data::ImageShape shape = data::output_shape(eval_transform(job), *val);
  EngineConfig config = engine_config(job, o.device, communicator.local_rank(),
                                      image_input(job, normalisation, shape, 1), lanes);
  config.training = false;
  Engine engine(communicator, graph_of(job, shape), config);
  restore(engine, state, true);
  const Evaluator evaluator(*val, job, normalisation,
                            o.data_threads >= 0 ? o.data_threads
                            : o.device == "cpu" ? 1
                                                : std::max(1, cpus - 1));
  const auto accuracy_of = [&](Engine::Weights weights) {
    return evaluator.run(communicator, engine, weights, *watchdog, state.facts.step);
  };
  const Accuracy accuracy = accuracy_of(Engine::Weights::kTrained);
  std::optional<Accuracy> ema;
  if (engine.has_ema()) ema = accuracy_of(Engine::Weights::kAverage);
  if (communicator.rank() != 0) return 0;
  if (o.json) {
    nlohmann::ordered_json out = {{"checkpoint", dir},
                                  {"step", state.facts.step},
                                  {"images", accuracy.images},
                                  {"correct", accuracy.top1},
                                  {"top1", accuracy.top1_share()},
                                  {"top5", accuracy.top5_share()},
                                  {"loss", accuracy.loss}};
    if (ema) {
      out["ema_top1"] = ema->top1_share();
      out["ema_top5"] = ema->top5_share();
    }
    std::cout << out.dump(2) << std::endl;
  } else {
    std::cout << fmt::format("step {}: {}\n", state.facts.step, to_text(accuracy));
    if (ema) std::cout << fmt::format("moving average: {}\n", to_text(*ema));
  }
  return 0;
}

std::optional<EvalOptions> parse_eval_options(const Arguments& arguments) {
  EvalOptions o;
  po::options_description options("Evaluation");
  options.add_options()("checkpoint", po::value(&o.checkpoint)->required(),
                        "a checkpoint, or a run (its newest whole one is taken)")(
      "data", po::value(&o.data), "folder of the dataset; default: the one of training")(
      "device", po::value(&o.device)->default_value("cpu"), "cpu or cuda")(
      "data-threads", po::value(&o.data_threads), "threads that read and decode images")(
      "json", po::bool_switch(&o.json), "one JSON object on standard output");
  const auto values =
      parse_options(arguments, options, "eval --checkpoint DIR [OPTIONS]",
                    "Every image of the validation set is counted once, on any number of ranks.\n");
  if (!values) return std::nullopt;
  if (values->count("data-threads") > 0 && o.data_threads < 0)
    fail(ExitCode::kUsage, "--data-threads {}: must not be negative", o.data_threads);
  return o;
}

}  // namespace

int eval_command(const Arguments& arguments) {
  return run_on_ranks(arguments, parse_eval_options, evaluate_checkpoint);
}

}  // namespace convoy::trainer
