// The models by name. To add one: its file, a row in models.cpp, its counts in tests/trainer.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ops/graph.h"

namespace convoy::trainer {

struct ModelOptions {
  // 0: what the model was made for (224 x 224 x 3, or 32 x 32 x 3 for the CIFAR family), 1000 or 10
  // classes.
  Shape image = {.n = 1, .c = 0, .h = 0, .w = 0};
  int64_t classes = 0;
  bool inference = false;             // without auxiliary classifiers, which may want larger images
  bool stride_in_first_conv = false;  // bottlenecks: v1 (He et al. 2015) instead of v1.5
  enum class Shortcut { kDefault, kA, kB, kC };
  Shortcut shortcut = Shortcut::kDefault;
  bool zero_init_residual = false;
  double batch_norm_momentum = 0.1;
  // Nothing: the model's own.
  std::optional<double> batch_norm_epsilon;
  std::optional<double> dropout;
};

struct ModelEntry {
  std::string family;  // of the paper: a heading of `convoy model list`
  std::string name;
  std::string summary;  // one line: what it is, and the source
  Shape image;          // its usual input
  int64_t classes;
  std::function<ops::Graph(const ModelOptions& options)> make;  // all options are set
  bool residual = false;  // has stride_in_first_conv, shortcut and zero_init_residual
  // What an option that is not set is.
  double dropout = 0.0;
  double batch_norm_epsilon = 1e-5;
};

// All models, in the order of `convoy model list`, families together.
const std::vector<ModelEntry>& model_table();

// Null where there is none such.
const ModelEntry* find_model(const std::string& name);

// Throws Error (kBadJob) naming the nearest name where there is none such, the smallest image that
// works where this one is too small, and options that the model does not have.
ops::Graph make_model(const std::string& name, ModelOptions options);

// Of one image.
struct ModelCounts {
  int64_t parameters = 0, macs = 0;  // as inference runs it: without auxiliary classifiers
  int64_t training_parameters = 0;   // with them
};
ModelCounts count(const ops::Graph& graph);

// Pixels per side of the smallest square image that the model takes, with its other options.
int64_t smallest_image(const ModelEntry& model, const ModelOptions& options = {});

}  // namespace convoy::trainer
