// Pre-activation residual networks: batch norm and ReLU come before each convolution, and nothing
// lies on the way from one addition to the next.
//   He et al. 2016, arXiv:1603.05027: figure 4 (e), table 4 (CIFAR), table 5 (ImageNet).
//   Wide ResNets for CIFAR: Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1.
// The first block takes the stem's activation for its own; where the shape changes, the shortcut
// starts behind the block's first activation (He et al. 2016, appendix, and their code).
#pragma once

#include "trainer/models/resnet.h"

namespace convoy::trainer {

struct PreActSpec {
  Block block = Block::kBasic;
  std::vector<int> blocks;  // per stage; from the second on, each halves the image
  Stem stem = Stem::kImageNet;
  int64_t stem_channels = 64;
  int64_t planes = 64;  // of the first stage, doubled from stage to stage; a bottleneck gives 4x
  ModelOptions::Shortcut shortcut = ModelOptions::Shortcut::kB;  // unless the options say otherwise
  bool dropout_in_blocks = false;  // between a block's convolutions, else before the classifier
};

ops::Graph make_preact_resnet(const PreActSpec& spec, const ModelOptions& options);

}  // namespace convoy::trainer
