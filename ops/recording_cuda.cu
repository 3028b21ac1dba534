// Recorded work of a GPU: a CUDA graph of one stream.
#include <atomic>
#include <exception>

#include "ops/core/log.h"
#include "ops/cuda_device.h"

namespace convoy::ops {
namespace {

using namespace cuda;

class RecordingCuda final : public Recording {
 public:
  explicit RecordingCuda(CudaDevice& device) : device_(device) {}

  void run(const StepInfo* step, const std::function<void()>& work) override {
    if (step) device_.device_step(*step);
    // In the first run libraries still load and compile what they need; nothing of that can be
    // captured.
    if (!captured_ && runs_++ == 1) captured_ = capture(work);
    if (captured_)
      check(cudaGraphLaunch(captured_.get(), device_.stream()));
    else
      work();
  }

 private:
  // Empty where something cannot be captured.
  GraphExec capture(const std::function<void()>& work) const {
    std::string why;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    // Other threads of ours may do what they want meanwhile.
    check(cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal));
    try {
      work();
    } catch (const std::exception& e) {  // whatever it is: the stream must not go on capturing
      why = e.what();
    }
    cudaError_t status = cudaStreamEndCapture(device_.stream(), &graph);
    if (status == cudaSuccess && why.empty()) status = cudaGraphInstantiate(&executable, graph, 0);
    if (graph) destroy(cudaGraphDestroy(graph), "a graph");
    if (status == cudaSuccess && why.empty()) return GraphExec(executable);
    cudaGetLastError();  // it is handled here
    static std::atomic<bool> said = false;
    if (!said.exchange(true))
      log::warning(
          "CUDA: work is enqueued piece by piece, because it cannot be captured in a graph: {}",
          why.empty() ? cudaGetErrorName(status) : why);
    return {};
  }

  CudaDevice& device_;
  int runs_ = 0;
  GraphExec captured_;
};

}  // namespace

std::unique_ptr<Recording> CudaDevice::make_recording() {
  use();
  return std::make_unique<RecordingCuda>(*this);
}

}  // namespace convoy::ops
