#include "trainer/run/dry_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>

#include "comm/schedule.h"
#include "comm/worker_map.h"
#include "ops/core/clock.h"
#include "trainer/base/percentile.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

double redundancy_on(int workers, int ranks) {
  const std::vector<comm::WorkerRange> map = comm::map_workers(workers, ranks);
  return comm::redundancy(map, comm::choose_schedule(map));
}

// Seconds of one step on black images: the median of five.
double measure_step(Engine& engine, const ops::ImageInput& input) {
  const std::vector<uint8_t> pixels(static_cast<size_t>(input.shape.elements()));
  const std::vector<int32_t> labels(static_cast<size_t>(input.shape.n));
  const Engine::Source source{[&](int) {
                                return Engine::Images{pixels.data(), labels.data()};
                              },
                              [](uint64_t) {}};
  std::vector<double> seconds;
  for (uint64_t step = 0; step < 6; ++step) {
    const auto start = Clock::now();
    engine.step(step, 0.0, {}, source);
    if (step > 0) seconds.push_back(seconds_since(start));
  }
  return percentile(seconds, 0.5);
}

// Of all phases of what is frozen.
struct Phases {
  std::string text;         // a line of each, where something is frozen
  std::string step_times;   // "12.0 ms", or of each phase: "12.0, 18.0 ms"
  double seconds = 0;       // of all steps
  size_t memory_bytes = 0;  // the most
};

Phases measure_phases(Engine& engine, const ops::ImageInput& input, const TrainingPlan& training,
                      uint64_t steps) {
  Phases out;
  for (size_t i = 0; i < training.phases.size(); ++i) {
    const FrozenFrom& phase = training.phases[i];
    const uint64_t end = i + 1 < training.phases.size() ? training.phases[i + 1].step : steps;
    engine.freeze(phase.frozen);
    const double seconds = measure_step(engine, input);
    out.seconds += seconds * static_cast<double>(end - phase.step);
    out.step_times += fmt::format("{}{:.1f}", i == 0 ? "" : ", ", 1e3 * seconds);
    out.memory_bytes = std::max(out.memory_bytes, engine.memory_bytes());
    if (!phase.frozen.empty() || i > 0)
      out.text += fmt::format("# trained     from step {} (epoch {}) on {}, {:.1f} %\n", phase.step,
                              phase.epoch, trained_share(engine.layout(), phase.frozen),
                              100 * static_cast<double>(engine.trained_floats()) /
                                  static_cast<double>(engine.layout().parameter_floats));
  }
  return out;
}

}  // namespace

void print_dry_run(comm::Communicator& communicator, Engine& engine, const Job& job,
                   const RunLength& length, const ops::ImageInput& input, uint64_t val_images,
                   const TrainingPlan& training, const LoaderPlan& loader) {
  const uint64_t steps = total_steps(length);
  const Phases phases = measure_phases(engine, input, training, steps);
  if (communicator.rank() != 0) return;
  const auto workers = static_cast<int>(job.workers);
  const double parameters = static_cast<double>(engine.layout().parameter_floats);
  const double checkpoint_bytes = 4 * parameters * (job.optimizer.ema_decay > 0 ? 3 : 2);
  std::string free_ranks;
  for (int ranks = 1; ranks <= workers; ++ranks)
    if (redundancy_on(workers, ranks) <= 1.0 + 1e-9)
      free_ranks += fmt::format("{}{}", free_ranks.empty() ? "" : ", ", ranks);
  const int most = (workers + communicator.size() - 1) / communicator.size();
  const double balance = static_cast<double>(workers) / (most * communicator.size());

  std::cout << "# The job, with every default:\n" << to_text(job) << "\n# The plan:\n";
  std::cout << fmt::format(
      "# data        {} training and {} validation images, {} classes\n"
      "# steps       {} ({} epochs x {} images / {} images a step: {} workers x {})\n"
      "# ranks       {} x {} lane(s) x {} thread(s); {:.0f} % of their time used by workers\n"
      "# reduction   {:.2f} x a ring's volume here; no more than a ring's on {} ranks\n"
      "{}"
      "# memory      {} on this rank, {:.2f} M parameters\n"
      "# loader      {} thread(s) and a ring of batches of {} on this rank, in evaluations another "
      "of {}\n"
      "# checkpoint  {} each, {} and the best are kept\n"
      "# time        {} ms a step without input, {} in all (evaluations and input apart)\n",
      length.dataset_size, val_images, job.data.classes, steps, length.epochs, length.dataset_size,
      length.global_batch, workers, job.batch_per_worker, communicator.size(), engine.lanes(),
      job.threads_per_worker, 100 * balance, engine.redundancy(), free_ranks, phases.text,
      mebibytes(static_cast<double>(phases.memory_bytes)), parameters / 1e6, loader.threads,
      mebibytes(static_cast<double>(loader.training_bytes)),
      mebibytes(static_cast<double>(loader.evaluation_bytes)), mebibytes(checkpoint_bytes),
      job.checkpoint.keep, phases.step_times, duration(phases.seconds));
  std::cout << std::flush;
}

}  // namespace convoy::trainer
