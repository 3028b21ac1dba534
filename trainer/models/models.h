// The models by name. To add one: its file, a row in models.cpp, its counts in tests/trainer.
#pragma once

#include <string>
#include <vector>

#include "ops/graph.h"

namespace convoy::trainer {

struct ModelOptions {
  // 0: what the model was made for (224 x 224 x 3, or 32 x 32 x 3 for the CIFAR family), 1000 or 10
  // classes.
  Shape image = {.n = 1, .c = 0, .h = 0, .w = 0};
  int64_t classes = 0;
  bool stride_in_first_conv = false;  // bottlenecks: v1 (He et al. 2015) instead of v1.5
  enum class Shortcut { kDefault, kA, kB, kC };
  Shortcut shortcut = Shortcut::kDefault;
  bool zero_init_residual = false;
  double batch_norm_momentum = 0.1;
  double batch_norm_epsilon = 1e-5;
  double dropout = 0.0;  // before the classifier
};

struct ModelEntry {
  std::string name;
  std::string summary;  // one line: what it is, and the source
  Shape image;          // its usual input
  int64_t classes;
  ops::Graph (*make)(const ModelOptions& options);
};

// All models, in the order of `convoy model list`.
const std::vector<ModelEntry>& model_table();

// Throws Error (kBadJob) naming the nearest name where there is none such.
ops::Graph make_model(const std::string& name, ModelOptions options);

}  // namespace convoy::trainer
