// Optimizers over flat buffers: one pass over gradients, weights and momentum.
//
// SGD (Sutskever et al. 2013, in PyTorch's form):
//
//   g += weight_decay w
//   v = momentum v + g
//   w -= lr (nesterov ? g + momentum v : v)
//
// LARS (You et al. 2017, arXiv:1708.03888, algorithm 1), with
// local = trust ||w|| / (||g|| + weight_decay ||w|| + epsilon) for each weight tensor and 1 for
// biases and batch norm:
//
//   v = momentum v + lr local (g + weight_decay w)
//   w -= v
//
// A parameter's own factors (ParameterLayout) are part of lr and weight_decay. Parameters that are
// frozen, and their momentum and moving average, stay as they are; no norm counts them.
//
// Norms are summed over blocks of 4096 elements, the blocks in double in order: the same bits for
// any number of threads.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ops/graph.h"

namespace convoy::ops {

struct OptimizerConfig {
  enum class Kind { kSgd, kLars };
  Kind kind = Kind::kSgd;
  double momentum = 0.9;
  bool nesterov = false;
  double weight_decay = 1e-4;
  bool decay_batch_norm_and_bias = true;
  double trust_coefficient = 0.001;
  double lars_epsilon = 1e-9;
  double clip_norm = 0.0;  // of the whole gradient; 0: off
  double ema_decay = 0.0;  // moving average of the weights; 0: none
};

// Who shares a pass over memory: calls body(part, parts) for every part, at once if it can, and
// returns when all are done. The parts never change a result.
using Parallel = std::function<void(const std::function<void(int part, int parts)>& body)>;

// All of it in the caller's thread.
inline void one_part(const std::function<void(int, int)>& body) {
  body(0, 1);
}

// What one update did.
struct UpdateResult {
  double gradient_norm = 0;  // of the whole gradient, before clipping; 0 where the loss said no
};

class DeviceFloats;

// The state of an optimizer and its update, on the device where the flat buffers lie
// (Device::make_optimizer).
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // One update of the flat parameters [parameter_floats]. gradients: of each parameter, in the
  // order of the layout (what stands there of frozen ones is not read), which are first multiplied
  // by gradient_factor (1 / loss scale). loss: one float, or null. Where it or the norm of the
  // gradients is not finite nothing is changed.
  virtual void update(float* parameters, std::span<const float* const> gradients,
                      double learning_rate, const float* loss = nullptr,
                      double gradient_factor = 1.0) = 0;
  // new = (1 - m) old + m batch for every running mean and variance [statistics_floats] that is
  // gathered, batch = sum [batch_floats] * share; nothing, if the last update changed nothing.
  virtual void update_running(float* running, const float* sum, float share) = 0;
  // Of the last update; waits.
  virtual UpdateResult result() = 0;

  // [parameter_floats], laid out as the parameters; the caller may read and write them between
  // updates. Momentum starts at zero; the moving average, empty without ema_decay, must be set to
  // the weights by the caller.
  virtual DeviceFloats& momentum() = 0;
  virtual DeviceFloats& ema() = 0;
};

}  // namespace convoy::ops
