#include "ops/device.h"

#include <fstream>
#include <string>

#include "ops/core/error.h"

namespace convoy::ops {

DeviceFloats::DeviceFloats(Device& device, size_t floats)
    : device_(device), floats_(floats), memory_(device.allocate(floats * sizeof(float))) {}

std::span<float> DeviceFloats::read() {
  if (device_.shares_host_memory()) return {data(), floats_};
  if (copy_.size() == 0) copy_ = AlignedBuffer(floats_ * sizeof(float));
  device_.download(copy_.data(), data(), copy_.size());
  return {copy_.as<float>(), floats_};
}

void DeviceFloats::write() {
  if (copy_.size() > 0) device_.upload(data(), copy_.data(), copy_.size());
}

#ifdef CONVOY_CUDA
std::string near_cpus(const std::string& device, int gpu, const std::string& sysfs) {
  if (device != "cuda") return "";
  std::string list;
  std::getline(
      std::ifstream(fmt::format("{}/bus/pci/devices/{}/local_cpulist", sysfs, gpu_address(gpu))),
      list);
  return list;
}
#else
std::string near_cpus(const std::string&, int, const std::string&) {
  return "";
}
#endif

std::unique_ptr<Device> make_device(const std::string& name, int threads,
                                    [[maybe_unused]] int gpu) {
  if (name == "cpu") return make_cpu_device(threads);
  if (name == "cuda")
#ifdef CONVOY_CUDA
    return make_cuda_device(gpu);
#else
    fail(ExitCode::kUsage, "--device cuda: this build has no CUDA path; use --device cpu");
#endif
  fail(ExitCode::kUsage, "--device {}: there are cpu and cuda", printable(name));
}

}  // namespace convoy::ops
