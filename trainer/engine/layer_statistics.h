// Per layer: how large gradients and weights are, and how far the responses spread (He et al. 2015,
// arXiv:1512.03385, figure 7), for `train --log-gradients`.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "ops/graph.h"

namespace convoy::trainer {

// In the order of the model.
struct LayerStatistics {
  // Weights of convolutions and linear layers, and their gradient: the mean over the samples of the
  // step, summed over all workers, as the optimizer gets it, before clipping and weight decay.
  // norm: L2. rms: norm / sqrt(elements). Where a weight is frozen its gradient's are not a number.
  std::vector<std::string> weights;
  std::vector<double> gradient_norm, gradient_rms, weight_norm, weight_rms;
  // Standard deviation of what a batch norm gives, before the addition or ReLU behind it, over all
  // elements of the step's batches. Frozen ones, which do not look at the batch, are left out.
  // Empty for a network without batch norms: nothing normalises its responses, and figure 7 has
  // none of it.
  std::vector<std::string> batch_norms;
  std::vector<double> response_std;
};

// Sum of squares in double, in a fixed order.
double sum_of_squares(std::span<const float> values);

// The standard deviation of y = gamma (x - mean) / sqrt(variance + epsilon) + beta without looking
// at y: channel c of it has the mean beta_c and the variance gamma_c^2 v_c / (v_c + epsilon), so
//   std^2 = mean over c of (gamma_c^2 v_c / (v_c + epsilon) + (beta_c - mean of beta)^2).
// variance: biased, [C]. Exact for one batch; of several workers' batches v is the mean of theirs,
// which differs where v is not far above epsilon alone.
double response_std(std::span<const float> gamma, std::span<const float> beta,
                    std::span<const double> variance, double epsilon);

}  // namespace convoy::trainer
