// Dropout on the CPU: a bit mask drawn from Philox, four elements a call.
#include <cstring>

#include "ops/cpu_device.h"
#include "ops/dropout.h"
#include "ops/elementwise_kernels.h"

namespace convoy::ops {
namespace {

template <typename T>
class DropoutCpu final : public Op {
 public:
  DropoutCpu(int threads, const Dropout& spec, const OpConfig& c)
      : threads_(threads),
        rate_(static_cast<float>(spec.rate)),
        n_(c.y.elements()),
        words_per_sample_((n_ / c.y.n + 15) / 16),
        key_(dropout_key(c.name)),
        saved_(c.training ? ops::saved_bytes(spec, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo& step) override {
    if (saved_ == 0) {
      std::memcpy(m.y, m.x[0], static_cast<size_t>(n_) * sizeof(T));
      return;
    }
    auto* mask = static_cast<uint16_t*>(m.saved);
    const auto first_word = static_cast<uint64_t>(m.slice.begin * words_per_sample_);
    for (int64_t word = 0; word < (n_ + 15) / 16; ++word)
      mask[word] = dropout_bits(step, key_, first_word + static_cast<uint64_t>(word), rate_);
    apply(static_cast<T*>(m.y), static_cast<const T*>(m.x[0]), mask);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    apply(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
          static_cast<const uint16_t*>(m.saved));
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  void apply(T* y, const T* x, const uint16_t* mask) {
    elementwise_kernels<T>().keep(y, x, mask, 1.0f / (1.0f - rate_), n_, threads_);
  }

  int threads_;
  float rate_;
  int64_t n_;
  int64_t words_per_sample_;  // no slice draws another's numbers
  uint64_t key_;
  size_t saved_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const Dropout& spec, const OpConfig& config) {
  return make_for_type<DropoutCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
