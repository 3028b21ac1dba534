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

TEST(Packing, EqualsOneDnnsReorders) {
  if (cpu_isa() < Isa::kAvx512) GTEST_SKIP() << "SKIPPED: no AVX-512";
  for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
    int own = 0;
    for (const auto& [k, c] : kChannels) {
      const onednn::ConvolutionShape shape = {.name = "conv",
                                              .x = {4, c, 14, 14},
                                              .y = {4, k, 14, 14},
                                              .kernel_h = 1,
                                              .kernel_w = 1,
                                              .stride = 1,
                                              .padding = 0,
                                              .groups = 1,
                                              .bias = false,
                                              .type = type};
      std::vector<float> w(static_cast<size_t>(k * c));
      for (size_t i = 0; i < w.size(); ++i) w[i] = random_value(3, 0, i);
      for (const dnnl::memory::desc& packed :
           {make_convolution_forward(shape).weights, make_convolution_backward_data(shape).weights})
        for (const int threads : {1, 3}) {
          const dnnl::memory::desc parameters = parameter_layout(shape);
          onednn::PackedWeights weights(parameters, packed, threads);
          own += weights.packs_itself();
          weights.pack(w.data());
          const std::vector<unsigned char> expected = packed_by_onednn(w, parameters, packed);
          EXPECT_EQ(std::memcmp(weights.data(), expected.data(), expected.size()), 0)
              << k << " x " << c << " in " << name_of(type) << ", " << threads << " threads";
        }
    }
    // With AMX, bf16 has layouts that oneDNN packs.
    if (type == DType::kFloat32 || !onednn::multiplies_by_amx()) {
      EXPECT_EQ(own, 4 * static_cast<int>(std::size(kChannels))) << name_of(type);
    }
  }
}

}  // namespace
}  // namespace convoy::ops
