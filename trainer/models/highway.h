// Highway networks: y = H(x) T(x) + x (1 - T(x)), where T = sigmoid(W x + b) is a gate. It starts
// with b = -2, nearly closed: a deep network starts as nearly the identity. Srivastava, Greff and
// Schmidhuber 2015, arXiv:1507.06228.
//   fully connected: section 3.1 (MNIST): layers of 50 units
//   convolutional:   section 3.3 (CIFAR): "Highway 2" of 19 layers, as the authors published it
// Layers are called layer1, layer2, ...; a gate's parameters <layer>.gate.weight and .bias.
#pragma once

#include "trainer/models/models.h"

namespace convoy::trainer {

// `layers`: fully connected ones before the classifier, the first one plain.
ops::Graph make_highway_fc(int layers, const ModelOptions& options);
ops::Graph make_highway_cifar(const ModelOptions& options);

}  // namespace convoy::trainer
