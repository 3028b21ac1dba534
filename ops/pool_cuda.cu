// Pooling on CUDA. A block takes a row of pixels of what it writes, a thread some channels of one
// pixel, which it gathers: neighbours read the same pixels again, from the cache. From and to
// memory forward moves x, y and (MaxPool) a byte per output; backward dy, those bytes and dx.
// Global average pooling is average pooling whose window is the image.
#include "ops/pool_cuda.h"

#include <cmath>

#include "ops/cuda_device.h"
#include "ops/pool.h"

namespace convoy::ops {
namespace {

using namespace cuda_pool;

__device__ float inverse_area(const Geometry& g, Span rows, Span columns) {
  const int area =
      g.include_pad ? g.kernel * g.kernel : (rows.end - rows.begin) * (columns.end - columns.begin);
  return 1.0f / static_cast<float>(area);
}

template <int kLanes, typename T>
__global__ void max_forward_kernel(T* y, uint8_t* places, const T* x, Geometry g) {
  for_lanes<kLanes>(g.p, g.q, g.c, [=](int64_t image, int p, int q, int k) {
    const auto read = [&](int i, int j) {
      return read_lanes<kLanes>(x + ((image * g.h + i) * g.w + j) * g.c + k);
    };
    const auto largest_of = [](const Bits8<T>& in, uint8_t place) {
      Largest pixel;
      for (int lane = 0; lane < kLanes; ++lane) {
        pixel.values.v[lane] = load(&in.v[lane]);
        pixel.places.v[lane] = place;
      }
      return pixel;
    };
    const int64_t out = ((image * g.p + p) * g.q + q) * g.c + k;
    store_largest<kLanes>(y + out, places ? places + out : nullptr,
                          largest<kLanes>(p, q, g, read, largest_of));
  });
}

template <int kLanes, typename T>
__global__ void max_backward_kernel(T* dx, const T* dy, const uint8_t* places, Geometry g) {
  for_lanes<kLanes>(g.h, g.w, g.c, [=](int64_t image, int i, int j, int k) {
    const Span rows = outputs_of(i, g, g.p), columns = outputs_of(j, g, g.q);
    Floats8 sum = {};
    for (int p = rows.begin; p < rows.end; ++p)
      for (int q = columns.begin; q < columns.end; ++q) {
        const int64_t out = ((image * g.p + p) * g.q + q) * g.c + k;
        Bits8<uint8_t> where;
        if constexpr (kLanes == kWide)
          where = *reinterpret_cast<const Bits8<uint8_t>*>(places + out);
        else
          where.v[0] = places[out];
        const Floats8 v = load_lanes<kLanes>(dy + out);
        for (int lane = 0; lane < kLanes; ++lane)
          sum.v[lane] += where.v[lane] == place_of(i, j, p, q, g) ? v.v[lane] : 0.0f;
      }
    store_lanes<kLanes>(dx + ((image * g.h + i) * g.w + j) * g.c + k, sum);
  });
}

template <int kLanes, typename T>
__global__ void avg_forward_kernel(T* y, const T* x, Geometry g) {
  for_lanes<kLanes>(g.p, g.q, g.c, [=](int64_t image, int p, int q, int k) {
    const Span rows = pixels_of(p, g, g.h), columns = pixels_of(q, g, g.w);
    Floats8 sum = {};
    for (int i = rows.begin; i < rows.end; ++i)
      for (int j = columns.begin; j < columns.end; ++j) {
        const Floats8 v = load_lanes<kLanes>(x + ((image * g.h + i) * g.w + j) * g.c + k);
        for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] += v.v[lane];
      }
    const float scale = inverse_area(g, rows, columns);
    for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] *= scale;
    store_lanes<kLanes>(y + ((image * g.p + p) * g.q + q) * g.c + k, sum);
  });
}

template <int kLanes, typename T>
__global__ void avg_backward_kernel(T* dx, const T* dy, Geometry g) {
  for_lanes<kLanes>(g.h, g.w, g.c, [=](int64_t image, int i, int j, int k) {
    const Span rows = outputs_of(i, g, g.p), columns = outputs_of(j, g, g.q);
    Floats8 sum = {};
    for (int p = rows.begin; p < rows.end; ++p)
      for (int q = columns.begin; q < columns.end; ++q) {
        const Floats8 v = load_lanes<kLanes>(dy + ((image * g.p + p) * g.q + q) * g.c + k);
        const float scale = inverse_area(g, pixels_of(p, g, g.h), pixels_of(q, g, g.w));
        for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] += v.v[lane] * scale;
      }
    store_lanes<kLanes>(dx + ((image * g.h + i) * g.w + j) * g.c + k, sum);
  });
}

// The pixels [begin, end) of a side of `size` that window `o` of `windows` covers; and, since the
// rule is its own inverse, the windows out of `size` that cover pixel `o` of `windows`.
__device__ Span grid_span(int o, int windows, int size) {
  return {static_cast<int>(int64_t{o} * size / windows),
          static_cast<int>((int64_t{o + 1} * size + windows - 1) / windows)};
}
__device__ float inverse_area(Span rows, Span columns) {
  return 1.0f / static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
}

template <int kLanes, typename T>
__global__ void adaptive_forward_kernel(T* y, const T* x, Geometry g) {
  for_lanes<kLanes>(g.p, g.q, g.c, [=](int64_t image, int p, int q, int k) {
    const Span rows = grid_span(p, g.p, g.h), columns = grid_span(q, g.q, g.w);
    Floats8 sum = {};
    for (int i = rows.begin; i < rows.end; ++i)
      for (int j = columns.begin; j < columns.end; ++j) {
        const Floats8 v = load_lanes<kLanes>(x + ((image * g.h + i) * g.w + j) * g.c + k);
        for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] += v.v[lane];
      }
    const float scale = inverse_area(rows, columns);
    for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] *= scale;
    store_lanes<kLanes>(y + ((image * g.p + p) * g.q + q) * g.c + k, sum);
  });
}

template <int kLanes, typename T>
__global__ void adaptive_backward_kernel(T* dx, const T* dy, Geometry g) {
  for_lanes<kLanes>(g.h, g.w, g.c, [=](int64_t image, int i, int j, int k) {
    const Span rows = grid_span(i, g.h, g.p), columns = grid_span(j, g.w, g.q);
    Floats8 sum = {};
    for (int p = rows.begin; p < rows.end; ++p)
      for (int q = columns.begin; q < columns.end; ++q) {
        const Floats8 v = load_lanes<kLanes>(dy + ((image * g.p + p) * g.q + q) * g.c + k);
        const float scale = inverse_area(grid_span(p, g.p, g.h), grid_span(q, g.q, g.w));
        for (int lane = 0; lane < kLanes; ++lane) sum.v[lane] += v.v[lane] * scale;
      }
    store_lanes<kLanes>(dx + ((image * g.h + i) * g.w + j) * g.c + k, sum);
  });
}

// Of tensors alone.
template <typename Kernel, typename... Pointers>
void launch_rows(Kernel wide_kernel, Kernel kernel, const Geometry& g, int rows, int columns,
                 cudaStream_t stream, Pointers... tensors) {
  cuda_pool::launch_rows(are_wide(g.c, tensors...), wide_kernel, kernel, g, rows, columns, stream,
                         tensors...);
}

template <typename T>
class MaxPoolCuda final : public Op {
 public:
  MaxPoolCuda(cudaStream_t stream, const MaxPool& s, const OpConfig& c)
      : stream_(stream),
        geometry_(geometry(c, s.kernel, s.stride, s.padding, false)),
        saved_(c.training ? ops::saved_bytes(s, c.y) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    launch_rows(&max_forward_kernel<kWide, T>, &max_forward_kernel<1, T>, geometry_, geometry_.p,
                geometry_.q, stream_, static_cast<T*>(m.y),
                saved_ ? static_cast<uint8_t*>(m.saved) : nullptr, static_cast<const T*>(m.x[0]));
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    launch_rows(&max_backward_kernel<kWide, T>, &max_backward_kernel<1, T>, geometry_, geometry_.h,
                geometry_.w, stream_, static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]),
                static_cast<const uint8_t*>(m.saved));
  }
  size_t saved_bytes() const override { return saved_; }

 private:
  cudaStream_t stream_;
  Geometry geometry_;
  size_t saved_;
};

template <typename T>
class AvgPoolCuda final : public Op {
 public:
  AvgPoolCuda(cudaStream_t stream, const Geometry& g) : stream_(stream), geometry_(g) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    launch_rows(&avg_forward_kernel<kWide, T>, &avg_forward_kernel<1, T>, geometry_, geometry_.p,
                geometry_.q, stream_, static_cast<T*>(m.y), static_cast<const T*>(m.x[0]));
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    launch_rows(&avg_backward_kernel<kWide, T>, &avg_backward_kernel<1, T>, geometry_, geometry_.h,
                geometry_.w, stream_, static_cast<T*>(m.dx[0]), static_cast<const T*>(m.dy[0]));
  }

 private:
  cudaStream_t stream_;
  Geometry geometry_;
};

template <typename T>
class AdaptiveAvgPoolCuda final : public Op {
 public:
  AdaptiveAvgPoolCuda(cudaStream_t stream, const OpConfig& c)
      : stream_(stream),
        geometry_(geometry(c, 1, 1, 0, false)),
        same_bytes_(c.x[0] == c.y ? static_cast<size_t>(c.y.elements()) * sizeof(T) : 0) {}

  void forward(const NodeMemory& m, const StepInfo&) override {
    if (same_bytes_ > 0) return copy(m.y, m.x[0]);
    launch_rows(&adaptive_forward_kernel<kWide, T>, &adaptive_forward_kernel<1, T>, geometry_,
                geometry_.p, geometry_.q, stream_, static_cast<T*>(m.y),
                static_cast<const T*>(m.x[0]));
  }
  void backward(const NodeMemory& m, const StepInfo&) override {
    if (!m.dx[0]) return;  // the input is the image
    if (same_bytes_ > 0) return copy(m.dx[0], m.dy[0]);
    launch_rows(&adaptive_backward_kernel<kWide, T>, &adaptive_backward_kernel<1, T>, geometry_,
                geometry_.h, geometry_.w, stream_, static_cast<T*>(m.dx[0]),
                static_cast<const T*>(m.dy[0]));
  }

 private:
  void copy(void* to, const void* from) {
    check(cudaMemcpyAsync(to, from, same_bytes_, cudaMemcpyDeviceToDevice, stream_));
  }

  cudaStream_t stream_;
  Geometry geometry_;
  size_t same_bytes_;  // above 0: the identity
};

std::unique_ptr<Op> make_avg(CudaDevice& device, DType type, const Geometry& g) {
  return with_cuda_type(type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<AvgPoolCuda<T>>(device.stream(), g);
  });
}

}  // namespace

std::unique_ptr<Op> make_op(CudaDevice& device, const MaxPool& spec, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<MaxPoolCuda<T>>(device.stream(), spec, config);
  });
}

std::unique_ptr<Op> make_op(CudaDevice& device, const AvgPool& s, const OpConfig& c) {
  return make_avg(device, c.type, geometry(c, s.kernel, s.stride, s.padding, s.count_include_pad));
}

std::unique_ptr<Op> make_op(CudaDevice& device, const GlobalAvgPool&, const OpConfig& c) {
  // A window as large as the longer side, cut at the image's border.
  const int64_t side = c.x[0].h > c.x[0].w ? c.x[0].h : c.x[0].w;
  return make_avg(device, c.type, geometry(c, side, side, 0, false));
}

std::unique_ptr<Op> make_op(CudaDevice& device, const AdaptiveAvgPool&, const OpConfig& config) {
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<AdaptiveAvgPoolCuda<T>>(device.stream(), config);
  });
}

}  // namespace convoy::ops
