// Densely connected networks: every layer of a block reads the features of all layers before it.
// Huang et al. 2017, arXiv:1608.06993: table 1 for ImageNet (names are torchvision's), section 3
// and table 2 for CIFAR.
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

struct DenseNetSpec {
  int64_t growth = 32;           // k: channels that each layer adds
  std::vector<int> layers = {};  // per block
  int64_t stem_channels = 64;
  bool imagenet = true;  // the stem: 7x7/2 convolution and 3x3/2 max pool, else a 3x3 convolution
  // B: a 1x1 convolution to 4k channels before each 3x3. C: transitions halve the channels.
  bool bottleneck = true;
  bool compression = true;
};

ops::Graph make_densenet(const DenseNetSpec& spec, const ModelOptions& options);

}  // namespace convoy::trainer
