// The only oneDNN plumbing: engine and stream, primitives with their packed weights, the
// differences between library versions. Debian 12 has 2.6 (API v2); a move to 3.x changes this file
// and its .cpp.
#pragma once

#include <dnnl.hpp>
#include <functional>
#include <string>
#include <vector>

#include "ops/op.h"

namespace convoy::ops::onednn {

const dnnl::engine& engine();
dnnl::memory::data_type to_dnnl(DType type);
// [N, C, H, W] in NHWC memory.
dnnl::memory::desc nhwc(const Shape& shape, DType type);
std::string version();  // "oneDNN 2.6.3"
std::string instruction_set();
bool multiplies_by_amx();  // bf16

// Best rate of a few n x n x n products with packed operands, in FLOP/s.
double measure_gemm(DType type, int64_t n);

// A primitive whose memory objects are made once: run() only sets the pointers, it allocates
// nothing. Scratch memory is the caller's. Belongs to the thread that made it.
class Kernel {
 public:
  Kernel() = default;
  struct Argument {
    int index;  // DNNL_ARG_*
    dnnl::memory::desc memory;
  };
  Kernel(const dnnl::primitive& primitive, const std::vector<Argument>& arguments,
         const dnnl::memory::desc& scratchpad);

  // Pointers in the order of the arguments; the scratch pointer may be null if scratch_bytes() is
  // 0.
  void run(std::initializer_list<const void*> pointers, void* scratch);
  size_t scratch_bytes() const { return scratch_bytes_; }
  explicit operator bool() const { return static_cast<bool>(primitive_); }

 private:
  dnnl::primitive primitive_;
  std::vector<dnnl::memory> memories_;
  std::unordered_map<int, dnnl::memory> arguments_;
  size_t scratch_bytes_ = 0;
};

// src -> dst with another layout or type.
Kernel make_reorder(const dnnl::memory::desc& src, const dnnl::memory::desc& dst);

// The layouts that a library's primitive wants for its weights.
struct WeightedKernel {
  Kernel kernel;
  dnnl::memory::desc weights;
};

struct ConvolutionShape {
  std::string name;  // for messages
  Shape x, y;
  int64_t kernel_h, kernel_w, stride, padding, groups;
  bool bias;
  DType type;
  // Of forward: y = relu(y + convolution), y holding a residual, in one pass.
  bool residual = false, relu = false;
};
// Arguments: x, w [, bias], y.
WeightedKernel make_convolution_forward(const ConvolutionShape& shape);
// Arguments: dx, w, dy.
WeightedKernel make_convolution_backward_data(const ConvolutionShape& shape);
// Arguments: dw [, dbias], x, dy; dw and dbias in fp32.
WeightedKernel make_convolution_backward_weights(const ConvolutionShape& shape);
// OIHW (or GOIHW) in fp32, as parameters are kept.
dnnl::memory::desc parameter_layout(const ConvolutionShape& shape);

struct LinearShape {
  std::string name;
  Shape x;  // features are the C, H, W of one sample, in this order
  int64_t out_features;
  bool bias;
  DType type;  // of x, dx, dy
  DType y_type;
};
WeightedKernel make_linear_forward(const LinearShape& shape);           // x, w [, bias], y
WeightedKernel make_linear_backward_data(const LinearShape& shape);     // dx, w, dy
WeightedKernel make_linear_backward_weights(const LinearShape& shape);  // dw [, dbias], x, dy
dnnl::memory::desc parameter_layout(const LinearShape& shape);

// Weights as one primitive wants them, packed from the fp32 parameters or from what another wants.
// Memory is taken by the first pack().
class PackedWeights {
 public:
  PackedWeights() = default;
  PackedWeights(const dnnl::memory::desc& parameters, const dnnl::memory::desc& packed,
                int threads);
  // The packed weights; `parameters` themselves where no packing is needed.
  void pack(const void* parameters);
  const void* data() const { return direct_ ? direct_ : memory_.data(); }
  // By kernels of our own, not by a reorder of oneDNN's, which is slow from fp32.
  bool packs_itself() const { return static_cast<bool>(own_); }

 private:
  Kernel reorder_;
  std::function<void(void* packed, const void* parameters)> own_;
  size_t bytes_ = 0;
  AlignedBuffer memory_;
  const void* direct_ = nullptr;
};

}  // namespace convoy::ops::onednn
