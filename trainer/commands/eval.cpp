// convoy eval: a checkpoint, or several together, on a validation set; what was right, what was
// wrong, and how sure it was.
#include <unistd.h>

#include <fcntl.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "comm/handshake.h"
#include "comm/launch.h"
#include "data_loader/eval_loader.h"
#include "data_loader/png.h"
#include "ops/core/clock.h"
#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/base/version.h"
#include "trainer/commands/commands.h"
#include "trainer/evaluation/evaluation.h"
#include "trainer/job/limits.h"
#include "trainer/pictures/contact_sheet.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

constexpr size_t kWorstClasses = 10;  // in text
constexpr size_t kMistakes = 24;      // on the contact sheet

struct EvalOptions {
  std::string checkpoint, data, format, split = "val", device, weights, scales_text;
  std::vector<std::string> ensemble;
  bool ten_crop = false;
  std::vector<int> scales;
  std::string confusion, mistakes, predictions;
  int top = 5;
  int data_threads = -1;
  bool json = false;

  bool has_looks() const { return ten_crop || !scales.empty(); }
};

// "224,256": whole numbers with commas between, each once.
std::vector<int> parse_scales(const std::string& text) {
  const auto require = [&](bool holds, const char* what) {
    if (!holds)
      fail(ExitCode::kUsage, "--scales {}: must be {}, e.g. 224,256,384,480,640", printable(text),
           what);
  };
  std::vector<int> scales;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    const bool is_number = !word.empty() && word.size() < 6 &&
                           word.find_first_not_of("0123456789") == std::string::npos;
    const int scale = is_number ? std::stoi(word) : 0;
    require(scale >= 1 && scale <= 8192, "whole numbers from 1 to 8192 with commas between");
    require(std::ranges::find(scales, scale) == scales.end(), "each scale once");
    scales.push_back(scale);
    begin = end + 1;
  }
  require(scales.size() <= 16, "at most 16 scales");
  return scales;
}

// ---- The dataset ----

// --data may be of another format than the data of training.
void choose_data(Job& job, const EvalOptions& o) {
  using Format = Job::Data::Format;
  constexpr std::pair<data::Format, Format> kFormats[] = {
      {data::Format::kImageFolder, Format::kImageFolder},
      {data::Format::kIdx, Format::kIdx},
      {data::Format::kCifar, Format::kCifar},
      {data::Format::kTarShards, Format::kTarShards}};
  job.data.shuffle = Job::Data::Shuffle::kFull;  // evaluation has one order
  if (!o.data.empty()) job.data.path = o.data;
  const auto choose = [&](data::Format format) {
    for (const auto& [theirs, ours] : kFormats)
      if (theirs == format) job.data.format = ours;
  };
  if (!o.format.empty()) {
    const std::optional<data::Format> format = data::format_of(o.format);
    if (!format)
      fail(ExitCode::kUsage, "--as {}: there are {}", printable(o.format), data::format_names());
    return choose(*format);
  }
  if (o.data.empty() || job.data.format == Format::kAuto) return;
  if (job.data.format == Format::kSynthetic) {  // no folder holds that
    job.data.format = Format::kAuto;
    return;
  }
  // The job's own format where the folder holds that, too.
  const std::vector<data::Recognised> found = data::recognise(job.data.path);
  const auto is_own = [&](const data::Recognised& r) {
    return std::ranges::any_of(kFormats, [&](const auto& f) {
      return f.first == r.format && f.second == job.data.format;
    });
  };
  if (!found.empty() && std::ranges::none_of(found, is_own)) job.data.format = Format::kAuto;
}

// The network's classes by the dataset's labels; empty: the labels themselves. By name where the
// checkpoint knows names and the dataset's are among them, else by number.
std::vector<int32_t> map_classes(const std::vector<std::string>& known, int64_t classes,
                                 const std::vector<std::string>& names, const std::string& path,
                                 bool is_root) {
  if (known.empty() && is_root && !names.empty() && static_cast<int64_t>(names.size()) != classes)
    log::warning(
        "{}: has {} classes, the network {}, whose names the checkpoint does not know: classes are "
        "taken by their number (\"{}\" for the first)",
        printable(path), names.size(), classes, printable(names[0]));
  if (known.empty() || known == names) return {};
  std::vector<int32_t> by_name;
  for (const std::string& name : names) {
    const auto at = std::ranges::find(known, name);
    if (at == known.end()) break;
    by_name.push_back(static_cast<int32_t>(at - known.begin()));
  }
  if (by_name.size() == names.size()) return by_name;
  const std::string& stranger = names[by_name.size()];
  if (names.size() > known.size())
    fail(ExitCode::kBadData, "{}: class \"{}\" and {} in all; the network has {} classes",
         printable(path), printable(stranger), names.size(), known.size());
  if (is_root)
    log::warning(
        "{}: the network knows no class \"{}\"; classes are taken by their number (\"{}\" for "
        "\"{}\")",
        printable(path), printable(stranger), printable(names[0]), printable(known[0]));
  return {};
}

// ---- What comes out of it ----

// Throws Error (kIo) where the file could not be written: hours of work must not end so.
void expect_writable(const std::string& path) {
  if (path.empty()) return;
  const std::string trial = path + ".tmp";
  { const File file(trial, O_WRONLY | O_CREAT | O_TRUNC); }
  remove_tree(trial);
}

// FILE.jsonl, which is there when it is whole. Rank 0.
class PredictionsFile {
 public:
  explicit PredictionsFile(const std::string& path)
      : path_(path), temporary_(path + ".tmp"), file_(temporary_, O_WRONLY | O_CREAT | O_TRUNC) {}
  ~PredictionsFile() {
    if (!whole_) ::unlink(temporary_.c_str());
  }
  PredictionsFile(const PredictionsFile&) = delete;
  PredictionsFile& operator=(const PredictionsFile&) = delete;

  void add(const std::string& line) {
    text_ += line + "\n";
    if (text_.size() > size_t{1} << 20) flush();
  }
  void close() {
    flush();
    file_.sync();
    rename_path(temporary_, path_);
    whole_ = true;
  }

 private:
  void flush() {
    file_.write(text_.data(), text_.size());
    text_.clear();
  }

  std::string path_, temporary_, text_;
  File file_;
  bool whole_ = false;
};

// All that is counted over the images of one evaluation. Rank 0.
struct Findings {
  Findings(size_t classes, bool sheet) : confusion(classes), mistakes(sheet ? kMistakes : 0) {}
  void add(const Prediction& p) {
    confusion.add(p);
    calibration.add(p);
    mistakes.add(p);
  }
  Confusion confusion;
  Calibration calibration;
  WorstMistakes mistakes;
};

struct Setting {
  const EvalOptions& options;
  const std::vector<std::unique_ptr<Classifier>>& members;
  const data::Dataset& dataset;
  std::vector<std::string> names;  // of the network's classes
  std::vector<int32_t> class_of_label;
};

std::string line_of(const Setting& s, const Prediction& p) {
  ordered_json line = {{"index", p.image}};
  if (!s.dataset.raw_shape()) line["file"] = s.dataset.name(p.image);
  line["label"] = p.label;
  line["class"] = name_of(p.label, s.names);
  std::vector<Guess> top = p.top;
  if (top.size() > static_cast<size_t>(s.options.top))
    top.resize(static_cast<size_t>(s.options.top));
  line["top"] = ordered_json::parse(to_json(top, s.names));
  return line.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

void draw_mistakes(const Setting& s, const WorstMistakes& mistakes) {
  const ImageNetwork first = s.members.front()->network();
  const data::ImageShape shape = first.look;
  std::vector<uint64_t> images;
  for (const Prediction& p : mistakes.list()) images.push_back(p.image);
  std::vector<SheetImage> sheet;
  std::optional<data::EvalLoader> loader;
  if (!images.empty()) {
    data::EvalLoaderConfig config = eval_loader_config(first.job);
    config.looks.transform = first.transform;
    config.shape = shape;
    config.batch = static_cast<int>(images.size());
    config.images = images;
    config.slices = {0};
    config.threads = 0;
    loader.emplace(s.dataset, config);
    const data::Batch& batch = loader->acquire(0);
    for (size_t i = 0; i < images.size(); ++i) {
      const Prediction& p = mistakes.list()[i];
      sheet.push_back(
          {batch.pixels + i * shape.bytes(),
           {fmt::format("is {}", name_of(p.label, s.names)),
            fmt::format("{:.0f}% {}", 100 * p.top[0].probability, name_of(p.top[0].label, s.names)),
            fmt::format("#{}", p.image)}});
    }
  }
  const std::string title = fmt::format("the {} most confident mistakes", sheet.size());
  const ContactSheet drawn = make_contact_sheet(title, shape, sheet);
  rewrite_file(s.options.mistakes, data::encode_png(drawn.pixels, drawn.width, drawn.height));
}

double share(uint64_t part, uint64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// Classes that have images, the least accurate first, of equals the lower number.
std::vector<size_t> worst_classes(const Confusion& confusion) {
  std::vector<size_t> order;
  for (size_t c = 0; c < confusion.classes(); ++c)
    if (confusion.images(c) > 0) order.push_back(c);
  std::ranges::stable_sort(order, [&](size_t a, size_t b) {
    return share(confusion.correct(a), confusion.images(a)) <
           share(confusion.correct(b), confusion.images(b));
  });
  return order;
}

std::string class_table(const Setting& s, const Confusion& confusion) {
  std::vector<size_t> order = worst_classes(confusion);
  const size_t all = order.size();
  order.resize(std::min(all, kWorstClasses));
  size_t width = 5;
  const auto shown = [&](size_t c) {
    return printable(name_of(static_cast<int32_t>(c), s.names), 32);
  };
  for (const size_t c : order) width = std::max(width, shown(c).size());
  std::string text = fmt::format("{:<{}}  images  correct  most often taken for\n",
                                 all > order.size() ? "worst" : "class", width);
  for (const size_t c : order) {
    const size_t other = confusion.mistaken_for(c);
    text += fmt::format(
        "{:<{}}  {:>6}  {:>5.1f} %  {}\n", shown(c), width, confusion.images(c),
        100 * share(confusion.correct(c), confusion.images(c)),
        other == c ? "-" : fmt::format("{} ({})", shown(other), confusion.at(c, other)));
  }
  return text;
}

std::string about_looks(const EvalOptions& o, size_t members) {
  std::string text;
  if (o.ten_crop) text = "ten crops, probabilities averaged";
  if (!o.scales.empty())
    text = fmt::format("whole images at {} pixels, probabilities averaged over scales",
                       fmt::join(o.scales, ", "));
  if (members > 1)
    text += fmt::format("{}{} networks, probabilities averaged", text.empty() ? "" : "; ", members);
  return text;
}

struct Results {
  std::optional<Accuracy> trained, average;
};

ordered_json json_of(const Setting& s, const Results& r, const Findings& findings) {
  const EvalOptions& o = s.options;
  const CheckpointFacts& facts = s.members.front()->trained().facts();
  const Accuracy& accuracy = r.trained ? *r.trained : *r.average;
  ordered_json out = {{"checkpoint", s.members.front()->trained().folder},
                      {"step", facts.step},
                      {"images", accuracy.images},
                      {"correct", accuracy.top1},
                      {"top1", accuracy.top1_share()},
                      {"top5", accuracy.top5_share()},
                      {"loss", accuracy.loss}};
  if (r.trained && r.average) {
    out["ema_top1"] = r.average->top1_share();
    out["ema_top5"] = r.average->top5_share();
  }
  out["split"] = o.split;
  out["weights"] = r.trained ? "trained" : "average";
  out["looks"] = o.ten_crop ? "ten_crop" : o.scales.empty() ? "centre" : "scales";
  if (!o.scales.empty()) out["scales"] = o.scales;
  if (s.members.size() > 1) {
    out["ensemble"] = ordered_json::array();
    for (const auto& member : s.members) out["ensemble"].push_back(member->trained().folder);
  }
  out["calibration_error"] = findings.calibration.error();
  out["calibration"] = ordered_json::array();
  for (const Calibration::Bin& bin : findings.calibration.bins())
    out["calibration"].push_back(
        {{"images", bin.images},
         {"accuracy", share(bin.correct, bin.images)},
         {"confidence", bin.images > 0 ? bin.probability / static_cast<double>(bin.images) : 0.0}});
  out["classes"] = ordered_json::array();
  for (size_t c = 0; c < findings.confusion.classes(); ++c) {
    const uint64_t images = findings.confusion.images(c), correct = findings.confusion.correct(c);
    const size_t other = findings.confusion.mistaken_for(c);
    ordered_json one = {{"class", c},
                        {"name", name_of(static_cast<int32_t>(c), s.names)},
                        {"images", images},
                        {"correct", correct},
                        {"accuracy", share(correct, images)}};
    if (other != c) one["most_often_taken_for"] = other;
    out["classes"].push_back(std::move(one));
  }
  return out;
}

std::string text_of(const Setting& s, const Results& r, const Findings& findings) {
  const CheckpointFacts& facts = s.members.front()->trained().facts();
  std::string text;
  if (r.trained) text += fmt::format("step {}: {}\n", facts.step, to_text(*r.trained));
  if (r.average && !r.trained) text += fmt::format("step {}, ", facts.step);
  if (r.average) text += fmt::format("moving average: {}\n", to_text(*r.average));
  if (const std::string looks = about_looks(s.options, s.members.size()); !looks.empty())
    text += looks + "\n";
  text += fmt::format("calibration error {:.2f} %\n{}", 100 * findings.calibration.error(),
                      class_table(s, findings.confusion));
  return text;
}

// ---- The command ----

int evaluate_checkpoint(comm::Communicator& communicator, OwnedWatchdog& watchdog,
                        const EvalOptions& o) {
  std::optional<comm::StartAlarm> alarm(std::in_place);  // until there is a watchdog
  const bool is_root = communicator.rank() == 0;
  std::vector<Trained> trained;
  trained.push_back(load_trained(communicator, o.checkpoint, o.device));
  for (const std::string& path : o.ensemble)
    trained.push_back(load_trained(communicator, path, o.device));
  Job data_job = trained.front().job;
  choose_data(data_job, o);
  watchdog = std::make_unique<comm::Watchdog>(communicator, watchdog_config(data_job));
  alarm.reset();
  const auto dataset =
      open_split(data_job, o.split == "val" ? data::Split::kVal : data::Split::kTrain);
  const Fingerprint own = fingerprint(o.device, communicator.local_rank());
  std::string digests;
  for (const Trained& t : trained) digests += (digests.empty() ? "" : " ") + state_digest(t.state);
  comm::handshake(communicator, {{"version", kVersion},
                                 {"checkpoint digest", digests},
                                 {"validation set digest", dataset->digest()},
                                 {"device", own.device},
                                 {"instruction set", own.instruction_set},
                                 {"libraries", own.libraries}});

  const std::vector<std::string>& known = trained.front().facts().class_names;
  for (const Trained& t : trained) {
    const std::vector<std::string>& theirs = t.facts().class_names;
    if (!known.empty() && !theirs.empty() && theirs != known)
      fail(ExitCode::kBadData, "{} and {} have classes of other names: they cannot be averaged",
           printable(trained.front().folder), printable(t.folder));
    if (!o.scales.empty() && !t.normalisation.mean_image.empty())
      fail(ExitCode::kBadData,
           "--scales: {} subtracts a mean image (data.mean_subtraction: PER_PIXEL), which has the "
           "size of training alone",
           printable(t.folder));
  }
  const int cpus = stay_near_gpu(communicator, o.device);
  std::vector<std::unique_ptr<Classifier>> members;
  std::vector<ImageNetwork> networks;
  for (Trained& t : trained) {
    const int lanes = classifying_lanes(t.job, o.device, cpus);
    members.push_back(
        std::make_unique<Classifier>(communicator, std::move(t), dataset.get(), o.device, lanes));
    if (o.weights == "average" && !members.back()->has_average())
      fail(ExitCode::kUsage, "--weights average: {} has none (optimizer.ema_decay was 0)",
           printable(members.back()->trained().folder));
    networks.push_back(members.back()->network());
  }
  const std::vector<std::string>& names = members.front()->trained().facts().class_names;
  const Setting setting{
      .options = o,
      .members = members,
      .dataset = *dataset,
      .names = names.empty() ? dataset->classes() : names,
      .class_of_label = map_classes(names, networks.front().classes, dataset->classes(),
                                    data_job.data.path, is_root)};

  std::optional<Progress> progress;
  if (is_root && ::isatty(2) == 1) progress.emplace();
  const auto start = Clock::now();
  EvaluationConfig config{.ten_crop = o.ten_crop,
                          .scales = o.scales,
                          .top = std::max(size_t{5}, static_cast<size_t>(o.top)),
                          .data_threads = o.data_threads >= 0 ? o.data_threads
                                          : o.device == "cpu" ? 1
                                                              : std::max(1, cpus - 1),
                          .class_of_label = setting.class_of_label,
                          .progress = [&](uint64_t done, uint64_t of) {
                            if (progress)
                              progress->update(to_line("eval", done, of, seconds_since(start), ""));
                          }};
  Evaluation evaluation(communicator, *watchdog, networks, *dataset, config);
  std::optional<PredictionsFile> file;
  if (is_root) {
    expect_writable(o.confusion);
    expect_writable(o.mistakes);
    if (!o.predictions.empty()) file.emplace(o.predictions);
  }
  Findings findings(static_cast<size_t>(networks.front().classes), !o.mistakes.empty());
  const auto each = [&](const Prediction& p) {
    findings.add(p);
    if (file) file->add(line_of(setting, p));
  };
  const uint64_t step = members.front()->trained().facts().step;
  // What is written is of the weights that come first.
  Results results;
  using Weights = Engine::Weights;
  if (o.weights != "average") results.trained = evaluation.run(Weights::kTrained, step, each);
  const bool all_have = std::ranges::all_of(members, [](auto& m) { return m->has_average(); });
  if (o.weights == "average")
    results.average = evaluation.run(Weights::kAverage, step, each);
  else if (o.weights.empty() && all_have)  // the scores of each image are looked at here, too
    results.average = evaluation.run(Weights::kAverage, step, [](const Prediction&) {});
  if (progress) progress->finish();
  if (!is_root) return 0;
  if (file) file->close();
  if (!o.confusion.empty())
    rewrite_file(o.confusion, o.confusion.ends_with(".csv")
                                  ? to_csv(findings.confusion, setting.names)
                                  : to_json(findings.confusion, setting.names));
  if (!o.mistakes.empty()) draw_mistakes(setting, findings.mistakes);
  if (o.json)
    std::cout << json_of(setting, results, findings)
                     .dump(2, ' ', false, ordered_json::error_handler_t::replace)
              << std::endl;
  else
    std::cout << text_of(setting, results, findings) << std::flush;
  return 0;
}

void check(const EvalOptions& o, bool has_threads) {
  if (has_threads && o.data_threads < 0)
    fail(ExitCode::kUsage, "--data-threads {}: must not be negative", o.data_threads);
  if (o.split != "train" && o.split != "val")
    fail(ExitCode::kUsage, "--split {}: there are train and val", printable(o.split));
  if (!o.weights.empty() && o.weights != "trained" && o.weights != "average")
    fail(ExitCode::kUsage, "--weights {}: there are trained and average", printable(o.weights));
  if (o.ten_crop && !o.scales.empty())
    fail(ExitCode::kUsage,
         "--ten-crop and --scales: ten crops are of one size, and whole images have no corners to "
         "crop; choose one");
  if (o.top < 1 || o.top > 1000) fail(ExitCode::kUsage, "--top {}: must be from 1 to 1000", o.top);
  expect_end("--confusion", o.confusion, {".csv", ".json"});
  expect_end("--mistakes", o.mistakes, {".png"});
  expect_end("--predictions", o.predictions, {".jsonl"});
}

std::optional<EvalOptions> parse_eval_options(const Arguments& arguments) {
  EvalOptions o;
  po::options_description options("Evaluation");
  options.add_options()("checkpoint", po::value(&o.checkpoint)->required(),
                        "a checkpoint, or a run (its newest whole one is taken)")(
      "ensemble", po::value(&o.ensemble)->multitoken(),
      "more of them, of any models with the same classes: their probabilities are averaged")(
      "weights", po::value(&o.weights),
      "trained or average (the moving average); default: trained, and where there is an average "
      "its accuracy beside it")("data", po::value(&o.data),
                                "folder of the dataset, of any format; default: the one of "
                                "training")(
      "as", po::value(&o.format),
      "its format, where a folder could be several: idx, cifar, "
      "tar_shards, image_folder")("split", po::value(&o.split)->default_value("val"),
                                  "train or val")(
      "ten-crop", po::bool_switch(&o.ten_crop),
      "four corners, centre, and their mirror images; probabilities averaged")(
      "scales", po::value(&o.scales_text),
      "whole images, the shorter side resized to each of these, e.g. 224,256,384,480,640")(
      "confusion", po::value(&o.confusion), "FILE.csv or FILE.json: true by predicted class")(
      "mistakes", po::value(&o.mistakes),
      "FILE.png: the most confident wrong ones, a contact sheet")(
      "predictions", po::value(&o.predictions), "FILE.jsonl: every image with its first guesses")(
      "top", po::value(&o.top)->default_value(5), "guesses of each image in --predictions")(
      "device", po::value(&o.device)->default_value("cpu"), "cpu or cuda")(
      "data-threads", po::value(&o.data_threads), "threads that read and decode images")(
      "json", po::bool_switch(&o.json), "one JSON object on standard output");
  const auto values = parse_options(
      arguments, options, "eval --checkpoint DIR [OPTIONS]",
      "Every image of the set is counted once, on any number of ranks, with the same bits.\n"
      "\n"
      "--ten-crop: of the central square of data.eval.resize pixels (Krizhevsky et al. 2012). "
      "--scales: the\n"
      "network becomes fully convolutional (He et al. 2015, section 3.4); the map of class scores "
      "is averaged\n"
      "before the softmax, and probabilities over scales. So that images come in few shapes, the "
      "longer side\n"
      "is cut to a multiple of 32 pixels about the centre, and to twice the shorter one at most.\n"
      "Calibration error: the mean distance of accuracy and confidence in 15 bins (Guo et al. "
      "2017).\n"
      "Files of --confusion, --mistakes and --predictions that are there are replaced at the "
      "end.\n");
  if (!values) return std::nullopt;
  if (values->count("scales") > 0) o.scales = parse_scales(o.scales_text);
  check(o, values->count("data-threads") > 0);
  return o;
}

}  // namespace

int eval_command(const Arguments& arguments) {
  return run_on_ranks(arguments, parse_eval_options, evaluate_checkpoint);
}

}  // namespace convoy::trainer
