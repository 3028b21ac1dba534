// GoogLeNet: nine inception modules, two auxiliary classifiers of weight 0.3 in training. Szegedy
// et al. 2014, arXiv:1409.4842, table 1. Names are torchvision's.
//   googlenet:          torchvision's: batch norm behind every convolution, and its 3x3 in place of
//                       the 5x5 (a known deviation that its weights have)
//   inception_v1:       the paper's: 5x5, biases, response normalisation in the stem
//   inception_v1_naive: the same with modules of figure 2 (a): no 1x1 reduction, and the pool's
//                       channels go on as they are, so that each module is wider than the last
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

ops::Graph make_googlenet(const ModelOptions& options);
ops::Graph make_inception_v1(const ModelOptions& options);
ops::Graph make_inception_v1_naive(const ModelOptions& options);

}  // namespace convoy::trainer
