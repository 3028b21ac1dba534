// Image input on CUDA: one copy from the host, on the stream for it, and one kernel. There are two
// buffers for pixels, so that a copy goes on while the kernel before it has not even begun. Moves a
// byte in for each channel of a pixel and an element out for each that x has; the means and
// deviations, 8 bytes per place, are read once for kImages images and stay in the cache.
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

// With kFourChannels, eight bytes a pixel; a thread takes one place of kImages images.
template <typename T, bool kMixed>
__global__ void four_channels_kernel(T* x, const uint8_t* pixels, const float* mean,
                                     const float* inv_std, Shape shape, BatchMix mix) {
  const int64_t plane = shape.h * shape.w, groups = (shape.n + kImages - 1) / kImages;
  const auto channels = static_cast<int>(shape.c);
  for_each(groups * plane, [=](int64_t i) {
    const int64_t first = i / plane * kImages, place = i % plane;
    const int64_t row = place / shape.w, column = place % shape.w;
    const bool in_box =
        kMixed && row >= mix.top && row < mix.bottom && column >= mix.left && column < mix.right;
    float m[kFourChannels], s[kFourChannels];
    uint8_t own[kImages][kFourChannels];
    for (int c = 0; c < kFourChannels; ++c) {
      m[c] = c < channels ? mean[place * channels + c] : 0.0f;
      s[c] = c < channels ? inv_std[place * channels + c] : 0.0f;
      for (int k = 0; k < kImages; ++k)
        own[k][c] = c < channels && first + k < shape.n
                        ? pixels[((first + k) * plane + place) * channels + c]
                        : uint8_t{0};
    }
    for (int k = 0; k < kImages && first + k < shape.n; ++k) {
      const int64_t image = first + k, before = image > 0 ? image - 1 : shape.n - 1;
      T values[kFourChannels];
      for (int c = 0; c < kFourChannels; ++c) {
        float v = (static_cast<float>(own[k][c]) - m[c]) * s[c];
        if (kMixed && in_box && c < channels)
          v = mixed(v, (load(pixels + (before * plane + place) * channels + c) - m[c]) * s[c], mix);
        store(&values[c], c < channels ? v : 0.0f);
      }
      store_vector(x + (image * plane + place) * kFourChannels,
                   uint2{values[0].bits | static_cast<uint32_t>(values[1].bits) << 16,
                         values[2].bits | static_cast<uint32_t>(values[3].bits) << 16});
    }
  });
}

template <typename T>
class ImageInputCuda final : public ImageInputOp {
 public:
  ImageInputCuda(CudaDevice& device, const ImageInput& spec)
      : device_(device),
        shape_(spec.shape),
        n_(spec.shape.n),
        four_channels_(spec.four_channels),
        plane_(static_cast<int64_t>(spec.mean.size())),
        mean_(to_device(spec.mean)),
        inv_std_(to_device(spec.inv_std)) {
    if (four_channels_ && (shape_.c > kFourChannels || std::is_same_v<T, float>))
      fail(ExitCode::kFault, "images {} cannot have four channels here", to_string(shape_));
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
      if (four_channels_) {
        launch(mix.is_on() ? &four_channels_kernel<T, true> : &four_channels_kernel<T, false>,
               blocks_for(groups * shape_.h * shape_.w), kThreads, device_.stream(), x, copy, mean,
               inv_std, shape_, mix);
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
  bool four_channels_;
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

std::unique_ptr<ImageInputOp> CudaDevice::make_input(const ImageInput& spec, DType type) {
  use();
  return with_cuda_type(type, [&]<typename T>(T*) -> std::unique_ptr<ImageInputOp> {
    return std::make_unique<ImageInputCuda<T>>(*this, spec);
  });
}

}  // namespace convoy::ops
