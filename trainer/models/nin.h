// Network in Network: each convolution is followed by two of 1x1 (an "mlpconv" layer), and global
// average pooling makes the class scores. Lin, Chen and Yan 2014, arXiv:1312.4400, section 4;
// widths are those of the authors' published definitions. Names are theirs: conv1, cccp1, cccp2,
// ...
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

ops::Graph make_nin_imagenet(const ModelOptions& options);
ops::Graph make_nin_cifar(const ModelOptions& options);

}  // namespace convoy::trainer
