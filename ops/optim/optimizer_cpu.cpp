// SGD and LARS on the CPU.
#include <algorithm>
#include <cmath>

#include "ops/cpu_device.h"
#include "ops/optim/update_factors.h"

namespace convoy::ops {
namespace {

class OptimizerCpu final : public Optimizer {
 public:
  OptimizerCpu(CpuDevice& device, const OptimizerConfig& config, const ParameterLayout& layout,
               Parallel parallel)
      : config_(config),
        layout_(layout),
        threads_(device.threads()),
        parallel_(std::move(parallel)),
        momentum_(device, layout.parameter_floats),
        ema_(device, config.ema_decay > 0 ? layout.parameter_floats : 0) {
    for (size_t p = 0; p < layout_.parameters.size(); ++p)
      for (size_t begin = 0;
           layout_.parameters[p].trained && begin < layout_.parameters[p].floats();
           begin += kNormBlock)
        blocks_.push_back({p, begin, std::min(kNormBlock, layout_.parameters[p].floats() - begin)});
    squares_.resize(blocks_.size());
    factors_.resize(layout_.parameters.size());
  }

  void update(float* w, std::span<const float* const> gradients, double learning_rate,
              const float* loss, double gradient_factor) override {
    result_ = {};
    updated_ = false;
    if (loss && !std::isfinite(*loss)) return;
    const std::vector<double> gradient_squares =
        squares_per_tensor([&](const Block& b) { return gradients[b.parameter] + b.begin; });
    double total = 0;
    for (const double square : gradient_squares) total += square;
    result_.gradient_norm = std::sqrt(total) * gradient_factor;
    if (!std::isfinite(result_.gradient_norm)) return;
    updated_ = true;
    const double clip = clip_factor(config_, result_.gradient_norm) * gradient_factor;
    std::vector<double> weight_squares(layout_.parameters.size());
    if (config_.kind == OptimizerConfig::Kind::kLars)
      weight_squares = squares_per_tensor([&](const Block& b) { return w + offset(b); });
    for (size_t p = 0; p < layout_.parameters.size(); ++p)
      factors_[p] = update_factors(config_, layout_.parameters[p].spec.is_weight,
                                   layout_.parameters[p].factors, learning_rate, clip,
                                   gradient_squares[p], weight_squares[p]);
    float* v = momentum_.data();
    float* ema = ema_.empty() ? nullptr : ema_.data();
    const OptimizerKernels& kernels = optimizer_kernels();
    for_blocks([&](size_t i) {
      const Block& b = blocks_[i];
      const size_t at = offset(b);
      kernels.sgd(w + at, v + at, ema ? ema + at : nullptr, gradients[b.parameter] + b.begin,
                  factors_[b.parameter], static_cast<int64_t>(b.floats));
    });
  }

  void update_running(float* running, const float* sum, float share) override {
    if (!updated_) return;
    for (const ParameterLayout::Statistics& s : layout_.statistics) {
      if (!s.gathered) continue;
      const auto m = static_cast<float>(s.momentum);
      float* own = running + s.offset;
      const float* own_sum = sum + s.batch;
      for (size_t i = 0; i < 2 * static_cast<size_t>(s.channels); ++i)
        own[i] = (1.0f - m) * own[i] + m * (own_sum[i] * share);
    }
  }

  UpdateResult result() override { return result_; }
  DeviceFloats& momentum() override { return momentum_; }
  DeviceFloats& ema() override { return ema_; }

 private:
  // A piece of one parameter, `begin` floats behind its start.
  struct Block {
    size_t parameter, begin, floats;
  };
  size_t offset(const Block& b) const { return layout_.parameters[b.parameter].offset + b.begin; }

  template <typename Body>
  void for_blocks(Body body) {
    parallel_([&](int part, int parts) {
      const auto border = [&](int p) {
        return blocks_.size() * static_cast<size_t>(p) / static_cast<size_t>(parts);
      };
      const size_t begin = border(part), end = border(part + 1);
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
      for (size_t i = begin; i < end; ++i) body(i);
    });
  }

  // Sum of squares of every parameter's tensor; data_of(block) is where the block's floats are.
  template <typename DataOf>
  std::vector<double> squares_per_tensor(DataOf data_of) {
    const OptimizerKernels& kernels = optimizer_kernels();
    for_blocks([&](size_t i) {
      squares_[i] = kernels.squares(data_of(blocks_[i]), static_cast<int64_t>(blocks_[i].floats));
    });
    std::vector<double> sums(layout_.parameters.size(), 0.0);
    for (size_t i = 0; i < blocks_.size(); ++i)
      sums[blocks_[i].parameter] += static_cast<double>(squares_[i]);
    return sums;
  }

  OptimizerConfig config_;
  ParameterLayout layout_;
  int threads_;
  Parallel parallel_;
  DeviceFloats momentum_, ema_;
  UpdateResult result_;
  bool updated_ = false;  // by the last update()
  std::vector<Block> blocks_;
  std::vector<float> squares_;
  std::vector<SgdFactors> factors_;
};

}  // namespace

std::unique_ptr<Optimizer> CpuDevice::make_optimizer(const OptimizerConfig& config,
                                                     const ParameterLayout& layout,
                                                     Parallel parallel) {
  return std::make_unique<OptimizerCpu>(*this, config, layout, std::move(parallel));
}

}  // namespace convoy::ops
