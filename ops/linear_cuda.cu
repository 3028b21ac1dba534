// Linear on CUDA: products by cuBLASLt on the tensors as they lie, what stands around them by
// kernels. Of whole images the weights are repacked to the order of memory, H, W, C, and their
// gradient is brought back to C, H, W.
#include "ops/linear_cuda.h"

#include <algorithm>

#include "ops/core/clock.h"
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

constexpr int kTile = 32;      // rows and columns that are transposed at once
constexpr int64_t kRows = 32;  // rows that one thread sums up: an order that hangs on shapes alone

int64_t parts(int64_t n, int64_t of) {
  return (n + of - 1) / of;
}

template <typename T>
__global__ void convert_kernel(T* out, const float* in, int64_t n) {
  for_each(n, [=](int64_t i) { store(out + i, load(in + i)); });
}

// n vectors of eight.
template <typename T>
__global__ void convert_wide_kernel(T* out, const float* in, int64_t n) {
  for_each(n, [=](int64_t i) { store8(out + kWide * i, load8(in + kWide * i)); });
}

// out [groups, columns, rows] = in [groups, rows, columns], or added to it. A block takes a tile.
template <typename Out, typename In>
__global__ void transpose_kernel(Out* out, const In* in, int64_t rows, int64_t columns, bool add) {
  __shared__ float tile[kTile][kTile + 1];  // odd: columns lie in different banks
  const int64_t row_tiles = (rows + kTile - 1) / kTile,
                column_tiles = (columns + kTile - 1) / kTile;
  const int64_t group = blockIdx.x / (row_tiles * column_tiles);
  const int64_t row = blockIdx.x / column_tiles % row_tiles * kTile;
  const int64_t column = blockIdx.x % column_tiles * kTile;
  in += group * rows * columns;
  out += group * rows * columns;
  const int x = static_cast<int>(threadIdx.x) % kTile,
            first = static_cast<int>(threadIdx.x) / kTile;
  for (int y = first; y < kTile; y += kThreads / kTile)
    if (row + y < rows && column + x < columns)
      tile[y][x] = load(in + (row + y) * columns + column + x);
  __syncthreads();
  for (int y = first; y < kTile; y += kThreads / kTile)
    if (column + y < columns && row + x < rows) {
      Out* place = out + (column + y) * rows + row + x;
      store(place, add ? load(place) + tile[x][y] : tile[x][y]);
    }
}

template <typename Out, typename In>
void transpose(Out* out, const In* in, int64_t groups, int64_t rows, int64_t columns, bool add,
               cudaStream_t stream) {
  launch(&transpose_kernel<Out, In>, groups * parts(rows, kTile) * parts(columns, kTile), kThreads,
         stream, out, in, rows, columns, add);
}

// y [rows, columns] = product + bias; a block takes a row. y may be the product.
template <typename T>
__global__ void bias_kernel(T* y, const float* product, const float* bias, int64_t columns) {
  const int64_t row = blockIdx.x * columns;
  for (int64_t k = threadIdx.x; k < columns; k += blockDim.x)
    store(y + row + k, product[row + k] + bias[k]);
}

// sums [ceil(rows / kRows), columns]: of kRows rows of x each. A thread takes a column.
template <typename T>
__global__ void column_sums_kernel(float* sums, const T* x, int64_t rows, int64_t columns) {
  const int64_t column_blocks = (columns + kThreads - 1) / kThreads;
  const int64_t part = blockIdx.x / column_blocks;
  const int64_t k = blockIdx.x % column_blocks * kThreads + threadIdx.x;
  if (k >= columns) return;
  float sum = 0;
  for (int64_t row = kRows * part; row < kRows * (part + 1) && row < rows; ++row)
    sum += load(x + row * columns + k);
  sums[part * columns + k] = sum;
}

// out [columns] = the rows of sums, or added to it.
__global__ void add_rows_kernel(float* out, const float* sums, int64_t rows, int64_t columns,
                                bool add) {
  for_each(columns, [=](int64_t k) {
    float sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += sums[row * columns + k];
    out[k] = add ? out[k] + sum : sum;
  });
}

template <typename T>
class LinearCuda final : public Op {
 public:
  LinearCuda(CudaDevice& device, const Linear& s, const OpConfig& c)
      : stream_(device.stream()),
        rows_(c.x[0].n),
        channels_(c.x[0].c),
        pixels_(c.x[0].h * c.x[0].w),
        in_(channels_ * pixels_),
        out_(s.out_features),
        bias_(s.bias),
        fp32_output_(c.y_type == DType::kFloat32) {
    if (pixels_ > 1 || c.type != DType::kFloat32)
      weights_ = device.allocate(static_cast<size_t>(in_ * out_) * sizeof(T));
    plans_ = plan_linear(device.cublas_handle(), device.library_decisions(), s, c);
    forward_floats_ = bias_ && !fp32_output_ ? rows_ * out_ : 0;
    if (!plans_.backward_weights) return;
    dw_floats_ = pixels_ > 1 ? in_ * out_ : 0;
    if (bias_) db_floats_ = parts(rows_, kRows) * out_;
  }

  void prepare(const NodeMemory& m) override {
    T* packed = static_cast<T*>(weights_.data.get());
    const float* w = m.parameters[0];
    const int64_t n = in_ * out_;
    if (!packed) return;  // fp32 features are multiplied with the parameter itself
    if (pixels_ > 1)
      transpose(packed, w, out_, channels_, pixels_, false, stream_);
    else if (are_wide(n, packed, w))
      launch(&convert_wide_kernel<T>, blocks_for(n / kWide), kThreads, stream_, packed, w,
             n / kWide);
    else
      launch(&convert_kernel<T>, blocks_for(n), kThreads, stream_, packed, w, n);
  }

  void share_weights(const Op& other) override {
    packed_ = &dynamic_cast<const LinearCuda&>(other);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    auto* floats = static_cast<float*>(m.scratch);
    void* product = forward_floats_ > 0 ? floats : m.y;
    plans_.forward.run(product, m.x[0], weights(m), false, floats + forward_floats_, stream_);
    if (!bias_) return;
    const auto add_bias = [&]<typename Y>(Y* y) {
      launch(&bias_kernel<Y>, rows_, kThreads, stream_, y, static_cast<const float*>(product),
             m.parameters[1], out_);
    };
    fp32_output_ ? add_bias(static_cast<float*>(m.y)) : add_bias(static_cast<T*>(m.y));
  }

  void backward(const NodeMemory& m, const StepInfo&) override {
    const T* dy = static_cast<const T*>(m.dy[0]);
    auto* dw = static_cast<float*>(m.scratch);
    void* workspace = dw + dw_floats_ + db_floats_;
    if (plans_.backward_weights) add_gradients(m, dy, dw, workspace);
    if (plans_.backward_data)
      plans_.backward_data.run(m.dx[0], dy, weights(m), false, workspace, stream_);
  }

  size_t scratch_bytes() const override {
    return std::max(
        static_cast<size_t>(forward_floats_) * sizeof(float) + plans_.forward.workspace_bytes(),
        static_cast<size_t>(dw_floats_ + db_floats_) * sizeof(float) +
            std::max(plans_.backward_weights.workspace_bytes(),
                     plans_.backward_data.workspace_bytes()));
  }

 private:
  void add_gradients(const NodeMemory& m, const T* dy, float* dw, void* workspace) const {
    const bool add = !m.slice.first;
    float* db = dw + dw_floats_;
    if (pixels_ > 1) {
      plans_.backward_weights.run(dw, dy, m.x[0], false, workspace, stream_);
      transpose(m.gradients[0], dw, out_, pixels_, channels_, add, stream_);
    } else {
      plans_.backward_weights.run(m.gradients[0], dy, m.x[0], add, workspace, stream_);
    }
    if (bias_) {
      launch(&column_sums_kernel<T>, parts(rows_, kRows) * parts(out_, kThreads), kThreads, stream_,
             db, dy, rows_, out_);
      launch(&add_rows_kernel, blocks_for(out_), kThreads, stream_, m.gradients[1], db,
             parts(rows_, kRows), out_, add);
    }
  }

  const void* weights(const NodeMemory& m) const {
    const void* packed = packed_->weights_.data.get();
    return packed ? packed : m.parameters[0];
  }

  cudaStream_t stream_;
  int64_t rows_, channels_, pixels_, in_, out_;
  bool bias_, fp32_output_;
  LinearPlans plans_;
  DeviceMemory weights_;             // in T and the order of memory; none: as the parameter is
  const LinearCuda* packed_ = this;  // whose packed weights are used
  // Of scratch, before the product's own: forward a product before its bias, backward the weights'
  // gradient in the order of memory and partial sums of the bias's.
  int64_t forward_floats_ = 0, dw_floats_ = 0, db_floats_ = 0;
};

// Numbers in -1..1 that repeat late: zeros would be multiplied faster than what networks hold.
template <typename T>
__global__ void fill_kernel(T* out, int64_t n) {
  for_each(n, [=](int64_t i) {
    const auto hash = static_cast<uint32_t>(i) * 2654435761u;
    store(out + i, static_cast<float>(hash >> 8) * 0x1p-23f - 1.0f);
  });
}

}  // namespace

LinearPlans plan_linear(const cublas::Handle& handle, Decisions& decisions, const Linear& spec,
                        const OpConfig& c) {
  const int64_t rows = c.x[0].n, in = c.x[0].elements() / rows, out = spec.out_features;
  LinearPlans plans;
  plans.forward = cublas::Product(handle,
                                  {.m = rows,
                                   .n = out,
                                   .k = in,
                                   .b_transposed = true,
                                   .in = c.type,
                                   .out = spec.bias ? DType::kFloat32 : c.y_type,
                                   .tf32 = c.tf32},
                                  decisions);
  if (!c.training) return plans;
  if (c.wants_gradients)
    plans.backward_weights = cublas::Product(
        handle, {.m = out, .n = in, .k = rows, .a_transposed = true, .in = c.type, .tf32 = c.tf32},
        decisions);
  if (c.wants_dx[0])
    plans.backward_data = cublas::Product(
        handle, {.m = rows, .n = in, .k = out, .in = c.type, .out = c.type, .tf32 = c.tf32},
        decisions);
  return plans;
}

std::unique_ptr<Op> make_op(CudaDevice& device, const Linear& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<LinearCuda<T>>(device, spec, config);
  });
}

double CudaDevice::measure_gemm(DType type, int64_t n) {
  constexpr int kProducts = 10;  // in a row, so that the host's calls do not count
  Decisions own;                 // no part of what networks compute
  const cublas::Product product(cublas_handle(), {.m = n, .n = n, .k = n, .in = type, .out = type},
                                own);
  const size_t bytes = static_cast<size_t>(n * n) * size_of(type);
  const DeviceMemory a = allocate(bytes), b = allocate(bytes), d = allocate(bytes),
                     workspace = allocate(product.workspace_bytes());
  with_cuda_type(type, [&]<typename T>(T*) {
    for (const DeviceMemory* m : {&a, &b})
      launch(&fill_kernel<T>, blocks_for(n * n), kThreads, stream(), static_cast<T*>(m->data.get()),
             n * n);
  });
  double best_seconds = 1e30;
  for (int run = 0; run < 5; ++run) {
    wait();
    const auto start = Clock::now();
    for (int i = 0; i < kProducts; ++i)
      product.run(d.data.get(), a.data.get(), b.data.get(), false, workspace.data.get(), stream());
    wait();
    best_seconds = std::min(best_seconds, seconds_since(start) / kProducts);
  }
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         best_seconds;
}

}  // namespace convoy::ops
