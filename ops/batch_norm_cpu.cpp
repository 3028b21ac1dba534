// Batch norm on the CPU: sums per block from the kernels, the rest per channel in double.
#include <cmath>
#include <cstring>

#include "ops/batch_norm.h"
#include "ops/batch_norm_kernels.h"
#include "ops/core/error.h"
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
        c_(config.y.c),
        training_(config.training),
        blocks_((rows_ + kBatchNormRowBlock - 1) / kBatchNormRowBlock),
        saved_(training_ ? ops::saved_bytes(spec, config.y) : 0) {
    const auto channels = static_cast<size_t>(c_);
    vectors_ = AlignedBuffer(kVectors * channels * sizeof(float));
    if (training_) sums_ = AlignedBuffer(2 * channels * sizeof(double));
    if (training_ && rows_ < 2)
      fail(ExitCode::kBadJob,
           "batch_norm \"{}\": one value per channel ({}) has no variance; use a larger "
           "batch_per_worker "
           "or image",
           config.name, to_string(config.y));
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (training_)
      batch_statistics(m);
    else
      set_statistics(m, m.running, m.running + c_);
    const auto* residual = spec_.residual ? static_cast<const T*>(m.x[1]) : nullptr;
    auto* mask = training_ && spec_.relu ? static_cast<uint16_t*>(m.saved) : nullptr;
    kernels().normalise(static_cast<T*>(m.y), mask, static_cast<const T*>(m.x[0]), residual,
                        vector(kMean), vector(kScale), m.parameters[1], rows_, c_, spec_.relu,
                        threads_);
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    const auto* x = static_cast<const T*>(m.x[0]);
    auto* dy0 = static_cast<T*>(m.dy[0]);
    const auto* dy1 = m.dy.size() > 1 ? static_cast<const T*>(m.dy[1]) : nullptr;
    const auto* mask = spec_.relu ? static_cast<const uint16_t*>(m.saved) : nullptr;
    // The masked sum is stored where somebody needs it: the residual, or the second pass.
    const bool stored = spec_.residual || dy1 != nullptr;
    auto* partial = static_cast<float*>(m.scratch);
    kernels().backward_sums(partial, stored ? dy0 : nullptr, dy0, dy1, mask, x, vector(kMean),
                            rows_, c_, threads_);
    add_blocks(partial);
    const double count = static_cast<double>(rows_);
    for (int64_t k = 0; k < c_; ++k) {
      const double inv_std = vector(kInvStd)[k];
      const double dbeta = sums()[k], dgamma = sums()[c_ + k] * inv_std;
      m.gradients[0][k] = static_cast<float>(dgamma);
      m.gradients[1][k] = static_cast<float>(dbeta);
      const double a = m.parameters[0][k] * inv_std;
      vector(kA)[k] = static_cast<float>(a);
      vector(kB)[k] = static_cast<float>(-a * dgamma * inv_std / count);
      vector(kK)[k] = static_cast<float>(-a * dbeta / count);
    }
    if (!m.dx[0]) return;  // the input is the image
    kernels().backward_apply(static_cast<T*>(m.dx[0]), dy0, stored ? nullptr : mask, x,
                             vector(kMean), vector(kA), vector(kB), vector(kK), rows_, c_,
                             threads_);
  }

  size_t saved_bytes() const override { return saved_; }
  size_t scratch_bytes() const override {
    return training_ ? static_cast<size_t>(blocks_ * 2 * c_) * sizeof(float) : 0;
  }

 private:
  // Vectors of c floats that live as long as the op; statistics wait there for backward.
  enum Vector { kMean, kInvStd, kScale, kA, kB, kK, kVectors };
  float* vector(Vector which) { return vectors_.as<float>() + which * c_; }
  double* sums() { return sums_.as<double>(); }
  static const BatchNormKernels<T>& kernels() { return batch_norm_kernels<T>(); }

  // sums() = the blocks' sums, added in order.
  void add_blocks(const float* partial) {
    std::memset(sums_.data(), 0, sums_.size());
    for (int64_t block = 0; block < blocks_; ++block, partial += 2 * c_)
      for (int64_t k = 0; k < 2 * c_; ++k) sums()[k] += static_cast<double>(partial[k]);
  }

  void batch_statistics(const NodeMemory& m) {
    const auto* x = static_cast<const T*>(m.x[0]);
    // Around which the sums are taken: the mean of up to 64 rows spread over the batch.
    float* shift = vector(kMean);
    const int64_t samples = rows_ < 64 ? rows_ : 64;
    for (int64_t k = 0; k < c_; ++k) shift[k] = 0.0f;
    for (int64_t s = 0; s < samples; ++s) {
      const T* row = x + s * rows_ / samples * c_;
      for (int64_t k = 0; k < c_; ++k) shift[k] += as_float(row[k]);
    }
    for (int64_t k = 0; k < c_; ++k) shift[k] /= static_cast<float>(samples);

    auto* partial = static_cast<float*>(m.scratch);
    kernels().statistics(partial, x, shift, rows_, c_, threads_);
    add_blocks(partial);
    const double count = static_cast<double>(rows_);
    for (int64_t k = 0; k < c_; ++k) {
      const double offset = sums()[k] / count;
      // Sum of squares minus a small square: rounding can take it below zero by a hair, never more.
      double variance = sums()[c_ + k] / count - offset * offset;
      if (variance < 0) variance = 0;
      m.statistics[k] = static_cast<float>(static_cast<double>(shift[k]) + offset);
      m.statistics[c_ + k] = static_cast<float>(variance * count / (count - 1));
      vector(kScale)[k] = static_cast<float>(variance);
    }
    set_statistics(m, m.statistics, vector(kScale));
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
  int64_t rows_, c_;
  bool training_;
  int64_t blocks_;
  size_t saved_;
  AlignedBuffer vectors_, sums_;
};

}  // namespace

std::unique_ptr<Op> make_op(CpuDevice& device, const BatchNorm& spec, const OpConfig& config) {
  return make_for_type<BatchNormCpu>(config.type, device.threads(), spec, config);
}

}  // namespace convoy::ops
