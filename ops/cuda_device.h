// The CUDA device: cuDNN for convolutions, cuBLASLt for products, our own kernels for the rest. For
// ops/*_cuda.*.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/conv2d_cuda.h"
#include "ops/core/cuda_handle.h"
#include "ops/core/error.h"
#include "ops/cublas.h"
#include "ops/cudnn.h"
#include "ops/device.h"
#include "ops/packing_cuda.h"
#include "ops/plan_timer.h"

namespace convoy::ops {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index);  // becomes the calling thread's

  // What all ops enqueue their work on.
  cudaStream_t stream() const { return stream_.get(); }
  // Images come in on this one, while others are worked on.
  cudaStream_t input_stream() const { return input_stream_.get(); }
  // For work aside (NodeMemory::aside), from here on and until join(): what it is enqueued on. It
  // begins when what is on stream() by now is done, and so is what was aside before.
  cudaStream_t fork();
  // Handles of the libraries, made when they are first asked for; cuDNN's with its plans.
  const cublas::Handle& cublas_handle();
  Decisions& library_decisions() { return *decisions_; }
  cudnn::Library& cudnn();
  // When prepared() is called.
  void pack(const WeightPacking& packing) { packer_.add(packing); }
  // As plan_conv2d(), with what this device has.
  Conv2dPlans plan(const Conv2d& spec, const OpConfig& config);
  // Makes this GPU the calling thread's, which every CUDA call of another thread needs first.
  void use() const { cuda::check(cudaSetDevice(index_)); }
  // inputs_read() waits for what was enqueued on input_stream() so far.
  void mark_inputs_read() { cuda::record(inputs_read_, input_stream()); }
  // A copy of `step` on the device, always at the same address, so that kernels of a captured graph
  // read the step it is launched for. Enqueued where it differs from the last one: before a graph
  // is captured or launched, call this.
  const StepInfo* device_step(const StepInfo& step);

  std::string name() const override { return "cuda"; }
  std::string instruction_set() const override;
  std::string libraries() const override;
  bool supports(DType type) const override;
  std::unique_ptr<Recording> make_recording() override;
  // A GPU is filled by whole batches only.
  int64_t slice_bytes() const override { return int64_t{1} << 62; }
  DeviceMemory allocate(size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override;
  std::shared_ptr<void> pin(void* memory, size_t bytes) override;
  void download(void* to, const void* from, size_t bytes) override;
  void wait() override;
  bool merges_batch_norms() const override { return true; }
  bool works_aside() const override { return true; }
  void join() override;
  void prepared() override { packer_.run(stream()); }
  bool shares_host_memory() const override { return false; }
  void* queue() const override { return stream(); }
  std::unique_ptr<Op> make(const OpSpec& spec, const OpConfig& config) override;
  std::string decisions() const override { return decisions_->text(); }
  void prescribe(const std::string& decisions, Refused refused) override {
    decisions_->prescribe(decisions, refused);
  }
  void tune(bool on) override;
  void keep_kernels(const KernelStore& store) override;
  void decide(const OpSpec& spec, const OpConfig& config) override;
  std::unique_ptr<ImageInputOp> make_input(const ImageInput& spec, DType type) override;
  bool wants_four_channels(const Conv2d& reader, const Shape& image, DType type) const override;
  void loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype, const void* logits,
            DType type, const int32_t* labels, LossResult* result, float* head) override;
  void inputs_read() override;
  std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                            const ParameterLayout& layout,
                                            Parallel parallel) override;
  std::unique_ptr<Digester> make_digester(const std::vector<DigestRange>& ranges,
                                          Parallel parallel) override;
  double measure_gemm(DType type, int64_t n) override;
  double measure_copy() override;
  void accumulate(void* sum, const void* addend, int64_t n, DType type) override;

 private:
  int index_;
  cuda::Stream stream_, input_stream_, aside_stream_;
  cuda::Event forked_, joined_;
  bool aside_ = false;  // work is aside
  WeightPacker packer_;
  const std::shared_ptr<Decisions> decisions_ = std::make_shared<Decisions>();
  std::unique_ptr<cudnn::Library> cudnn_;
  KernelStore kernels_;
  std::shared_ptr<PlanTimer> timer_;  // null: nothing is measured
  cuda::Event inputs_read_;
  cublas::Handle cublas_;  // made when it is first asked for
  // Small uploads go through here, so that the caller has its memory back at once.
  static constexpr size_t kStagingBytes = size_t{64} << 10;
  cuda::PinnedBuffer staging_;
  size_t staged_ = 0;
  cuda::DeviceBuffer step_memory_;
  StepInfo step_;  // what is there
  // The loss: labels and what each row gives, for the largest batch so far.
  cuda::DeviceBuffer loss_rows_;
  int64_t loss_capacity_ = 0;
};

}  // namespace convoy::ops
