// convoy data show: the very pixels that a step of a job is fed, as a picture.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "data_loader/eval_loader.h"
#include "data_loader/loader.h"
#include "data_loader/png.h"
#include "ops/core/error.h"
#include "trainer/base/file.h"
#include "trainer/commands/commands.h"
#include "trainer/engine/setup.h"
#include "trainer/job/job.h"
#include "trainer/job/limits.h"
#include "trainer/pictures/contact_sheet.h"
#include "trainer/records/sample_log.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

struct DataShow {
  std::string job, data, split = "train", out;
  std::vector<std::string> sets;
  uint64_t step = 0;
  int worker = 0, count = 0, threads = 0;
  bool json = false;
};

// What is the same of a training batch and of a slice for evaluation.
struct Shown {
  const Job& job;
  const data::Dataset& dataset;
  const data::Batch& batch;
};

std::string class_of(const Shown& s, size_t i) {
  const auto label = static_cast<size_t>(s.batch.labels[i]);
  const std::vector<std::string>& names = s.dataset.classes();
  return label < names.size() ? names[label] : fmt::format("class {}", label);
}

uint64_t substitute_of(const Shown& s, size_t i) {
  return s.batch.substitutes.empty() ? data::kNoSubstitute : s.batch.substitutes[i];
}

// Images that are there: the last slice of an evaluation ends in padding.
size_t images_in(const data::Batch& batch) {
  return static_cast<size_t>(std::count_if(batch.labels.begin(), batch.labels.end(),
                                           [](int32_t label) { return label >= 0; }));
}

std::string title_of(const DataShow& o, const Shown& s, const std::string& digest) {
  const std::string place =
      o.split == "val" ? fmt::format("slice {} of evaluation", o.step)
                       : fmt::format("step {}, worker {} of {}", o.step, o.worker, s.job.workers);
  return fmt::format("{}: {}, {}, sha256 {}", printable(s.job.name), place,
                     to_string(s.batch.shape), digest.substr(0, 16));
}

ContactSheet sheet_of(const DataShow& o, const Shown& s, const std::string& digest) {
  std::vector<SheetImage> images;
  const size_t count = std::min(images_in(s.batch), static_cast<size_t>(o.count));
  for (size_t i = 0; i < count; ++i) {
    std::string id = fmt::format("#{}", s.batch.sample_ids[i]);
    if (const uint64_t other = substitute_of(s, i); other != data::kNoSubstitute)
      id += fmt::format(" by #{}", other);
    if (o.split == "train") id += fmt::format(" e{}", s.batch.epochs[i]);
    images.push_back({s.batch.pixels + i * s.batch.shape.bytes(), {class_of(s, i), id}});
  }
  return make_contact_sheet(title_of(o, s, digest), s.batch.shape, images);
}

ordered_json to_json(const DataShow& o, const Shown& s, const std::string& digest,
                     const ContactSheet& sheet) {
  ordered_json out = {{"job", printable(s.job.name)}, {"split", o.split}, {"step", o.step}};
  if (o.split == "train") {
    out["worker"] = o.worker;
    out["workers"] = s.job.workers;
    out["seed"] = s.job.seed;
  }
  out["shape"] = {s.batch.shape.height, s.batch.shape.width, s.batch.shape.channels};
  out["digest"] = digest;
  out["dataset_digest"] = s.dataset.digest();
  out["sheet"] = {{"width", sheet.width}, {"height", sheet.height}, {"scale", sheet.scale}};
  out["samples"] = ordered_json::array();
  for (size_t i = 0; i < images_in(s.batch); ++i) {
    const uint64_t other = substitute_of(s, i);
    const bool replaced = other != data::kNoSubstitute;
    ordered_json one = {{"id", s.batch.sample_ids[i]},
                        {"epoch", s.batch.epochs[i]},
                        {"label", s.batch.labels[i]},
                        {"class", printable(class_of(s, i))},
                        {"name", printable(s.dataset.name(s.batch.sample_ids[i]))},
                        {"substitute", replaced ? ordered_json(other) : ordered_json(nullptr)}};
    if (i < sheet.places.size()) one["at"] = {sheet.places[i].first, sheet.places[i].second};
    out["samples"].push_back(std::move(one));
  }
  return out;
}

void write(const DataShow& o, const Shown& s) {
  const std::string digest = batch_digest(s.batch);
  const ContactSheet sheet = sheet_of(o, s, digest);
  const std::string json = to_json(o, s, digest, sheet).dump(2) + "\n";
  const std::string stem = o.out.substr(0, o.out.size() - 4);  // ".png"
  rewrite_file(o.out, data::encode_png(sheet.pixels, sheet.width, sheet.height));
  rewrite_file(stem + ".json", json);
  if (o.json)
    std::cout << json << std::flush;
  else
    std::cout << fmt::format("{} and {}: {} of {} images\n{}\nsha256 {}\n", printable(o.out),
                             printable(stem + ".json"), sheet.places.size(), images_in(s.batch),
                             title_of(o, s, digest), digest);
}

void show_step(const DataShow& o, const Job& job, const data::Dataset& dataset) {
  if (job.workers == 0)
    fail(ExitCode::kUsage,
         "the job leaves workers to the first start of a run: give the run's own job with --job "
         "RUN/job.txtpb, or --set workers=N");
  if (o.worker < 0 || o.worker >= static_cast<int>(job.workers))
    fail(ExitCode::kUsage, "--worker {}: the job has workers 0 to {}", o.worker, job.workers - 1);
  data::LoaderConfig config = loader_config(job);
  config.first_worker = o.worker;
  config.end_worker = o.worker + 1;
  config.first_step = o.step;
  config.end_step = o.step + 1;
  config.threads = o.threads;
  data::Loader loader(dataset, config);
  const data::Batch& batch = loader.acquire(o.step, o.worker);
  write(o, {job, dataset, batch});
  loader.release(batch);
}

void show_slice(const DataShow& o, const Job& job, const data::Dataset& dataset) {
  data::EvalLoaderConfig config = eval_loader_config(job);
  const uint64_t slices = data::EvalLoader::slices(dataset.size(), config.batch);
  if (o.step >= slices)
    fail(ExitCode::kUsage, "--step {}: an evaluation has slices 0 to {} of {} images", o.step,
         slices - 1, config.batch);
  config.slices = {o.step};
  config.threads = o.threads;
  data::EvalLoader loader(dataset, config);
  const data::Batch& batch = loader.acquire(0);
  write(o, {job, dataset, batch});
  loader.release(batch);
}

int show(const Arguments& arguments) {
  DataShow o;
  po::options_description options("Options");
  options.add_options()("job", po::value(&o.job)->required(),
                        "a job file; of a run: RUN/job.txtpb, which has its workers")(
      "data", po::value(&o.data), "folder of the dataset, in place of data.path")(
      "set", po::value(&o.sets)->composing(), "KEY=VALUE: a field of the job")(
      "step", po::value(&o.step)->required(),
      "counted from 0, done or not; with --split val a slice of evaluation.batch images")(
      "worker", po::value(&o.worker)->default_value(0), "of the step, from 0")(
      "split", po::value(&o.split)->default_value("train"),
      "train: what a step is fed; val: what an evaluation is fed")(
      "count", po::value(&o.count)->default_value(0), "images of the batch; 0: all")(
      "out", po::value(&o.out)->required(),
      "FILE.png; FILE.json is written beside it; both are replaced if they are there")(
      "data-threads", po::value(&o.threads)->default_value(0), "that decode; 0: all CPUs")(
      "json", po::bool_switch(&o.json), "print what FILE.json holds");
  const auto values = parse_options(
      arguments, options, "data show --job JOB --step S --out FILE.png [OPTIONS]",
      "The pixels as the network is fed them, after crop, resize and flip, before mixup and before "
      "the mean is\n"
      "subtracted. Under each image its class, its number in the dataset (\"#3 by #8\": 3 is bad "
      "and 8\n"
      "stands there) and its epoch. The digest is a SHA-256 of the whole batch, its pixels [B, H, "
      "W, C]\n"
      "and then its labels (int32, little endian); a run with log.batch_digests writes the same "
      "one\n"
      "into samples.rank<r>.jsonl.\n");
  if (!values) return 0;
  constexpr uint64_t kMaxStep = uint64_t{1} << 40;
  if (o.step > kMaxStep) fail(ExitCode::kUsage, "--step {}: at most {}", o.step, kMaxStep);
  if (o.count < 0 || o.threads < 0)
    fail(ExitCode::kUsage, "--count and --data-threads must not be negative");
  if (o.count == 0) o.count = std::numeric_limits<int>::max();
  if (o.threads == 0) o.threads = usable_cpus();
  if (o.split != "train" && o.split != "val")
    fail(ExitCode::kUsage, "--split {}: there are train and val", printable(o.split));
  if (o.split == "val") refuse_given(*values, {"worker"}, "--split train");
  expect_end("--out", o.out, {".png"});
  if (!o.data.empty()) o.sets.push_back("data.path=" + o.data);
  const Job job = load_job(o.job, o.sets, "");
  const auto dataset = open_split(job, o.split == "val" ? data::Split::kVal : data::Split::kTrain);
  if (dataset->size() == 0) fail(ExitCode::kBadData, "the dataset has no images");
  o.split == "val" ? show_slice(o, job, *dataset) : show_step(o, job, *dataset);
  return 0;
}

}  // namespace

int data_command(const Arguments& arguments) {
  if (!arguments.empty() && arguments[0] == "show")
    return show({arguments.begin() + 1, arguments.end()});
  if (arguments.empty() || (arguments[0] != "--help" && arguments[0] != "-h"))
    fail(ExitCode::kUsage, "convoy data needs to know what: show (convoy data --help)");
  std::cout << "Usage: convoy data show [OPTIONS]\n\n"
               "  show  the very images of a step, as a picture\n"
               "\nconvoy data show --help shows its options.\n";
  return 0;
}

}  // namespace convoy::trainer
