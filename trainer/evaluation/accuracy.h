// What an evaluation counts: each image once, in fixed slices by global index, so that no sum
// depends on the ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "ops/softmax_cross_entropy.h"

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

}  // namespace convoy::trainer
