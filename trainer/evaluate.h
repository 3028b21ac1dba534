// Exact evaluation: each image once, in fixed slices by global index, so that neither logits nor
// sums depend on the ranks.
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "data_loader/loader.h"
#include "trainer/engine.h"
#include "trainer/setup.h"

namespace convoy::trainer {

struct Accuracy {
  uint64_t images = 0, top1 = 0, top5 = 0;  // counts
  double loss = 0;                          // mean

  double top1_share() const {
    return images ? static_cast<double>(top1) / static_cast<double>(images) : 0;
  }
  double top5_share() const {
    return images ? static_cast<double>(top5) / static_cast<double>(images) : 0;
  }
};

// "top-1 91.23 % (9123 of 10000 images), top-5 99.71 %, loss 0.2512"
std::string to_text(const Accuracy& accuracy);

// Collective: the sum over all slices, of which slice k was computed on rank k % ranks; `mine` are
// this rank's, ascending. In the order of the slices, so that no bit depends on the ranks.
Accuracy sum_of_slices(comm::Communicator& communicator, const std::vector<ops::LossResult>& mine);

class Evaluator {
 public:
  // `val` must outlive it. Throws Error (kBadData) where the set is empty or its images do not fit
  // the network's input.
  Evaluator(const data::Dataset& val, const Job& job, const Normalisation& normalisation,
            int data_threads);

  // Collective; the same result on every rank. The watchdog hears of each slice; the step is what
  // its lines say.
  Accuracy run(comm::Communicator& communicator, Engine& engine, Engine::Weights weights,
               comm::Watchdog& watchdog, uint64_t step) const;

 private:
  const data::Dataset& val_;
  data::EvalLoaderConfig loader_;
  ops::ImageInput input_;
  int data_threads_;
};

}  // namespace convoy::trainer
