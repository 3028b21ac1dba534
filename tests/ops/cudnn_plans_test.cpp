// The real cuDNN, asked without a GPU for its plans on an H200: every convolution of the networks
// that matter gets one, in every precision, with arithmetic that keeps its promises.
//
// Kernels that cuDNN compiles at run time are compiled, but not loaded: CMake puts the toolkit's
// stub of the driver into the program's way.
#include <gtest/gtest.h>

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "ops/conv2d_cuda.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

constexpr const char* kH200 =
    R"({"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"deviceVer":900,)"
    R"("driverVer":13000,"regsPerBlock":65536,"multiProcessorCount":132,"smClockRateKHz":1980000,)"
    R"("memClockRateKHz":3201000,"l2CacheSize":62914560,"warpSize":32,)"
    R"("maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,)"
    R"("reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,"pciDeviceId":0,)"
    R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"isTccDriver":0,)"
    R"("supportCoopLaunch":1,"deviceName":"NVIDIA H200","cudaDeviceId":0,)"
    R"("totalGlobalMem":150754820096})";

struct Layer {
  Conv2d conv;
  Shape x;
};

// The first layer, then (input, output, size, kernel, stride) of the others; each once.
std::vector<Layer> resnet50(int64_t n) {
  std::vector<Layer> all = {
      {{.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3}, {n, 3, 224, 224}}};
  const auto add = [&](int64_t c, int64_t k, int64_t size, int64_t kernel, int64_t stride) {
    all.push_back({{.out_channels = k, .kernel = kernel, .stride = stride, .padding = kernel / 2},
                   {n, c, size, size}});
  };
  int64_t in = 64, size = 56;
  for (const int64_t width : {64, 128, 256, 512}) {
    const int64_t stride = width == 64 ? 1 : 2;
    add(in, width, size, 1, 1);
    add(width, width, size, 3, stride);
    add(in, 4 * width, size, 1, stride);  // the shortcut
    size /= stride;
    add(width, 4 * width, size, 1, 1);
    add(4 * width, width, size, 1, 1);
    add(width, width, size, 3, 1);
    in = 4 * width;
  }
  return all;
}

std::vector<Layer> resnet20(int64_t n) {
  const auto conv3 = [](int64_t k, int64_t stride) {
    return Conv2d{.out_channels = k, .kernel = 3, .stride = stride, .padding = 1};
  };
  return {{conv3(16, 1), {n, 3, 32, 32}},
          {conv3(16, 1), {n, 16, 32, 32}},
          {conv3(32, 2), {n, 16, 32, 32}},
          {{.out_channels = 32, .kernel = 1, .stride = 2}, {n, 16, 32, 32}},
          {conv3(32, 1), {n, 32, 16, 16}},
          {conv3(64, 2), {n, 32, 16, 16}},
          {{.out_channels = 64, .kernel = 1, .stride = 2}, {n, 32, 16, 16}},
          {conv3(64, 1), {n, 64, 8, 8}}};
}

// ResNeXt, AlexNet, depth-wise, and a width that fills no vector; some with a bias.
std::vector<Layer> grouped(int64_t n) {
  return {{{.out_channels = 128, .kernel = 3, .padding = 1, .groups = 32}, {n, 128, 56, 56}},
          {{.out_channels = 256, .kernel = 3, .stride = 2, .padding = 1, .groups = 32},
           {n, 256, 56, 56}},
          {{.out_channels = 256, .kernel = 5, .padding = 2, .groups = 2, .bias = true},
           {n, 96, 27, 27}},
          {{.out_channels = 24, .kernel = 3, .padding = 1, .groups = 24, .bias = true},
           {n, 24, 28, 28}},
          {{.out_channels = 30, .kernel = 3, .groups = 3}, {n, 15, 9, 9}}};
}

// With a batch norm folded in, and without one in training but with a bias.
std::vector<Layer> folded(int64_t n) {
  const BatchNorm plain = {.relu = true}, residual = {.relu = true, .residual = true};
  return {{{.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3, .batch_norm = plain},
           {n, 3, 224, 224}},
          {{.out_channels = 64, .kernel = 3, .padding = 1, .batch_norm = plain}, {n, 64, 56, 56}},
          {{.out_channels = 256, .kernel = 1, .batch_norm = residual}, {n, 64, 56, 56}},
          {{.out_channels = 24, .kernel = 3, .padding = 1, .groups = 24, .batch_norm = plain},
           {n, 24, 28, 28}}};
}

struct Precision {
  const char* name;
  DType type;
  bool tf32;
};
void PrintTo(const Precision& p, std::ostream* out) {
  *out << p.name;
}

class CudnnPlans : public ::testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    try {
      library_ = std::make_unique<cudnn::Library>(std::string(kH200));
      // Without a driver, or its stub, there is nothing that is compiled at run time.
      cudnn::Convolution fused = {
          .x = {8, 64, 8, 8}, .y = {8, 64, 8, 8}, .type = DType::kFloat16, .relu = true};
      if (library_->choices(fused).empty()) throw Error(ExitCode::kFault, "no libcuda.so.1");
    } catch (const Error& e) {
      GTEST_SKIP() << "SKIPPED: cuDNN cannot be asked for its plans here: " << e.what();
    }
  }

  void check(const std::string& network, const std::vector<Layer>& layers, bool training) {
    std::set<std::string> engines;
    int plans = 0, forward_in_fp32 = 0, weights_in_fp32 = 0;
    size_t workspace = 0;
    for (const Layer& layer : layers) {
      const bool is_first = layer.x.c == 3;
      Conv2d alone = layer.conv;  // the residual has the output's shape
      alone.batch_norm.reset();
      OpConfig config = {.name = "layer",
                         .x = {layer.x},
                         .y = output_shape(alone, {layer.x}),
                         .batch = layer.x.n,
                         .type = GetParam().type,
                         .tf32 = GetParam().tf32,
                         .training = training,
                         .wants_dx = {!is_first}};
      const Conv2dPlans found = plan_conv2d(*library_, nullptr, layer.conv, config);
      forward_in_fp32 += found.forward_in_fp32;
      weights_in_fp32 += found.weights_in_fp32;
      const bool grouped_or_odd = layer.conv.groups > 1 || layer.conv.out_channels % 8 != 0;
      EXPECT_TRUE(!found.weights_in_fp32 || grouped_or_odd) << to_string(layer.x);
      EXPECT_TRUE(!found.forward_in_fp32 || layer.conv.groups > 1) << to_string(layer.x);
      const auto judge = [&](const std::shared_ptr<const cudnn::Plan>& plan, bool tensor_cores) {
        ASSERT_TRUE(plan);
        ++plans;
        engines.insert(std::to_string(plan->choice().engine));
        workspace = std::max(workspace, plan->workspace_bytes());
        EXPECT_LE(plan->workspace_bytes(), size_t{2} << 30);
        for (const std::string& note : plan->notes())
          EXPECT_TRUE(note == "STRICT_NAN_PROP" || (note == "TENSOR_CORE" && tensor_cores))
              << note << " of " << to_string(layer.x) << ", engine " << to_text(plan->choice());
      };
      const bool tensor_cores = GetParam().type != DType::kFloat32 || GetParam().tf32;
      judge(found.forward, tensor_cores);
      if (!training) continue;
      if (!is_first) judge(found.backward_data, tensor_cores);
      judge(found.backward_weights, tensor_cores);
    }
    std::printf(
        "%-10s %s: %d plans for %zu layers, engines %s, at most %zu MiB of workspace; in fp32: %d "
        "forward, %d weights\n",
        network.c_str(), GetParam().name, plans, layers.size(),
        fmt::format("{}", fmt::join(engines, " ")).c_str(), workspace >> 20, forward_in_fp32,
        weights_in_fp32);
  }
  std::unique_ptr<cudnn::Library> library_;
};

TEST_P(CudnnPlans, OfResNet50) {
  check("ResNet-50", resnet50(256), true);
}
TEST_P(CudnnPlans, OfResNet20) {
  check("ResNet-20", resnet20(128), true);
}
TEST_P(CudnnPlans, OfGroups) {
  check("groups", grouped(64), true);
}
TEST_P(CudnnPlans, OfFoldedBatchNorms) {
  check("folded", folded(64), false);
}

// The real library's choices as text: another library makes exactly these plans, and no other.
TEST_P(CudnnPlans, AreMadeAgainFromText) {
  cudnn::Convolution c = {.x = {8, 64, 14, 14},
                          .y = {8, 64, 14, 14},
                          .kernel = 3,
                          .padding = 1,
                          .type = GetParam().type,
                          .tf32 = GetParam().tf32};
  size_t exact = 0;
  for (const Choice& choice : library_->choices(c)) {
    cudnn::Library other{std::string(kH200)};
    other.decisions().prescribe(to_text(c) + " = " + to_text(choice));
    EXPECT_EQ(parse_choice(to_text(choice)), choice);
    const auto plan = other.find(c);
    EXPECT_EQ(plan->choice(), choice);
    EXPECT_EQ(plan->workspace_bytes(), library_->make(c, choice)->workspace_bytes());
    if (++exact == 8) break;
  }
  EXPECT_GT(exact, 1u);
  // Who measures has several to choose from.
  cudnn::Library measured{std::string(kH200)};
  size_t asked = 0;
  measured.choose_by(
      [&](const cudnn::Convolution&, const cudnn::Plan&) { return -static_cast<double>(++asked); });
  const Choice last = measured.find(c)->choice();
  EXPECT_GT(asked, 1u);
  EXPECT_NE(last, library_->find(c)->choice());
  for (const char* refused : {"999999", "0:2=999999"}) {
    cudnn::Library other{std::string(kH200)};
    other.decisions().prescribe(to_text(c) + " = " + refused);
    expect_error(ExitCode::kBadJob, {"cuDNN 9.", refused, to_text(c)},
                 [&] { other.plan("conv1", c); });
  }
}

// Each engine has its turn, and a sum is cut into as many pieces as are fastest, where the library
// offers 16 or none.
TEST_P(CudnnPlans, GradientsOfWeightsAreMeasuredInOtherPieces) {
  if (GetParam().type == DType::kFloat32) return;  // its engines are another kind
  const bool large = GetParam().type == DType::kFloat16;
  const Shape shape = large ? Shape{256, 64, 56, 56} : Shape{8, 64, 14, 14};
  const cudnn::Convolution c = {.pass = cudnn::Pass::kBackwardWeights,
                                .x = shape,
                                .y = shape,
                                .kernel = 3,
                                .padding = 1,
                                .type = GetParam().type};
  const auto pieces = [](const Choice& choice) {
    int64_t n = 1;
    for (const auto& [knob, value] : choice.knobs)
      if (knob == 17) n = value;  // CUDNN_KNOB_TYPE_SPLIT_K_SLC
    return n;
  };
  std::set<int64_t> engines, measured;
  for (const Choice& choice : library_->choices(c)) engines.insert(choice.engine);
  EXPECT_GT(engines.size(), 1u);
  const int64_t best = large ? 4 : 32;
  library_->choose_by([&](const cudnn::Convolution&, const cudnn::Plan& plan) {
    measured.insert(plan.choice().engine);
    return std::abs(
        std::log2(static_cast<double>(pieces(plan.choice())) / static_cast<double>(best)));
  });
  EXPECT_EQ(pieces(library_->find(c)->choice()), best);
  EXPECT_EQ(measured, engines);
}

// Statistics beside a convolution: in fp16 every layer of ResNet-50 has engines that keep the sums
// of their parts, but for the first, which is our own; those of bf16 are compiled, and add by
// atomics.
TEST_P(CudnnPlans, SumsOfConvolutionsAreFp16s) {
  for (const Layer& layer : resnet50(256)) {
    const Shape y = output_shape(layer.conv, {layer.x});
    if (layer.x.c == 3) continue;
    const cudnn::Convolution c = {.x = layer.x,
                                  .y = y,
                                  .kernel = layer.conv.kernel,
                                  .stride = layer.conv.stride,
                                  .padding = layer.conv.padding,
                                  .type = GetParam().type,
                                  .tf32 = GetParam().tf32,
                                  .sums = true};
    const auto plan = library_->find(c);
    EXPECT_EQ(plan != nullptr, GetParam().type == DType::kFloat16) << to_text(c);
    if (plan) {
      EXPECT_GT(plan->workspace_bytes(), 0u) << to_text(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(H200, CudnnPlans,
                         ::testing::Values(Precision{"fp16", DType::kFloat16, false},
                                           Precision{"bf16", DType::kBfloat16, false},
                                           Precision{"fp32", DType::kFloat32, false},
                                           Precision{"tf32", DType::kFloat32, true}),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace convoy::ops
