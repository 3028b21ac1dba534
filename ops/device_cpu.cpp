#include <omp.h>

#include <algorithm>
#include <cstring>

#include "ops/core/clock.h"
#include "ops/core/denormals.h"
#include "ops/core/error.h"
#include "ops/core/isa.h"
#include "ops/cpu_device.h"
#include "ops/elementwise_kernels.h"
#include "ops/onednn.h"

namespace convoy::ops {
namespace {

class ImageInputCpu final : public ImageInputOp {
 public:
  ImageInputCpu(int threads, const ImageInput& spec, DType type)
      : threads_(threads), spec_(spec), type_(type) {}

  void send(const uint8_t* pixels) override { pixels_ = pixels; }

  void run(void* x, const BatchMix& mix) override {
    with_type(type_, [&]<typename T>(T*) {
      elementwise_kernels<T>().normalise(static_cast<T*>(x), pixels_, spec_.mean.data(),
                                         spec_.inv_std.data(), spec_.shape.n,
                                         static_cast<int64_t>(spec_.mean.size()), threads_);
      if (mix.is_on()) this->mix(static_cast<T*>(x), mix);
    });
  }

 private:
  template <typename T>
  void mix(T* x, const BatchMix& mix) {
    const auto plane = static_cast<int64_t>(spec_.mean.size());
    const int64_t row = spec_.shape.w * spec_.shape.c;
    const int64_t first = mix.left * spec_.shape.c, last = mix.right * spec_.shape.c;
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
    for (int64_t image = 0; image < spec_.shape.n; ++image) {
      const int64_t before = image > 0 ? image - 1 : spec_.shape.n - 1;
      for (int64_t y = mix.top; y < mix.bottom; ++y) {
        const int64_t place = y * row + first;
        elementwise_kernels<T>().normalise_mixed(
            x + image * plane + place, pixels_ + image * plane + place,
            pixels_ + before * plane + place, spec_.mean.data() + place,
            spec_.inv_std.data() + place, mix.image_share, last - first);
      }
    }
  }

  int threads_;
  ImageInput spec_;
  DType type_;
  const uint8_t* pixels_ = nullptr;
};

}  // namespace

CpuDevice::CpuDevice(int threads) : threads_(threads) {
  // The calling thread is the one that will compute, with its own OpenMP team.
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
  FlushDenormals::always();
#pragma omp parallel num_threads(threads) if (threads > 1)
  FlushDenormals::always();
}

std::string CpuDevice::instruction_set() const {
  return fmt::format("{} ({})", name_of(cpu_isa()), onednn::instruction_set());
}

std::string CpuDevice::libraries() const {
  // One more where a kernel of ours, or the choice between it and oneDNN's, changes bits: runs of
  // an older program then say so when they are resumed.
  constexpr int kKernels = 4;
  return fmt::format("{}, own kernels {}", onednn::version(), kKernels);
}

bool CpuDevice::supports(DType type) const {
  return type == DType::kFloat32 || (type == DType::kBfloat16 && cpu_supports_bf16());
}

DeviceMemory CpuDevice::allocate(size_t bytes) {
  auto buffer = std::make_shared<AlignedBuffer>(bytes);
  DeviceMemory memory;
  memory.data = {buffer->data(), [buffer](void*) mutable { buffer.reset(); }};
  memory.bytes = bytes;
  return memory;
}

void CpuDevice::upload(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

std::unique_ptr<Op> CpuDevice::make(const OpSpec& spec, const OpConfig& config) {
  return std::visit([&](const auto& s) { return make_op(*this, s, config); }, spec);
}

std::unique_ptr<ImageInputOp> CpuDevice::make_input(const ImageInput& spec, DType type) {
  if (spec.four_channels)
    fail(ExitCode::kFault, "images {} cannot have four channels here", to_string(spec.shape));
  return std::make_unique<ImageInputCpu>(threads_, spec, type);
}

double CpuDevice::measure_gemm(DType type, int64_t n) {
  return onednn::measure_gemm(type, n);
}

double CpuDevice::measure_copy() {
  constexpr size_t kBytes = size_t{64} << 20;  // of each thread
  const auto threads = static_cast<size_t>(threads_);
  const AlignedBuffer from(threads * kBytes), to(threads * kBytes);
  double best_seconds = 1e30;
  for (int run = 0; run < 5; ++run) {
    const auto start = Clock::now();
#pragma omp parallel for num_threads(threads_) if (threads_ > 1)
    for (size_t i = 0; i < threads; ++i)
      std::memcpy(to.as<char>() + i * kBytes, from.as<char>() + i * kBytes, kBytes);
    best_seconds = std::min(best_seconds, seconds_since(start));
  }
  return 2.0 * static_cast<double>(threads * kBytes) / best_seconds;
}

void CpuDevice::accumulate(void* sum, const void* addend, int64_t n, DType type) {
  with_type(type, [&]<typename T>(T*) {
    elementwise_kernels<T>().add(static_cast<T*>(sum), static_cast<const T*>(sum),
                                 static_cast<const T*>(addend), n, threads_);
  });
}

std::unique_ptr<Device> make_cpu_device(int threads) {
  return std::make_unique<CpuDevice>(threads);
}

}  // namespace convoy::ops
