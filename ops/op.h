// What every operator is: a spec (a plain struct in its own header), free functions over the spec
// (shapes, parameters, costs), and per device an Op made once for fixed shapes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/tensor.h"

namespace convoy::ops {

// How a parameter starts.
enum class Init {
  kHeNormal,  // normal, std = sqrt(2 / fan_out) (He et al. 2015, arXiv:1502.01852)
  kUniform,   // uniform in +-1 / sqrt(fan_in), as torch.nn.Linear
  kZeros,
  kOnes,
  kNormal,    // normal, mean 0, std = ParameterSpec::value
  kConstant,  // ParameterSpec::value
};

// One trained tensor of a node, fp32, in PyTorch's order (convolution: OIHW).
struct ParameterSpec {
  std::string name;  // "weight", "bias"
  std::vector<int64_t> dims;
  Init init = Init::kZeros;
  int64_t fan_in = 1, fan_out = 1;
  bool is_weight =
      true;          // false: a bias or a batch-norm parameter, which a job may leave undecayed
  double value = 0;  // of kNormal and kConstant

  int64_t elements() const {
    int64_t product = 1;
    for (const int64_t d : dims) product *= d;
    return product;
  }
};

// What backward reads, and what it may overwrite: decides the lifetimes in the arena.
struct BackwardNeeds {
  unsigned inputs = 0;          // bit k: the value of input k
  bool for_parameters = false;  // those values are read for the parameters' gradients alone
  bool output = false;          // the value of y
  int dy_sources = 1;           // gradients of the output that it can add while it reads them
  int dx_in_place = -1;         // the gradient of this input is written over dy[0]; -1: none
  bool writes_dy = false;       // dy[0] may be overwritten otherwise, too
  // Above 1: dx[0] is written, dy[1] read, as compact() stores it.
  int64_t dx_stride = 1, dy1_stride = 1;

  bool reads_input(size_t k) const { return k < 32 && (inputs >> k & 1u) != 0; }
};

// Everything that is fixed about one node when its Op is made. An op works on slices of the batch
// that are all of one size (ops/pass_plan.h).
struct OpConfig {
  std::string name;      // the node's, for messages
  std::vector<Shape> x;  // of one slice
  Shape y;
  int64_t batch = 0;               // samples of all slices together
  DType type = DType::kFloat32;    // of x, dx and dy
  DType y_type = DType::kFloat32;  // of y: `type`, or fp32 for the logits
  bool four_channels = false;      // x[0], the image, has kFourChannels (ops/image_input.h)
  bool tf32 = false;               // fp32 products may round their factors to tf32 (GPU)
  bool training = true;
  std::vector<bool>
      wants_dx;  // per input: false for images, and where nothing before it is trained
  // Of the parameters; false: none of them is trained, their gradients are not touched.
  bool wants_gradients = true;
  bool wants_sums = false;  // NodeMemory::sums would be read
};

// Which samples of the batch a call works on. Calls see the slices of a batch in order.
struct Slice {
  int64_t begin = 0;  // the first sample
  bool first = true, last = true;
};

// The memory of one node for one slice: pointers that stay the same for the life of a network.
// Parameters, their gradients, statistics and scratch are the same for all slices.
struct NodeMemory {
  Slice slice;
  std::vector<void*> x;
  void* y = nullptr;
  std::vector<void*> dy;  // 1 to dy_sources tensors whose sum is the gradient of y; of two, the
                          // second may be compact (BackwardNeeds::dy1_stride)
  std::vector<void*> dx;  // one per input; null where none is wanted
  std::vector<const float*> parameters;
  std::vector<float*> gradients;
  // Batch norm only: running mean and variance [2, C] (inference), this batch's mean and unbiased
  // variance [2, C] (written in training).
  const float* running = nullptr;
  float* statistics = nullptr;
  float* shortcut_statistics = nullptr;  // of BatchNorm::shortcut
  // [2, C]: per channel the sum of a batch's values and of their squares, before a batch norm that
  // gathers them: written by forward() where gives_sums(), else null. shortcut_sums: of what a
  // batch norm gathers for BatchNorm::shortcut.
  float* sums = nullptr;
  float* shortcut_sums = nullptr;
  void* saved = nullptr;    // saved_bytes(): from forward to backward
  void* scratch = nullptr;  // scratch_bytes(): within one call
  // aside_bytes(): backward() may leave gradients of parameters to be computed aside, beside what
  // follows it, until Device::join(): its inputs, dy[0] and this stay as they are. Null: it may
  // not.
  void* aside = nullptr;
};

// What a random operator may depend on (architecture: counter-based randomness only).
struct StepInfo {
  uint64_t seed = 0;
  uint64_t step = 0;
  int worker = 0;

  bool operator==(const StepInfo&) const = default;
};

// One node on one device. Not thread-safe; each lane of a rank has its own.
class Op {
 public:
  virtual ~Op() = default;

  // The parameters have changed: repack them. Called once before the first forward of a step; they
  // are packed when Device::prepared() has been called behind it.
  virtual void prepare(const NodeMemory&) {}
  // From now on the weights that `other` has packed are used: the same node of another lane, which
  // stays alive and is prepared in place of this one.
  virtual void share_weights(const Op& /*other*/) {}
  virtual void forward(const NodeMemory&, const StepInfo&) = 0;
  // Parameter gradients are final after the last slice.
  virtual void backward(const NodeMemory&, const StepInfo&) = 0;

  // Batch norm in training (gathers() in ops/pass_plan.h): what must be known of the whole batch.
  // Every slice is gathered before the first goes forward, and again before the first goes
  // backward. The gradient that is written over dy[0] is final when its slice has been gathered,
  // but that of what BatchNorm::shortcut reads when it has gone backward.
  virtual void gather_forward(const NodeMemory&) {}
  virtual void gather_backward(const NodeMemory&) {}
  // True where forward() writes NodeMemory::sums of y, so that nobody has to read y for them.
  virtual bool gives_sums() const { return false; }

  virtual size_t saved_bytes() const { return 0; }  // of one slice
  virtual size_t scratch_bytes() const { return 0; }
  virtual size_t aside_bytes() const { return 0; }  // 0: it leaves nothing
};

}  // namespace convoy::ops
