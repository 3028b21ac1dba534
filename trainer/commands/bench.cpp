// convoy bench: the table of benchmarks; steps on synthetic data, against the machine's own
// matrix-product rate.
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "comm/launch.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "ops/freezing.h"
#include "trainer/base/percentile.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/engine.h"
#include "trainer/engine/freezing.h"
#include "trainer/engine/setup.h"
#include "trainer/engine/step_profile.h"
#include "trainer/job/limits.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;

struct StepBench {
  std::string model, device;
  std::vector<std::string> freeze;
  DType type = DType::kFloat32;
  int64_t batch = 32;
  int64_t image = 0;
  int workers = 1, threads = 0;
  bool inference = false, no_fold = false, no_peak = false, json = false, profile = false;
  bool autotune = false;
  bool no_graphs = false, no_overlap = false, no_merge = false;
  double seconds = 5;
  int warmup = 3;
};

// What the machine could do on `threads` threads: the best square product of three sizes, in
// FLOP/s, and where `copying` is asked for that, in bytes/s.
struct Limits {
  double flops = 0, bytes = 0;
};
Limits measure_limits(const std::string& device, int gpu, DType type, int threads, bool copying) {
  // In a thread of its own, because a device belongs to its thread.
  return std::async(std::launch::async,
                    [&] {
                      const auto d = ops::make_device(device, threads, gpu);
                      if (!d->supports(type))
                        fail(ExitCode::kUsage, "--precision {}: this {} does not have it",
                             name_of(type), d->name());
                      Limits limits;
                      if (copying) limits.bytes = d->measure_copy();
                      // A GPU is not filled by less than 4096.
                      for (const int64_t n : {1024, 2048, 4096, 8192})
                        if (device == "cpu" ? n <= 4096 : n >= 4096)
                          limits.flops = std::max(limits.flops, d->measure_gemm(type, n));
                      return limits;
                    })
      .get();
}

// Of a later time, the part since an earlier one, per step.
ops::NetworkTimes per_step(ops::NetworkTimes later, const ops::NetworkTimes& earlier,
                           double steps) {
  later.input = (later.input - earlier.input) / steps;
  later.loss = (later.loss - earlier.loss) / steps;
  for (size_t i = 0; i < later.calls.size(); ++i)
    later.calls[i].second = (later.calls[i].second - earlier.calls[i].second) / steps;
  return later;
}

// FLOPs of one image: two per multiply-accumulate forward, in training two more for the weights'
// gradient and two for the input's, where they are wanted.
double flops_per_image(const ops::Graph& graph, bool inference) {
  const std::vector<Shape> shapes = ops::infer_shapes(graph, 1);
  const std::vector<bool> trained = ops::trained_nodes(graph),
                          wanted = ops::wanted_gradients(graph);
  double flops = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const auto macs =
        static_cast<double>(ops::macs(graph.nodes[i].op, ops::input_shapes(graph, shapes, i, 1)));
    const bool wants_dx = std::ranges::any_of(graph.nodes[i].inputs, [&](int input) {
      return input != ops::kImage && wanted[static_cast<size_t>(input)];
    });
    flops += 2 * macs * (1 + (!inference && trained[i]) + (!inference && wants_dx));
  }
  return flops;
}

// Seconds of `steps` steps of inference: one evaluation, so that weights are packed once, on the
// clock of one lane. As all lanes do the same, a step is one slice on each.
std::vector<double> time_inference(Engine& engine, const ops::ImageInput& input,
                                   const Engine::Images& images, uint64_t steps) {
  const auto lanes = static_cast<uint64_t>(engine.lanes());
  std::vector<double> times;
  Clock::time_point start;
  const Engine::Source source{[&](uint64_t slice) {
                                if (slice == 0) start = Clock::now();
                                return images;
                              },
                              [&](uint64_t slice) {
                                if (slice % lanes != 0) return;
                                times.push_back(seconds_since(start));
                                start = Clock::now();
                              }};
  engine.evaluate(steps * lanes, input, Engine::Weights::kTrained, source);
  return times;
}

// Shares of the time of all steps, mean over the ranks.
struct ReductionWait {
  // The rank that waits least in a step comes last: what it waits is communication alone. What the
  // others wait beyond that they wait for it.
  double communication = 0, imbalance = 0;
};

// Collective. Of each step: its seconds, and those of them in which the rank waited for sums.
ReductionWait reduction_wait(comm::Communicator& communicator, const std::vector<double>& times,
                             const std::vector<double>& exposed) {
  std::string mine(reinterpret_cast<const char*>(exposed.data()), exposed.size() * sizeof(double));
  double least = 0, mean = 0, all = 0;
  const std::vector<std::string> texts = communicator.all_gather(mine);
  for (size_t i = 0; i < times.size(); ++i) {
    double least_of_step = times[i];
    for (const std::string& text : texts) {
      double seconds = 0;
      std::memcpy(&seconds, text.data() + i * sizeof(double), sizeof seconds);
      least_of_step = std::min(least_of_step, seconds);
      mean += seconds / communicator.size();
    }
    least += least_of_step;
    all += times[i];
  }
  return {.communication = least / all, .imbalance = (mean - least) / all};
}

int run_step_bench(comm::Communicator& communicator, const StepBench& b) {
  // A device that is not there is an error here, not in a thread.
  ops::make_device(b.device, 1, communicator.local_rank());
  const int cpus = stay_near_gpu(communicator, b.device);
  const int threads = b.threads > 0 ? b.threads : std::max(1, cpus / b.workers);
  if (b.batch % b.workers != 0)
    fail(ExitCode::kUsage, "--batch {} does not divide into --workers {}", b.batch, b.workers);
  comm::warn_of_too_few_cpus(communicator, b.device == "cpu" ? threads * b.workers : 1);
  ModelOptions options;
  options.image = {.n = 1, .c = 0, .h = b.image, .w = b.image};
  options.inference = b.inference;
  const ops::Graph whole = make_model(b.model, options);
  Job job;
  job.transfer.freeze = b.freeze;
  const std::set<std::string> frozen = plan_training(job, whole, {}).last().frozen;
  const ops::Graph graph = ops::freeze(whole, frozen);
  Shape shape = graph.image;
  shape.n = b.batch / b.workers;
  const ops::ImageInput input =
      ops::per_channel_input(shape, std::vector<double>(static_cast<size_t>(shape.c), 0.45),
                             std::vector<double>(static_cast<size_t>(shape.c), 0.25));
  const int limit_threads = std::min(cpus, threads * b.workers);
  const Limits limits = b.no_peak ? Limits{}
                                  : measure_limits(b.device, communicator.local_rank(), b.type,
                                                   limit_threads, b.profile);

  EngineConfig config{.device = b.device,
                      .gpu = communicator.local_rank(),
                      .workers = b.workers * communicator.size(),
                      .batch_per_worker = shape.n,
                      .threads_per_worker = threads,
                      .lanes = lanes_for(b.device, b.workers, b.workers, 1),
                      .type = b.type,
                      .scale_loss = b.type == DType::kFloat16,
                      .input = input,
                      .optimizer = {},
                      .training = !b.inference,
                      .fold = !b.no_fold,
                      .profile = b.profile,
                      .record = !b.no_graphs,
                      .aside = !b.no_overlap,
                      .merge = !b.no_merge,
                      .frozen = frozen,
                      .evaluation = b.inference ? std::optional(input) : std::nullopt,
                      .plans = {.tune = b.autotune, .cache_folder = cache_folder()}};
  Engine engine(communicator, graph, config);
  const int64_t classes = ops::infer_shapes(graph, 1).back().c;
  std::vector<uint8_t> pixels(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < pixels.size(); ++i)
    pixels[i] = static_cast<uint8_t>(random4(1, Purpose::kSyntheticData, 0, i / 4)[i % 4] >> 24);
  std::vector<int32_t> labels(static_cast<size_t>(shape.n));
  for (size_t i = 0; i < labels.size(); ++i)
    labels[i] = static_cast<int32_t>(static_cast<int64_t>(i) % classes);
  const Engine::Images images{pixels.data(), labels.data()};
  const std::shared_ptr<void> pinned = engine.pin(pixels.data(), pixels.size());
  const Engine::Source source{.acquire = [&](uint64_t) { return images; },
                              .release = [](uint64_t) {},
                              .next = [&](uint64_t) { return images.pixels; }};

  std::vector<double> times, exposed;
  double measured = 0;
  uint64_t step = 0;
  ops::NetworkTimes warm_times;
  double warm_wait = 0, warm_prepare = 0, warm_update = 0;
  const auto warmed_up = [&] {
    warm_times = engine.times();
    warm_wait = engine.reduce_wait_seconds();
    warm_prepare = engine.prepare_seconds();
    warm_update = engine.update_seconds();
  };
  if (b.inference) {
    // All ranks take the same number of steps: as many as rank 0's last warm-up step says.
    times = time_inference(engine, input, images, static_cast<uint64_t>(std::max(1, b.warmup)));
    int64_t count[1] = {
        communicator.rank() == 0 ? static_cast<int64_t>(b.seconds / times.back()) + 1 : 0};
    communicator.all_reduce_sum(count);
    warmed_up();
    times = time_inference(engine, input, images,
                           static_cast<uint64_t>(std::max<int64_t>(3, count[0])));
    measured = std::accumulate(times.begin(), times.end(), 0.0);
    exposed.assign(times.size(), 0.0);
  } else {
    warmed_up();
  }
  // In training rank 0's clock decides, through the stop flag.
  for (bool stop = b.inference; !stop; ++step) {
    const auto start = Clock::now();
    const double exposed_before = engine.exposed_seconds();
    const bool enough = measured >= b.seconds && times.size() >= 3;
    const Engine::Control control{.stop = communicator.rank() == 0 && enough, .save = false};
    // A learning rate of zero: random images must not lead to numbers that are slow or not finite.
    stop = engine.step(step, 0.0, control, source).control.stop;
    if (step < static_cast<uint64_t>(b.warmup)) {
      warmed_up();
      continue;
    }
    times.push_back(seconds_since(start));
    measured += times.back();
    exposed.push_back(engine.exposed_seconds() - exposed_before);
  }

  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  int64_t totals[2] = {static_cast<int64_t>(usage.ru_maxrss) * 1024,
                       static_cast<int64_t>(limits.flops)};
  communicator.all_reduce_sum(totals);
  const ReductionWait wait = reduction_wait(communicator, times, exposed);
  if (communicator.rank() != 0) return 0;

  const double median = percentile(times, 0.5);
  const double rate = static_cast<double>(b.batch * communicator.size()) / median;
  const double gflops = rate * flops_per_image(graph, b.inference) / 1e9;
  const double peak_gflops = static_cast<double>(totals[1]) / 1e9;
  const auto steps = static_cast<double>(times.size());
  const double lanes =
      b.device == "cpu" ? static_cast<double>(limit_threads) / threads : engine.lanes();
  const ProfileInput profile{
      .graph = engine.running_graph(),
      .batch = shape.n,
      .type = b.type,
      .training = !b.inference,
      .seconds = per_step(engine.times(), warm_times, steps),
      .step = measured / steps,
      .reduce_wait = (engine.reduce_wait_seconds() - warm_wait) / steps,
      // An evaluation packs once, before the clock runs.
      .prepare = b.inference ? 0 : (engine.prepare_seconds() - warm_prepare) / steps,
      .update = (engine.update_seconds() - warm_update) / steps,
      .flops_per_second = limits.flops / lanes,
      .bytes_per_second = limits.bytes / lanes};
  if (b.json) {
    nlohmann::ordered_json out = {
        {"model", b.model},
        {"precision", name_of(b.type)},
        {"pass", b.inference ? "inference" : "training"},
        {"folded", b.inference && !b.no_fold},
        {"image", shape.h},
        {"batch", b.batch},
        {"ranks", communicator.size()},
        {"workers_per_rank", b.workers},
        {"threads_per_worker", threads},
        {"images_per_second", rate},
        {"gflops", gflops},
        {"peak_memory_bytes", totals[0]},
        {"planned_memory_bytes", engine.memory_bytes()},
        {"trained_parameters", engine.trained_floats()},
        {"parameters", engine.layout().parameter_floats},
        {"steps", times.size()},
        {"step_seconds",
         {{"median", median}, {"min", percentile(times, 0.0)}, {"p90", percentile(times, 0.9)}}}};
    if (!b.inference) {
      out["exposed_communication"] = wait.communication;
      out["rank_imbalance"] = wait.imbalance;
    }
    if (!b.no_peak) {
      out["peak_gflops"] = peak_gflops;
      out["fraction_of_peak"] = gflops / peak_gflops;
    }
    if (b.profile) out["profile"] = to_json(profile);
    std::cout << out.dump(2) << std::endl;
  } else {
    if (b.profile) std::cout << to_text(profile) << "\n";
    const std::string share =
        b.no_peak ? ""
                  : fmt::format(", {:.1f} % of {:.0f} (this machine's matrix product)",
                                100 * gflops / peak_gflops, peak_gflops);
    std::cout << fmt::format(
        "{} {} {} {}x{}, batch {} on each of {} rank(s), {} worker(s) x {} thread(s):\n"
        "  {:.1f} images/s   {:.0f} GFLOP/s{}\n"
        "  step {:.1f} ms (median of {}; best {:.1f}, 90 % below {:.1f})   peak memory {:.2f} "
        "GiB\n",
        b.model, name_of(b.type), b.inference ? "inference" : "training", shape.h, shape.w, b.batch,
        communicator.size(), b.workers, threads, rate, gflops, share, 1e3 * median, times.size(),
        1e3 * percentile(times, 0.0), 1e3 * percentile(times, 0.9),
        static_cast<double>(totals[0]) / 1073741824.0);
    if (!frozen.empty()) std::cout << fmt::format("  {}\n", trained_share(engine.layout(), frozen));
    if (!b.inference && communicator.size() > 1)
      std::cout << fmt::format(
          "  waited for sums: {:.2f} % of the step for communication, {:.2f} % for slower ranks\n",
          100 * wait.communication, 100 * wait.imbalance);
  }
  return 0;
}

std::optional<StepBench> parse_step_options(const Arguments& arguments) {
  StepBench b;
  std::string precision;
  po::options_description options("Measurement");
  options.add_options()("model", po::value(&b.model)->required(), "a name of convoy model list")(
      "precision", po::value(&precision)->default_value("fp32"), "fp32, bf16; on a GPU fp16, too")(
      "batch", po::value(&b.batch)->default_value(32), "images of one step on one rank")(
      "image", po::value(&b.image)->default_value(0), "height and width; 0: the model's usual")(
      "inference", po::bool_switch(&b.inference), "forward with running statistics only")(
      "no-fold", po::bool_switch(&b.no_fold),
      "--inference without batch norms folded into convolutions, to see what that gains")(
      "autotune", po::bool_switch(&b.autotune),
      "on a GPU: use the fastest engine of each convolution, measured first or kept from such a "
      "start, as gpu.autotune in a job")(
      "no-graphs", po::bool_switch(&b.no_graphs),
      "on a GPU: enqueue kernel by kernel, as gpu.graphs: false in a job; what --profile does, "
      "too")(
      "no-overlap", po::bool_switch(&b.no_overlap),
      "on a GPU: gradients of weights in turn with the rest, as gpu.overlap: false in a job; "
      "what --profile does, too")(
      "no-merge", po::bool_switch(&b.no_merge),
      "on a GPU: batch norms without those of shortcuts and without the pooling behind them, as "
      "gpu.merge: false in a job")("workers", po::value(&b.workers)->default_value(1),
                                   "workers side by side on one rank")(
      "threads", po::value(&b.threads)->default_value(0),
      "threads of one worker; 0: the rank's CPUs shared out")(
      "freeze", po::value(&b.freeze)->composing(),
      "PATTERN: these parameters are not trained, as transfer.freeze in a job; several times")(
      "seconds", po::value(&b.seconds)->default_value(5), "measure at least so long")(
      "warmup", po::value(&b.warmup)->default_value(3), "steps before the clock runs")(
      "device", po::value(&b.device)->default_value("cpu"), "cpu or cuda")(
      "no-peak", po::bool_switch(&b.no_peak),
      "leave out the matrix products, which take seconds, and what is compared with them")(
      "profile", po::bool_switch(&b.profile),
      "time of every node forward and backward, against what the machine could do")(
      "json", po::bool_switch(&b.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "bench step --model NAME [OPTIONS]",
      "Synthetic images, the whole step: forward, backward, reduction, update. Under "
      "mpirun all ranks\n"
      "take part and the rates are added. GFLOP/s count 6 FLOPs per "
      "multiply-accumulate of convolutions\n"
      "and linear layers (2 for inference), less the gradients that nobody wants: of images and "
      "of\n"
      "what is frozen.\n"
      "Waiting for sums is the time from the end of backward to the last sum. In each "
      "step the rank\n"
      "that waits least came last and waits for communication alone; what the others "
      "wait beyond that\n"
      "they wait for it.\n",
      nullptr);
  if (!values) return std::nullopt;
  b.type = parse_precision(precision);
  if (b.no_fold && !b.inference)
    fail(ExitCode::kUsage, "--no-fold is for --inference: training folds nothing");
  if (b.profile && b.no_peak)
    fail(ExitCode::kUsage, "--profile compares with what --no-peak leaves out: choose one");
  if (b.batch <= 0 || b.batch > 1000000 || b.workers <= 0 || b.threads < 0 || b.image < 0 ||
      b.warmup < 0)
    fail(ExitCode::kUsage,
         "--batch, --workers, --threads, --image and --warmup must not be negative");
  return b;
}

int bench_step(const Arguments& arguments) {
  return run_on_ranks(arguments, parse_step_options, run_step_bench);
}

struct Benchmark {
  const char* name;
  const char* summary;
  int (*run)(const Arguments&);
};

constexpr Benchmark kBenchmarks[] = {
    {"step", "training or inference steps on synthetic images", bench_step},
    {"loader", "reading, decoding and transforming images, against entropy decoding alone",
     bench_loader},
    {"allreduce", "the sum over all ranks, against the library's", bench_allreduce},
};

}  // namespace

int bench_command(const Arguments& arguments) {
  std::string names;
  for (const Benchmark& benchmark : kBenchmarks) {
    if (!arguments.empty() && arguments[0] == benchmark.name)
      return benchmark.run({arguments.begin() + 1, arguments.end()});
    names += (names.empty() ? "" : ", ") + std::string(benchmark.name);
  }
  const bool help = !arguments.empty() && (arguments[0] == "--help" || arguments[0] == "-h");
  if (!help)
    fail(ExitCode::kUsage, "convoy bench needs to know what: {} (convoy bench --help)", names);
  std::cout << "Usage: convoy bench WHAT [OPTIONS]\n\n";
  for (const Benchmark& benchmark : kBenchmarks)
    std::cout << fmt::format("  {:<10} {}\n", benchmark.name, benchmark.summary);
  std::cout << "\nconvoy bench WHAT --help shows its options.\n";
  return 0;
}

}  // namespace convoy::trainer
