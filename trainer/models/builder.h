// What the files of models share: layers appended to a graph, each by its name and its input.
#pragma once

#include <string>
#include <utility>

#include "trainer/models/models.h"

namespace convoy::trainer {

class Builder {
 public:
  explicit Builder(const ModelOptions& options) : options_(options) {
    graph_.image = options.image;
  }

  int add(const std::string& name, const ops::OpSpec& op, std::vector<int> inputs) {
    return graph_.add(name, op, std::move(inputs));
  }
  int conv(const std::string& name, int x, const ops::Conv2d& spec) { return add(name, spec, {x}); }
  // Epsilon and momentum are the options'.
  int batch_norm(const std::string& name, int x, bool zero_init = false) {
    return add(name,
               ops::BatchNorm{.epsilon = *options_.batch_norm_epsilon,
                              .momentum = options_.batch_norm_momentum,
                              .zero_init = zero_init},
               {x});
  }
  int relu(const std::string& name, int x) { return add(name, ops::Relu{}, {x}); }
  int max_pool(const std::string& name, int x, const ops::MaxPool& spec) {
    return add(name, spec, {x});
  }
  int linear(const std::string& name, int x, const ops::Linear& spec) {
    return add(name, spec, {x});
  }
  // Nothing where the rate is 0.
  int dropout(const std::string& name, int x, double rate) {
    return rate > 0 ? add(name, ops::Dropout{.rate = rate}, {x}) : x;
  }
  int dropout(const std::string& name, int x) { return dropout(name, x, *options_.dropout); }

  const ModelOptions& options() const { return options_; }
  ops::Graph take() { return std::move(graph_); }

 protected:
  ops::Graph graph_;

 private:
  ModelOptions options_;
};

}  // namespace convoy::trainer
