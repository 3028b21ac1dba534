// Convolution on CUDA: cuDNN's plans around kernels of ours that pack weights, unpack their
// gradients, and do what cuDNN does not do in fp32. Parameters and gradients are OIHW in fp32,
// cuDNN wants the channels last.
#include "ops/conv2d_cuda.h"

#include <algorithm>
#include <cmath>

#include "ops/compact_cuda.h"
#include "ops/core/cache_line.h"
#include "ops/core/cuda_kernel.h"
#include "ops/core/log.h"
#include "ops/cuda_device.h"
#include "ops/few_channels_cuda.h"
#include "ops/tiles_cuda.h"

namespace convoy::ops {
namespace {

using namespace cuda;

// ---- Kernels.

// Per output channel: what the weights are multiplied by, and the bias, of a folded batch norm.
__global__ void fold_kernel(double* scale, float* bias, const float* gamma, const float* beta,
                            const float* running, const float* conv_bias, double epsilon,
                            int64_t channels) {
  for_each(channels, [=](int64_t k) {
    const double s =
        static_cast<double>(gamma[k]) / sqrt(static_cast<double>(running[channels + k]) + epsilon);
    const double b = conv_bias ? static_cast<double>(conv_bias[k]) : 0.0;
    scale[k] = s;
    bias[k] = static_cast<float>(static_cast<double>(beta[k]) +
                                 (b - static_cast<double>(running[k])) * s);
  });
}

// The gradient in OIHW from [K,R,S,padded]; that of later slices is added. width:
// filter_tile_channels().
__global__ void unpack_kernel(float* oihw, const float* dw, bool first, int64_t channels,
                              int64_t padded, int area, int width) {
  __shared__ float tile[kFilterTile];
  const int64_t blocks = (channels + width - 1) / width;  // of a filter
  const int64_t k = blockIdx.x / blocks, begin = blockIdx.x % blocks * width;
  const auto own = static_cast<int>(channels - begin < width ? channels - begin : width);
  const float* in = dw + k * area * padded + begin;
  const bool fits = width * area <= kFilterTile;
  if (fits) {
    const int all = own * area;
    float values[kOfATile];  // all on their way before one is used
    int to[kOfATile];
    for (int j = 0; j < kOfATile && j * kThreads < all; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kThreads, rs = i / own, c = i - rs * own;
      to[j] = i < all ? c * area + rs : -1;
      values[j] = i < all ? in[rs * padded + c] : 0.0f;
    }
    for (int j = 0; j < kOfATile && j * kThreads < all; ++j)
      if (to[j] >= 0) tile[to[j]] = values[j];
  }
  __syncthreads();
  float* out = oihw + (k * channels + begin) * area;
  for (int i = static_cast<int>(threadIdx.x); i < own * area; i += kThreads) {
    const float v = fits ? tile[i] : in[i * padded];
    out[i] = first ? v : out[i] + v;
  }
}

// Rows of `channels` elements become rows of `vectors` vectors of eight, zero behind them; n
// vectors.
template <typename To, typename T>
__global__ void pad_kernel(To* out, const T* in, int64_t n, int64_t channels, int64_t vectors) {
  for_each(n, [=](int64_t i) {
    const int64_t row = i / vectors, begin = (i - row * vectors) * kWide;
    Floats8 v;
    for (int k = 0; k < kWide; ++k)
      v.v[k] = begin + k < channels ? load(in + row * channels + begin + k) : 0.0f;
    store8(out + kWide * i, v);
  });
}
// And back; n elements.
template <typename T>
__global__ void unpad_kernel(T* out, const T* in, int64_t n, int64_t channels, int64_t padded) {
  for_each(n, [=](int64_t i) {
    const int64_t row = i / channels;
    out[i] = in[row * padded + (i - row * channels)];
  });
}

// A compact tensor with rows of `stored` elements becomes the whole, with rows of `channels`; n
// elements.
template <typename T>
__global__ void spread_kernel(T* out, const T* in, int64_t n, int64_t channels, int64_t stored,
                              CompactPixels pixels) {
  for_each(n, [=](int64_t i) {
    const int64_t row = i / channels;
    const int from = pixels.find(static_cast<uint32_t>(row));
    out[i] = from >= 0 ? in[from * stored + (i - row * channels)] : T{};
  });
}
// n vectors of eight, `vectors` a row.
template <typename T>
__global__ void spread_wide_kernel(T* out, const T* in, int64_t n, int64_t vectors,
                                   CompactPixels pixels) {
  for_each(n, [=](int64_t i) {
    const int64_t row = i / vectors;
    const int from = pixels.find(static_cast<uint32_t>(row));
    uint4 words[sizeof(Bits8<T>) / sizeof(uint4)] = {};
    if (from >= 0) {
      const Bits8<T> v = read8(in + kWide * (from * vectors + (i - row * vectors)));
      memcpy(words, &v, sizeof(words));
    }
    for (size_t k = 0; k < sizeof(words) / sizeof(uint4); ++k)
      store_vector(reinterpret_cast<uint4*>(out + kWide * i) + k, words[k]);
  });
}

template <typename T>
__global__ void convert_kernel(float* out, const T* in, int64_t n) {
  for_each(n, [=](int64_t i) { out[i] = load(in + i); });
}
// n vectors of eight.
template <typename T>
__global__ void convert_wide_kernel(float* out, const T* in, int64_t n) {
  for_each(n, [=](int64_t i) { store8(out + kWide * i, load8(in + kWide * i)); });
}

// y = relu(sums + bias + residual), where y may be the residual.
template <typename T>
__global__ void finish_kernel(T* y, const float* sums, const float* bias, const T* residual,
                              bool relu, int64_t n, int64_t channels) {
  for_each(n, [=](int64_t i) {
    float v = sums[i];
    if (bias) v += bias[i % channels];
    if (residual) v += load(residual + i);
    store(y + i, relu && v < 0.0f ? 0.0f : v);  // NaN stays NaN
  });
}
template <typename T>
__global__ void finish_wide_kernel(T* y, const float* sums, const float* bias, const T* residual,
                                   bool relu, int64_t n, int64_t channels) {
  for_each(n, [=](int64_t i) {
    Floats8 v = load8(sums + kWide * i);
    if (bias) {
      const Floats8 b = load8(bias + kWide * i % channels);
      for (int k = 0; k < kWide; ++k) v.v[k] += b.v[k];
    }
    if (residual) {
      const Floats8 r = load8(residual + kWide * i);
      for (int k = 0; k < kWide; ++k) v.v[k] += r.v[k];
    }
    for (int k = 0; k < kWide; ++k) v.v[k] = relu && v.v[k] < 0.0f ? 0.0f : v.v[k];
    store8(y + kWide * i, v);
  });
}

// The gradient of a bias is the sum of the rows of dy. First sums over chunks of rows, each by a
// block for up to 256 channels: threads take every so many-th row of a channel, and their sums are
// added in order. Then the sums of the chunks are added in order. Reads dy once.
constexpr int64_t kChunkRows = 512;

template <typename T>
__global__ void bias_chunk_kernel(float* sums, const T* dy, int64_t rows, int64_t channels) {
  __shared__ float shared[kThreads];
  const int64_t width = channels < kThreads ? channels : kThreads;
  const int64_t tiles = (channels + width - 1) / width, lanes = kThreads / width;
  const int64_t chunk = blockIdx.x / tiles, lane = threadIdx.x / width;
  const int64_t channel = blockIdx.x % tiles * width + threadIdx.x % width;
  const bool works = lane < lanes && channel < channels;
  const int64_t left = rows - chunk * kChunkRows, end = left < kChunkRows ? left : kChunkRows;
  float sum = 0.0f;
  if (works)
    for (int64_t r = lane; r < end; r += lanes)
      sum += load(dy + (chunk * kChunkRows + r) * channels + channel);
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (!works || lane > 0) return;
  for (int64_t l = 1; l < lanes; ++l) sum += shared[l * width + threadIdx.x];
  sums[chunk * channels + channel] = sum;
}

__global__ void bias_sum_kernel(float* db, const float* sums, bool first, int64_t chunks,
                                int64_t channels) {
  for_each(channels, [=](int64_t k) {
    double sum = 0.0;
    for (int64_t c = 0; c < chunks; ++c) sum += static_cast<double>(sums[c * channels + k]);
    const auto v = static_cast<float>(sum);
    db[k] = first ? v : db[k] + v;
  });
}

// ---- The op.

bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <typename T>
class Conv2dCuda final : public Op {
 public:
  Conv2dCuda(CudaDevice& device, const Conv2d& spec, const OpConfig& c)
      : device_(device),
        spec_(spec),
        plans_(device.plan(spec, c)),
        x_(c.x[0]),
        y_(c.y),
        padded_x_({x_.n, plans_.channels, x_.h, x_.w}),
        dx_(compact(padded_x_, skips_pixels(spec_) ? spec_.stride : 1)),
        weights_(device, spec, c, padded_x_.c / spec.groups, plans_.forward_in_fp32) {
    if (spreads_dx()) pixels_ = CompactPixels(x_, spec_.stride);
    // Slices begin anywhere; cuDNN wants its tensors aligned.
    const bool copies = c.batch > c.y.n;
    const bool in_fp32 = plans_.forward_in_fp32 || plans_.weights_in_fp32;
    const auto bytes = [](const Shape& s, size_t size) {
      return static_cast<size_t>(s.elements()) * size;
    };
    x_copy_ = reserve(std::max(in_fp32                 ? bytes(padded_x_, sizeof(float))
                               : copies || is_padded() ? bytes(padded_x_, sizeof(T))
                                                       : 0,
                               spreads_dx() ? bytes(dx_, sizeof(T)) : 0));
    y_copy_ = reserve(in_fp32 || plans_.finish ? bytes(y_, sizeof(float))
                      : copies                 ? bytes(y_, sizeof(T))
                                               : 0);
    if (is_trained()) gradient_ = reserve(static_cast<size_t>(weights_.elements()) * sizeof(float));
    if (is_trained() && spec_.bias) bias_sums_ = reserve(bias_gradient_floats(y_) * sizeof(float));
    // The last that gradients need: what is aside needs no more.
    const auto workspace = [](const auto& plan, const cublas::Product& product) {
      return plan ? plan->workspace_bytes() : product.workspace_bytes();
    };
    const size_t weights = workspace(plans_.backward_weights, plans_.weights_product);
    if (is_trained()) aside_bytes_ = scratch_bytes_ + weights + kAlignment;
    workspace_ = reserve(
        std::max({weights, workspace(plans_.backward_data, plans_.data_product),
                  plans_.forward_with_sums ? plans_.forward_with_sums->workspace_bytes()
                                           : workspace(plans_.forward, plans_.forward_product)}));
    residual_ = reserve(has_residual() && !plans_.finish ? bytes(y_, sizeof(T)) : 0);
  }

  void prepare(const NodeMemory& m) override { weights_.prepare(m); }

  void forward(const NodeMemory& m, const StepInfo&) override {
    const Site site = {m.scratch, device_.stream()};
    const bool relu = spec_.batch_norm && spec_.batch_norm->relu;
    cudnn::Arguments a = {.x = image(m, plans_.forward_in_fp32, site),
                          .w = plans_.forward_in_fp32 ? weights_.packed32() : weights_.packed(),
                          .workspace = site.at(workspace_)};
    if (plans_.finish) {
      auto* sums = static_cast<float*>(site.at(y_copy_));
      a.y = sums;
      plans_.forward->run(a, site.stream);
      const float* bias = weights_.bias();
      const T* residual = has_residual() ? static_cast<const T*>(m.x[1]) : nullptr;
      auto* y = static_cast<T*>(m.y);
      const int64_t n = y_.elements();
      if (are_wide(n, y, sums, bias, residual) && y_.c % kWide == 0)
        launch(&finish_wide_kernel<T>, blocks_for(n / kWide), kThreads, site.stream, y, sums, bias,
               residual, relu, n / kWide, y_.c);
      else
        launch(&finish_kernel<T>, blocks_for(n), kThreads, site.stream, y, sums, bias, residual,
               relu, n, y_.c);
      return;
    }
    a.bias = weights_.bias();
    if (has_residual()) {  // y is written over it, which nobody promises to work in one kernel
      a.residual = site.at(residual_);
      copy(site.at(residual_), m.x[1], y_.elements(), site);
    }
    run_to(m.y, y_.elements(), y_copy_, site, [&](void* y) {
      a.y = y;
      a.sums = m.sums;
      if (plans_.forward_with_sums)
        plans_.forward_with_sums->run(a, site.stream);
      else if (plans_.forward_product)
        plans_.forward_product.run(y, a.x, a.w, false, a.workspace, site.stream);
      else
        plans_.forward->run(a, site.stream);
    });
  }

  // In order, weights come before data: dx may be written where x was, were it ever planned so.
  // Beside each other, what others wait for is enqueued first.
  void backward(const NodeMemory& m, const StepInfo&) override {
    const Site here = {m.scratch, device_.stream()};
    if (is_trained() && m.aside) {
      const Site aside = {m.aside, device_.fork()};
      backward_data(m, here);
      add_gradients(m, aside);
    } else {
      if (is_trained()) add_gradients(m, here);
      backward_data(m, here);
    }
  }

  size_t scratch_bytes() const override {
    return scratch_bytes_ > 0 ? scratch_bytes_ + kAlignment : 0;
  }
  size_t aside_bytes() const override { return aside_bytes_; }
  bool gives_sums() const override { return plans_.forward_with_sums != nullptr; }

 private:
  // Of parts of scratch memory, which itself begins at any multiple of a cache line.
  static constexpr size_t kAlignment = 256;

  // Where work is enqueued, and the scratch memory that it has there.
  struct Site {
    void* scratch;
    cudaStream_t stream;

    void* at(size_t begin) const {
      const auto base = reinterpret_cast<uintptr_t>(scratch);
      return static_cast<char*>(scratch) + (round_up(base, kAlignment) - base) + begin;
    }
  };

  void backward_data(const NodeMemory& m, const Site& site) const {
    if (!plans_.backward_data && !plans_.data_product) return;
    const void* dy = input(m.dy[0], y_.elements(), false, y_copy_, site);
    void* workspace = site.at(workspace_);
    const auto run = [&](void* dx) {
      if (plans_.data_product)
        plans_.data_product.run(dx, dy, weights_.packed(), false, workspace, site.stream);
      else
        plans_.backward_data->run(
            {.x = dx, .w = weights_.packed(), .y = dy, .workspace = workspace}, site.stream);
    };
    if (!is_padded() && !spreads_dx()) return run_to(m.dx[0], dx_.elements(), x_copy_, site, run);
    run(site.at(x_copy_));
    auto* dx = static_cast<T*>(m.dx[0]);
    const auto* stored = static_cast<const T*>(site.at(x_copy_));
    const int64_t n = (spreads_dx() ? x_ : dx_).rows() * x_.c;
    if (!spreads_dx())
      launch(&unpad_kernel<T>, blocks_for(n), kThreads, site.stream, dx, stored, n, x_.c,
             padded_x_.c);
    else if (are_wide(x_.c, dx))
      launch(&spread_wide_kernel<T>, blocks_for(n / kWide), kThreads, site.stream, dx, stored,
             n / kWide, x_.c / kWide, pixels_);
    else
      launch(&spread_kernel<T>, blocks_for(n), kThreads, site.stream, dx, stored, n, x_.c,
             padded_x_.c, pixels_);
  }

  void add_gradients(const NodeMemory& m, const Site& site) const {
    const void* x = image(m, plans_.weights_in_fp32, site);
    const void* dy = input(m.dy[0], y_.elements(), plans_.weights_in_fp32, y_copy_, site);
    void* workspace = site.at(workspace_);
    float* gradient = m.gradients[0];
    const bool in_place = plans_.weights_product && !is_padded() && is_aligned(gradient);
    auto* dw = in_place ? gradient : static_cast<float*>(site.at(gradient_));
    if (plans_.weights_product)
      plans_.weights_product.run(dw, dy, x, in_place && !m.slice.first, workspace, site.stream);
    else
      plans_.backward_weights->run({.x = x, .w = dw, .y = dy, .workspace = workspace}, site.stream);
    if (!in_place) {
      const int64_t channels = x_.c / spec_.groups;
      launch(&unpack_kernel, y_.c * filter_tiles(channels, area()), kThreads, site.stream, gradient,
             static_cast<const float*>(dw), m.slice.first, channels, padded_x_.c / spec_.groups,
             static_cast<int>(area()), static_cast<int>(filter_tile_channels(channels, area())));
    }
    if (spec_.bias)
      add_bias_gradient(m.gradients[1], static_cast<float*>(site.at(bias_sums_)),
                        static_cast<const T*>(m.dy[0]), y_, m.slice.first, site.stream);
  }

  // A part of the scratch memory: where it begins.
  size_t reserve(size_t bytes) {
    const size_t begin = scratch_bytes_;
    scratch_bytes_ += round_up(bytes, kAlignment);
    return begin;
  }

  bool is_trained() const { return plans_.backward_weights || plans_.weights_product; }
  // The gradient of x is computed compact, and stored whole.
  bool spreads_dx() const {
    return (plans_.backward_data || plans_.data_product) && skips_pixels(spec_) &&
           !spec_.compact_dx;
  }
  bool has_residual() const { return spec_.batch_norm && spec_.batch_norm->residual; }
  int64_t area() const { return spec_.kernel * spec_.kernel; }

  static void copy(void* to, const void* from, int64_t n, const Site& site) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(n) * sizeof(T), cudaMemcpyDeviceToDevice,
                          site.stream));
  }
  bool is_padded() const { return padded_x_.c != x_.c; }
  // x as a plan reads it.
  const void* image(const NodeMemory& m, bool in_fp32, const Site& site) const {
    if (!is_padded()) return input(m.x[0], padded_x_.elements(), in_fp32, x_copy_, site);
    void* out = site.at(x_copy_);
    const auto pad = [&]<typename To>(To* to) {
      const int64_t n = padded_x_.elements() / kWide;
      launch(&pad_kernel<To, T>, blocks_for(n), kThreads, site.stream, to,
             static_cast<const T*>(m.x[0]), n, x_.c, padded_x_.c / kWide);
    };
    in_fp32 ? pad(static_cast<float*>(out)) : pad(static_cast<T*>(out));
    return out;
  }
  // A tensor as a plan reads it: itself, or a copy that is fp32 or aligned.
  static const void* input(const void* p, int64_t n, bool in_fp32, size_t place, const Site& site) {
    const auto* in = static_cast<const T*>(p);
    auto* out = static_cast<float*>(site.at(place));
    if (in_fp32 && are_wide(n, in, out))
      launch(&convert_wide_kernel<T>, blocks_for(n / kWide), kThreads, site.stream, out, in,
             n / kWide);
    else if (in_fp32)
      launch(&convert_kernel<T>, blocks_for(n), kThreads, site.stream, out, in, n);
    else if (is_aligned(p))
      return p;
    else
      copy(out, p, n, site);
    return out;
  }
  // body(where it may write) fills `to`.
  template <typename Body>
  static void run_to(void* to, int64_t n, size_t place, const Site& site, Body body) {
    void* out = is_aligned(to) ? to : site.at(place);
    body(out);
    if (out != to) copy(to, out, n, site);
  }

  CudaDevice& device_;
  Conv2d spec_;
  Conv2dPlans plans_;
  Shape x_, y_, padded_x_;
  Shape dx_;              // as it is computed: padded, compact where pixels are skipped
  CompactPixels pixels_;  // of x
  PackedWeights weights_;
  size_t scratch_bytes_ = 0, aside_bytes_ = 0;
  size_t x_copy_, y_copy_, gradient_ = 0, bias_sums_ = 0, workspace_, residual_;
};

}  // namespace

PackedWeights::PackedWeights(CudaDevice& device, const Conv2d& spec, const OpConfig& config,
                             int64_t stored, bool also_fp32)
    : device_(device),
      spec_(spec),
      type_(config.type),
      filters_(config.y.c),
      channels_(config.x[0].c / spec.groups),
      stored_(stored),
      packed_(allocate_device(static_cast<size_t>(elements()) * size_of(type_))) {
  const auto filters = static_cast<size_t>(filters_);
  if (also_fp32) packed32_ = allocate_device(static_cast<size_t>(elements()) * sizeof(float));
  if (spec.bias || spec.batch_norm) bias_ = allocate_device(filters * sizeof(float));
  if (spec.batch_norm) scale_ = allocate_device(filters * sizeof(double));
}

void PackedWeights::prepare(const NodeMemory& m) {
  const bool folded = spec_.batch_norm.has_value();
  const float* bias = spec_.bias ? m.parameters[folded ? 3 : 1] : nullptr;
  auto* scale = static_cast<double*>(scale_.get());
  if (folded)
    launch(&fold_kernel, blocks_for(filters_), kThreads, device_.stream(), scale,
           static_cast<float*>(bias_.get()), m.parameters[0], m.parameters[1], m.running, bias,
           spec_.batch_norm->epsilon, filters_);
  else if (bias)
    check(cudaMemcpyAsync(bias_.get(), bias, static_cast<size_t>(filters_) * sizeof(float),
                          cudaMemcpyDeviceToDevice, device_.stream()));
  device_.pack({.type = type_,
                .packed = packed_.get(),
                .packed32 = static_cast<float*>(packed32_.get()),
                .oihw = m.parameters[folded ? 2 : 0],
                .scale = scale,
                .filters = filters_,
                .channels = channels_,
                .stored = stored_,
                .area = spec_.kernel * spec_.kernel});
}

size_t bias_gradient_floats(const Shape& y) {
  return static_cast<size_t>((y.rows() + kChunkRows - 1) / kChunkRows * y.c);
}

template <typename T>
void add_bias_gradient(float* gradient, float* sums, const T* dy, const Shape& y, bool first,
                       cudaStream_t stream) {
  const int64_t chunks = (y.rows() + kChunkRows - 1) / kChunkRows;
  const int64_t wide = (y.c + kThreads - 1) / kThreads;
  launch(&bias_chunk_kernel<T>, chunks * wide, kThreads, stream, sums, dy, y.rows(), y.c);
  launch(&bias_sum_kernel, blocks_for(y.c), kThreads, stream, gradient, sums, first, chunks, y.c);
}
template void add_bias_gradient(float*, float*, const float*, const Shape&, bool, cudaStream_t);
template void add_bias_gradient(float*, float*, const Bfloat16*, const Shape&, bool, cudaStream_t);
template void add_bias_gradient(float*, float*, const Float16*, const Shape&, bool, cudaStream_t);

Conv2dPlans plan_conv2d(cudnn::Library& library, const Products* products, const Conv2d& spec,
                        const OpConfig& c) {
  using cudnn::Pass;
  const bool narrow = c.type != DType::kFloat32;
  const Conv2d& s = spec;
  const Shape& x = c.x[0];
  Conv2dPlans plans;
  plans.channels = s.groups == 1 ? stored_channels(x.c, c.type) : x.c;
  cudnn::Convolution plain = {.x = {x.n, plans.channels, x.h, x.w},
                              .y = c.y,
                              .kernel = s.kernel,
                              .stride = s.stride,
                              .padding = s.padding,
                              .groups = s.groups,
                              .type = c.type,
                              .tf32 = c.tf32 && c.type == DType::kFloat32};
  const auto in_fp32 = [](cudnn::Convolution convolution) {
    convolution.type = DType::kFloat32;
    convolution.tf32 = true;
    return convolution;
  };

  const int64_t rows = c.y.rows();
  // cuDNN's plan, or null: `product` is made, or in 16 bit there is none for weights.
  const auto plan_beside = [&](const cudnn::Convolution& convolution, cublas::ProductShape shape,
                               bool preferred, cublas::Product& product) {
    shape.in = c.type;
    shape.aligned = true;
    // A function of what names the decision alone.
    const bool may_be_product = products && narrow && convolution.kernel == 1 &&
                                convolution.stride == 1 && convolution.padding == 0 &&
                                convolution.groups == 1 && convolution.y.c % kWide == 0;
    Decisions of_nobody;
    const auto candidate = may_be_product
                               ? cublas::Product::make_if_any(products->handle, shape, of_nobody)
                               : cublas::Product();
    std::shared_ptr<const cudnn::Plan> plan;
    if (candidate) {
      const cudnn::Library::Rival rival = {
          .seconds = [&] { return products->measure(shape, candidate); }, .preferred = preferred};
      const auto found = library.find_beside(rival, convolution);
      if (!found) {
        product = cublas::Product(products->handle, shape, library.decisions());
        return plan;
      }
      plan = *found;
    } else {
      plan = library.find(convolution);
    }
    const bool may_lack = narrow && convolution.pass == Pass::kBackwardWeights;
    return plan || may_lack ? plan : library.plan(c.name, convolution);
  };

  cudnn::Convolution fused = plain;
  fused.bias = s.bias || s.batch_norm;
  fused.residual = s.batch_norm && s.batch_norm->residual;
  fused.relu = s.batch_norm && s.batch_norm->relu;
  if (!fused.bias) {
    const cublas::ProductShape forward_shape = {.m = rows,
                                                .n = c.y.c,
                                                .k = plans.channels,
                                                .b_transposed = true,
                                                .in = c.type,
                                                .out = c.type};
    plans.forward = plan_beside(plain, forward_shape, false, plans.forward_product);
    if (c.wants_sums && products && c.type == DType::kFloat16 && s.groups == 1 &&
        c.y.c % kWide == 0) {
      cudnn::Convolution with_sums = plain;
      with_sums.sums = true;
      const cudnn::Library::Rival rival = {
          .seconds =
              [&] {
                const double forward =
                    plans.forward ? library.seconds(plain, *plans.forward)
                                  : products->measure(forward_shape, plans.forward_product);
                return forward + products->measure_pass(static_cast<size_t>(c.y.elements()) *
                                                        size_of(c.type));
              },
          .preferred = true};
      if (const auto plan = library.find_beside(rival, with_sums)) plans.forward_with_sums = *plan;
    }
  } else if (!narrow) {
    plans.finish = true;
    plans.forward = library.plan(c.name, plain);
  } else if (!(plans.forward = library.find(fused))) {
    log::info("\"{}\": cuDNN cannot fuse {}; it is computed in fp32", c.name, to_text(fused));
    plans.finish = plans.forward_in_fp32 = true;
    plans.forward = library.plan(c.name, in_fp32(plain));
  }
  if (!c.training) return plans;

  if (c.wants_gradients) {
    plain.pass = Pass::kBackwardWeights;
    // dw [K, C], as the parameter lies in memory.
    plans.backward_weights =
        plan_beside(plain, {.m = c.y.c, .n = plans.channels, .k = rows, .a_transposed = true}, true,
                    plans.weights_product);
  }
  if (c.wants_gradients && !plans.backward_weights && !plans.weights_product) {
    log::info("\"{}\": cuDNN has no fp32 gradient for {}; it is computed in fp32", c.name,
              to_text(plain));
    plans.weights_in_fp32 = true;
    plans.backward_weights = library.plan(c.name, in_fp32(plain));
  }
  plain.pass = Pass::kBackwardData;
  if (skips_pixels(s)) {
    plain.x = compact(plain.x, s.stride);
    plain.stride = 1;
  }
  if (c.wants_dx[0])
    plans.backward_data =
        plan_beside(plain, {.m = rows, .n = plans.channels, .k = c.y.c, .out = c.type}, false,
                    plans.data_product);
  return plans;
}

std::unique_ptr<Op> make_op(CudaDevice& device, const Conv2d& spec, const OpConfig& config) {
  if (config.four_channels) return make_few_channels_op(device, spec, config);
  return with_cuda_type(config.type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<Conv2dCuda<T>>(device, spec, config);
  });
}

Conv2dPlans CudaDevice::plan(const Conv2d& spec, const OpConfig& config) {
  Products products{.handle = cublas_handle(), .measure = nullptr, .measure_pass = nullptr};
  if (timer_) {
    products.measure = [this](const auto& shape, const auto& product) {
      return timer_->measure(shape, product);
    };
    products.measure_pass = [this](size_t bytes) { return timer_->measure_pass(bytes); };
  }
  return plan_conv2d(cudnn(), &products, spec, config);
}

cudnn::Library& CudaDevice::cudnn() {
  use();
  if (!cudnn_) {
    cudnn_ = std::make_unique<cudnn::Library>(decisions_);
    cudnn_->keep_kernels(kernels_);
  }
  return *cudnn_;
}

}  // namespace convoy::ops
