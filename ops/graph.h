// A network as a list of nodes in topological order: the same list gives the parameter names, the
// summary, the memory plan and the program that runs. No tape: backward is the list reversed.
#pragma once

#include <string>
#include <vector>

#include "ops/catalogue.h"

namespace convoy::ops {

// Stands for the image where an input of a node is meant.
inline constexpr int kImage = -1;

struct Node {
  std::string name;  // unique; parameters are called <name>.weight, ...
  OpSpec op;
  std::vector<int> inputs;  // indices of earlier nodes, or kImage
  int position = 0;     // in the list as the model wrote it: parameters are counted in this order
  unsigned frozen = 0;  // bit k: parameter k, as parameters() has them, is not trained
};

// A further classifier that training alone has (Szegedy et al. 2014, arXiv:1409.4842, section 5):
// its node gives logits [N, classes, 1, 1], whose softmax cross-entropy with the same labels,
// smoothing and mixing, times `weight`, is added to what gradients are of. The loss and the
// accuracy that are reported stay those of the last node.
struct Auxiliary {
  int node = 0;  // not the last one
  double weight = 0.3;
};

struct Graph {
  std::string name;
  Shape image;              // of one sample, n = 1
  std::vector<Node> nodes;  // the last one gives the logits
  std::vector<Auxiliary> auxiliary = {};

  // Appends a node and returns its index.
  int add(std::string node_name, OpSpec op, std::vector<int> inputs);
};

// The output shape of every node for a batch. Throws Error (kBadJob) that names the node: unknown
// or later input, shapes that do not fit, names that are doubled or empty, a network without nodes,
// with too many, or with tensors whose elements nobody could count; auxiliary classifiers that are
// none.
std::vector<Shape> infer_shapes(const Graph& graph, int64_t batch);

// What inference runs: the nodes that the last one needs, and no auxiliary classifiers. Where
// parameters lie, and how they start, says the layout of the whole graph alone.
Graph inference_graph(const Graph& graph);

// The shapes of the inputs of one node.
std::vector<Shape> input_shapes(const Graph& graph, const std::vector<Shape>& outputs, size_t node,
                                int64_t batch);

// What an update of a parameter is multiplied by, beside what the optimizer says of all.
struct ParameterFactors {
  double learning_rate = 1.0, weight_decay = 1.0;
};

// Where everything lies in the flat buffers: parameters and what is kept beside each (momentum,
// moving average) in one order, the gradients of those that are trained in the same order without
// the others.
struct ParameterLayout {
  struct Parameter {
    std::string name;  // "layer1.0.conv1.weight"
    ParameterSpec spec;
    size_t node;
    size_t offset;  // in floats
    int order;      // among all parameters in the order of the model, as torchvision counts them
    bool trained = true;  // false: frozen, nothing changes it
    size_t gradient = 0;  // in floats, in the buffer of gradients, where it is trained
    ParameterFactors factors = {};
    size_t floats() const { return static_cast<size_t>(spec.elements()); }
  };
  struct Statistics {
    std::string name;  // of the batch-norm node
    size_t node;
    size_t offset;  // in floats: [2, C], mean and variance
    int64_t channels;
    double momentum;
    bool gathered = true;  // false: of a frozen batch norm, whose running values stay
    size_t batch = 0;      // in floats, in the buffer of one batch's statistics, where gathered
  };
  std::vector<Parameter> parameters;  // in backward order: the last node's first
  size_t parameter_floats = 0;
  size_t gradient_floats = 0;          // of all parameters that are trained
  std::vector<Statistics> statistics;  // in the order of the model
  size_t statistics_floats = 0;        // of the running values
  size_t batch_floats = 0;             // of one batch's
};
ParameterLayout layout_of(const Graph& graph);
// The layout of a (fused) part of a network, such as what inference needs of it, in the buffers of
// the whole: each parameter and statistic lies where `whole` has the one of its name; sizes are the
// whole's. For inference: says nothing of gradients. Throws Error (kFault) naming what is not there
// or is of another size.
ParameterLayout layout_within(const ParameterLayout& whole, const Graph& part);

// Starts all parameters as their specs say, from the seed alone. out: [parameter_floats].
void initialise(const ParameterLayout& layout, uint64_t seed, float* out);
// Running mean 0 and variance 1. out: [statistics_floats].
void initialise_statistics(const ParameterLayout& layout, float* out);

}  // namespace convoy::ops
