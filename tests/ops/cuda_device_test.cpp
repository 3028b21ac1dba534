// What only the CUDA device promises: its work can be captured in a graph.
#include "ops/cuda_device.h"

#include <cmath>
#include <utility>

#include "tests/support/op_tester.h"
#include "tests/support/temp_folder.h"

namespace convoy::ops {
namespace {

// Tests of one CUDA device, where there is one.
class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = make_device("cuda", 1);
    } catch (const Error& e) {
      GTEST_SKIP() << "SKIPPED: nothing was computed: " << e.what();
    }
  }
  CudaDevice& cuda() { return dynamic_cast<CudaDevice&>(*device_); }

 private:
  std::unique_ptr<Device> device_;
};

TEST_F(CudaDeviceTest, ACapturedDropoutDrawsForTheStepItIsLaunchedFor) {
  CudaDevice& cuda = this->cuda();
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

// More than one launch takes, of several types, scaled and padded; what is packed again is new.
TEST_F(CudaDeviceTest, WeightsArePackedTogether) {
  CudaDevice& cuda = this->cuda();
  struct Weights {
    WeightPacking packing;
    DeviceMemory oihw, packed, packed32, scale;
    std::vector<float> values;
    std::vector<double> scales;
  };
  std::vector<Weights> all(150);
  for (size_t n = 0; n < all.size(); ++n) {
    Weights& w = all[n];
    WeightPacking& p = w.packing;
    p.type = n < 70 ? DType::kFloat16 : n % 3 == 0 ? DType::kFloat32 : DType::kBfloat16;
    p.filters = 1 + static_cast<int64_t>(n % 5);
    p.channels = n == 3 ? 300 : 1 + static_cast<int64_t>(n % 11);
    p.stored = n % 2 == 0 ? p.channels : (p.channels + 7) / 8 * 8;
    p.area = n == 7 ? 50 * 50 : n == 3 ? 9 : 1 + static_cast<int64_t>(n % 4) * 3;
    const auto stored = static_cast<size_t>(p.filters * p.stored * p.area);
    for (int64_t i = 0; i < p.filters * p.channels * p.area; ++i)
      w.values.push_back(random_value(1, n, static_cast<uint64_t>(i)));
    for (int64_t k = 0; k < p.filters; ++k) w.scales.push_back(0.5 + static_cast<double>(k));
    w.oihw = upload(cuda, w.values, DType::kFloat32);
    w.packed = upload(cuda, {}, p.type, (stored + 1) * size_of(p.type));
    w.packed32 = upload(cuda, {}, DType::kFloat32, (stored + 1) * sizeof(float));
    w.scale = cuda.allocate(w.scales.size() * sizeof(double));
    cuda.upload(w.scale.data.get(), w.scales.data(), w.scales.size() * sizeof(double));
    p.packed = w.packed.data.get();
    p.oihw = static_cast<const float*>(w.oihw.data.get());
    if (n % 4 == 1) p.packed32 = static_cast<float*>(w.packed32.data.get());
    if (n % 3 == 1) p.scale = static_cast<const double*>(w.scale.data.get());
  }
  const auto check = [&](const Weights& w) {
    const WeightPacking& p = w.packing;
    std::vector<float> expected;
    for (int64_t k = 0; k < p.filters; ++k)
      for (int64_t rs = 0; rs < p.area; ++rs)
        for (int64_t c = 0; c < p.stored; ++c) {
          const auto at = static_cast<size_t>((k * p.channels + c) * p.area + rs);
          double v = c < p.channels ? static_cast<double>(w.values[at]) : 0.0;
          if (p.scale) v *= w.scales[static_cast<size_t>(k)];
          expected.push_back(round_to(p.type, static_cast<float>(v)));
        }
    for (const auto& [memory, type] :
         {std::pair{&w.packed, p.type}, {&w.packed32, DType::kFloat32}}) {
      if (memory == &w.packed32 && !p.packed32) continue;
      std::vector<float> found = download(cuda, *memory, type);
      EXPECT_TRUE(std::isnan(found.back())) << "written behind the end";
      found.pop_back();
      EXPECT_EQ(found, expected);
    }
  };
  for (const float factor : {1.0f, 2.0f}) {
    for (Weights& w : all) {
      for (float& v : w.values) v *= factor;
      cuda.upload(w.oihw.data.get(), w.values.data(), w.values.size() * sizeof(float));
      cuda.pack(w.packing);
    }
    cuda.prepared();
    for (const Weights& w : all) {  // nothing is left to be packed
      const std::vector<float> zeros(w.values.size());
      cuda.upload(w.oihw.data.get(), zeros.data(), zeros.size() * sizeof(float));
    }
    cuda.prepared();
    for (size_t n = 0; n < all.size(); ++n) {
      SCOPED_TRACE(n);
      check(all[n]);
    }
  }
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
TEST_F(CudaDeviceTest, WorkThatCannotBeCapturedIsRepeatedOtherwise) {
  CudaDevice& cuda = this->cuda();
  const DeviceMemory x = upload(cuda, std::vector<float>{0.0f}, DType::kFloat32);
  const DeviceMemory one = upload(cuda, std::vector<float>{1.0f}, DType::kFloat32);
  const auto value = [&] { return download(cuda, x, DType::kFloat32)[0]; };
  const auto add_one = [&] { cuda.accumulate(x.data.get(), one.data.get(), 1, DType::kFloat32); };
  int calls = 0;

  const auto captured = cuda.make_recording();
  for (int run = 1; run <= 5; ++run) {
    captured->run(nullptr, [&] {
      ++calls;
      add_one();
    });
    EXPECT_EQ(value(), static_cast<float>(run));
  }
  EXPECT_EQ(calls, 2);

  testing::internal::CaptureStderr();
  const auto refused = cuda.make_recording();
  for (int run = 6; run <= 9; ++run) {
    refused->run(nullptr, [&] {
      if (++calls == 4) cuda.allocate(8);
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
