// Image input on CUDA: one copy from the host, on the stream for it, and one kernel. There are two
// buffers for pixels, so that a copy goes on while the kernel before it has not even begun. Moves a
// byte in for each channel of a pixel and an element out for each that x has; the means and
// deviations, 8 bytes per place, are read once for kImages images and stay in the cache.
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
  for_each(n * plane, [=](int64_t i) {
    store(x + i, (load(pixels + i) - mean[i % plane]) * inv_std[i % plane]);
  });
}

template <typename T>
__global__ void normalise_wide_kernel(T* x, const uint8_t* pixels, const float* mean,
                                      const float* inv_std, int64_t n, int64_t plane) {
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
// window from there. So a pixel is read about kernel / stride times, and x is written once.

constexpr int kPatchTile = 2048;                  // values of pixels that a block holds
constexpr int kPlaces = kPatchTile / kThreads;    // of them, that a thread brings
constexpr int kWindows = 4;                       // beside each other, in a warp
constexpr unsigned short kZero = kPatchTile + 1;  // an offset: no pixel

struct PatchGeometry {
  int c, h, w;  // of an image
  int kernel, stride, padding;
  int rows, columns;  // of windows
  int width, tiles;   // columns of a block, blocks of a row
  int stored;         // values of a window

  __device__ int pixels() const { return (width - 1) * stride + kernel; }  // of a row, of a block
};

template <typename T>
__global__ void patches_kernel(T* x, const uint8_t* pixels, const float* mean, const float* inv_std,
                               int64_t n, PatchGeometry g, BatchMix mix) {
  __shared__ T values[kPatchTile];                               // [C, R, pixels]
  __shared__ Bits8<unsigned short> offsets[kPatchTile / kWide];  // in `values`, of the first window
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t line = blockIdx.x / g.tiles, group = line / g.rows;
  const int row = static_cast<int>(line - group * g.rows);
  const int first = static_cast<int>(blockIdx.x % g.tiles) * g.width;
  const int pixels_of_row = g.pixels(), area = g.kernel * g.kernel;
  for (int k = thread; k < g.stored; k += kThreads) {
    const int c = k / area, r = (k - c * area) / g.kernel, s = k - c * area - r * g.kernel;
    offsets[k / kWide].v[k % kWide] =
        c < g.c ? static_cast<unsigned short>((c * g.kernel + r) * pixels_of_row + s) : kZero;
  }
  // Where the values are that this thread brings, and where they go; -1: outside, nowhere.
  int from[kPlaces], to[kPlaces];
  float m[kPlaces], s[kPlaces];
  unsigned in_box = 0;
  for (int i = 0; i < kPlaces; ++i) {
    const int at = thread + i * kThreads, bytes = pixels_of_row * g.c;
    const int r = at / bytes, column = (at - r * bytes) / g.c, c = at - r * bytes - column * g.c;
    const int image_row = row * g.stride - g.padding + r;
    const int image_column = first * g.stride - g.padding + column;
    from[i] = to[i] = -1;
    m[i] = s[i] = 0.0f;
    if (r >= g.kernel) continue;
    to[i] = (c * g.kernel + r) * pixels_of_row + column;
    if (image_row < 0 || image_row >= g.h || image_column < 0 || image_column >= g.w) continue;
    from[i] = (image_row * g.w + image_column) * g.c + c;
    m[i] = mean[from[i]];
    s[i] = inv_std[from[i]];
    if (image_row >= mix.top && image_row < mix.bottom && image_column >= mix.left &&
        image_column < mix.right)
      in_box |= 1u << i;
  }
  const int64_t plane = static_cast<int64_t>(g.h) * g.w * g.c;
  const int vectors = g.stored / kWide;
  const int windows = g.columns - first < g.width ? g.columns - first : g.width;
  for (int64_t image = group * kImages; image < (group + 1) * kImages && image < n; ++image) {
    const uint8_t* own = pixels + image * plane;
    const uint8_t* before = pixels + (image > 0 ? image - 1 : n - 1) * plane;
    __syncthreads();  // those before have been read
    for (int i = 0; i < kPlaces; ++i) {
      if (to[i] < 0) continue;
      float v = 0.0f;
      if (from[i] >= 0) {
        v = (load(own + from[i]) - m[i]) * s[i];
        if (in_box >> i & 1u) v = mixed(v, (load(before + from[i]) - m[i]) * s[i], mix);
      }
      store(values + to[i], v);
    }
    __syncthreads();
    T* const out = x + ((image * g.rows + row) * g.columns + first) * g.stored;
    const int all = (windows + kWindows - 1) / kWindows * kWindows * vectors;
    for (int i = thread; i < all; i += kThreads) {
      const int four = i / (kWindows * vectors), in_four = i - four * kWindows * vectors;
      const int vector = in_four / kWindows, window = four * kWindows + in_four % kWindows;
      if (window >= windows) continue;
      const Bits8<unsigned short> at = offsets[vector];
      uint32_t words[kWide / 2];
      for (int k = 0; k < kWide; ++k) {
        const uint32_t bits = at.v[k] == kZero ? 0u : values[at.v[k] + window * g.stride].bits;
        words[k / 2] = k % 2 == 0 ? bits : words[k / 2] | bits << 16;
      }
      store16(out + static_cast<int64_t>(window) * g.stored + vector * kWide,
              uint4{words[0], words[1], words[2], words[3]});
    }
  }
}

// Of few channels, or the convolution does as well with pixels.
bool fit(const Patches& patches) {
  return patches.image.c <= kWide && patches.values() <= kPatchTile;
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
          .stored = static_cast<int>(patches.shape().c)};
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
        launch(&patches_kernel<T>, groups * g.rows * g.tiles, kThreads, device_.stream(), x, copy,
               mean, inv_std, n_, g, mix);
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
