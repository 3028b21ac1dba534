#include "ops/device.h"

#include "ops/core/error.h"

namespace convoy::ops {

std::unique_ptr<Device> make_device(const std::string& name, int threads) {
  if (name == "cpu") return make_cpu_device(threads);
  if (name == "cuda")
    fail(ExitCode::kUsage, "--device cuda: this build has no CUDA path; use --device cpu");
  fail(ExitCode::kUsage, "--device {}: there are cpu and cuda", printable(name));
}

}  // namespace convoy::ops
