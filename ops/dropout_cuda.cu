// Dropout on CUDA: the CPU's bit mask. Both passes move each element once in and once out, and a
// bit of the mask.
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/dropout.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// y = x * scale where a bit of word number `word` is set, else 0. y may be x.
template <bool kIsWide, typename T>
__device__ void keep(T* y, const T* x, int64_t word, uint16_t bits, float scale, int64_t n) {
  if constexpr (kIsWide) {
    for (int64_t i = 16 * word; i < 16 * word + 16 && i < n; i += kWide) {
      Floats8 v = load8(x + i);
      for (int k = 0; k < kWide; ++k) v.v[k] = bits >> (i % 16 + k) & 1 ? v.v[k] * scale : 0.0f;
      store8(y + i, v);
    }
  } else {
    for (int64_t i = 16 * word; i < 16 * word + 16 && i < n; ++i)
      store(y + i, bits >> i % 16 & 1 ? load(x + i) * scale : 0.0f);
  }
}

// One thread takes a word of the mask: 16 elements, fewer at the end.
template <bool kIsWide, typename T>
__global__ void dropout_forward_kernel(T* y, uint16_t* mask, const T* x, const StepInfo* step,
                                       uint64_t key, int64_t first_word, float rate, int64_t n) {
  for_each((n + 15) / 16, [=](int64_t word) {
    mask[word] = dropout_bits(*step, key, static_cast<uint64_t>(first_word + word), rate);
    keep<kIsWide>(y, x, word, mask[word], 1.0f / (1.0f - rate), n);
  });
}

template <bool kIsWide, typename T>
__global__ void dropout_backward_kernel(T* dx, const T* dy, const uint16_t* mask, float rate,
                                        int64_t n) {
  for_each((n + 15) / 16,
           [=](int64_t word) { keep<kIsWide>(dx, dy, word, mask[word], 1.0f / (1.0f - rate), n); });
}

template <typename T>
class DropoutCuda final : public Op {
 public:
  DropoutCuda(CudaDevice& device, const Dropout& spec, const OpConfig& c)
      : device_(device),
        rate_(static_cast<float>(spec.rate)),
        n_(c.y.elements()),
        words_per_sample_((n_ / c.y.n + 15) / 16),
        key_(dropout_key(c.name)),
        saved_(c.training ? ops::saved_bytes(spec, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo& step) override {
    auto* y = static_cast<T*>(m.y);
    const auto* x = static_cast<const T*>(m.x[0]);
    if (saved_ == 0)
      return check(cudaMemcpyAsync(y, x, static_cast<size_t>(n_) * sizeof(T),
                                   cudaMemcpyDeviceToDevice, device_.stream()));
    launch(
        are_wide(n_, y, x) ? &dropout_forward_kernel<true, T> : &dropout_forward_kernel<false, T>,
        blocks(), kThreads, device_.stream(), y, static_cast<uint16_t*>(m.saved), x,
        device_.device_step(step), key_, m.slice.begin * words_per_sample_, rate_, n_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    auto* dx = static_cast<T*>(m.dx[0]);
    const auto* dy = static_cast<const T*>(m.dy[0]);
    launch(are_wide(n_, dx, dy) ? &dropout_backward_kernel<true, T>
                                : &dropout_backward_kernel<false, T>,
           blocks(), kThreads, device_.stream(), dx, dy, static_cast<const uint16_t*>(m.saved),
           rate_, n_);
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  int64_t blocks() const { return blocks_for((n_ + 15) / 16); }

  CudaDevice& device_;
  float rate_;
  int64_t n_;
  int64_t words_per_sample_;  // no slice draws another's numbers
  uint64_t key_;
  size_t saved_;
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Dropout& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<DropoutCuda<T>>(device, spec, config);
  });
}

}  // namespace convoy::ops
