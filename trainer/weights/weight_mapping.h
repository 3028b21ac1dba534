// Which tensor of a file of weights is which of a network's. Our names are torchvision's, so a
// state that torchvision saved fits as it is; what training scripts put in front of all names
// ("module.", "model.") is cut off, and old files of DenseNet ("norm.1.weight") are understood.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/graph.h"
#include "trainer/base/safetensors.h"

namespace convoy::trainer {

struct MappedTensor {
  std::string name;            // the network's
  std::vector<int64_t> shape;  // the network's
  // Nothing: the file has none. Else one of fp32, bf16 or fp16, of this shape, if it fits.
  const NamedTensor* source = nullptr;
};

// A tensor that does not fit.
struct Misfit {
  enum class Kind { kMissing, kShape, kType, kExtra };
  Kind kind = Kind::kMissing;
  size_t wanted = 0;                   // its place in WeightMapping::tensors; not of kExtra
  const NamedTensor* found = nullptr;  // not of kMissing
};

struct MappingOptions {
  // Names as any program wrote them: behind whatever stands in front of most of them, and the old
  // ones of DenseNet. False: as they are, or all of them behind "module." or "model.".
  bool foreign_names = true;
  // Auxiliary heads may be missing whole, as in torchvision's pretrained files: only training uses
  // them.
  bool absent_heads = true;
};

struct WeightMapping {
  std::string prefix;                 // that was cut off; empty: none
  std::vector<MappedTensor> tensors;  // in the model's order, as torchvision counts them
  // Of the network's tensors in their order, then what the file has too much. Empty: it fits.
  std::vector<Misfit> misfits;
  std::vector<std::string> absent_heads;  // by name; they are not among the misfits
  int64_t batches_tracked = 0;  // the largest num_batches_tracked; files need not have any
};

// Borrows the file's tensors. `graph` with its auxiliary heads, if it has any.
WeightMapping map_weights(const TensorList& file, const ops::Graph& graph,
                          const MappingOptions& options = {});

// A line for each misfit: what is missing, too much, of another shape or of another type, and which
// tensor may be meant.
std::vector<std::string> problems_of(const WeightMapping& mapping);

// The classes that the file's classifier has, where it is a state of this network but for them; 0:
// not to be told.
int64_t classes_in(const TensorList& file, const ops::Graph& graph);

// A mapping without misfits, carried out: each source, as floats, into flat buffers that lie as
// `layout` says. What has no source stays as it is. Returns a line for each tensor with values that
// are infinite or not a number, or with variances below 0.
std::vector<std::string> put_weights(const WeightMapping& mapping,
                                     const ops::ParameterLayout& layout,
                                     std::span<float> parameters, std::span<float> running);

struct ImportedWeights {
  std::vector<float> parameters, running;  // as the layout says
  std::vector<std::string> warnings;       // put_weights()'
};
// The same with buffers of its own. What absent heads have starts as in training.
ImportedWeights take_weights(const WeightMapping& mapping, const ops::ParameterLayout& layout);

}  // namespace convoy::trainer
