// Image input on CUDA: one copy from the host, on the stream for it, and one kernel. There are two
// buffers for pixels, so that a copy goes on while the kernel before it has not even begun. Moves a
// byte in for each channel of a pixel (of patches, kernel / stride times from the cache) and an
// element out for each that x has; the means and deviations, 8 bytes per place, are read once for
// kImages images and stay in the cache.
#include <algorithm>
#include <optional>
#include <type_traits>

#include "ops/core/cuda_kernel.h"
#include "ops/cuda_device.h"
#include "ops/image_input.h"

namespace convoy::ops {
namespace {

using namespace cuda;

constexpr int64_t kImages = 8;  // of one thread

// n images of `plane` places.
template <typename T>
__global__ void normalise_kernel(T* x, const uint8_t* pixels, const float* mean,
                                 const float* inv_std, int64_t n, int64_t plane) {
  begin_kernel();
  for_each(n * plane, [=](int64_t i) {
    store(x + i, (load(pixels + i) - mean[i % plane]) * inv_std[i % plane]);
  });
}

template <typename T>
__global__ void normalise_wide_kernel(T* x, const uint8_t* pixels, const float* mean,
                                      const float* inv_std, int64_t n, int64_t plane) {
  begin_kernel();
  const int64_t vectors = plane / kWide;
  for_each((n + kImages - 1) / kImages * vectors, [=](int64_t i) {
    const int64_t group = i / vectors, place = (i - group * vectors) * kWide;
    const Floats8 m = load8(mean + place), s = load8(inv_std + place);
    for (int64_t image = group * kImages; image < (group + 1) * kImages && image < n; ++image) {
      Floats8 v = load8(pixels + image * plane + place);
      for (int k = 0; k < kWide; ++k) v.v[k] = (v.v[k] - m.v[k]) * s.v[k];
      store8(x + image * plane + place, v);
    }
  });
}

// A value in the box, of the image before too.
__device__ inline float mixed(float own, float other, const BatchMix& mix) {
  return own * mix.image_share + other * (1 - mix.image_share);
}

// The box of all images of shape [n, h, w, c], in place.
template <typename T>
__global__ void mix_kernel(T* x, const uint8_t* pixels, const float* mean, const float* inv_std,
                           Shape shape, BatchMix mix) {
  begin_kernel();
  const int64_t row = shape.w * shape.c, plane = shape.h * row;
  const int64_t columns = (mix.right - mix.left) * shape.c;
  const int64_t box = (mix.bottom - mix.top) * columns;
  for_each(shape.n * box, [=](int64_t i) {
    const int64_t image = i / box, in_box = i - image * box, y = in_box / columns;
    const int64_t place = (mix.top + y) * row + mix.left * shape.c + (in_box - y * columns);
    const int64_t before = image > 0 ? image - 1 : shape.n - 1;
    const float m = mean[place], s = inv_std[place];
    store(x + image * plane + place, mixed((load(pixels + image * plane + place) - m) * s,
                                           (load(pixels + before * plane + place) - m) * s, mix));
  });
}

// ---- Patches. A block makes those of some columns of one row of windows, of kImages images one
// after the other: it normalises the pixels that they cover into shared memory, and writes each
// window from there. So a pixel is read about kernel / stride times, and x is written once. The
// pixels of the next image are on their way while windows are written.

constexpr int kPatchTile = 2048;                // values of pixels that a block holds
constexpr int kPlaces = kPatchTile / kThreads;  // of them, that a thread brings
constexpr int kBeside = 4;                      // windows whose values a warp takes side by side

struct PatchGeometry {
  int c, h, w;  // of an image
  int kernel, stride, padding;
  int rows, columns;  // of windows
  int width, tiles;   // columns of a block, blocks of a row
  int vectors;        // of eight values, of a window

  __device__ int pixels() const { return (width - 1) * stride + kernel; }  // of a row, of a block
};

// What a thread writes: one vector of every so many-th window.
struct PatchShare {
  int vector, window, step;

  __device__ PatchShare(int thread, int vectors) {
    const int beside = kBeside * vectors <= kThreads ? kBeside : 1, group = beside * vectors;
    const int groups = kThreads / group, of_group = thread % group;
    vector = of_group / beside;
    step = groups * beside;
    window = thread < groups * group ? thread / group * beside + of_group % beside : 1 << 30;
  }
};

template <typename T, bool kMixed>
__global__ void patches_kernel(T* x, const uint8_t* pixels, const float* mean, const float* inv_std,
                               int64_t n, PatchGeometry g, BatchMix mix) {
  begin_kernel();
  __shared__ T values[2 * kPatchTile];  // [R, pixels, C], and zeros for what is behind a window
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t line = blockIdx.x / g.tiles, group = line / g.rows;
  const int row = static_cast<int>(line - group * g.rows);
  const int first = static_cast<int>(blockIdx.x % g.tiles) * g.width;
  const int row_values = g.pixels() * g.c, area = g.kernel * g.kernel;
  for (int i = thread; i < row_values; i += kThreads) store(values + kPatchTile + i, 0.0f);

  // Where the values come from that this thread brings; -1: outside the image.
  int from[kPlaces];
  float m[kPlaces], s[kPlaces];
  unsigned in_box = 0;
  for (int i = 0; i < kPlaces; ++i) {
    const int at = thread + i * kThreads, r = at / row_values;
    const int column = (at - r * row_values) / g.c, c = at - r * row_values - column * g.c;
    const int image_row = row * g.stride - g.padding + r;
    const int image_column = first * g.stride - g.padding + column;
    const bool inside = r < g.kernel && image_row >= 0 && image_row < g.h && image_column >= 0 &&
                        image_column < g.w;
    from[i] = inside ? (image_row * g.w + image_column) * g.c + c : -1;
    m[i] = inside ? mean[from[i]] : 0.0f;
    s[i] = inside ? inv_std[from[i]] : 0.0f;
    const bool is_mixed = kMixed && inside && image_row >= mix.top && image_row < mix.bottom &&
                          image_column >= mix.left && image_column < mix.right;
    in_box |= static_cast<unsigned>(is_mixed) << i;
  }
  const int64_t plane = static_cast<int64_t>(g.h) * g.w * g.c;
  uint8_t own[kPlaces], other[kPlaces] = {};
  const auto bring = [&](int64_t image) {
    const uint8_t* at = pixels + image * plane;
    for (int i = 0; i < kPlaces; ++i) own[i] = from[i] >= 0 ? at[from[i]] : uint8_t{0};
    if (!kMixed || in_box == 0) return;
    at = pixels + (image > 0 ? image - 1 : n - 1) * plane;
    for (int i = 0; i < kPlaces; ++i) other[i] = in_box >> i & 1u ? at[from[i]] : uint8_t{0};
  };

  const PatchShare share(thread, g.vectors);
  int at[kWide];  // in `values`, of the first window
  for (int i = 0; i < kWide; ++i) {
    const int k = share.vector * kWide + i, c = k / area, r = (k - c * area) / g.kernel;
    at[i] = c < g.c ? (r * g.pixels() + k - c * area - r * g.kernel) * g.c + c : kPatchTile;
  }
  const int windows = g.columns - first < g.width ? g.columns - first : g.width;
  const int64_t begin = group * kImages, end = begin + kImages < n ? begin + kImages : n;
  bring(begin);
  for (int64_t image = begin; image < end; ++image) {
    __syncthreads();  // those before have been read
    for (int i = 0; i < kPlaces; ++i) {
      float v = (static_cast<float>(own[i]) - m[i]) * s[i];
      if (kMixed && (in_box >> i & 1u))
        v = mixed(v, (static_cast<float>(other[i]) - m[i]) * s[i], mix);
      store(values + thread + i * kThreads, v);
    }
    __syncthreads();
    if (image + 1 < end) bring(image + 1);
    T* const out = x + (((image * g.rows + row) * g.columns + first) * g.vectors + share.vector) *
                           int64_t{kWide};
    for (int window = share.window; window < windows; window += share.step) {
      const T* in = values + window * g.stride * g.c;
      uint32_t words[kWide / 2];
      for (int k = 0; k < kWide / 2; ++k)
        words[k] = in[at[2 * k]].bits | static_cast<uint32_t>(in[at[2 * k + 1]].bits) << 16;
      store16(out + static_cast<int64_t>(window) * g.vectors * kWide,
              uint4{words[0], words[1], words[2], words[3]});
    }
  }
}

// More channels fill tensor cores as they are; and windows may be so many that they take much more
// memory than pixels of eight channels, or more elements than libraries count.
bool fit(const Patches& patches) {
  constexpr int64_t kMostTimes = 16, kMostElements = int64_t{1} << 31;
  const Shape image = patches.image, shape = patches.shape();
  return image.c <= kWide && patches.values() <= kPatchTile && shape.elements() < kMostElements &&
         shape.elements() <= kMostTimes * image.rows() * kWide;
}

// The geometry of a block that takes as many windows as fit, about as many in all blocks of a row.
PatchGeometry geometry_of(const Patches& patches) {
  const Shape& image = patches.image;
  const int64_t columns = patches.shape().w;
  const int64_t pixels = kPatchTile / (patches.kernel * image.c);  // of a row, that fit
  const int64_t most = std::min(columns, (pixels - patches.kernel) / patches.stride + 1);
  const int64_t tiles = (columns + most - 1) / most;
  return {.c = static_cast<int>(image.c),
          .h = static_cast<int>(image.h),
          .w = static_cast<int>(image.w),
          .kernel = static_cast<int>(patches.kernel),
          .stride = static_cast<int>(patches.stride),
          .padding = static_cast<int>(patches.padding),
          .rows = static_cast<int>(patches.shape().h),
          .columns = static_cast<int>(columns),
          .width = static_cast<int>((columns + tiles - 1) / tiles),
          .tiles = static_cast<int>(tiles),
          .vectors = static_cast<int>(patches.shape().c / kWide)};
}

template <typename T>
class ImageInputCuda final : public ImageInputOp {
 public:
  ImageInputCuda(CudaDevice& device, const ImageInput& spec)
      : device_(device),
        shape_(spec.shape),
        n_(spec.shape.n),
        patches_(spec.patches),
        plane_(static_cast<int64_t>(spec.mean.size())),
        mean_(to_device(spec.mean)),
        inv_std_(to_device(spec.inv_std)) {
    if (patches_ && (patches_->image != shape_ || std::is_same_v<T, float> || !fit(*patches_)))
      fail(ExitCode::kFault, "images {} cannot be stored as patches {}", to_string(shape_),
           to_string(patches_->shape()));
    for (Pixels& pixels : pixels_)
      pixels = {allocate_device(static_cast<size_t>(spec.shape.elements())), make_event(),
                make_event()};
  }

  void send(const uint8_t* pixels) override {
    device_.use();
    last_ = 1 - last_;
    const Pixels& buffer = pixels_[last_];
    wait(device_.input_stream(), buffer.read);
    check(cudaMemcpyAsync(buffer.memory.get(), pixels, static_cast<size_t>(n_ * plane_),
                          cudaMemcpyHostToDevice, device_.input_stream()));
    record(buffer.here, device_.input_stream());
    device_.mark_inputs_read();
  }

  void run(void* out, const BatchMix& mix) override {
    auto* x = static_cast<T*>(out);
    const Pixels& buffer = pixels_[last_];
    const auto* copy = static_cast<const uint8_t*>(buffer.memory.get());
    const auto* mean = static_cast<const float*>(mean_.get());
    const auto* inv_std = static_cast<const float*>(inv_std_.get());
    wait(device_.stream(), buffer.here);
    const int64_t groups = (n_ + kImages - 1) / kImages;
    if constexpr (!std::is_same_v<T, float>)
      if (patches_) {
        const PatchGeometry g = geometry_of(*patches_);
        launch(mix.is_on() ? &patches_kernel<T, true> : &patches_kernel<T, false>,
               groups * g.rows * g.tiles, kThreads, device_.stream(), x, copy, mean, inv_std, n_, g,
               mix);
        record(buffer.read, device_.stream());
        return;
      }
    if (are_wide(plane_, x))
      launch(&normalise_wide_kernel<T>, blocks_for(groups * plane_ / kWide), kThreads,
             device_.stream(), x, copy, mean, inv_std, n_, plane_);
    else
      launch(&normalise_kernel<T>, blocks_for(n_ * plane_), kThreads, device_.stream(), x, copy,
             mean, inv_std, n_, plane_);
    const int64_t in_boxes = n_ * (mix.bottom - mix.top) * (mix.right - mix.left) * shape_.c;
    if (mix.is_on())
      launch(&mix_kernel<T>, blocks_for(in_boxes), kThreads, device_.stream(), x, copy, mean,
             inv_std, shape_, mix);
    record(buffer.read, device_.stream());
  }

 private:
  DeviceBuffer to_device(const std::vector<float>& values) {
    DeviceBuffer buffer = allocate_device(values.size() * sizeof(float));
    device_.upload(buffer.get(), values.data(), values.size() * sizeof(float));
    return buffer;
  }

  CudaDevice& device_;
  Shape shape_;
  int64_t n_;
  std::optional<Patches> patches_;
  int64_t plane_;
  DeviceBuffer mean_, inv_std_;
  struct Pixels {
    DeviceBuffer memory;
    Event here;  // the copy is, on the stream for it
    Event read;  // the kernels have, on the stream of all work
  };
  Pixels pixels_[2];
  int last_ = 0;  // that was sent to
};

}  // namespace

bool CudaDevice::wants_patches(const Conv2d& reader, const Shape& image, DType type) const {
  return type != DType::kFloat32 && reader.groups == 1 && fit(patches_of(reader, image));
}

std::unique_ptr<ImageInputOp> CudaDevice::make_input(const ImageInput& spec, DType type) {
  use();
  return with_cuda_type(type, [&]<typename T>(T*) -> std::unique_ptr<ImageInputOp> {
    return std::make_unique<ImageInputCuda<T>>(*this, spec);
  });
}

}  // namespace convoy::ops
