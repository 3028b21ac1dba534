// Loss and its gradient in one pass over the logits [N, K]. With label smoothing s (Szegedy et al.
// 2016, arXiv:1512.00567, section 7), for each row n:
//
//   target = (1 - s) one-hot(label) + s / K
//
// and where images were mixed, with a the label's share and the label of the row before (of the
// first row: of the last), a one-hot(label) + (1 - a) one-hot(label before) in place of
// one-hot(label); then
//
//   loss_n = - sum_k target_k log softmax(logits_n)_k
//   dlogits_n = (softmax(logits_n) - target) * gradient_scale * loss_scale
//
// Rows with a negative label are padding: no loss, no gradient, not counted. Where loss_n is not
// finite, neither is dlogits_n: who looks at gradients alone sees it, too. Sums in double, in an
// order that the shape fixes.
#pragma once

#include <cstdint>

#include "ops/core/host_device.h"

namespace convoy::ops {

struct SoftmaxCrossEntropy {
  int64_t n = 0;
  int64_t classes = 0;
  double label_smoothing = 0.0;
  double gradient_scale = 1.0;
  double loss_scale = 1.0;   // FP16: so that small gradients do not vanish
  double label_share = 1.0;  // of each row's own label: BatchMix::label_share. Below 1: no padding
};

struct LossResult {
  double loss_sum = 0;  // over the rows that count
  int64_t count = 0;
  // Rows whose label (of two, that with the larger share) has the largest logit (ties: the lowest
  // class wins).
  int64_t top1 = 0;
  int64_t top5 = 0;  // ... is among the five largest
};

// The one or two labels of a row.
struct RowLabels {
  int64_t main = 0;   // that with the larger share
  int64_t other = 0;  // main where there is one
  double share = 1;   // of main

  CONVOY_HOST_DEVICE double share_of(int64_t label) const {
    return (label == main ? share : 0.0) + (label == other ? 1 - share : 0.0);
  }
};

CONVOY_HOST_DEVICE inline RowLabels labels_of(const SoftmaxCrossEntropy& s, const int32_t* labels,
                                              int64_t row) {
  const int64_t own = labels[row];
  if (s.label_share == 1) return {own, own, 1};
  const int64_t before = labels[row > 0 ? row - 1 : s.n - 1];
  if (s.label_share >= 0.5) return {own, before, s.label_share};
  return {before, own, 1 - s.label_share};
}

// Throws Error (kBadData) for a label of a class that is not there.
void check_labels(const SoftmaxCrossEntropy& spec, const int32_t* labels);

}  // namespace convoy::ops
