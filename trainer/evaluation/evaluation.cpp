#include "trainer/evaluation/evaluation.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>

#include "ops/core/error.h"
#include "trainer/evaluation/probabilities.h"
#include "trainer/job/limits.h"

namespace convoy::trainer {
namespace {

// Numbers that the sums of one pass may hold: twice 64 MiB.
constexpr uint64_t kPassNumbers = uint64_t{1} << 23;

std::string to_text(const std::vector<data::ImageShape>& shapes) {
  std::string text;
  for (const data::ImageShape& s : shapes) text += fmt::format("{} {}\n", s.height, s.width);
  return text;
}

void append(const std::string& text, std::vector<data::ImageShape>& shapes) {
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    data::ImageShape shape;
    at = std::from_chars(at, end, shape.height).ptr + 1;
    at = std::from_chars(at, end, shape.width).ptr + 1;
    shapes.push_back(shape);
  }
}

}  // namespace

struct Evaluation::Pass {
  uint64_t first = 0, end = 0;
  ProbabilitySums sums;
  std::vector<data::ImageShape> shapes;  // of its images, where they are asked for

  Pass(uint64_t begin, uint64_t stop, int64_t classes)
      : first(begin), end(stop), sums(stop - begin, classes) {}
};

Evaluation::Evaluation(comm::Communicator& communicator, comm::Watchdog& watchdog,
                       std::vector<ImageNetwork> networks, const data::Dataset& dataset,
                       const EvaluationConfig& config)
    : communicator_(communicator),
      watchdog_(watchdog),
      networks_(std::move(networks)),
      dataset_(dataset),
      config_(config) {
  if (dataset_.size() == 0) fail(ExitCode::kBadData, "the validation set has no images");
  const ImageNetwork& first = networks_.front();
  for (const ImageNetwork& network : networks_) {
    if (network.classes != first.classes)
      fail(ExitCode::kBadData, "{} has {} classes and {} has {}: they cannot be averaged",
           printable(first.name), first.classes, printable(network.name), network.classes);
    total_ += dataset_.size() * rounds(network).size();
  }
  if (!config_.scales.empty()) return;
  for (const ImageNetwork& network : networks_) {
    const data::Looks looks = rounds(network).front();
    expect_memory(network, looks, {one_group(network, looks)});
  }
}

int Evaluation::looks() const {
  const int each =
      config_.ten_crop ? data::kCropLooks : std::max(1, static_cast<int>(config_.scales.size()));
  return each * static_cast<int>(networks_.size());
}

std::vector<data::Looks> Evaluation::rounds(const ImageNetwork& network) const {
  using Kind = data::Looks::Kind;
  if (config_.scales.empty())
    return {{.kind = config_.ten_crop ? Kind::kTenCrops : Kind::kCentre,
             .transform = network.transform}};
  std::vector<data::Looks> out;
  for (const int scale : config_.scales)
    out.push_back({.kind = Kind::kWhole, .transform = {}, .scale = scale});
  return out;
}

int32_t Evaluation::label(uint64_t image) const {
  const int32_t label = dataset_.label(image);
  return config_.class_of_label.empty() ? label
                                        : config_.class_of_label.at(static_cast<size_t>(label));
}

void Evaluation::note_progress(uint64_t images) {
  if (communicator_.rank() != 0 || !config_.progress) return;
  const std::lock_guard lock(mutex_);
  done_ = std::min(total_, done_ + images * static_cast<uint64_t>(communicator_.size()));
  config_.progress(done_, total_);
}

// The ranks share the reading of headers.
void Evaluation::measure(Pass& pass) const {
  const uint64_t count = pass.end - pass.first;
  const auto ranks = static_cast<uint64_t>(communicator_.size());
  const auto rank = static_cast<uint64_t>(communicator_.rank());
  const Job& job = networks_.front().job;
  std::vector<data::ImageShape> mine;
  constexpr uint64_t kAtOnce = 256;
  const uint64_t end = pass.first + count * (rank + 1) / ranks;
  for (uint64_t begin = pass.first + count * rank / ranks; begin < end; begin += kAtOnce) {
    std::vector<uint64_t> images(std::min(kAtOnce, end - begin));
    std::iota(images.begin(), images.end(), begin);
    const std::vector<data::ImageShape> some =
        data::image_shapes(dataset_, images, std::max(1, config_.data_threads), job.data.max_pixels,
                           job.data.apply_exif_orientation);
    mine.insert(mine.end(), some.begin(), some.end());
    watchdog_.progress();
  }
  for (const std::string& text : communicator_.all_gather(to_text(mine))) append(text, pass.shapes);
}

Evaluation::Group Evaluation::one_group(const ImageNetwork& network, const data::Looks& looks) {
  const auto most = static_cast<int>(network.job.evaluation.batch);
  return {.shape = network.look, .batch = std::max(1, most / looks.count()), .images = {}};
}

std::vector<Evaluation::Group> Evaluation::groups(const ImageNetwork& network,
                                                  const data::Looks& looks, Pass& pass) const {
  if (looks.kind != data::Looks::Kind::kWhole) {
    Group all = one_group(network, looks);
    all.images.resize(pass.end - pass.first);
    std::iota(all.images.begin(), all.images.end(), pass.first);
    return {std::move(all)};
  }
  const auto most = static_cast<int>(network.job.evaluation.batch);
  if (pass.shapes.empty()) measure(pass);
  std::map<std::pair<int, int>, Group> by_shape;
  for (uint64_t i = pass.first; i < pass.end; ++i) {
    data::ImageShape shape = data::dense_shape(pass.shapes[i - pass.first], looks.scale);
    shape.channels = network.look.channels;
    Group& group = by_shape[{shape.height, shape.width}];
    group.shape = shape;
    group.images.push_back(i);
  }
  std::vector<Group> out;
  for (auto& [size, group] : by_shape) {
    // About as many pixels as a batch of the usual evaluation, spread evenly.
    const double area = static_cast<double>(group.shape.height) * group.shape.width;
    const double usual = static_cast<double>(network.look.height) * network.look.width * most;
    const auto fits =
        static_cast<uint64_t>(std::clamp(usual / area, 1.0, static_cast<double>(most)));
    const uint64_t batches = (group.images.size() + fits - 1) / fits;
    group.batch = static_cast<int>((group.images.size() + batches - 1) / batches);
    out.push_back(std::move(group));
  }
  return out;
}

data::EvalLoaderConfig Evaluation::loader_config(const ImageNetwork& network,
                                                 const data::Looks& looks,
                                                 const Group& group) const {
  data::EvalLoaderConfig config = eval_loader_config(network.job);
  config.looks = looks;
  config.shape = group.shape;
  config.batch = group.batch;
  config.images = group.images;
  config.lanes = network.engine.lanes();
  config.threads = config_.data_threads;
  config.class_of_label = config_.class_of_label;
  return config;
}

void Evaluation::expect_memory(const ImageNetwork& network, const data::Looks& looks,
                               const std::vector<Group>& groups) const {
  const auto pixels = [](const Group& g) {
    return int64_t{g.batch} * g.shape.height * g.shape.width;
  };
  const Group& most = *std::ranges::max_element(groups, {}, pixels);
  const uint64_t images = most.images.empty() ? dataset_.size() : most.images.size();
  trainer::expect_memory(communicator_, network, dataset_, loader_config(network, looks, most),
                         data::EvalLoader::slices(images, most.batch),
                         config_.scales.empty()
                             ? "lower evaluation.batch in the job, or start fewer ranks here"
                             : "choose smaller --scales, or start fewer ranks here");
}

std::vector<ops::LossResult> Evaluation::compute(const ImageNetwork& network,
                                                 const data::Looks& looks, const Group& group,
                                                 Engine::Weights weights, Pass* pass) {
  const auto ranks = static_cast<uint64_t>(communicator_.size());
  const uint64_t images = group.images.empty() ? dataset_.size() : group.images.size();
  const uint64_t slices = data::EvalLoader::slices(images, group.batch);
  // Slices are dealt out over all passes.
  const uint64_t before = pass ? pass->first / static_cast<uint64_t>(group.batch) : 0;
  std::vector<uint64_t> mine;
  for (uint64_t k = 0; k < slices; ++k)
    if ((before + k) % ranks == static_cast<uint64_t>(communicator_.rank())) mine.push_back(k);
  if (mine.empty()) return {};

  data::EvalLoaderConfig config = loader_config(network, looks, group);
  config.slices = mine;
  config.pin = [&](void* memory, size_t bytes) { return network.engine.pin(memory, bytes); };
  data::EvalLoader loader(dataset_, std::move(config));
  const int64_t rows = int64_t{group.batch} * looks.count();
  const std::vector<int32_t> no_labels(static_cast<size_t>(rows), -1);
  std::vector<const data::Batch*> held(mine.size());
  const auto words = watchdog_.describe(comm::Phase::kInput,
                                        [&] { return file_in_progress(loader.in_progress()); });
  const Engine::Source source{[&](uint64_t n) {
                                const auto wait = watchdog_.input();
                                held[n] = &loader.acquire(n);
                                return Engine::Images{held[n]->pixels, is_plain()
                                                                           ? held[n]->labels.data()
                                                                           : no_labels.data()};
                              },
                              [&](uint64_t n) {
                                loader.release(*held[n]);
                                note_progress(static_cast<uint64_t>(group.batch));
                              },
                              [&](const std::exception_ptr& error) { loader.stop(error); }};
  const auto classes = static_cast<size_t>(network.classes);
  Engine::Logits add;
  if (pass)
    add = [&](uint64_t n, std::span<const float> logits) {
      const data::Batch& batch = *held[n];
      for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
        const uint64_t image = batch.sample_ids[row / static_cast<size_t>(looks.count())];
        if (image == data::kNoSubstitute) return;
        if (!add_softmax(logits.subspan(row * classes, classes),
                         pass->sums.round(image - pass->first)))
          fail(ExitCode::kFault, "{}: scores that are not finite for {}", printable(network.name),
               printable(dataset_.name(image)));
      }
    };
  return network.engine.evaluate(mine.size(), network.input(group.shape, rows), weights, source,
                                 add);
}

Accuracy Evaluation::run(Engine::Weights weights, uint64_t step,
                         const std::function<void(const Prediction&)>& each) {
  watchdog_.enter(comm::Phase::kEvaluate, step);
  done_ = 0;
  const auto batch = uint64_t{networks_.front().job.evaluation.batch};
  if (is_plain() && !each) {
    const ImageNetwork& network = networks_.front();
    const data::Looks looks = rounds(network).front();
    return sum_of_slices(communicator_,
                         compute(network, looks, one_group(network, looks), weights, nullptr));
  }
  const auto classes = static_cast<uint64_t>(networks_.front().classes);
  const uint64_t pass_images = std::max(uint64_t{1}, kPassNumbers / classes / batch) * batch;
  Accuracy sum;
  std::vector<ops::LossResult> slices;
  for (uint64_t first = 0; first < dataset_.size(); first += pass_images) {
    Pass pass(first, std::min(first + pass_images, dataset_.size()), static_cast<int64_t>(classes));
    if (!config_.scales.empty())  // the hopeless ones, before hours go into the others
      for (const ImageNetwork& network : networks_)
        for (const data::Looks& looks : rounds(network))
          expect_memory(network, looks, groups(network, looks, pass));
    for (const ImageNetwork& network : networks_)
      for (const data::Looks& looks : rounds(network)) {
        for (const Group& group : groups(network, looks, pass)) {
          const std::vector<ops::LossResult> results =
              compute(network, looks, group, weights, &pass);
          slices.insert(slices.end(), results.begin(), results.end());
        }
        pass.sums.end_round(communicator_, looks.count());
      }
    for (uint64_t i = first; i < pass.end; ++i) {
      const Prediction p = predict(i, label(i), pass.sums.mean(i - first), config_.top);
      ++sum.images;
      sum.top1 += p.right() ? 1 : 0;
      sum.top5 += p.among(5) ? 1 : 0;
      sum.loss += p.loss;
      if (each && communicator_.rank() == 0) each(p);
    }
  }
  if (is_plain()) return sum_of_slices(communicator_, slices);
  sum.loss /= static_cast<double>(sum.images);
  return sum;
}

}  // namespace convoy::trainer
