// A device: where memory lives and ops run. CPU and CUDA sit side by side behind this.
//
// Everything happens in the order of the calls. A GPU works behind the host's back: unless a call
// says that it waits, it may return before its work is done, and what went wrong then is thrown by
// a later one.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "ops/catalogue.h"
#include "ops/decisions.h"
#include "ops/digester.h"
#include "ops/op.h"
#include "ops/optim/optimizer.h"

namespace convoy::ops {

// Memory on a device, zeroed. Move only; freed with its owner.
struct DeviceMemory {
  std::unique_ptr<void, std::function<void(void*)>> data;
  size_t bytes = 0;
};

// Work that is repeated: the same calls each time, with the same addresses and numbers, apart from
// the step's, and no waiting. A GPU takes it over as a whole, which costs the host one call in
// place of hundreds.
class Recording {
 public:
  virtual ~Recording() = default;
  // Enqueues what `work` enqueues, by calling it where it must. step: what ops in it are told;
  // null: nothing.
  virtual void run(const StepInfo* step, const std::function<void()>& work) = 0;
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

  // Null where nothing is gained by it.
  virtual std::unique_ptr<Recording> make_recording() { return nullptr; }

  // What a tensor of one slice of the batch may take (ops/pass_plan.h), so that it stays in the
  // cache. A function of the job and the kind of device alone: bits depend on it.
  virtual int64_t slice_bytes() const = 0;
  virtual DeviceMemory allocate(size_t bytes) = 0;
  // From host memory, which is the caller's again when this returns.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  // While what it returns lives, uploads from this host memory, which must outlive it, need no copy
  // on the way. Null where there is nothing to gain. Any thread.
  virtual std::shared_ptr<void> pin(void* /*memory*/, size_t /*bytes*/) { return nullptr; }
  // To host memory; waits.
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  // Until all that was called for is done.
  virtual void wait() = 0;
  // True where training runs what merge_batch_norms() leaves (ops/fusion.h).
  virtual bool merges_batch_norms() const { return false; }
  // Op::prepare() has been called for all ops whose weights are packed together.
  virtual void prepared() {}
  // True where ops can compute aside (NodeMemory::aside).
  virtual bool works_aside() const { return false; }
  // What is called for from here on comes behind all that is aside.
  virtual void join() {}
  // True where the host reads and writes this memory as its own.
  virtual bool shares_host_memory() const = 0;
  // The CUDA stream on which everything is enqueued, for who reduces its gradients; null where the
  // host computes.
  virtual void* queue() const { return nullptr; }
  // An op of the catalogue for fixed shapes. Throws Error (kBadJob) if the device cannot run it,
  // PlanRefused if it cannot do what was prescribed.
  virtual std::unique_ptr<Op> make(const OpSpec& spec, const OpConfig& config) = 0;

  // Libraries of a GPU offer several ways to compute an op, and bits depend on which one is taken.
  // A CPU has nothing to decide. What has been decided for the ops so far (Decisions::text):
  virtual std::string decisions() const { return ""; }
  // Ops that are made from now on use these. Throws Error (kBadData) where they cannot be read.
  virtual void prescribe(const std::string& /*decisions*/, Refused /*refused*/) {}
  // Whether what is not prescribed is decided by measuring (off at first): then it depends on the
  // moment.
  virtual void tune(bool /*on*/) {}
  // Kernels that a library compiles at run time are taken from here, and put here.
  virtual void keep_kernels(const KernelStore& /*store*/) {}
  // Decides what make() of these would, and makes nothing. Throws as make().
  virtual void decide(const OpSpec& /*spec*/, const OpConfig& /*config*/) {}

  // The pieces around a graph, which are not nodes of it.
  virtual std::unique_ptr<ImageInputOp> make_input(const ImageInput& spec, DType type) = 0;
  // Whether a convolution of this image would have it with kFourChannels (ops/image_input.h).
  virtual bool wants_four_channels(const Conv2d& /*reader*/, const Shape& /*image*/,
                                   DType /*type*/) const {
    return false;
  }
  // labels lie in host memory and stay as they are until inputs_read(). result and head, on the
  // device: what the loss is; where head is not null, loss_sum * gradient_scale and top1 as floats.
  // dlogits may be null.
  virtual void loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype, const void* logits,
                    DType type, const int32_t* labels, LossResult* result, float* head) = 0;
  // Waits until pixels and labels of all calls so far have been read.
  virtual void inputs_read() = 0;
  // `parallel` shares the work among the lanes of a rank where the host computes.
  virtual std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                                    const ParameterLayout& layout,
                                                    Parallel parallel = one_part) = 0;
  // Of tensors that stay where they are; `parallel` as above.
  virtual std::unique_ptr<Digester> make_digester(const std::vector<DigestRange>& ranges,
                                                  Parallel parallel = one_part) = 0;
  // Measured rate of a square matrix product, n x n x n, in FLOP/s: the best of a few runs.
  virtual double measure_gemm(DType type, int64_t n) = 0;
  // Measured rate of copying memory that fits no cache, in bytes/s read and written together: the
  // best of a few runs.
  virtual double measure_copy() = 0;
  // sum += addend, n elements.
  virtual void accumulate(void* sum, const void* addend, int64_t n, DType type) = 0;
};

// Floats on a device, and what the host sees of them: on the CPU the memory itself, else a copy.
class DeviceFloats {
 public:
  DeviceFloats(Device& device, size_t floats);

  float* data() const { return static_cast<float*>(memory_.data.get()); }  // on the device
  size_t size() const { return floats_; }
  bool empty() const { return floats_ == 0; }
  // As they are now; waits. On the CPU always, else until the next read().
  std::span<float> read();
  // What was changed in the span from read() goes to the device.
  void write();

 private:
  Device& device_;
  size_t floats_;
  DeviceMemory memory_;
  AlignedBuffer copy_;
};

// threads: how many OpenMP threads compute one op. A CPU device belongs to the thread that uses it:
// make, forward and backward must be called from one thread (oneDNN's bits depend on the setting).
std::unique_ptr<Device> make_cpu_device(int threads);
// gpu: which of the visible ones, counted round: ranks of one host give their local rank. Throws
// Error (kUsage) where none answers.
std::unique_ptr<Device> make_cuda_device(int gpu);
// Where it is on the PCI bus, in lower case: "0000:3b:00.0". Throws as make_cuda_device().
std::string gpu_address(int gpu);

// The CPUs ("0-15,32-47") that have the shortest way to a GPU, which is counted as above, as the
// system says (`sysfs`: where it is mounted); "" where it does not, and for a CPU.
std::string near_cpus(const std::string& device, int gpu, const std::string& sysfs = "/sys");

// "cpu"; "cuda" is refused (kUsage) where it was not built or no GPU answers.
std::unique_ptr<Device> make_device(const std::string& name, int threads, int gpu = 0);

}  // namespace convoy::ops
