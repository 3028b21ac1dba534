// Loss on CUDA: a block takes a row, then one block takes what the rows gave. In double, as on the
// CPU: there are a few hundred thousand numbers, so it costs microseconds.
#include "ops/softmax_cross_entropy.h"

#include <cmath>

#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

struct RowLoss {
  double loss;
  int64_t ahead;  // classes before the label in the order of the logits; -1: the row is padding
};

// combine(...) of all threads' values, by the same tree always, for every thread.
template <typename Combine>
__device__ double combine_block(double value, Combine combine) {
  __shared__ double values[kThreads];
  __syncthreads();  // the last call's result has been read
  values[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  return values[0];
}

__device__ double sum_block(double value) {
  return combine_block(value, [](double a, double b) { return a + b; });
}

// dlogits may be null.
template <typename D, typename T>
__global__ void row_loss_kernel(D* dlogits, RowLoss* rows, const T* logits, const int32_t* labels,
                                SoftmaxCrossEntropy s) {
  const int64_t classes = s.classes;
  const double smoothing = s.label_smoothing, gradient_scale = s.gradient_scale * s.loss_scale;
  const int64_t row = blockIdx.x;
  const T* x = logits + row * classes;
  D* dx = dlogits ? dlogits + row * classes : nullptr;
  const RowLabels label = labels_of(s, labels, row);
  const auto get = [=](int64_t i) { return static_cast<double>(load(x + i)); };
  if (label.main < 0) {
    for (int64_t i = threadIdx.x; dx && i < classes; i += kThreads) store(dx + i, 0.0f);
    if (threadIdx.x == 0) rows[row] = {0.0, -1};
    return;
  }
  const double own = get(label.main);
  double largest = -INFINITY, mean = 0, ahead = 0;
  for (int64_t i = threadIdx.x; i < classes; i += kThreads) {
    const double v = get(i);
    if (v > largest) largest = v;
    mean += v;
    ahead += !(v < own) && (v != own || i < label.main);
  }
  largest = combine_block(largest, [](double a, double b) { return a > b ? a : b; });
  mean = sum_block(mean) / static_cast<double>(classes);
  ahead = sum_block(ahead);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < classes; i += kThreads) sum += exp(get(i) - largest);
  // A NaN anywhere is no largest, but reaches the loss through the sum.
  const double log_sum = largest + log(sum_block(sum));
  const double wanted =
      label.share < 1 ? label.share * own + (1 - label.share) * get(label.other) : own;
  if (threadIdx.x == 0) {
    double loss = log_sum - (1 - smoothing) * wanted;
    if (smoothing > 0) loss -= smoothing * mean;
    rows[row] = {loss, static_cast<int64_t>(ahead)};
  }
  const bool finite =
      std::isfinite(log_sum) && std::isfinite(wanted) && (smoothing == 0 || std::isfinite(mean));
  for (int64_t i = threadIdx.x; dx && i < classes; i += kThreads) {
    const double target =
        smoothing / static_cast<double>(classes) + (1 - smoothing) * label.share_of(i);
    const double gradient = (exp(get(i) - log_sum) - target) * gradient_scale;
    store(dx + i, finite ? static_cast<float>(gradient) : NAN);
  }
}

__global__ void sum_loss_kernel(LossResult* result, float* head, const RowLoss* rows, int64_t n,
                                double gradient_scale) {
  double loss = 0, count = 0, top1 = 0, top5 = 0;
  for (int64_t row = threadIdx.x; row < n; row += kThreads) {
    const auto [row_loss, ahead] = rows[row];
    loss += row_loss;
    count += ahead >= 0;
    top1 += ahead == 0;
    top5 += ahead >= 0 && ahead < 5;
  }
  loss = sum_block(loss);
  count = sum_block(count);
  top1 = sum_block(top1);
  top5 = sum_block(top5);
  if (threadIdx.x > 0) return;
  *result = {loss, static_cast<int64_t>(count), static_cast<int64_t>(top1),
             static_cast<int64_t>(top5)};
  if (!head) return;
  head[0] = static_cast<float>(loss * gradient_scale);
  head[1] = static_cast<float>(top1);
}

}  // namespace

void CudaDevice::loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype,
                      const void* logits, DType type, const int32_t* host_labels,
                      LossResult* result, float* head) {
  check_labels(spec, host_labels);
  use();
  if (spec.n > loss_capacity_) {
    loss_rows_ = allocate_device(static_cast<size_t>(spec.n) * (sizeof(RowLoss) + sizeof(int32_t)));
    loss_capacity_ = spec.n;
  }
  auto* rows = static_cast<RowLoss*>(loss_rows_.get());
  auto* labels = reinterpret_cast<int32_t*>(rows + loss_capacity_);
  upload(labels, host_labels, static_cast<size_t>(spec.n) * sizeof(int32_t));
  with_cuda_type(dtype, [&]<typename D>(D*) {
    with_cuda_type(type, [&]<typename T>(T*) {
      launch(&row_loss_kernel<D, T>, spec.n, kThreads, stream(), static_cast<D*>(dlogits), rows,
             static_cast<const T*>(logits), labels, spec);
    });
  });
  launch(&sum_loss_kernel, 1, kThreads, stream(), result, head, rows, spec.n, spec.gradient_scale);
}

}  // namespace convoy::ops
