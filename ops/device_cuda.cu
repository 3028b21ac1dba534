#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>

#include "ops/core/cuda_kernel.h"
#include "ops/core/log.h"
#include "ops/cuda_device.h"
#include "ops/linear_cuda.h"

namespace convoy::ops {
namespace {

template <typename Body>
auto naming(const std::string& node, Body body) {
  try {
    return body();
  } catch (const PlanRefused& e) {
    throw PlanRefused(e.code(), fmt::format("\"{}\": {}", printable(node), e.what()));
  }
}

}  // namespace

CudaDevice::CudaDevice(int index) : index_(index) {
  use();
  stream_ = cuda::make_stream();
  input_stream_ = cuda::make_stream();
  aside_stream_ = cuda::make_stream();
  forked_ = cuda::make_event();
  joined_ = cuda::make_event();
  inputs_read_ = cuda::make_event();
  staging_ = cuda::allocate_pinned(kStagingBytes);
  step_memory_ = cuda::allocate_device(sizeof(StepInfo));
  mark_inputs_read();
}

std::string CudaDevice::instruction_set() const {
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, index_));
  return fmt::format("{} (sm_{}{})", properties.name, properties.major, properties.minor);
}

std::string CudaDevice::libraries() const {
  int runtime = 0;
  cuda::check(cudaRuntimeGetVersion(&runtime));
  return fmt::format("CUDA {}.{}, {}, {}", runtime / 1000, runtime % 1000 / 10,
                     cudnn::Library::version(), cublas::version());
}

const cublas::Handle& CudaDevice::cublas_handle() {
  if (!cublas_) {
    use();
    cublas_ = cublas::make_handle();
  }
  return cublas_;
}

bool CudaDevice::supports(DType type) const {
  return type == DType::kFloat32 || type == DType::kBfloat16 || type == DType::kFloat16;
}

DeviceMemory CudaDevice::allocate(size_t bytes) {
  use();
  auto buffer = std::make_shared<cuda::DeviceBuffer>(cuda::allocate_device(bytes));
  DeviceMemory memory;
  memory.data = {buffer->get(), [buffer](void*) mutable { buffer.reset(); }};
  memory.bytes = bytes;
  return memory;
}

void CudaDevice::upload(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  use();
  if (bytes > kStagingBytes) {
    cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()));
    return wait();
  }
  if (staged_ + bytes > kStagingBytes) {
    wait();  // all that was staged has arrived
    staged_ = 0;
  }
  char* place = static_cast<char*>(staging_.get()) + staged_;
  std::memcpy(place, from, bytes);
  cuda::check(cudaMemcpyAsync(to, place, bytes, cudaMemcpyHostToDevice, stream()));
  staged_ += (bytes + 15) / 16 * 16;
}

std::shared_ptr<void> CudaDevice::pin(void* memory, size_t bytes) {
  if (bytes == 0) return nullptr;
  use();
  return std::make_shared<cuda::Pin>(cuda::pin(memory, bytes));
}

void CudaDevice::download(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return wait();
  use();
  cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()));
  wait();
}

void CudaDevice::wait() {
  use();
  cuda::synchronize(stream());
  cuda::synchronize(input_stream());
}

void CudaDevice::inputs_read() {
  cuda::synchronize(inputs_read_);
}

const StepInfo* CudaDevice::device_step(const StepInfo& step) {
  if (step != step_) upload(step_memory_.get(), &step, sizeof step);
  step_ = step;
  return static_cast<const StepInfo*>(step_memory_.get());
}

cudaStream_t CudaDevice::fork() {
  join();
  cuda::record(forked_, stream());
  cuda::wait(aside_stream_.get(), forked_);
  aside_ = true;
  return aside_stream_.get();
}

void CudaDevice::join() {
  if (!aside_) return;
  cuda::record(joined_, aside_stream_.get());
  cuda::wait(stream(), joined_);
  aside_ = false;
}

std::unique_ptr<Op> CudaDevice::make(const OpSpec& spec, const OpConfig& config) {
  use();
  return naming(config.name, [&] {
    return std::visit([&](const auto& s) { return make_op(*this, s, config); }, spec);
  });
}

void CudaDevice::keep_kernels(const KernelStore& store) {
  kernels_ = store;
  if (cudnn_) cudnn_->keep_kernels(store);
}

// Convolutions and products are the libraries'; the rest is ours, in one way alone.
void CudaDevice::decide(const OpSpec& spec, const OpConfig& config) {
  use();
  naming(config.name, [&] {
    const auto* conv = std::get_if<Conv2d>(&spec);
    if (conv && !config.four_channels) plan(*conv, config);
    if (const auto* linear = std::get_if<Linear>(&spec))
      plan_linear(cublas_handle(), *decisions_, *linear, config);
  });
}

void CudaDevice::tune(bool on) {
  timer_ = on ? std::make_shared<PlanTimer>(stream()) : nullptr;
  cudnn::Library::Measure measure;
  if (on) {
    log::info("engines of each convolution are measured, once: this may take minutes");
    measure = [timer = timer_](const auto& convolution, const auto& plan) {
      return timer->measure(convolution, plan);
    };
  }
  cudnn().choose_by(std::move(measure));
}

double CudaDevice::measure_copy() {
  constexpr size_t kBytes = size_t{1} << 30;
  const DeviceMemory from = allocate(kBytes), to = allocate(kBytes);
  double best_seconds = 1e30;
  for (int run = 0; run < 5; ++run) {
    wait();
    const auto start = std::chrono::steady_clock::now();
    cuda::check(cudaMemcpyAsync(to.data.get(), from.data.get(), kBytes, cudaMemcpyDeviceToDevice,
                                stream()));
    wait();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best_seconds = std::min(best_seconds, seconds.count());
  }
  return 2.0 * static_cast<double>(kBytes) / best_seconds;
}

namespace {

// The index of the visible GPU.
int index_of(int gpu) {
  int gpus = 0;
  const cudaError_t status = cudaGetDeviceCount(&gpus);
  if (status != cudaSuccess || gpus == 0)
    fail(ExitCode::kUsage, "--device cuda: no GPU answers ({}: {}); use --device cpu",
         cudaGetErrorName(status == cudaSuccess ? cudaErrorNoDevice : status),
         cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status));
  return gpu % gpus;
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(int gpu) {
  return std::make_unique<CudaDevice>(index_of(gpu));
}

std::string gpu_address(int gpu) {
  char address[32] = "";
  cuda::check(cudaDeviceGetPCIBusId(address, sizeof address, index_of(gpu)));
  std::string lower = address;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

}  // namespace convoy::ops
