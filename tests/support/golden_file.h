// What PyTorch computes for one training step and for ten (tests/golden/*.json, made by
// tests/golden/make_golden.py), and whether we compute the same.
//
// A test makes the network, copies golden parameters, inputs and labels into it, trains
// `steps()` steps with plain SGD (golden::Sgd, decay on every parameter, mean loss over the batch,
// batch norm in training mode with momentum 0.1, unbiased running variance) and hands what it got
// to the compare functions: each returns one line per mismatch, none where all agrees.
//
// Where the tolerances come from. The reference is the float64 model. PyTorch's own float32 is away
// from it by an amount that the file holds for each tensor: the largest of 13 float32 runs that
// differ only in how they round (error_* below). We may be kSlack times as far: another
// implementation rounds elsewhere, so its error has the same size but not the same value, and from
// the second step on a ReLU here or there flips in one run and not in another (with a slack of 4
// one PyTorch run outside the 13 failed by a quarter). Wrong formulas are off by much more: a
// batch-norm epsilon of 2e-5 for 1e-5, momentum 0.89 for 0.9, nine tenths of the weight decay are
// all refused. Each tolerance has a floor of a few float32 units (kFloor), for values that PyTorch
// happened to round just right.
//
// Tensors are seen through sums: any error e moves a sum with random signs by about |e|, whatever
// elements it sits in. So four such sums tell |e|, the L2 norm of the error of the whole tensor,
// well (their root mean square is more than twice |e| in 1 case of 300, and kSlack leaves room),
// and 64 samples tell where.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace convoy::golden {

inline constexpr double kSlack = 8;
inline constexpr double kFloor =
    0x1p-22;  // 4 units in the last place, relative to the value or norm

// A parameter, as the generator makes it: element i is low + width * uniform_float(word i), plus
// 2^-6 * nudges[i] where there are nudges (make_golden.py says why).
struct Parameter {
  std::string name;            // torchvision's
  std::vector<int64_t> shape;  // convolutions: O, I, H, W; fc.weight: classes, features
  float low = 0, width = 0;    // width is a power of two: only the sum rounds
  std::string nudges;          // empty, or a digit per element
};

// A tensor of the float64 model, condensed. Elements are counted in `shape`'s order (OIHW).
struct Summary {
  std::string name;
  std::vector<int64_t> shape;
  double norm = 0, sum = 0;
  std::array<double, 4> projections{};  // sums with random signs
  std::vector<double> samples;          // at sample_positions(); 9 digits
  // PyTorch's float32, the largest of its runs: L2 norm of the error, error of the sum, largest
  // error of an element. Absolute. Zero in `generated`.
  double error_norm = 0, error_sum = 0, error_max = 0;
};

// A tensor of the generator, to check the generator itself.
struct Generated {
  std::string sha256;  // of its little-endian bytes, in the order the functions below return them
  Summary summary;     // name: a parameter's, "input <step>" or "labels <step>"
};

struct Sgd {
  double learning_rate = 0, momentum = 0, weight_decay = 0;
};

// Of the parameters whose names begin so: what these two of Sgd are multiplied by.
struct Factors {
  std::string prefix;
  double learning_rate = 1, weight_decay = 1;
};

struct File {
  std::string path, model;
  uint64_t seed = 0;
  int64_t classes = 0;
  std::array<int64_t, 4> input_shape{};  // N, C, H, W
  Sgd sgd;
  std::vector<double> losses, error_losses;  // one per step, each before that step's update
  std::vector<double> logits;                // of step 0, [N, classes]
  double error_logits = 0;                   // largest error of an element
  std::vector<Parameter> parameters;         // in torchvision's order
  // Where a part of the model is frozen (its batch norms use running statistics), which then do not
  // start at mean 0 and variance 1, and where parts have factors of their own; else empty.
  std::vector<std::string> frozen;  // names of parameters
  std::vector<Parameter> running;   // running_mean and running_var of each batch norm, in order
  std::vector<Factors> factors;
  std::vector<Generated> generated;
  std::vector<Summary> gradients;         // of step 0, without weight decay
  std::vector<Summary> parameters_after;  // after the last step
  std::vector<Summary> running_after;     // running_mean and running_var after the last step

  int64_t steps() const { return static_cast<int64_t>(losses.size()); }
};

// Throws Error (kIo, kBadData) that names the file and what is wrong with it.
File read(const std::string& path);

// ---- The generator: the same bits as make_golden.py's.

std::vector<float> make_parameter(const File& file, size_t index);  // in `shape`'s order
std::vector<float> make_running(const File& file, size_t index);    // of File::running
std::vector<float> make_input(const File& file, int64_t step);      // memory NHWC, in [-2, 2)
std::vector<int32_t> make_labels(const File& file, int64_t step);   // [N], in [0, classes)

// ---- Condensing a tensor the same way; norms and sums in double.

std::array<double, 4> projections(std::span<const float> x);
std::vector<int64_t> sample_positions(int64_t elements, int64_t samples);

// ---- Comparing. One line per mismatch: tensor, what differs, both values, the tolerance.

// By name; elements in the Summary's order (OIHW). A missing or unknown name is a mismatch.
using Tensors = std::map<std::string, std::span<const float>>;

std::vector<std::string> compare_tensors(const std::vector<Summary>& expected, const Tensors& got);
std::vector<std::string> compare_logits(const File& file, std::span<const float> got);
// losses[s] is the mean loss of step s before its update; at least one, at most steps().
std::vector<std::string> compare_losses(const File& file, std::span<const double> losses);

}  // namespace convoy::golden
