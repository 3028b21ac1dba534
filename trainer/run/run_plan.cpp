#include "trainer/run/run_plan.h"

#include <algorithm>

#include "comm/handshake.h"
#include "comm/launch.h"
#include "comm/worker_map.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/fusion.h"
#include "ops/network.h"
#include "trainer/job/limits.h"

namespace convoy::trainer {
namespace {

// What the job leaves open about workers is decided at the first start of a run.
void choose_workers(comm::Communicator& communicator, int cpus, const Resume& resume, Job& job) {
  if (job.workers > 0) {
    job.threads_per_worker = std::max(1u, job.threads_per_worker);
    return;
  }
  // The CPUs of the rank with the fewest. Ranks that nobody bound share those of their host.
  const int share = cpu_share(cpus, communicator.local_size());
  auto threads = static_cast<uint32_t>(-communicator.all_reduce_max(-std::min(share, 1024)));
  job.workers = static_cast<uint32_t>(communicator.size());
  if (resume.found) {
    const Job before = parse_job(resume.job, resume.folder, {}, "");
    job.workers = before.workers;
    threads = before.threads_per_worker;
  }
  if (job.threads_per_worker == 0) job.threads_per_worker = threads;
}

void open_data(comm::Communicator& communicator, Job& job, RunPlan& plan) {
  plan.train = open_split(job, data::Split::kTrain);
  if (job.data.classes == 0) job.data.classes = static_cast<uint32_t>(plan.train->classes().size());
  plan.val = open_split(job, data::Split::kVal);
  comm::handshake(communicator, {{"training set digest", plan.train->digest()},
                                 {"validation set digest", plan.val->digest()}});
}

// Before every image is read for the mean, which may take an hour: the network takes these images
// and gives these classes. Throws Error (kBadJob).
void expect_network_fits(Job job, const data::Dataset& train) {
  job.data.classes = static_cast<uint32_t>(train.classes().size());
  graph_of(job, data::output_shape(train_transform(job), train));
}

// Who computes what on this rank.
void share_out(comm::Communicator& communicator, comm::Watchdog& watchdog,
               const TrainOptions& options, int cpus, const Job& job, RunPlan& plan) {
  const int hosted = comm::map_workers(static_cast<int>(job.workers), communicator.size())
                         .at(static_cast<size_t>(communicator.rank()))
                         .size();
  plan.lanes = lanes_for(options.device, hosted, cpus, static_cast<int>(job.threads_per_worker));
  // On a GPU the host computes nothing: one thread enqueues.
  const int computing =
      options.device == "cpu" ? plan.lanes * static_cast<int>(job.threads_per_worker) : 1;
  plan.data_threads = options.data_threads >= 0
                          ? options.data_threads
                          : std::max(1, cpu_share(cpus, communicator.local_size()) - computing);
  comm::warn_of_too_few_cpus(communicator, hosted > 0 ? computing : 0);
  watchdog.set_rounds(static_cast<uint32_t>((hosted + plan.lanes - 1) / plan.lanes));
}

void count_steps(const Job& job, RunPlan& plan) {
  plan.length = {.dataset_size = plan.train->size(),
                 .global_batch = uint64_t{job.workers} * job.batch_per_worker,
                 .epochs = job.epochs};
  if (plan.length.dataset_size < plan.length.global_batch)
    fail(ExitCode::kBadData,
         "the training set has {} samples, one step takes {} ({} workers x {}); lower workers or "
         "batch_per_worker",
         plan.length.dataset_size, plan.length.global_batch, job.workers, job.batch_per_worker);
  plan.total_steps = total_steps(plan.length);
  plan.last_step = job.stop_after_steps > 0 ? std::min(job.stop_after_steps, plan.total_steps)
                                            : plan.total_steps;
}

}  // namespace

RunPlan make_plan(comm::Communicator& communicator, comm::Watchdog& watchdog,
                  const TrainOptions& options, const Resume& resume, Job& job) {
  RunPlan plan;
  open_data(communicator, job, plan);
  expect_network_fits(job, *plan.train);
  const int cpus = stay_near_gpu(communicator, options.device);
  choose_workers(communicator, cpus, resume, job);
  share_out(communicator, watchdog, options, cpus, job, plan);
  plan.normalisation =
      resolve(job, *plan.train, communicator, std::max(1, cpus), [&] { watchdog.progress(); });
  count_steps(job, plan);
  const int workers = static_cast<int>(job.workers);
  if (communicator.rank() == 0 && communicator.size() > workers)
    log::warning("{} of {} ranks host no worker (workers: {}); they only evaluate",
                 communicator.size() - workers, communicator.size(), workers);
  plan.job_digest = identity_digest(job, plan.train->digest());
  comm::handshake(communicator, {{"job digest", plan.job_digest}});
  return plan;
}

bool evaluation_due(const RunPlan& plan, const Job& job, const SkippedSteps& skipped,
                    uint64_t done) {
  if (done == plan.total_steps) return true;
  if (job.evaluation.every_epochs == 0) return false;
  const auto epochs = [&](uint64_t step) {
    return step * plan.length.global_batch / plan.length.dataset_size / job.evaluation.every_epochs;
  };
  return epochs(done) != epochs(skipped.previous(done));
}

data::LoaderConfig loader_config(const RunPlan& plan, const Job& job, uint64_t first, uint64_t end,
                                 const comm::WorkerRange& workers, int threads) {
  data::LoaderConfig config = loader_config(job);
  config.first_worker = workers.begin;
  config.end_worker = workers.end;
  config.first_step = first;
  config.end_step = end;
  config.threads = threads;
  config.lanes = plan.lanes;
  return config;
}

std::unique_ptr<data::Loader> open_loader(const RunPlan& plan, const Job& job, uint64_t first,
                                          uint64_t end, const comm::WorkerRange& workers,
                                          int threads, data::PinMemory pin) {
  if (workers.size() == 0 || first >= end) return nullptr;
  data::LoaderConfig config = loader_config(plan, job, first, end, workers, threads);
  config.pin = std::move(pin);
  return std::make_unique<data::Loader>(*plan.train, config);
}

LoaderPlan loader_plan(const RunPlan& plan, const Job& job, const comm::WorkerRange& hosted) {
  LoaderPlan loaders = {.threads = plan.data_threads};
  if (hosted.size() > 0)
    loaders.training_bytes = data::Loader::ring_bytes(
        *plan.train, loader_config(plan, job, 0, plan.total_steps, hosted, plan.data_threads));
  data::EvalLoaderConfig evaluation = eval_loader_config(job);
  evaluation.lanes = plan.lanes;
  evaluation.threads = plan.data_threads;
  loaders.evaluation_bytes = data::EvalLoader::ring_bytes(*plan.val, evaluation);
  return loaders;
}

void warn_of_too_little_memory(const comm::Communicator& communicator, const ops::Graph& graph,
                               const EngineConfig& config) {
  const auto lanes = static_cast<uint64_t>(config.lanes);
  const uint64_t floats = ops::layout_of(ops::fuse(graph)).parameter_floats;
  const uint64_t arena =
      ops::planned_arena(graph, config.batch_per_worker, config.type, true,
                         ops::make_device("cpu", config.threads_per_worker)->slice_bytes())
          .bytes;
  const std::string warning =
      expect_memory(fmt::format("network \"{}\"", printable(graph.name)),
                    lanes * arena + (2 + lanes) * floats * sizeof(float), communicator.local_size(),
                    memory_limit(),
                    "lower batch_per_worker, start fewer ranks here or run fewer workers at once");
  if (communicator.local_rank() == 0 && !warning.empty()) log::warning("{}", warning);
}

}  // namespace convoy::trainer
