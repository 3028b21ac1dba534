#include "trainer/run/train_options.h"

#include "ops/core/error.h"
#include "trainer/base/fault.h"

namespace convoy::trainer {

namespace po = boost::program_options;

std::optional<TrainOptions> parse_train_options(const Arguments& arguments) {
  TrainOptions o;
  std::string data, until;
  uint32_t gradients = 0;
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
      "resume although the job changed in a way that changes the result, or the GPU's libraries "
      "refuse an engine that the run has used (another one is taken)")(
      "until", po::value(&until),
      "leave by itself in time, saved, with exit code 75: a moment (2026-11-25T18:00), a time from "
      "the start (+90m, +2h30m), or job: the end of the Slurm job")(
      "log-gradients", po::value(&gradients)->value_name("N"),
      "write gradient and weight norms and the spread of the responses of each layer to "
      "gradients.jsonl every N steps (log.gradients); convoy report --plot draws them")(
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
  if (values->count("log-gradients") > 0)
    o.sets.push_back(fmt::format("log.gradients={}", gradients));
  if (!data.empty()) o.sets.push_back("data.path=" + data);
  [[maybe_unused]] const Faults refused_now(o.faults);
  return o;
}

}  // namespace convoy::trainer
