// The CPU device: oneDNN for matrix products, our own kernels for the rest. For ops/*_cpu.cpp.
#pragma once

#include "ops/core/error.h"
#include "ops/device.h"

namespace convoy::ops {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads);
  int threads() const { return threads_; }

  std::string name() const override { return "cpu"; }
  std::string instruction_set() const override;
  std::string libraries() const override;
  bool supports(DType type) const override;
  // Measured on ResNet-50: half of it, or twice, is 1 to 2 % slower, whole batches are 3 %.
  int64_t slice_bytes() const override { return threads_ * (int64_t{2} << 20); }
  DeviceMemory allocate(size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override;
  void download(void* to, const void* from, size_t bytes) override { upload(to, from, bytes); }
  void wait() override {}
  bool shares_host_memory() const override { return true; }
  std::unique_ptr<Op> make(const OpSpec& spec, const OpConfig& config) override;
  std::unique_ptr<ImageInputOp> make_input(const ImageInput& spec, DType type) override;
  void loss(const SoftmaxCrossEntropy& spec, void* dlogits, DType dtype, const void* logits,
            DType type, const int32_t* labels, LossResult* result, float* head) override;
  void inputs_read() override {}
  std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                            const ParameterLayout& layout,
                                            Parallel parallel) override;
  std::unique_ptr<Digester> make_digester(const std::vector<DigestRange>& ranges,
                                          Parallel parallel) override;
  double measure_gemm(DType type, int64_t n) override;
  double measure_copy() override;
  void accumulate(void* sum, const void* addend, int64_t n, DType type) override;

 private:
  int threads_;
};

// Calls body with a null pointer of the element type that `type` names: one place for the choice.
template <typename Body>
auto with_type(DType type, Body body) {
  if (type == DType::kFloat32) return body(static_cast<float*>(nullptr));
  if (type == DType::kBfloat16) return body(static_cast<Bfloat16*>(nullptr));
  fail(ExitCode::kBadJob, "the CPU computes in fp32 and bf16, not in {}", name_of(type));
}

// make_unique<OpOf<T>>(args...) for the element type that `type` names.
template <template <typename> class OpOf, typename... Args>
std::unique_ptr<Op> make_for_type(DType type, Args&&... args) {
  return with_type(type, [&]<typename T>(T*) -> std::unique_ptr<Op> {
    return std::make_unique<OpOf<T>>(std::forward<Args>(args)...);
  });
}

}  // namespace convoy::ops
