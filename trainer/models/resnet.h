// Residual networks, their plain counterparts, and their wider and grouped kin. Names of parameters
// are torchvision's.
//   He et al. 2015, arXiv:1512.03385: table 1 for ImageNet, section 4.2 for CIFAR-10.
//   ResNeXt: Xie et al. 2017, arXiv:1611.05431: table 1, section 5.3 for CIFAR.
//   Wide bottlenecks: Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 8.
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

enum class Block { kBasic, kBottleneck };
enum class Stem {
  kImageNet,  // 7x7/2 convolution and 3x3/2 max pool
  kCifar,     // 3x3 convolution
};

struct ResNetSpec {
  Block block = Block::kBasic;
  std::vector<int> blocks;  // per stage; from the second on, each halves the image
  bool residual = true;     // false: the plain net of the same depth
  Stem stem = Stem::kImageNet;
  int64_t stem_channels = 64;
  int64_t planes = 64;  // of the first stage, doubled from stage to stage; a bottleneck gives 4x
  // Bottlenecks: the 3x3 convolution has planes * width_per_group / 64 channels in each group.
  int64_t groups = 1;
  int64_t width_per_group = 64;
  ModelOptions::Shortcut shortcut = ModelOptions::Shortcut::kB;  // unless the options say otherwise
};

ops::Graph make_resnet(const ResNetSpec& spec, const ModelOptions& options);

}  // namespace convoy::trainer
