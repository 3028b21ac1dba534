// Temporary: what the CUDA device still lacks, so that it links. Each part goes when it is written.
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {
[[noreturn]] void unfinished(const char* what) {
  fail(ExitCode::kBadJob, "{} has no CUDA code yet", what);
}
}  // namespace

#define CONVOY_UNFINISHED(Spec)                                            \
  std::unique_ptr<Op> make_op(CudaDevice&, const Spec&, const OpConfig&) { \
    unfinished(#Spec);                                                     \
  }
// batch norm
CONVOY_UNFINISHED(BatchNorm)
// pools and what moves elements
CONVOY_UNFINISHED(MaxPool)
CONVOY_UNFINISHED(AvgPool)
CONVOY_UNFINISHED(GlobalAvgPool)
CONVOY_UNFINISHED(Concat)
CONVOY_UNFINISHED(Dropout)
CONVOY_UNFINISHED(Subsample)
std::unique_ptr<ImageInputOp> CudaDevice::make_input(const ImageInput&, DType) {
  unfinished("the input");
}
void CudaDevice::loss(const SoftmaxCrossEntropy&, void*, DType, const void*, DType, const int32_t*,
                      LossResult*, float*) {
  unfinished("the loss");
}
// linear and optimizer
CONVOY_UNFINISHED(Linear)
double CudaDevice::measure_gemm(DType, int64_t) {
  unfinished("bench");
}
std::unique_ptr<Optimizer> CudaDevice::make_optimizer(const OptimizerConfig&,
                                                      const ParameterLayout&, Parallel) {
  unfinished("the optimizer");
}

}  // namespace convoy::ops
