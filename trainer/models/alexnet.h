// AlexNet: five convolutions and three fully connected layers. Two editions:
//   one tower:  Krizhevsky 2014, arXiv:1404.5997, as torchvision has it (64, 192, 384, 256, 256
//               filters, padding 2, no response normalisation); names are torchvision's.
//   two towers: Krizhevsky et al. 2012, figure 2 and section 3.5: 96, 256, 384, 384, 256 filters,
//               conv2, conv4 and conv5 in two groups, response normalisation behind the first two,
//               overlapping pools. Its arithmetic needs 227 x 227 pixels, not the paper's 224.
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

ops::Graph make_alexnet(const ModelOptions& options);
ops::Graph make_alexnet_two_tower(const ModelOptions& options);

}  // namespace convoy::trainer
