// What only the CUDA device promises: its work can be captured in a graph.
#include "ops/cuda_device.h"

#include "tests/support/op_tester.h"
#include "tests/support/temp_folder.h"

namespace convoy::ops {
namespace {

TEST(CudaDevice, ACapturedDropoutDrawsForTheStepItIsLaunchedFor) {
  std::unique_ptr<Device> device;
  try {
    device = make_device("cuda", 1);
  } catch (const Error& e) {
    GTEST_SKIP() << "SKIPPED: no graph was captured: " << e.what();
  }
  auto& cuda = dynamic_cast<CudaDevice&>(*device);
  const Shape shape = {2, 100};
  const auto n = static_cast<size_t>(shape.elements());
  const auto op = cuda.make(
      Dropout{},
      {.name = "drop", .x = {shape}, .y = shape, .batch = 2, .training = true, .wants_dx = {true}});
  const DeviceMemory x = upload(cuda, std::vector<float>(n, 1.0f), DType::kFloat32);
  const DeviceMemory y = cuda.allocate(n * sizeof(float)), saved = cuda.allocate(op->saved_bytes());
  NodeMemory memory;
  memory.x = {x.data.get()};
  memory.y = y.data.get();
  memory.saved = saved.data.get();

  const StepInfo steps[] = {{.seed = 5, .step = 7, .worker = 1}, {.seed = 5, .step = 8}};
  std::vector<std::vector<float>> expected;
  for (const StepInfo& step : steps) {
    op->forward(memory, step);
    expected.push_back(download(cuda, y, DType::kFloat32));
  }
  EXPECT_NE(expected[0], expected[1]);

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t captured = nullptr;
  cuda.device_step(steps[0]);
  cuda::check(cudaStreamBeginCapture(cuda.stream(), cudaStreamCaptureModeThreadLocal));
  op->forward(memory, steps[0]);
  cuda::check(cudaStreamEndCapture(cuda.stream(), &graph));
  cuda::check(cudaGraphInstantiate(&captured, graph, 0));
  for (const size_t s : {1, 0}) {
    cuda.device_step(steps[s]);
    cuda::check(cudaGraphLaunch(captured, cuda.stream()));
    EXPECT_EQ(download(cuda, y, DType::kFloat32), expected[s]);
  }
  cuda::check(cudaGraphExecDestroy(captured));
  cuda::check(cudaGraphDestroy(graph));
}

TEST(CudaDevice, TheSystemSaysWhichCpusAreNear) {
  std::string address;
  try {
    address = gpu_address(0);
  } catch (const Error& e) {
    GTEST_SKIP() << "SKIPPED: no GPU has an address: " << e.what();
  }
  const test::TempFolder folder;
  EXPECT_EQ(near_cpus("cuda", 0, folder.path("")), "");
  folder.write("bus/pci/devices/" + address + "/local_cpulist", "0-15,32-47\n");
  EXPECT_EQ(near_cpus("cuda", 0, folder.path("")), "0-15,32-47");
  EXPECT_EQ(near_cpus("cpu", 0, folder.path("")), "");
}

// What libraries or drivers refuse to capture is enqueued as ever.
TEST(CudaDevice, WorkThatCannotBeCapturedIsRepeatedOtherwise) {
  std::unique_ptr<Device> device;
  try {
    device = make_device("cuda", 1);
  } catch (const Error& e) {
    GTEST_SKIP() << "SKIPPED: no work was recorded: " << e.what();
  }
  const DeviceMemory x = upload(*device, std::vector<float>{0.0f}, DType::kFloat32);
  const DeviceMemory one = upload(*device, std::vector<float>{1.0f}, DType::kFloat32);
  const auto value = [&] { return download(*device, x, DType::kFloat32)[0]; };
  const auto add_one = [&] {
    device->accumulate(x.data.get(), one.data.get(), 1, DType::kFloat32);
  };
  int calls = 0;

  const auto captured = device->make_recording();
  for (int run = 1; run <= 5; ++run) {
    captured->run(nullptr, [&] {
      ++calls;
      add_one();
    });
    EXPECT_EQ(value(), static_cast<float>(run));
  }
  EXPECT_EQ(calls, 2);

  testing::internal::CaptureStderr();
  const auto refused = device->make_recording();
  for (int run = 6; run <= 9; ++run) {
    refused->run(nullptr, [&] {
      if (++calls == 4) device->allocate(8);
      add_one();
    });
    EXPECT_EQ(value(), static_cast<float>(run));
  }
  EXPECT_EQ(calls, 2 + 5);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("cannot be captured in a graph"),
            std::string::npos);
}

}  // namespace
}  // namespace convoy::ops
