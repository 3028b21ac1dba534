// The only cuDNN plumbing: convolutions as operation graphs of cuDNN 9, which engine computes them,
// and their plans. Engines are deterministic and sum in fp32.
//
// Belongs to one device and its thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/core/tensor.h"
#include "ops/decisions.h"

namespace convoy::cudnn {

enum class Pass { kForward, kBackwardData, kBackwardWeights };

// One pass of a convolution. x [N,C,H,W] and y [N,K,P,Q] are NHWC in memory, w is [K,R,S,C/G], all
// of them aligned to 16 bytes.
//   forward            y = conv(x, w)
//   backward data      dx from dy and w
//   backward weights   dw from x and dy, in fp32 whatever the type
struct Convolution {
  Pass pass = Pass::kForward;
  Shape x, y;
  int64_t kernel = 1, stride = 1, padding = 0, groups = 1;
  DType type = DType::kFloat32;
  bool tf32 = false;  // fp32 factors may be rounded to TF32
  // Forward: y = relu(conv(x, w) + bias + residual), rounded once; bias [K] in fp32.
  bool bias = false, residual = false, relu = false;
  // Forward, without those three: per channel of y also the sums of its values and of their
  // squares.
  bool sums = false;
};
// One line, for messages and as the name of a decision.
std::string to_text(const Convolution& c);

// Pointers on the device; what is read and what is written is the pass's.
struct Arguments {
  const void* x = nullptr;
  const void* w = nullptr;
  const void* y = nullptr;
  const float* bias = nullptr;
  const void* residual = nullptr;  // not where y is
  float* sums = nullptr;           // [2, K]
  void* workspace = nullptr;
};

class Plan {
 public:
  struct Parts;
  explicit Plan(std::unique_ptr<Parts> parts);
  ~Plan();

  const Choice& choice() const;
  size_t workspace_bytes() const;
  // What the library says of the engine's arithmetic, as in CUDNN_NUMERICAL_NOTE_*.
  const std::vector<std::string>& notes() const;
  // From which the library makes it without compiling again; "" where nothing was compiled for it.
  std::string kernel() const;
  // Enqueues it.
  void run(const Arguments& arguments, cudaStream_t stream) const;

 private:
  std::unique_ptr<Parts> parts_;
};

// Its plans may not outlive it.
class Library {
 public:
  // For the calling thread's current GPU. Decisions are the device's, shared by its libraries.
  explicit Library(std::shared_ptr<Decisions> decisions = std::make_shared<Decisions>());
  // For a GPU that need not be there, described by cuDNN's device properties in JSON: plans are
  // made as they would be for it, but cannot run.
  explicit Library(const std::string& device);
  ~Library();

  static std::string version();  // "cuDNN 9.19.0"
  // What kernels are compiled by: "NVRTC 13.0 of 109338064 bytes"; "" where it is not found.
  static std::string compiler();

  // The plan of the prescribed choice, else of the first that the library recommends and that
  // works: the same one for all that ask for this convolution. Null if the library has none, or
  // none was prescribed. Throws PlanRefused if a prescribed choice does not work
  // (Decisions::refuse).
  std::shared_ptr<const Plan> find(const Convolution& c);
  // Something else that computes the same.
  struct Rival {
    std::function<double()> seconds;
    bool preferred = false;  // where nothing is measured
  };
  // As find(), but nothing where the rival is prescribed or, if nothing is, taken.
  std::optional<std::shared_ptr<const Plan>> find_beside(const Rival& rival, const Convolution& c);
  // As find(); throws Error (kBadJob) with the node's name if there is none.
  std::shared_ptr<const Plan> plan(const std::string& node, const Convolution& c);

  // Where nothing is prescribed, find() from now on takes the fastest of some choices, by this
  // measure in seconds (of equal ones the library's favourite); null: the first that works.
  using Measure = std::function<double(const Convolution&, const Plan&)>;
  void choose_by(Measure measure) { measure_ = std::move(measure); }

  // By that measure, which must be there.
  double seconds(const Convolution& c, const Plan& plan) const { return measure_(c, plan); }

  // All choices that are allowed, the library's favourite first, and the plan of one of them,
  // exactly. Throws Error (kBadJob) with the library's reason.
  std::vector<Choice> choices(const Convolution& c) const;
  std::shared_ptr<const Plan> make(const Convolution& c, const Choice& choice) const;

  // Kernels are taken from here from now on, and those of what find() has chosen are put here, by
  // the device's thread.
  void keep_kernels(const KernelStore& store);

  // What find() is told, and what it has decided: "forward x [...] ... = 62:2=8".
  Decisions& decisions() { return *decisions_; }

 private:
  struct Target;
  // What find() and find_beside() have found.
  struct Found {
    std::shared_ptr<const Plan> plan;  // null: none, or elsewhere
    Choice choice;
  };
  const Found& find_or_choose(const Convolution& c, const Rival* rival);
  Found choose(const Convolution& c, const Rival* rival) const;
  std::shared_ptr<const Plan> first(const Convolution& c) const;
  std::shared_ptr<const Plan> fastest(const Convolution& c, double rival_seconds) const;

  std::unique_ptr<Target> target_;
  std::shared_ptr<Decisions> decisions_;
  Measure measure_;
  std::map<std::string, Found> plans_;  // by to_text(Convolution)
};

}  // namespace convoy::cudnn
