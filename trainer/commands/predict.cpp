// convoy predict: what a checkpoint says of image files. One process, no MPI; lines in the order of
// the files, as soon as they are known.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "data_loader/eval_loader.h"
#include "data_loader/file_list.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/commands/commands.h"
#include "trainer/evaluation/classifier.h"
#include "trainer/evaluation/predictions.h"
#include "trainer/evaluation/probabilities.h"
#include "trainer/job/limits.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

struct PredictOptions {
  std::string checkpoint, classes_file, device, weights = "trained";
  std::vector<std::string> files;
  int top = 5, batch = 32, data_threads = -1;
  bool json = false, ten_crop = false;
};

// Whoever reads our output has had enough.
struct OutputClosed {};

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EPIPE) throw OutputClosed{};
    if (n < 0) fail(ExitCode::kIo, "standard output: {}", errno_text());
    text.remove_prefix(static_cast<size_t>(n));
  }
}

// One line for each file, in order, whichever lane is faster. Any thread.
class Lines {
 public:
  // Of batch k; each once.
  void add(uint64_t k, const std::vector<std::string>& out, const std::vector<std::string>& bad) {
    const std::lock_guard lock(mutex_);
    waiting_[k] = {out, bad};
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_;
         first = waiting_.erase(first), ++next_) {
      std::string text;
      for (const std::string& line : first->second.out) text += line + "\n";
      write_all(STDOUT_FILENO, text);
      for (const std::string& line : first->second.bad) log::error("{}", line);
      bad_ += first->second.bad.size();
    }
  }
  uint64_t bad() const { return bad_; }

 private:
  struct Batch {
    std::vector<std::string> out, bad;
  };
  std::mutex mutex_;  // guards all below
  std::map<uint64_t, Batch> waiting_;
  uint64_t next_ = 0, bad_ = 0;
};

std::vector<std::string> lines_of(std::istream& in) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) lines.push_back(line);
  return lines;
}

struct Input {
  std::vector<std::string> files;
  std::vector<std::string> bad;  // folders that give none
};

Input find_files(const PredictOptions& o) {
  Input input;
  const auto add = [&](const std::string& path) {
    try {
      for (std::string& file : data::image_files(path)) input.files.push_back(std::move(file));
    } catch (const Error& error) {
      input.bad.emplace_back(error.what());
    }
  };
  for (const std::string& path : o.files) {
    if (path != "-") {
      add(path);
      continue;
    }
    for (const std::string& line : lines_of(std::cin)) add(line);
  }
  return input;
}

std::string line_of(const std::string& file, const Prediction& p,
                    const std::vector<std::string>& names, bool json) {
  if (json)
    return ordered_json{{"file", file}, {"top", ordered_json::parse(to_json(p.top, names))}}.dump(
        -1, ' ', false, ordered_json::error_handler_t::replace);
  std::string text = printable(file) + ":";
  for (size_t i = 0; i < p.top.size(); ++i)
    text += fmt::format("{} {} {:.2f} %", i > 0 ? "," : "",
                        printable(name_of(p.top[i].label, names)), 100 * p.top[i].probability);
  return text;
}

// Files of one batch size through the network, their lines as they come.
void classify(const PredictOptions& o, const comm::Communicator& communicator,
              const ImageNetwork& network, const data::Dataset& files,
              const std::vector<std::string>& names, int data_threads, Lines& lines) {
  using Kind = data::Looks::Kind;
  const data::Looks looks{.kind = o.ten_crop ? Kind::kTenCrops : Kind::kCentre,
                          .transform = network.transform};
  const auto most = static_cast<uint64_t>(std::max(1, o.batch / looks.count()));
  const auto batch = static_cast<int>(std::min(files.size(), most));
  data::EvalLoaderConfig config = eval_loader_config(network.job);
  config.looks = looks;
  config.shape = network.look;
  config.batch = batch;
  config.slices.resize(data::EvalLoader::slices(files.size(), batch));
  std::iota(config.slices.begin(), config.slices.end(), uint64_t{0});
  config.lanes = network.engine.lanes();
  config.threads = data_threads;
  std::mutex mutex;
  std::map<uint64_t, std::string> errors;  // guarded by mutex; of images that stand in the ring
  config.bad = [&](uint64_t image, const Error& error) {
    const std::lock_guard lock(mutex);
    errors[image] = error.what();
  };
  const auto take_error = [&](uint64_t image) {
    const std::lock_guard lock(mutex);
    const auto found = errors.find(image);
    if (found == errors.end()) return std::optional<std::string>();
    std::optional<std::string> text = std::move(found->second);
    errors.erase(found);
    return text;
  };

  expect_memory(communicator, network, files, config, config.slices.size(), "lower --batch");
  config.pin = [&](void* memory, size_t bytes) { return network.engine.pin(memory, bytes); };
  data::EvalLoader loader(files, config);
  const int64_t rows = int64_t{batch} * looks.count();
  const std::vector<int32_t> no_labels(static_cast<size_t>(rows), -1);
  std::vector<const data::Batch*> held(config.slices.size());
  const Engine::Source source{[&](uint64_t n) {
                                held[n] = &loader.acquire(n);
                                return Engine::Images{held[n]->pixels, no_labels.data()};
                              },
                              [&](uint64_t n) { loader.release(*held[n]); },
                              [&](const std::exception_ptr& error) { loader.stop(error); }};
  const auto classes = static_cast<size_t>(network.classes);
  const auto count = static_cast<size_t>(looks.count());
  const auto take = [&](uint64_t n, std::span<const float> logits) {
    std::vector<std::string> out, bad;
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      const uint64_t image = held[n]->sample_ids[i];
      if (image >= files.size()) break;  // padding
      std::optional<std::string> error = take_error(image);
      std::vector<double> sum(classes, 0.0);
      for (size_t look = 0; look < count && !error; ++look)
        if (!add_softmax(logits.subspan((i * count + look) * classes, classes), sum))
          error = fmt::format("{}: scores that are not finite", printable(files.name(image)));
      for (double& p : sum) p /= static_cast<double>(count);
      if (!error) {
        out.push_back(line_of(files.name(image),
                              predict(image, -1, sum, static_cast<size_t>(o.top)), names, o.json));
      } else {
        bad.push_back(*error);
        if (o.json)
          out.push_back(ordered_json{{"file", files.name(image)}, {"error", *error}}.dump(
              -1, ' ', false, ordered_json::error_handler_t::replace));
      }
    }
    lines.add(n, out, bad);
  };
  network.engine.evaluate(
      config.slices.size(), network.input(config.shape, rows),
      o.weights == "average" ? Engine::Weights::kAverage : Engine::Weights::kTrained, source, take);
}

int predict_files(const PredictOptions& o) {
  expect_limits(1);
  const Input input = find_files(o);
  const auto communicator = comm::make_communicator("local");
  Trained trained = load_trained(*communicator, o.checkpoint, o.device);
  const int cpus = stay_near_gpu(*communicator, o.device);
  const int lanes = classifying_lanes(trained.job, o.device, cpus);
  Classifier classifier(*communicator, std::move(trained), nullptr, o.device, lanes);
  if (o.weights == "average" && !classifier.has_average())
    fail(ExitCode::kUsage, "--weights average: {} has none (optimizer.ema_decay was 0)",
         printable(classifier.trained().folder));
  const std::vector<std::string> names =
      o.classes_file.empty() ? classifier.trained().facts().class_names
                             : read_class_names(o.classes_file, classifier.network().classes);
  for (const std::string& line : input.bad) log::error("{}", line);
  Lines lines;
  const auto start = Clock::now();
  if (!input.files.empty()) {
    const auto files = data::make_file_list(input.files);
    try {
      classify(o, *communicator, classifier.network(), *files, names,
               o.data_threads >= 0 ? o.data_threads : cpus, lines);
    } catch (const OutputClosed&) {
      return 0;
    }
  }
  const double seconds = seconds_since(start);
  const uint64_t bad = lines.bad() + input.bad.size();
  if (input.files.size() > 1)
    log::info("{} images in {:.1f} s ({:.0f}/s){}", input.files.size(), seconds,
              static_cast<double>(input.files.size()) / seconds,
              bad > 0 ? fmt::format(", {} bad", bad) : "");
  return static_cast<int>(bad > 0 ? ExitCode::kBadData : ExitCode::kDone);
}

}  // namespace

int predict_command(const Arguments& arguments) {
  PredictOptions o;
  po::options_description options("Options");
  options.add_options()("checkpoint", po::value(&o.checkpoint)->required(),
                        "a checkpoint, or a run (its newest whole one is taken)")(
      "files", po::value(&o.files)->required(),
      "images, folders of them (and all below), or - for their names on standard input")(
      "top", po::value(&o.top)->default_value(o.top), "guesses of each image")(
      "ten-crop", po::bool_switch(&o.ten_crop),
      "four corners, centre, and their mirror images; probabilities averaged")(
      "weights", po::value(&o.weights)->default_value(o.weights), "trained or average")(
      "classes-file", po::value(&o.classes_file),
      "names of the classes, one a line; default: those that the checkpoint knows")(
      "batch", po::value(&o.batch)->default_value(o.batch), "images (or crops) at once, at most")(
      "device", po::value(&o.device)->default_value("cpu"), "cpu or cuda")(
      "data-threads", po::value(&o.data_threads),
      "threads that read and decode; default: all CPUs")("json", po::bool_switch(&o.json),
                                                         "one JSON object a line");
  const auto values = parse_options(
      arguments, options, "predict --checkpoint DIR FILE|FOLDER|-... [OPTIONS]",
      "One line for each image, in order: its name and the most probable classes with their "
      "probabilities.\n"
      "JPEG and PNG, told apart by content; images are resized and cropped as in the evaluation "
      "of the\n"
      "checkpoint's job, and grey where its network takes grey. A bad image is one line on "
      "standard error,\n"
      "the others go on, and the exit code is 65 at the end; with --json it is an object with "
      "\"error\", too.\n",
      "files...");
  if (!values) return 0;
  if (o.top < 1 || o.top > 1000000) fail(ExitCode::kUsage, "--top {}: must be at least 1", o.top);
  if (o.batch < 1 || o.batch > 65536)
    fail(ExitCode::kUsage, "--batch {}: must be from 1 to 65536", o.batch);
  if (values->count("data-threads") > 0 && o.data_threads < 0)
    fail(ExitCode::kUsage, "--data-threads {}: must not be negative", o.data_threads);
  if (o.weights != "trained" && o.weights != "average")
    fail(ExitCode::kUsage, "--weights {}: there are trained and average", printable(o.weights));
  return predict_files(o);
}

}  // namespace convoy::trainer
