// The oracle of every operator test: plain loops over NHWC, written for reading, all in double.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/catalogue.h"
#include "ops/core/tensor.h"

namespace convoy::reference {

struct Array {
  Shape shape;
  std::vector<double> v;

  Array() = default;
  explicit Array(const Shape& s) : shape(s), v(static_cast<size_t>(s.elements())) {}
  Array(const Shape& s, std::vector<double> values) : shape(s), v(std::move(values)) {}

  double& at(int64_t n, int64_t h, int64_t w, int64_t c) { return v[index(n, h, w, c)]; }
  double at(int64_t n, int64_t h, int64_t w, int64_t c) const { return v[index(n, h, w, c)]; }

 private:
  size_t index(int64_t n, int64_t h, int64_t w, int64_t c) const {
    return static_cast<size_t>(((n * shape.h + h) * shape.w + w) * shape.c + c);
  }
};

// All that goes into a node and comes out of it. Given: x, parameters, running, training; before
// backward also dy. forward() fills y and statistics, backward() dx and gradients.
struct Node {
  std::vector<Array> x;
  Array y, dy;
  std::vector<Array> dx;
  std::vector<std::vector<double>> parameters, gradients;
  std::vector<double> running;     // batch norm, inference: mean and variance [2, C]
  std::vector<double> statistics;  // batch norm, training: mean and unbiased variance [2, C]
  bool training = true;
};

// Dropout is the identity here: which elements it drops is tested by itself.
void forward(const ops::OpSpec& spec, Node& node);
// A fused ReLU passes gradients where node.y is above zero, a sigmoid's are y (1 - y). A test may
// put there the y of the device under test, so that what y was rounded by is no difference.
void backward(const ops::OpSpec& spec, Node& node);

// The sum of the losses of the rows with a label >= 0. dlogits [N, K] is filled.
double softmax_cross_entropy(const ops::SoftmaxCrossEntropy& spec,
                             const std::vector<double>& logits, const std::vector<int32_t>& labels,
                             std::vector<double>& dlogits);

}  // namespace convoy::reference
