#include "ops/plan_timer.h"

#include <algorithm>
#include <array>

namespace convoy::ops {
namespace {

constexpr size_t kRuns = 7;

// Zeros would be multiplied faster than what networks hold: 0.0115 in fp32 and bf16, 1.06 in fp16.
constexpr int kFill = 0x3c;

size_t bytes_of(int64_t elements, size_t size) {
  return static_cast<size_t>(elements) * size;
}

}  // namespace

void* PlanTimer::memory(Tensor tensor, size_t bytes) {
  Memory& memory = memory_[tensor];
  if (memory.bytes < bytes) {
    memory = {};  // before more is taken
    memory = {.data = cuda::allocate_device(bytes), .bytes = bytes};
    cuda::check(cudaMemsetAsync(memory.data.get(), kFill, bytes, stream_));
  }
  return memory.data.get();
}

double PlanTimer::measure(const cudnn::Convolution& c, const cudnn::Plan& plan) {
  const size_t size = size_of(c.type);
  // fp32 where the gradient of the weights is written.
  const int64_t weights = c.y.c * (c.x.c / c.groups) * c.kernel * c.kernel;
  cudnn::Arguments arguments = {
      .x = memory(Tensor::kX, bytes_of(c.x.elements(), size)),
      .w = memory(Tensor::kW, bytes_of(weights, sizeof(float))),
      .y = memory(Tensor::kY, bytes_of(c.y.elements(), size)),
      .workspace = memory(Tensor::kWorkspace, plan.workspace_bytes()),
  };
  if (c.bias)
    arguments.bias =
        static_cast<const float*>(memory(Tensor::kBias, bytes_of(c.y.c, sizeof(float))));
  if (c.residual) arguments.residual = memory(Tensor::kResidual, bytes_of(c.y.elements(), size));
  if (c.sums)
    arguments.sums = static_cast<float*>(memory(Tensor::kSums, bytes_of(2 * c.y.c, sizeof(float))));
  return median_seconds([&] { plan.run(arguments, stream_); });
}

double PlanTimer::measure(const cublas::ProductShape& s, const cublas::Product& product) {
  void* d = memory(Tensor::kW, bytes_of(s.m * s.n, size_of(s.out)));
  const void* a = memory(Tensor::kY, bytes_of(s.m * s.k, size_of(s.in)));
  const void* b = memory(Tensor::kX, bytes_of(s.k * s.n, size_of(s.in)));
  void* workspace = memory(Tensor::kWorkspace, product.workspace_bytes());
  return median_seconds([&] { product.run(d, a, b, false, workspace, stream_); });
}

// A copy of half of them reads and writes as many.
double PlanTimer::measure_pass(size_t bytes) {
  const void* from = memory(Tensor::kX, bytes / 2);
  void* to = memory(Tensor::kY, bytes / 2);
  return median_seconds([&] {
    cuda::check(cudaMemcpyAsync(to, from, bytes / 2, cudaMemcpyDeviceToDevice, stream_));
  });
}

double PlanTimer::median_seconds(const std::function<void()>& run) const {
  run();
  std::array<cuda::Event, kRuns + 1> events;
  for (cuda::Event& event : events) {
    event = cuda::make_timing_event();
    cuda::record(event, stream_);
    if (&event != &events.back()) run();
  }
  cuda::synchronize(stream_);
  std::array<double, kRuns> seconds;
  for (size_t i = 0; i < kRuns; ++i) seconds[i] = cuda::seconds_between(events[i], events[i + 1]);
  std::ranges::nth_element(seconds, seconds.begin() + kRuns / 2);
  return seconds[kRuns / 2];
}

}  // namespace convoy::ops
