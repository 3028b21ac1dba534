#include "trainer/evaluate.h"

#include <cstdlib>

#include "ops/core/error.h"

namespace convoy::trainer {

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

// Slices travel as text, doubles in hexadecimal: exact, and a few bytes.
Accuracy sum_of_slices(comm::Communicator& communicator, const std::vector<ops::LossResult>& mine) {
  std::string text;
  for (const ops::LossResult& s : mine)
    text += fmt::format("{:a} {} {} {}\n", s.loss_sum, s.count, s.top1, s.top5);
  const std::vector<std::string> all = communicator.all_gather(text);
  Accuracy out;
  double loss = 0;
  std::vector<const char*> next;
  for (const std::string& t : all) next.push_back(t.c_str());
  // Slice k is line k / ranks of rank k % ranks.
  for (size_t k = 0; *next[k % all.size()] != '\0'; ++k) {
    const char*& at = next[k % all.size()];
    char* end = nullptr;
    loss += std::strtod(at, &end);
    out.images += std::strtoull(end, &end, 10);
    out.top1 += std::strtoull(end, &end, 10);
    out.top5 += std::strtoull(end, &end, 10);
    at = end + 1;
  }
  out.loss = loss / static_cast<double>(out.images);
  return out;
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

  std::vector<ops::LossResult> results;
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
    results = engine.evaluate(mine.size(), input_, weights, source);
  }
  return sum_of_slices(communicator, results);
}

}  // namespace convoy::trainer
