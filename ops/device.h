// A device: where memory lives and ops run. CPU and CUDA sit side by side behind this.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ops/catalogue.h"
#include "ops/op.h"

namespace convoy::ops {

// Memory on a device, zeroed. Move only; freed with its owner.
struct DeviceMemory {
  std::unique_ptr<void, std::function<void(void*)>> data;
  size_t bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu"
  // What the bits of a result depend on beside the job, for fingerprints.
  virtual std::string instruction_set() const = 0;
  virtual std::string libraries() const = 0;
  // True where networks of this type can be made here.
  virtual bool supports(DType type) const = 0;

  // What a tensor of one slice of the batch may take (ops/pass_plan.h), so that it stays in the
  // cache. A function of the job and the kind of device alone: bits depend on it.
  virtual int64_t slice_bytes() const = 0;
  virtual DeviceMemory allocate(size_t bytes) = 0;
  // From host memory to this device's.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  // An op of the catalogue for fixed shapes. Throws Error (kBadJob) if the device cannot run it.
  virtual std::unique_ptr<Op> make(const OpSpec& spec, const OpConfig& config) = 0;

  // The pieces around a graph, which are not nodes of it.
  virtual void make_input(const ImageInput& spec, void* x, DType type, const uint8_t* pixels) = 0;
  virtual LossResult loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype,
                          const void* logits, DType type, const int32_t* labels) = 0;
  // Measured rate of a square matrix product, n x n x n, in FLOP/s: the best of a few runs.
  virtual double measure_gemm(DType type, int64_t n) = 0;
  // Measured rate of copying memory that fits no cache, in bytes/s read and written together: the
  // best of a few runs.
  virtual double measure_copy() = 0;
  // sum += addend, n elements.
  virtual void accumulate(void* sum, const void* addend, int64_t n, DType type) = 0;
};

// threads: how many OpenMP threads compute one op. A CPU device belongs to the thread that uses it:
// make, forward and backward must be called from one thread (oneDNN's bits depend on the setting).
std::unique_ptr<Device> make_cpu_device(int threads);

// "cpu"; "cuda" is refused (kUsage) where it was not built or no GPU answers.
std::unique_ptr<Device> make_device(const std::string& name, int threads);

}  // namespace convoy::ops
