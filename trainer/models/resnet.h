// Residual networks and their plain counterparts. He et al. 2015, arXiv:1512.03385: table 1 for
// ImageNet, section 4.2 for CIFAR-10. Names of parameters are torchvision's.
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

enum class Block { kBasic, kBottleneck };

struct ResNetSpec {
  Block block = Block::kBasic;
  std::vector<int> blocks;  // per stage
  bool residual = true;     // false: the plain net of the same depth
};

// ImageNet: 7x7/2 stem, max pool, four stages of 64, 128, 256, 512 (x4) channels.
ops::Graph make_imagenet_resnet(const ResNetSpec& spec, const ModelOptions& options);
// CIFAR: 3x3 stem, three stages of n basic blocks with 16, 32, 64 channels, 6n + 2 layers; shortcut
// A unless the options say otherwise.
ops::Graph make_cifar_resnet(const ResNetSpec& spec, const ModelOptions& options);

}  // namespace convoy::trainer
