// What can be said of each node of a network without running it: how its size comes about, what it
// sees of the image, its parameters, its work. For `convoy model show`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/graph.h"

namespace convoy::trainer {

// Of a square window: a convolution's, a pooling's, a subsampling's (kernel 1).
struct Window {
  int64_t kernel = 1, stride = 1, padding = 0, groups = 1;
  bool ceil = false;  // the number of windows is rounded up
};

// What one value of a node sees: pixels of a side of the image, those outside it (padding)
// included, and the pixels between the fields of neighbours (Araujo et al. 2019, Distill,
// "Computing receptive fields of convolutional neural networks", equations 2 and 3):
//   size' = size + (kernel - 1) jump    jump' = jump stride
// Where paths join, the largest of each counts.
struct ReceptiveField {
  int64_t size = 1, jump = 1;
};

struct LayerFacts {
  std::string name, kind;
  Shape y;                       // of one image
  std::optional<Window> window;  // none: the node has no window
  // "floor((224+2*3-7)/2) + 1 = 112" where y's sides come about by a window; "h ...; w ..." where
  // they differ; "" elsewhere. floor and ceil are left out where the division leaves no rest.
  std::string arithmetic;
  ReceptiveField field;
  int64_t parameters = 0;
  std::string formula;  // "64*3*7*7", "2*64", "1000*512 + 1000"; "" where there are none
  int64_t macs = 0;     // multiply-accumulates of one image
  int64_t bytes = 0;    // of y in fp32
};

// In the order of the nodes. Throws Error (kBadJob) where shapes do not fit.
std::vector<LayerFacts> layer_facts(const ops::Graph& graph);

struct ModelTotals {
  int64_t parameters = 0, macs = 0, bytes = 0;
};
ModelTotals total(const std::vector<LayerFacts>& layers);
// What training alone has: auxiliary classifiers.
ModelTotals auxiliary_total(const ops::Graph& graph);

// 25557032 -> "25,557,032".
std::string grouped(int64_t value);

}  // namespace convoy::trainer
