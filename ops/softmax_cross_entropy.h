// Loss and its gradient in one pass over the logits [N, K]. With label smoothing s (Szegedy et al.
// 2016, arXiv:1512.00567, section 7), for each row n:
//
//   target = (1 - s) one-hot(label) + s / K
//   loss_n = - sum_k target_k log softmax(logits_n)_k
//   dlogits_n = (softmax(logits_n) - target) * gradient_scale * loss_scale
//
// Rows with a negative label are padding: no loss, no gradient, not counted. Sums in double, in
// an order that the shape fixes.
#pragma once

#include <cstdint>

namespace convoy::ops {

struct SoftmaxCrossEntropy {
  int64_t n = 0;
  int64_t classes = 0;
  double label_smoothing = 0.0;
  double gradient_scale = 1.0;
  double loss_scale = 1.0;  // FP16: so that small gradients do not vanish
};

struct LossResult {
  double loss_sum = 0;  // over the rows that count
  int64_t count = 0;
  int64_t top1 = 0;  // rows whose label has the largest logit (ties: the lowest class wins)
  int64_t top5 = 0;  // ... is among the five largest
};

// Throws Error (kBadData) for a label of a class that is not there.
void check_labels(const SoftmaxCrossEntropy& spec, const int32_t* labels);

}  // namespace convoy::ops
