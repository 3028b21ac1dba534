// Batch norm on the CPU: sums per block from the kernels, the rest per channel in double.
#include <cmath>
#include <cstring>

#include "ops/batch_norm.h"
#include "ops/batch_norm_kernels.h"
#include "ops/cpu_device.h"

namespace convoy::ops {
namespace {

template <typename T>
class BatchNormCpu final : public Op {
 public:
  BatchNormCpu(int threads, const BatchNorm& spec, const OpConfig& config)
      : threads_(threads),
        spec_(spec),
        rows_(config.y.rows()),
        count_(static_cast<double>(config.y.h * config.y.w * config.batch)),
        c_(config.y.c),
        training_(config.training),
        gathers_(config.training && !spec.frozen),
        blocks_((rows_ + kBatchNormRowBlock - 1) / kBatchNormRowBlock),
        saved_(training_ ? ops::saved_bytes(spec, config.y) : 0) {
    const auto channels = static_cast<size_t>(c_);
    vectors_ = AlignedBuffer(kVectors * channels * sizeof(float));
    if (gathers_) sums_ = AlignedBuffer(2 * channels * sizeof(double));
    if (gathers_) expect_variance(config);
  }

  void gather_forward(const NodeMemory& m) override {
    const auto* x = static_cast<const T*>(m.x[0]);
    if (m.slice.first) choose_shift(x);
    auto* partial = static_cast<float*>(m.scratch);
    kernels().statistics(partial, x, vector(kMean), rows_, c_, threads_);
    add_blocks(m, partial);
    if (!m.slice.last) return;
    for (int64_t k = 0; k < c_; ++k) {
      const double offset = sums()[k] / count_;
      // Sum of squares minus a small square: rounding can take it below zero by a hair, never more.
      double variance = sums()[c_ + k] / count_ - offset * offset;
      if (variance < 0) variance = 0;
      m.statistics[k] = static_cast<float>(static_cast<double>(vector(kMean)[k]) + offset);
      m.statistics[c_ + k] = static_cast<float>(variance * count_ / (count_ - 1));
      vector(kScale)[k] = static_cast<float>(variance);
    }
    set_statistics(m, m.statistics, vector(kScale));
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (!gathers_ && m.slice.first) set_statistics(m, m.running, m.running + c_);
    const auto* residual = spec_.residual ? static_cast<const T*>(m.x[1]) : nullptr;
    auto* mask = training_ && spec_.relu ? static_cast<uint16_t*>(m.saved) : nullptr;
    kernels().normalise(static_cast<T*>(m.y), mask, static_cast<const T*>(m.x[0]), residual,
                        vector(kMean), vector(kScale), m.parameters[1], rows_, c_, spec_.relu,
                        threads_);
  }

  void gather_backward(const NodeMemory& m) override {
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    auto* partial = static_cast<float*>(m.scratch);
    kernels().backward_sums(partial, stores_sum(m) ? dy0 : nullptr, dy0, dy1, mask_of(m),
                            static_cast<const T*>(m.x[0]), vector(kMean), rows_, c_, threads_);
    add_blocks(m, partial);
    if (!m.slice.last) return;
    for (int64_t k = 0; k < c_; ++k) {
      const double inv_std = vector(kInvStd)[k];
      const double dbeta = sums()[k], dgamma = sums()[c_ + k] * inv_std;
      m.gradients[0][k] = static_cast<float>(dgamma);
      m.gradients[1][k] = static_cast<float>(dbeta);
      const double a = m.parameters[0][k] * inv_std;
      vector(kA)[k] = static_cast<float>(a);
      vector(kB)[k] = static_cast<float>(-a * dgamma * inv_std / count_);
      vector(kK)[k] = static_cast<float>(-a * dbeta / count_);
    }
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    if (spec_.frozen) return backward_frozen(m);
    if (!m.dx[0]) return;  // nothing is trained before it
    kernels().backward_apply(static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                             stores_sum(m) ? nullptr : mask_of(m), static_cast<const T*>(m.x[0]),
                             vector(kMean), vector(kA), vector(kB), vector(kK), rows_, c_,
                             threads_);
  }

  size_t saved_bytes() const override { return saved_; }
  size_t scratch_bytes() const override {
    return gathers_ ? static_cast<size_t>(blocks_ * 2 * c_) * sizeof(float) : 0;
  }

 private:
  void backward_frozen(const NodeMemory& m) {
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    T* residual = spec_.residual && m.dx[1] ? dy0 : nullptr;
    kernels().scale_gradient(static_cast<T*>(m.dx[0]), residual, dy0, dy1, mask_of(m),
                             vector(kScale), rows_, c_, threads_);
  }

  // Vectors of c floats that live as long as the op; statistics wait there for backward.
  enum Vector { kMean, kInvStd, kScale, kA, kB, kK, kVectors };
  float* vector(Vector which) { return vectors_.as<float>() + which * c_; }
  double* sums() { return sums_.as<double>(); }
  static const BatchNormKernels<T>& kernels() { return batch_norm_kernels<T>(); }

  // The masked sum of gradients is stored where somebody needs it: the residual, or backward().
  bool stores_sum(const NodeMemory& m) const { return spec_.residual || m.dy.size() > 1; }
  const uint16_t* mask_of(const NodeMemory& m) const {
    return spec_.relu ? static_cast<const uint16_t*>(m.saved) : nullptr;
  }

  // sums() += the blocks' sums of this slice, in order.
  void add_blocks(const NodeMemory& m, const float* partial) {
    if (m.slice.first) std::memset(sums_.data(), 0, sums_.size());
    for (int64_t block = 0; block < blocks_; ++block, partial += 2 * c_)
      for (int64_t k = 0; k < 2 * c_; ++k) sums()[k] += static_cast<double>(partial[k]);
  }

  // Around which sums are taken: the mean of up to 64 rows spread over the first slice.
  void choose_shift(const T* x) {
    float* shift = vector(kMean);
    const int64_t samples = rows_ < 64 ? rows_ : 64;
    for (int64_t k = 0; k < c_; ++k) shift[k] = 0.0f;
    for (int64_t s = 0; s < samples; ++s) {
      const T* row = x + s * rows_ / samples * c_;
      for (int64_t k = 0; k < c_; ++k) shift[k] += as_float(row[k]);
    }
    for (int64_t k = 0; k < c_; ++k) shift[k] /= static_cast<float>(samples);
  }

  // Fills mean, 1 / std and scale from a mean and a biased variance (which may be in kScale).
  void set_statistics(const NodeMemory& m, const float* mean, const float* variance) {
    for (int64_t k = 0; k < c_; ++k) {
      vector(kMean)[k] = mean[k];
      const double inv_std = 1.0 / std::sqrt(static_cast<double>(variance[k]) + spec_.epsilon);
      vector(kInvStd)[k] = static_cast<float>(inv_std);
      vector(kScale)[k] = static_cast<float>(m.parameters[0][k] * inv_std);
    }
  }

  static float as_float(float v) { return v; }
  static float as_float(Bfloat16 v) { return to_float(v); }

  int threads_;
  BatchNorm spec_;
  int64_t rows_;  // of one slice
  double count_;  // values of a channel in the whole batch
  int64_t c_;
  bool training_;
  bool gathers_;  // takes its statistics from the batch
  int64_t blocks_;
  size_t saved_;
  AlignedBuffer vectors_, sums_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const BatchNorm& spec, const OpConfig& config) {
  if (spec.shortcut || spec.pool || spec.dy1_stride > 1)
    fail(ExitCode::kFault, "batch_norm \"{}\": merged, as no CPU computes it", config.name);
  return make_for_type<BatchNormCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
