// Which tensor of a file of weights is which of a network's. Our names are torchvision's, so a
// state that torchvision saved fits as it is; what training scripts put in front of all names
// ("module.", "model.") is cut off, and old files of DenseNet ("norm.1.weight") are understood.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/graph.h"
#include "trainer/safetensors.h"

namespace convoy::trainer {

struct MappedTensor {
  std::string name;            // the network's
  std::vector<int64_t> shape;  // the network's
  // Nothing: the file has none. Else one of fp32, bf16 or fp16, of this shape, if there are no
  // problems.
  const NamedTensor* source = nullptr;
};

struct WeightMapping {
  std::string prefix;                 // that was cut off; empty: none
  std::vector<MappedTensor> tensors;  // in the model's order, as torchvision counts them
  // A line each: what is missing, too much, of another shape or of another type. Empty: it fits.
  std::vector<std::string> problems;
  // Auxiliary heads that the file does not have at all, as torchvision's pretrained ones, which is
  // no problem: only training uses them.
  std::vector<std::string> absent_heads;
  int64_t batches_tracked = 0;  // the largest num_batches_tracked; files need not have any
};

// Borrows the file's tensors. `graph` with its auxiliary heads, if it has any. `hints`: problems
// name the nearest tensor.
WeightMapping map_weights(const TensorList& file, const ops::Graph& graph, bool hints = true);

// The classes that the file's classifier has, where it is a state of this network but for them; 0:
// not to be told.
int64_t classes_in(const TensorList& file, const ops::Graph& graph);

// Whether to_floats() takes it.
bool is_float(StoredType type);

// As floats, exactly. `to` has the tensor's elements.
void to_floats(const NamedTensor& tensor, std::span<float> to);

struct ImportedWeights {
  std::vector<float> parameters, running;  // as the layout says
  // A line each: tensors with values that are infinite or not a number, variances below 0.
  std::vector<std::string> warnings;
};
// A mapping without problems, carried out. What absent heads have starts as in training.
ImportedWeights take_weights(const WeightMapping& mapping, const ops::ParameterLayout& layout);

}  // namespace convoy::trainer
