#include "ops/winograd_cpu.h"

#include <algorithm>

#include "ops/core/isa.h"
#include "ops/folded_weights.h"
#include "ops/onednn.h"

namespace convoy::ops {
namespace {

// T: of the pixels.
template <typename T>
class WinogradOpCpu final : public Op {
 public:
  // `kernels`: of forward and of dx; `gradient`: of dw.
  WinogradOpCpu(int threads, const Conv2d& spec, const OpConfig& config,
                const WinogradKernels<T>& kernels, const WinogradKernels<T>& gradient)
      : kernels_(kernels),
        gradient_kernels_(gradient),
        threads_(threads),
        name_(config.name),
        spec_(spec),
        bias_(spec.bias),
        wants_gradients_(config.training && config.wants_gradients),
        wants_dx_(config.training && config.wants_dx[0]),
        shape_({config.x[0].n, config.x[0].h, config.x[0].w, config.x[0].c, config.y.c}),
        turned_({shape_.n, shape_.h, shape_.w, shape_.k, shape_.c}) {
    if (wants_gradients_ && config.batch > shape_.n)
      gradient_sum_ = transformed_weights(gradient_kernels_, shape_);
  }

  // Memory is taken by the first call: a lane that uses another's weights takes none.
  void prepare(const NodeMemory& m) override {
    if (forward_weights_.size() == 0) forward_weights_ = transformed_weights(kernels_, shape_);
    const float* w = m.parameters[0];
    if (spec_.batch_norm) {
      folded_ = fold_batch_norm(name_, spec_, m, 9 * shape_.c);
      w = folded_.weights.as<float>();
    }
    kernels_.pack(forward_weights_.as<float>(), w, shape_.c, shape_.k, threads_);
    folded_.weights = {};
    if (!wants_dx_) return;
    if (backward_weights_.size() == 0) backward_weights_ = transformed_weights(kernels_, turned_);
    kernels_.pack_backward(backward_weights_.as<float>(), m.parameters[0], shape_.k, shape_.c,
                           threads_);
  }

  void share_weights(const Op& other) override {
    packed_ = &dynamic_cast<const WinogradOpCpu&>(other);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    WinogradEnd end{.bias = bias_ ? m.parameters[1] : nullptr};
    if (spec_.batch_norm)
      end = {.bias = packed_->folded_.bias.data(),
             .residual = spec_.batch_norm->residual,
             .relu = spec_.batch_norm->relu};
    kernels_.forward(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]),
                     packed_->forward_weights_.template as<float>(), end, shape_,
                     static_cast<float*>(m.scratch), threads_);
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    const auto* dy = static_cast<const T*>(m.dy[0]);
    if (wants_gradients_) add_gradient(m, dy);
    if (wants_dx_)
      kernels_.forward(static_cast<T*>(m.dx[0]), dy,
                       packed_->backward_weights_.template as<float>(), {}, turned_,
                       static_cast<float*>(m.scratch), threads_);
  }

  size_t scratch_bytes() const override {
    int64_t floats = kernels_.forward_scratch(shape_, threads_);
    if (wants_dx_) floats = std::max(floats, kernels_.forward_scratch(turned_, threads_));
    if (wants_gradients_)
      floats = std::max(
          floats, gradient_scratch_floats() + gradient_kernels_.gradient_scratch(shape_, threads_));
    return static_cast<size_t>(floats) * sizeof(float);
  }

 private:
  void add_gradient(const NodeMemory& m, const T* dy) {
    // Scratch: the gradient of U where it need not last till the next slice, then the kernel's own.
    auto* scratch = static_cast<float*>(m.scratch);
    float* du = gradient_sum_.size() > 0 ? gradient_sum_.as<float>() : scratch;
    gradient_kernels_.add_gradient(du, bias_ ? m.gradients[1] : nullptr,
                                   static_cast<const T*>(m.x[0]), dy, shape_, m.slice.first,
                                   scratch + gradient_scratch_floats(), threads_);
    if (m.slice.last)
      gradient_kernels_.unpack_gradient(m.gradients[0], du, shape_.c, shape_.k, threads_);
  }
  static AlignedBuffer transformed_weights(const WinogradKernels<T>& kernels,
                                           const WinogradShape& s) {
    return AlignedBuffer(static_cast<size_t>(kernels.weight_floats(s.c, s.k)) * sizeof(float));
  }
  int64_t gradient_scratch_floats() const {
    return gradient_sum_.size() > 0 ? 0 : gradient_kernels_.weight_floats(shape_.c, shape_.k);
  }

  const WinogradKernels<T>& kernels_;
  const WinogradKernels<T>& gradient_kernels_;
  int threads_;
  std::string name_;
  Conv2d spec_;
  bool bias_, wants_gradients_, wants_dx_;
  WinogradShape shape_, turned_;  // turned: from dy to dx
  AlignedBuffer forward_weights_, backward_weights_;
  FoldedWeights folded_;                // of a batch norm: the bias
  const WinogradOpCpu* packed_ = this;  // whose packed weights are used
  AlignedBuffer gradient_sum_;          // of U, over several slices
};

// Products per pair of channels and image: a tile takes them all even where it hangs over the edge.
int64_t products(const Shape& x, int64_t tile_h, int64_t tile_w) {
  return (tile_h + 2) * (tile_w + 2) * ((x.h + tile_h - 1) / tile_h) *
         ((x.w + tile_w - 1) / tile_w);
}

// True where larger tiles need an eighth fewer products than 4x4 ones, which their transforms and
// weights cost: measured on a Zen 5, 56x56 (a quarter fewer) takes 0.9 of the time, 32x32 (0.12)
// 1.1.
bool larger_wins(const Shape& x, int64_t tile_h, int64_t tile_w) {
  return 8 * products(x, tile_h, tile_w) <= 7 * products(x, 4, 4);
}

const WinogradKernels<Bfloat16>& bf16_kernels(WinogradTile tile) {
  switch (tile) {
    case WinogradTile::k7x7:
      return winograd_kernels_7x7_bf16();
    case WinogradTile::k7x4:
      return winograd_kernels_7x4_bf16();
    default:
      return winograd_kernels_4x4_bf16();
  }
}

}  // namespace

WinogradTiles winograd_tiles(DType type, const Shape& x) {
  if (type == DType::kFloat32 || !larger_wins(x, 7, 4)) return {};
  const bool one_tile = x.h <= 7 && x.w <= 7;
  return {.forward = larger_wins(x, 7, 7) && !one_tile ? WinogradTile::k7x7 : WinogradTile::k7x4,
          .gradient = WinogradTile::k7x4};
}

bool winograd_wins(const Conv2d& s, const OpConfig& c) {
  const Shape& x = c.x[0];
  // Where oneDNN multiplies bf16 by AMX, six times as fast as fp32, nothing beats it.
  const bool in_bf16 =
      c.type == DType::kBfloat16 && cpu_supports_bf16() && !onednn::multiplies_by_amx();
  const bool computes = cpu_isa() >= Isa::kAvx2 && (c.type == DType::kFloat32 || in_bf16) &&
                        c.y_type == c.type && winograd_computes(s, x.c);
  // A direct convolution leaves out the padding. With AVX512_BF16 oneDNN's products are twice as
  // fast as ours, which are fp32's. Measured on a Zen 5 with 4x4 tiles: 4 times fewer (56x56) take
  // a third of the time in fp32, 0.6 of it in bf16; 2.5 times fewer (7x7) half of it and 0.8; 1.8
  // times fewer (6x6) 0.6 and 1.2.
  const int64_t direct = (3 * x.h - 2) * (3 * x.w - 2);
  const int64_t winograd = products(x, 4, 4);
  return computes && 10 * direct >= (in_bf16 ? 23 : 17) * winograd;
}

std::unique_ptr<Op> make_winograd_op(int threads, const Conv2d& spec, const OpConfig& config) {
  if (config.type == DType::kFloat32)
    return std::make_unique<WinogradOpCpu<float>>(
        threads, spec, config, winograd_kernels_4x4_fp32(), winograd_kernels_4x4_fp32());
  const WinogradTiles tiles = winograd_tiles(config.type, config.x[0]);
  return std::make_unique<WinogradOpCpu<Bfloat16>>(
      threads, spec, config, bf16_kernels(tiles.forward), bf16_kernels(tiles.gradient));
}

}  // namespace convoy::ops
