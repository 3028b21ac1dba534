#include "trainer/evaluation.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>

#include "ops/core/error.h"
#include "trainer/limits.h"
#include "trainer/probabilities.h"

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
  std::vector<ops::LossResult> slices;   // of this rank, where there is one look of one network

  Pass(uint64_t begin, uint64_t stop, int64_t classes)
      : first(begin), end(stop), sums(stop - begin, classes) {}
};

Evaluation::Evaluation(comm::Communicator& communicator, comm::Watchdog& watchdog,
                       const Members& members, const data::Dataset& dataset,
                       const EvaluationConfig& config)
    : communicator_(communicator),
      watchdog_(watchdog),
      members_(members),
      dataset_(dataset),
      config_(config) {
  if (dataset_.size() == 0) fail(ExitCode::kBadData, "the validation set has no images");
  const Classifier& first = *members_.front();
  for (const auto& member : members_) {
    if (member->classes() != first.classes())
      fail(ExitCode::kBadData, "{} has {} classes and {} has {}: they cannot be averaged",
           printable(first.trained().folder), first.classes(), printable(member->trained().folder),
           member->classes());
    total_ += dataset_.size() * rounds(*member).size();
  }
}

int Evaluation::looks() const {
  const int each =
      config_.ten_crop ? data::kCropLooks : std::max(1, static_cast<int>(config_.scales.size()));
  return each * static_cast<int>(members_.size());
}

std::vector<data::Looks> Evaluation::rounds(const Classifier& member) const {
  using Kind = data::Looks::Kind;
  if (config_.scales.empty())
    return {{.kind = config_.ten_crop ? Kind::kTenCrops : Kind::kCentre,
             .transform = member.transform()}};
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
  const Job& job = members_.front()->job();
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

std::vector<Evaluation::Group> Evaluation::groups(const Classifier& member,
                                                  const data::Looks& looks, Pass& pass) const {
  const auto most = static_cast<int>(member.job().evaluation.batch);
  if (looks.kind != data::Looks::Kind::kWhole) {
    Group all{.shape = member.look_shape(), .batch = std::max(1, most / looks.count())};
    all.images.resize(pass.end - pass.first);
    std::iota(all.images.begin(), all.images.end(), pass.first);
    return {std::move(all)};
  }
  if (pass.shapes.empty()) measure(pass);
  std::map<std::pair<int, int>, Group> by_shape;
  for (uint64_t i = pass.first; i < pass.end; ++i) {
    data::ImageShape shape = data::dense_shape(pass.shapes[i - pass.first], looks.scale);
    shape.channels = member.look_shape().channels;
    Group& group = by_shape[{shape.height, shape.width}];
    group.shape = shape;
    group.images.push_back(i);
  }
  std::vector<Group> out;
  for (auto& [size, group] : by_shape) {
    // About as many pixels as a batch of the usual evaluation, spread evenly.
    const double area = static_cast<double>(group.shape.height) * group.shape.width;
    const double usual =
        static_cast<double>(member.look_shape().height) * member.look_shape().width * most;
    const auto fits =
        static_cast<uint64_t>(std::clamp(usual / area, 1.0, static_cast<double>(most)));
    const uint64_t batches = (group.images.size() + fits - 1) / fits;
    group.batch = static_cast<int>((group.images.size() + batches - 1) / batches);
    out.push_back(std::move(group));
  }
  return out;
}

void Evaluation::compute(Classifier& member, const data::Looks& looks, const Group& group,
                         Engine::Weights weights, Pass& pass) {
  const auto ranks = static_cast<uint64_t>(communicator_.size());
  const uint64_t batches = data::LookLoader::batches(group.images.size(), group.batch);
  // Batches are dealt out over all passes, as Evaluator deals its slices.
  const uint64_t before = pass.first / static_cast<uint64_t>(group.batch);
  std::vector<uint64_t> mine;
  for (uint64_t k = 0; k < batches; ++k)
    if ((before + k) % ranks == static_cast<uint64_t>(communicator_.rank())) mine.push_back(k);
  if (mine.empty()) return;

  Engine& engine = member.engine();
  data::LookLoader loader(dataset_,
                          {.looks = looks,
                           .shape = group.shape,
                           .batch = group.batch,
                           .images = group.images,
                           .batches = mine,
                           .lanes = engine.lanes(),
                           .threads = config_.data_threads,
                           .max_pixels = member.job().data.max_pixels,
                           .apply_exif_orientation = member.job().data.apply_exif_orientation,
                           .class_of_label = config_.class_of_label});
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
  const auto classes = static_cast<size_t>(member.classes());
  const auto add = [&](uint64_t n, std::span<const float> logits) {
    const data::Batch& batch = *held[n];
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      const uint64_t image = batch.sample_ids[row / static_cast<size_t>(looks.count())];
      if (image == data::kNoSubstitute) return;
      if (!add_softmax(logits.subspan(row * classes, classes), pass.sums.round(image - pass.first)))
        fail(ExitCode::kFault, "{}: scores that are not finite for {}",
             printable(member.trained().folder), printable(dataset_.name(image)));
    }
  };
  const std::vector<ops::LossResult> results =
      engine.evaluate(mine.size(), member.input(group.shape, rows), weights, source, add);
  if (is_plain()) pass.slices.insert(pass.slices.end(), results.begin(), results.end());
}

Accuracy Evaluation::run(Engine::Weights weights, uint64_t step,
                         const std::function<void(const Prediction&)>& each) {
  watchdog_.enter(comm::Phase::kEvaluate, step);
  done_ = 0;
  const auto batch = uint64_t{members_.front()->job().evaluation.batch};
  const auto classes = static_cast<uint64_t>(members_.front()->classes());
  const uint64_t pass_images = std::max(uint64_t{1}, kPassNumbers / classes / batch) * batch;
  Accuracy sum;
  std::vector<ops::LossResult> slices;
  for (uint64_t first = 0; first < dataset_.size(); first += pass_images) {
    Pass pass(first, std::min(first + pass_images, dataset_.size()), static_cast<int64_t>(classes));
    for (const auto& member : members_)
      for (const data::Looks& looks : rounds(*member)) {
        for (const Group& group : groups(*member, looks, pass))
          compute(*member, looks, group, weights, pass);
        pass.sums.end_round(communicator_, looks.count());
      }
    slices.insert(slices.end(), pass.slices.begin(), pass.slices.end());
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
