// Weights packed by kernels of our own have the bits of oneDNN's reorders.
#include "ops/packing_kernels.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ops/onednn.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

// Blocks of 64, 48 and 32 channels of y, the last one not full; few and many channels.
const std::pair<int64_t, int64_t> kChannels[] = {{64, 64},   {256, 64},  {1024, 512}, {512, 1024},
                                                 {1024, 48}, {16, 192},  {32, 192},   {80, 16},
                                                 {48, 16},   {2048, 512}};

std::vector<unsigned char> packed_by_onednn(const std::vector<float>& w,
                                            const dnnl::memory::desc& parameters,
                                            const dnnl::memory::desc& packed) {
  const AlignedBuffer out(packed.get_size());
  onednn::make_reorder(parameters, packed).run({w.data(), out.data()}, nullptr);
  return {out.as<unsigned char>(), out.as<unsigned char>() + packed.get_size()};
}

std::vector<dnnl::memory::desc> layouts(const onednn::ConvolutionShape& shape) {
  return {parameter_layout(shape), make_convolution_forward(shape).weights,
          make_convolution_backward_data(shape).weights};
}
std::vector<dnnl::memory::desc> layouts(const onednn::LinearShape& shape) {
  return {parameter_layout(shape), make_linear_forward(shape).weights,
          make_linear_backward_data(shape).weights};
}

// layouts: of the parameters, then packed ones.
void expect_equal(DType type, const std::vector<dnnl::memory::desc>& layouts) {
  std::vector<float> w(layouts[0].get_size() / sizeof(float));
  for (size_t i = 0; i < w.size(); ++i) w[i] = random_value(3, 0, i);
  for (size_t i = 1; i < layouts.size(); ++i)
    for (const int threads : {1, 3}) {
      onednn::PackedWeights weights(layouts[0], layouts[i], threads);
      // Other instruction sets have other layouts in bf16, which oneDNN packs.
      if (type == DType::kFloat32 || onednn::instruction_set() == "avx512_core_bf16") {
        EXPECT_TRUE(weights.packs_itself());
      }
      weights.pack(w.data());
      const std::vector<unsigned char> expected = packed_by_onednn(w, layouts[0], layouts[i]);
      EXPECT_EQ(std::memcmp(weights.data(), expected.data(), expected.size()), 0)
          << "layout " << i << ", " << threads << " threads";
    }
}

TEST(Packing, EqualsOneDnnsReorders) {
  if (cpu_isa() < Isa::kAvx512) GTEST_SKIP() << "SKIPPED: no AVX-512";
  for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
    for (const auto& [k, c] : kChannels) {
      SCOPED_TRACE(fmt::format("{} to {} channels in {}", c, k, name_of(type)));
      expect_equal(type, layouts(onednn::ConvolutionShape{.name = "conv",
                                                          .x = {4, c, 14, 14},
                                                          .y = {4, k, 14, 14},
                                                          .kernel_h = 1,
                                                          .kernel_w = 1,
                                                          .stride = 1,
                                                          .padding = 0,
                                                          .groups = 1,
                                                          .bias = false,
                                                          .type = type}));
    }
    for (const int64_t classes : {10, 100, 1000}) {
      SCOPED_TRACE(fmt::format("{} classes in {}", classes, name_of(type)));
      expect_equal(type, layouts(onednn::LinearShape{.name = "fc",
                                                     .x = {16, 512, 1, 1},
                                                     .out_features = classes,
                                                     .bias = true,
                                                     .type = type,
                                                     .y_type = DType::kFloat32}));
    }
  }
}

}  // namespace
}  // namespace convoy::ops
