// Concat on CUDA: a strided copy of each input's rows. Moves each element once in and once out.
#include "ops/concat.h"
#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// Units are elements, or vectors of eight.
template <typename Unit>
__global__ void copy_columns_kernel(Unit* to, int64_t to_columns, const Unit* from,
                                    int64_t from_columns, int64_t rows, int64_t columns) {
  for_each(rows * columns, [=](int64_t i) {
    const int64_t row = i / columns, column = i - row * columns;
    to[row * to_columns + column] = from[row * from_columns + column];
  });
}

// The first `columns` elements of each row.
template <typename T>
void copy_columns(T* to, int64_t to_columns, const T* from, int64_t from_columns, int64_t rows,
                  int64_t columns, cudaStream_t stream) {
  if (are_wide(to_columns | from_columns | columns, to, from))
    launch(&copy_columns_kernel<Bits8<T>>, blocks_for(rows * columns / kWide), kThreads, stream,
           reinterpret_cast<Bits8<T>*>(to), to_columns / kWide,
           reinterpret_cast<const Bits8<T>*>(from), from_columns / kWide, rows, columns / kWide);
  else
    launch(&copy_columns_kernel<T>, blocks_for(rows * columns), kThreads, stream, to, to_columns,
           from, from_columns, rows, columns);
}

template <typename T>
class ConcatCuda final : public Op {
 public:
  ConcatCuda(cudaStream_t stream, const OpConfig& c)
      : stream_(stream), rows_(c.y.rows()), y_(c.y.c) {
    for (const Shape& x : c.x) x_.push_back(x.c);
  }

  void forward(const NodeMemory& m, const StepInfo&) override {
    T* y = static_cast<T*>(m.y);
    for (size_t i = 0; i < x_.size(); y += x_[i++])
      copy_columns(y, y_, static_cast<const T*>(m.x[i]), x_[i], rows_, x_[i], stream_);
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    const T* dy = static_cast<const T*>(m.dy[0]);
    for (size_t i = 0; i < x_.size(); dy += x_[i++])
      if (m.dx[i]) copy_columns(static_cast<T*>(m.dx[i]), x_[i], dy, y_, rows_, x_[i], stream_);
  }

 private:
  cudaStream_t stream_;
  int64_t rows_, y_;
  std::vector<int64_t> x_;  // channels, like y_
};

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const Concat&, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<ConcatCuda<T>>(device.stream(), config);
  });
}

}  // namespace convoy::ops
