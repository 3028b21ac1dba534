// VGG: 3x3 convolutions in five stages, each ended by a max pool, and three fully connected layers.
// Simonyan and Zisserman 2015, arXiv:1409.1556, table 1: columns A, B, D and E. Names, starting
// weights and the adaptive pool behind the features are torchvision's.
#pragma once

#include <array>

#include "trainer/models/models.h"

namespace convoy::trainer {

struct VggSpec {
  std::array<int, 5> convolutions;  // per stage of 64, 128, 256, 512, 512 channels
  bool batch_norm = false;
};

ops::Graph make_vgg(const VggSpec& spec, const ModelOptions& options);

}  // namespace convoy::trainer
