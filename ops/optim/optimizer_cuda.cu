// SGD and LARS on CUDA. Nothing waits for the host: the norms, whether they are finite, and the
// factors that follow from them stay on the device, in four launches.
//
// Bytes per parameter: 4 for the gradient's norm (8 with LARS), 20 for the update (gradient, weight
// and momentum in, weight and momentum out), 8 more with a moving average.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/optim/update_factors.h"

namespace convoy::ops {
namespace {

using namespace cuda;

constexpr int kPartialSums = 16;  // of a block's squares, as on the CPU
constexpr int kAtOnce = 2;        // blocks of parameters that a block of threads sums
constexpr int kFour = 4;          // floats of a vector

struct Tensor {
  int64_t offset;  // in the flat buffers
  int32_t first_block, blocks;
  bool is_weight;
  ParameterFactors factors;
};
// A piece of one tensor, `begin` floats behind its start.
struct Block {
  int64_t begin;
  int32_t floats, tensor;
};
struct Outcome {
  double gradient_norm;
  bool updated;
};

// What changes from step to step.
struct Rates {
  double learning_rate, gradient_factor;
  bool operator==(const Rates&) const = default;
};

// What all launches of an update know, on the device.
struct State {
  const Tensor* tensors;
  const Block* blocks;
  const float* const* gradients;  // of each tensor
  const Rates* rates;
  float* squares;    // of each block; with LARS, then of the weights'
  double* sums;      // of each tensor, likewise
  Outcome* outcome;  // of the last update
  SgdFactors* factors;
  int64_t tensor_count, block_count;
};

// Of the gradients; behind them, where w is given, of the weights; `count` blocks. All threads
// bring kAtOnce of them into shared memory; of each, sixteen threads take every sixteenth element,
// and one adds their sums in order. (Sixteen threads that read memory themselves had 0.9 TB/s of an
// H200.)
__global__ void squares_kernel(State s, const float* w, int64_t count) {
  // One block's lie in other banks than the other's.
  __shared__ float values[kAtOnce][kNormBlock + kPartialSums];
  __shared__ float sums[kAtOnce * kPartialSums];
  const int64_t first = int64_t{blockIdx.x} * kAtOnce;
  const auto thread = static_cast<int>(threadIdx.x);
  constexpr int kEach = static_cast<int>(kNormBlock) / kThreads;
  static_assert(kNormBlock % kThreads == 0 && kAtOnce == 2);
  float v[kAtOnce][kEach];
  int floats[kAtOnce];
  for (int b = 0; b < kAtOnce; ++b) {
    const int64_t i = first + b;
    const bool of_weights = i >= s.block_count;
    const Block block =
        i < count ? s.blocks[of_weights ? i - s.block_count : i] : Block{.begin = 0, .floats = 0};
    floats[b] = block.floats;
    if (block.floats == 0) continue;
    const float* x =
        (of_weights ? w + s.tensors[block.tensor].offset : s.gradients[block.tensor]) + block.begin;
    for (int j = 0; j < kEach; ++j) {
      const int k = thread + j * kThreads;
      v[b][j] = k < block.floats ? x[k] : 0.0f;
    }
  }
  for (int b = 0; b < kAtOnce; ++b)
    for (int j = 0; j < kEach; ++j)
      if (floats[b] > 0) values[b][thread + j * kThreads] = v[b][j];
  __syncthreads();
  const int lane = thread % kPartialSums, mine = thread / kPartialSums;
  if (mine < kAtOnce) {
    const int n = mine == 0 ? floats[0] : floats[1];
    float sum = 0;
    for (int k = lane; k < n; k += kPartialSums) sum += values[mine][k] * values[mine][k];
    sums[thread] = sum;
  }
  __syncthreads();
  if (mine >= kAtOnce || lane != 0 || first + mine >= count) return;
  float total = 0;
  for (int j = 0; j < kPartialSums; ++j) total += sums[thread + j];
  s.squares[first + mine] = total;
}

// The sum of values [n] in their order, for the block's first thread.
template <typename T>
__device__ double ordered_sum(const T* values, int64_t n) {
  __shared__ T part[kThreads];
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kThreads) {
    if (begin + threadIdx.x < n) part[threadIdx.x] = values[begin + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int64_t i = 0; i < kThreads && begin + i < n; ++i) sum += static_cast<double>(part[i]);
    __syncthreads();
  }
  return sum;
}

__global__ void tensor_squares_kernel(State s) {
  const bool of_weights = blockIdx.x >= s.tensor_count;
  const Tensor& tensor = s.tensors[of_weights ? blockIdx.x - s.tensor_count : blockIdx.x];
  const double sum =
      ordered_sum(s.squares + (of_weights ? s.block_count : 0) + tensor.first_block, tensor.blocks);
  if (threadIdx.x == 0) s.sums[blockIdx.x] = sum;
}

// One block: the norm, whether there is an update, and the factors of each tensor.
__global__ void factors_kernel(State s, OptimizerConfig config, const float* loss) {
  __shared__ double norm;
  const Rates rates = *s.rates;
  const double total = ordered_sum(s.sums, s.tensor_count);
  if (threadIdx.x == 0) {
    const bool good_loss = !loss || std::isfinite(*loss);
    norm = good_loss ? std::sqrt(total) * rates.gradient_factor : 0.0;
    *s.outcome = {norm, good_loss && std::isfinite(norm)};
  }
  __syncthreads();
  const double clip = clip_factor(config, norm) * rates.gradient_factor;
  const double* weight_sums = s.sums + s.tensor_count;
  const bool lars = config.kind == OptimizerConfig::Kind::kLars;
  for (int64_t t = threadIdx.x; t < s.tensor_count; t += kThreads)
    s.factors[t] =
        update_factors(config, s.tensors[t].is_weight, s.tensors[t].factors, rates.learning_rate,
                       clip, s.sums[t], lars ? weight_sums[t] : 0.0);
}

struct alignas(16) Four {
  float v[kFour];
};

__device__ int misalignment(const float* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % sizeof(Four));
}

// A block of threads takes a block of parameters.
template <bool kEma>
__global__ void update_kernel(State s, float* w, float* v, float* ema) {
  if (!s.outcome->updated) return;
  const Block block = s.blocks[blockIdx.x];
  const SgdFactors f = s.factors[block.tensor];
  const int64_t at = s.tensors[block.tensor].offset + block.begin;
  const float* g = s.gradients[block.tensor] + block.begin;
  w += at;
  v += at;
  if (kEma) ema += at;
  const auto update = [&f](float& weight, float& velocity, float& average, float gradient) {
    const float decayed = gradient * f.gradient + weight * f.weight_decay;
    velocity = velocity * f.momentum + decayed;
    const float direction = f.nesterov ? decayed + velocity * f.momentum : velocity;
    weight = weight - direction * f.learning_rate;
    if (kEma) average = average + (weight - average) * f.ema;
  };
  // Tensors begin anywhere in the flat buffers. Where all lie alike there are vectors between
  // single elements, else single elements alone.
  const int off = misalignment(w);
  const bool alike =
      misalignment(v) == off && misalignment(g) == off && (!kEma || misalignment(ema) == off);
  const int head =
      static_cast<int>((sizeof(Four) - static_cast<size_t>(off)) % sizeof(Four) / sizeof(float));
  const int vectors = alike && block.floats > head ? (block.floats - head) / kFour : 0;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const int k = head + kFour * i;
    Four ws = *reinterpret_cast<Four*>(w + k), vs = *reinterpret_cast<Four*>(v + k), averages{};
    const Four gs = *reinterpret_cast<const Four*>(g + k);
    if (kEma) averages = *reinterpret_cast<Four*>(ema + k);
    for (int j = 0; j < kFour; ++j) update(ws.v[j], vs.v[j], averages.v[j], gs.v[j]);
    *reinterpret_cast<Four*>(w + k) = ws;
    *reinterpret_cast<Four*>(v + k) = vs;
    if (kEma) *reinterpret_cast<Four*>(ema + k) = averages;
  }
  for (int i = static_cast<int>(threadIdx.x); i < block.floats - kFour * vectors; i += kThreads) {
    const int k = i < head ? i : i + kFour * vectors;
    float unused = 0;
    update(w[k], v[k], kEma ? ema[k] : unused, g[k]);
  }
}

// at: of each float of a batch's statistics, where its running value lies.
__global__ void update_running_kernel(float* running, const float* sum, const int32_t* at,
                                      const float* momentum, float share, int64_t n,
                                      const Outcome* outcome) {
  if (!outcome->updated) return;
  for_each(n, [=](int64_t i) {
    float& value = running[at[i]];
    value = (1.0f - momentum[i]) * value + momentum[i] * (sum[i] * share);
  });
}

// As a copy on the device.
template <typename T>
DeviceMemory copy_of(CudaDevice& device, const std::vector<T>& values) {
  DeviceMemory memory = device.allocate(values.size() * sizeof(T));
  if (!values.empty()) device.upload(memory.data.get(), values.data(), memory.bytes);
  return memory;
}

class OptimizerCuda final : public Optimizer {
 public:
  OptimizerCuda(CudaDevice& device, const OptimizerConfig& config, const ParameterLayout& layout)
      : device_(device),
        config_(config),
        momentum_(device, layout.parameter_floats),
        ema_(device, config.ema_decay > 0 ? layout.parameter_floats : 0) {
    std::vector<Tensor> tensors;
    std::vector<Block> blocks;
    for (const ParameterLayout::Parameter& p : layout.parameters) {
      trained_.push_back(p.trained);
      if (!p.trained) continue;
      const auto first = static_cast<int32_t>(blocks.size());
      for (size_t begin = 0; begin < p.floats(); begin += kNormBlock)
        blocks.push_back({.begin = static_cast<int64_t>(begin),
                          .floats = static_cast<int32_t>(std::min(kNormBlock, p.floats() - begin)),
                          .tensor = static_cast<int32_t>(tensors.size())});
      tensors.push_back({.offset = static_cast<int64_t>(p.offset),
                         .first_block = first,
                         .blocks = static_cast<int32_t>(blocks.size()) - first,
                         .is_weight = p.spec.is_weight,
                         .factors = p.factors});
    }
    std::vector<float> statistics(layout.batch_floats);
    std::vector<int32_t> running_at(layout.batch_floats);
    for (const ParameterLayout::Statistics& s : layout.statistics) {
      if (!s.gathered) continue;
      const auto begin = static_cast<ptrdiff_t>(s.batch), floats = 2 * s.channels;
      std::fill_n(statistics.begin() + begin, floats, static_cast<float>(s.momentum));
      std::iota(running_at.begin() + begin, running_at.begin() + begin + floats,
                static_cast<int32_t>(s.offset));
    }

    const auto keep = [&](DeviceMemory memory) {
      void* data = memory.data.get();
      memory_.push_back(std::move(memory));
      return data;
    };
    const size_t sets = is_lars() ? 2 : 1;
    gradients_ = keep(device.allocate(tensors.size() * sizeof(float*)));
    rates_ = keep(device.allocate(sizeof(Rates)));
    statistics_momentum_ = static_cast<const float*>(keep(copy_of(device, statistics)));
    running_at_ = static_cast<const int32_t*>(keep(copy_of(device, running_at)));
    statistics_floats_ = static_cast<int64_t>(statistics.size());
    state_ = {
        .tensors = static_cast<const Tensor*>(keep(copy_of(device, tensors))),
        .blocks = static_cast<const Block*>(keep(copy_of(device, blocks))),
        .gradients = static_cast<const float* const*>(gradients_),
        .rates = static_cast<const Rates*>(rates_),
        .squares = static_cast<float*>(keep(device.allocate(sets * blocks.size() * sizeof(float)))),
        .sums = static_cast<double*>(keep(device.allocate(sets * tensors.size() * sizeof(double)))),
        .outcome = static_cast<Outcome*>(keep(device.allocate(sizeof(Outcome)))),
        .factors =
            static_cast<SgdFactors*>(keep(device.allocate(tensors.size() * sizeof(SgdFactors)))),
        .tensor_count = static_cast<int64_t>(tensors.size()),
        .block_count = static_cast<int64_t>(blocks.size())};
  }

  void update(float* w, std::span<const float* const> gradients, double learning_rate,
              const float* loss, double gradient_factor) override {
    device_.use();
    std::vector<const float*> trained;
    for (size_t p = 0; p < gradients.size(); ++p)
      if (trained_[p]) trained.push_back(gradients[p]);
    if (trained != sent_gradients_) {
      device_.upload(gradients_, trained.data(), trained.size() * sizeof(float*));
      sent_gradients_ = std::move(trained);
    }
    const Rates rates = {learning_rate, gradient_factor};
    if (rates != sent_rates_) {
      sent_rates_ = rates;
      device_.upload(rates_, &rates, sizeof rates);
    }
    const int64_t sets = is_lars() ? 2 : 1, squares = sets * state_.block_count;
    launch(&squares_kernel, (squares + kAtOnce - 1) / kAtOnce, kThreads, stream(), state_,
           is_lars() ? w : nullptr, squares);
    launch(&tensor_squares_kernel, sets * state_.tensor_count, kThreads, stream(), state_);
    launch(&factors_kernel, 1, kThreads, stream(), state_, config_, loss);
    launch(ema_.empty() ? &update_kernel<false> : &update_kernel<true>, state_.block_count,
           kThreads, stream(), state_, w, momentum_.data(), ema_.data());
  }

  void update_running(float* running, const float* sum, float share) override {
    device_.use();
    if (statistics_floats_ == 0) return;
    launch(&update_running_kernel, blocks_for(statistics_floats_), kThreads, stream(), running, sum,
           running_at_, statistics_momentum_, share, statistics_floats_, state_.outcome);
  }

  UpdateResult result() override {
    Outcome outcome;
    device_.download(&outcome, state_.outcome, sizeof outcome);
    return {.gradient_norm = outcome.gradient_norm};
  }
  DeviceFloats& momentum() override { return momentum_; }
  DeviceFloats& ema() override { return ema_; }

 private:
  bool is_lars() const { return config_.kind == OptimizerConfig::Kind::kLars; }
  cudaStream_t stream() const { return device_.stream(); }

  CudaDevice& device_;
  OptimizerConfig config_;
  DeviceFloats momentum_, ema_;
  std::vector<DeviceMemory> memory_;  // of all that follows
  void *gradients_ = nullptr, *rates_ = nullptr;
  std::vector<bool> trained_;                   // of each parameter
  const float* statistics_momentum_ = nullptr;  // of each float
  const int32_t* running_at_ = nullptr;
  int64_t statistics_floats_ = 0;
  State state_{};
  // What the device has been told.
  std::vector<const float*> sent_gradients_;
  Rates sent_rates_ = {std::numeric_limits<double>::quiet_NaN(), 0};
};

}  // namespace

std::unique_ptr<Optimizer> CudaDevice::make_optimizer(const OptimizerConfig& config,
                                                      const ParameterLayout& layout, Parallel) {
  return std::make_unique<OptimizerCuda>(*this, config, layout);
}

}  // namespace convoy::ops
