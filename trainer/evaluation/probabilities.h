// Class probabilities of images as the mean over several looks at each: crops, scales, networks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace convoy::trainer {

// sum[k] += softmax(logits)[k], in double. False, and nothing added, where a logit is infinite or
// not a number.
bool add_softmax(std::span<const float> logits, std::span<double> sum);

// Sums of probabilities of a range of images that any ranks have computed. In a round every image
// is computed on exactly one rank; rounds are added in their order, so that no bit depends on the
// ranks.
class ProbabilitySums {
 public:
  ProbabilitySums(uint64_t images, int64_t classes);

  // The sum of image i in this round, to be added to: by one thread at a time.
  std::span<double> round(uint64_t i);
  // Collective; every rank then has the sum of all rounds. `looks`: at each image in this round.
  void end_round(comm::Communicator& communicator, int looks);
  // Mean probabilities of image i over all rounds.
  std::vector<double> mean(uint64_t i) const;

 private:
  size_t classes_;
  int looks_ = 0;
  std::vector<double> round_, sum_;
};

}  // namespace convoy::trainer
