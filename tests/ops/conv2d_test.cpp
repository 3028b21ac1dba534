// Convolution against the reference: strides, padding, groups, bias, odd shapes.
#include <gtest/gtest.h>

#include <limits>

#include "ops/core/isa.h"
#include "ops/onednn.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

OpCase convolution(Conv2d spec, Shape x) {
  return {.spec = spec, .x = {x}};
}

std::vector<OpCase> cases() {
  return {
      // The shapes of residual networks: first layers, 3x3, 1x1, stride 2 with odd and even sizes.
      convolution({.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3}, {2, 3, 23, 17}),
      convolution({.out_channels = 16, .kernel = 3, .padding = 1}, {3, 3, 9, 8}),
      convolution({.out_channels = 16, .kernel = 3, .padding = 1}, {2, 1, 28, 28}),
      convolution({.out_channels = 64, .kernel = 3, .padding = 1}, {2, 64, 8, 7}),
      convolution({.out_channels = 48, .kernel = 3, .padding = 1}, {3, 32, 7, 7}),
      convolution({.out_channels = 48, .kernel = 3, .padding = 1, .bias = true}, {2, 32, 14, 13}),
      convolution({.out_channels = 32, .kernel = 3, .stride = 2, .padding = 1}, {2, 16, 9, 8}),
      convolution({.out_channels = 64, .kernel = 1}, {2, 256, 5, 6}),
      convolution({.out_channels = 256, .kernel = 1}, {2, 64, 6, 5}),
      convolution({.out_channels = 128, .kernel = 1, .stride = 2}, {2, 64, 7, 5}),
      convolution({.out_channels = 512, .kernel = 1}, {2, 512, 3, 2}),
      convolution({.out_channels = 24, .kernel = 1, .stride = 3, .groups = 2}, {2, 16, 7, 8}),
      convolution({.out_channels = 16, .kernel = 1, .stride = 2, .bias = true}, {2, 17, 5, 8}),
      // The gradient kernel of our own in bf16: strides, small images; more than one group of
      // channels, more pixels than are packed at once, an odd number of them.
      convolution({.out_channels = 528, .kernel = 1, .stride = 2}, {1, 16, 5, 5}),
      convolution({.out_channels = 64, .kernel = 3, .stride = 2, .padding = 1}, {5, 32, 25, 27}),
      convolution({.out_channels = 64, .kernel = 3, .padding = 1}, {3, 48, 5, 7}),
      convolution({.out_channels = 80, .kernel = 1}, {2, 48, 9, 7}),
      convolution({.out_channels = 257, .kernel = 3, .padding = 1}, {1, 256, 3, 3}),
      // With a bias, as in VGG, AlexNet and GoogLeNet.
      convolution({.out_channels = 24, .kernel = 5, .padding = 2, .bias = true}, {2, 16, 7, 9}),
      convolution({.out_channels = 64, .kernel = 11, .stride = 4, .padding = 2, .bias = true},
                  {2, 3, 35, 31}),
      convolution({.out_channels = 33, .kernel = 1, .bias = true}, {1, 17, 4, 3}),
      convolution({.out_channels = 32, .kernel = 3, .padding = 1, .bias = true}, {2, 48, 6, 7}),
      // Groups: two, many, depth-wise.
      convolution({.out_channels = 32, .kernel = 3, .padding = 1, .groups = 2}, {2, 16, 5, 7}),
      convolution({.out_channels = 64, .kernel = 3, .stride = 2, .padding = 1, .groups = 32},
                  {2, 64, 7, 7}),
      convolution({.out_channels = 24, .kernel = 3, .padding = 1, .groups = 24, .bias = true},
                  {2, 24, 6, 5}),
      convolution({.out_channels = 30, .kernel = 3, .groups = 3, .bias = true}, {2, 15, 5, 5}),
      // Channels that fill no vector.
      convolution({.out_channels = 1, .kernel = 3, .padding = 1}, {2, 1, 5, 5}),
      convolution({.out_channels = 17, .kernel = 3, .padding = 1}, {2, 15, 6, 5}),
      convolution({.out_channels = 15, .kernel = 3, .stride = 2, .padding = 1}, {1, 17, 5, 6}),
      convolution({.out_channels = 33, .kernel = 2, .stride = 2}, {3, 24, 5, 5}),
      convolution({.out_channels = 100, .kernel = 3, .padding = 1}, {1, 33, 4, 4}),
      convolution({.out_channels = 10, .kernel = 1}, {4, 100, 1, 1}),
      convolution({.out_channels = 16, .kernel = 1}, {2, 30, 5, 4}),
      // More channels of a filter, and a larger one, than a block of a GPU turns round at once.
      convolution({.out_channels = 8, .kernel = 3, .padding = 1}, {1, 272, 3, 2}),
      convolution({.out_channels = 8, .kernel = 1}, {2, 2312, 2, 1}),
      convolution({.out_channels = 3, .kernel = 49, .padding = 1}, {1, 2, 48, 47}),
      // One pixel, windows mostly in the padding, a window as large as the image.
      convolution({.out_channels = 16, .kernel = 1}, {1, 16, 1, 1}),
      convolution({.out_channels = 24, .kernel = 3, .padding = 1}, {1, 16, 1, 1}),
      convolution({.out_channels = 16, .kernel = 5, .bias = true}, {2, 3, 5, 5}),
      convolution({.out_channels = 16, .kernel = 3, .stride = 3, .padding = 2}, {2, 16, 4, 8}),
  };
}

TEST_P(OpTest, Conv2dEqualsReference) {
  for (const OpCase& c : cases()) check_op(device(), type(), c);
}

// Those of 1x1 that are measured may be matrix products; on the emulated GPU they are.
TEST_P(OpTest, MeasuredConv2dEqualsReference) {
  if (GetParam().device == "cpu") GTEST_SKIP() << "a CPU measures nothing";
  const auto tuned = make_device("cuda", 1);
  tuned->tune(true);
  for (const OpCase& c : cases())
    if (std::get<Conv2d>(c.spec).kernel == 1) check_op(*tuned, type(), c);
  const bool emulated = tuned->instruction_set().find("emulated") != std::string::npos;
  EXPECT_EQ(tuned->decisions().find("elsewhere") != std::string::npos,
            emulated ? type() != DType::kFloat32
                     : tuned->decisions().find("product") != std::string::npos);
}

// To the bit what is stored whole, without its zeros.
TEST_P(OpTest, Conv2dThatSkipsPixelsStoresACompactGradient) {
  for (const auto& [channels, groups] :
       std::vector<std::pair<int64_t, int64_t>>{{16, 1}, {16, 2}, {17, 1}})
    for (const int64_t stride : {2, 3, 5, 20})
      for (const Shape& size : {Shape{3, 0, 7, 5}, {3, 0, 8, 6}, {3, 0, 6, 9}, {3, 0, 1, 4}}) {
        Conv2d conv = {.out_channels = 24, .kernel = 1, .stride = stride, .groups = groups};
        OpCase whole = convolution(conv, {size.n, channels, size.h, size.w}), stored = whole;
        std::get<Conv2d>(stored.spec).compact_dx = true;
        const OpData data = make_data(whole, type());
        if (GetParam().device == "cpu") {
          expect_error(ExitCode::kFault, {"node", "no CPU"},
                       [&] { run(device(), type(), stored, data); });
          continue;
        }
        for (const int64_t slices : {int64_t{1}, size.n}) {
          stored.slices = whole.slices = slices;
          SCOPED_TRACE(describe(stored));
          const OpResult with_zeros = run(device(), type(), whole, data),
                         without = run(device(), type(), stored, data);
          EXPECT_EQ(bits_of(spread(without.dx[0], whole.x[0], stride)), bits_of(with_zeros.dx[0]));
          EXPECT_EQ(bits_of(without.y), bits_of(with_zeros.y));
          EXPECT_EQ(bits_of(without.gradients[0]), bits_of(with_zeros.gradients[0]));
        }
      }
}

TEST_P(OpTest, Conv2dInferenceEqualsReference) {
  for (OpCase c : cases()) {
    c.training = false;
    check_op(device(), type(), c);
  }
}

// With a batch norm folded in, its residual and its ReLU: y is written over the residual.
TEST_P(OpTest, FoldedConv2dEqualsReference) {
  for (const BatchNorm& batch_norm :
       {BatchNorm{}, BatchNorm{.relu = true}, BatchNorm{.residual = true},
        BatchNorm{.epsilon = 0.1, .relu = true, .residual = true}})
    for (OpCase c : cases()) {
      c.training = false;
      auto& conv = std::get<Conv2d>(c.spec);
      const Shape y = output_shape(conv, c.x);
      conv.batch_norm = batch_norm;
      if (batch_norm.residual) c.x.push_back(y);
      check_op(device(), type(), c);
    }
}

// oneDNN's ReLU makes zeros of NaN: what is not finite must be said before. On a GPU it stays NaN
// (cudnn_test.cpp), and a refusal would have to wait for it.
TEST_P(OpTest, FoldedConv2dRefusesWeightsThatAreNotFinite) {
  if (GetParam().device != "cpu") GTEST_SKIP() << "a GPU hands NaN on";
  for (OpCase c : {convolution({.out_channels = 16, .kernel = 3, .padding = 1}, {1, 16, 8, 8}),
                   convolution({.out_channels = 16, .kernel = 1}, {1, 16, 8, 8})}) {
    c.training = false;
    c.node = "block.conv1";
    std::get<Conv2d>(c.spec).batch_norm = BatchNorm{.relu = true};
    const OpData sound = make_data(c, type());
    const auto expect_refusal = [&](const OpData& data) {
      expect_error(ExitCode::kBadData, {"block.conv1", "channel 3 ", "not finite"},
                   [&] { run(device(), type(), c, data); });
    };
    const size_t filter = sound.parameters[2].size() / 16;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (size_t p = 0; p < 3; ++p) {  // scale and shift of the batch norm, the last weight
        OpData data = sound;
        data.parameters[p][p < 2 ? 3 : 4 * filter - 1] = bad;
        expect_refusal(data);
      }
      OpData data = sound;
      data.running[3] = bad;
      expect_refusal(data);
    }
    OpData data = sound;
    data.running[16 + 3] = -1.0f;  // a variance
    expect_refusal(data);
  }
}

TEST(Conv2d, ResidualMustHaveTheShapeOfTheOutput) {
  const Conv2d conv = {.out_channels = 8, .batch_norm = BatchNorm{.residual = true}};
  expect_error(ExitCode::kBadJob, {"[2, 8, 3, 3]", "[2, 8, 5, 5]"}, [&] {
    output_shape(conv, {{2, 4, 5, 5}, {2, 8, 5, 5}});
  });
  expect_error(ExitCode::kBadJob, {"2 input", "got 1"}, [&] {
    output_shape(conv, {{2, 4, 5, 5}});
  });
}

// First layers of networks: nobody asks for the gradient of the images. ResNet's, CIFAR's, MNIST's;
// strides without padding and longer than the window, a padding longer than it, even windows, 16 to
// 96 output channels, odd widths, images smaller than the window.
std::vector<OpCase> first_layers() {
  std::vector<OpCase> all = {
      convolution({.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3}, {2, 3, 23, 17}),
      convolution({.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3}, {2, 3, 32, 30}),
      convolution({.out_channels = 16, .kernel = 3, .padding = 1}, {3, 3, 16, 17}),
      convolution({.out_channels = 32, .kernel = 5}, {2, 1, 28, 28}),
      convolution({.out_channels = 96, .kernel = 11, .stride = 4, .padding = 2}, {1, 3, 47, 51}),
      convolution({.out_channels = 48, .kernel = 2, .stride = 3, .padding = 1}, {2, 2, 11, 13}),
      convolution({.out_channels = 80, .kernel = 4, .padding = 3}, {1, 2, 5, 3}),
      convolution({.out_channels = 16, .kernel = 1, .stride = 2}, {2, 3, 7, 9}),
      convolution({.out_channels = 64, .kernel = 3, .padding = 1}, {1, 3, 1, 1}),
      convolution({.out_channels = 16, .kernel = 2, .stride = 9, .padding = 3}, {2, 3, 2, 1}),
  };
  for (OpCase& c : all) c.wants_dx = {false};
  return all;
}

TEST_P(OpTest, Conv2dWithoutInputGradientEqualsReference) {
  for (const OpCase& c : first_layers()) check_op(device(), type(), c);
}

TEST_P(OpTest, FrozenConv2dWithoutInputGradientEqualsReference) {
  for (OpCase c : first_layers()) {
    c.wants_gradients = false;
    check_op(device(), type(), c);
  }
}

// By our own kernels (few_channels_test.cpp); the bits of oneDNN's weight gradients do.
TEST(Conv2d, FirstLayersDependOnNoThreads) {
  if (cpu_isa() != Isa::kAvx512Bf16 || onednn::instruction_set() != "avx512_core_bf16")
    GTEST_SKIP() << "SKIPPED: not a processor whose bf16 products are AVX-512's";
  for (const OpCase& c : first_layers()) check_threads("cpu", DType::kBfloat16, c);
}

// Where the image has four channels in memory, as its convolution would have it.
TEST_P(OpTest, Conv2dOfTheImageEqualsReference) {
  std::vector<OpCase> all = first_layers();
  for (OpCase& c : cases()) all.push_back(std::move(c));
  // Tiles beside and above each other, windows in parts, more channels than a block has.
  all.push_back(
      convolution({.out_channels = 8, .kernel = 7, .stride = 2, .padding = 3}, {1, 3, 9, 470}));
  all.push_back(convolution({.out_channels = 72, .kernel = 3, .padding = 1}, {2, 4, 40, 18}));
  all.push_back(convolution(
      {.out_channels = 64, .kernel = 11, .stride = 4, .padding = 2, .bias = true}, {2, 3, 43, 35}));
  all.push_back(
      convolution({.out_channels = 136, .kernel = 5, .stride = 3, .padding = 4}, {3, 1, 17, 12}));
  all.push_back(all[0]);
  all.back().wants_gradients = false;
  OpCase folded = convolution({.out_channels = 24, .kernel = 3, .padding = 1}, {2, 3, 9, 7});
  std::get<Conv2d>(folded.spec).batch_norm = BatchNorm{.relu = true};
  folded.training = false;
  all.push_back(folded);
  int wanted = 0;
  for (OpCase& c : all) {
    if (!device().wants_four_channels(std::get<Conv2d>(c.spec), c.x[0], type())) continue;
    ++wanted;
    c.wants_dx = {false};
    c.image = true;
    for (const int64_t slices : {int64_t{1}, c.x[0].n}) {
      c.slices = slices;
      check_op(device(), type(), c);
    }
  }
  const bool on_a_gpu = GetParam().device == "cuda" && type() != DType::kFloat32;
  EXPECT_EQ(wanted > 10, on_a_gpu) << wanted;
  // More tiles than blocks, some with fewer than others; with two copies of a patch, and weights in
  // parts.
  for (OpCase c :
       {convolution({.out_channels = 8, .kernel = 3, .padding = 1}, {601, 3, 2, 3}),
        convolution({.out_channels = 8, .kernel = 3, .stride = 2, .padding = 1}, {541, 3, 3, 5}),
        convolution({.out_channels = 8, .kernel = 11, .stride = 4, .padding = 5},
                    {531, 3, 2, 2})}) {
    if (!on_a_gpu) break;
    c.wants_dx = {false};
    c.image = true;
    check_as_it_is(device(), type(), c);
  }
}

// Frozen: the gradient goes through, the weights' is not touched and x not read.
TEST_P(OpTest, FrozenConv2dEqualsReference) {
  for (OpCase c : cases()) {
    c.wants_gradients = false;
    check_op(device(), type(), c);
  }
}

TEST_P(Fp32Test, Conv2dGradientsEqualDifferences) {
  for (const OpCase& c :
       {convolution({.out_channels = 5, .kernel = 3, .padding = 1, .bias = true}, {2, 3, 5, 4}),
        convolution({.out_channels = 8, .kernel = 3, .stride = 2, .padding = 1, .groups = 2},
                    {1, 4, 5, 7}),
        convolution({.out_channels = 4, .kernel = 1, .stride = 2}, {2, 3, 3, 3})})
    check_gradients(device(), c);
}

TEST(Conv2d, ShapesParametersAndCosts) {
  const Conv2d first = {.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3};
  const std::vector<Shape> image = {{1, 3, 224, 224}};
  EXPECT_EQ(output_shape(first, image), (Shape{1, 64, 112, 112}));
  EXPECT_EQ(macs(first, image), 118013952);  // of torchvision's ResNets
  ASSERT_EQ(parameters(first, image).size(), 1u);
  const ParameterSpec weight = parameters(first, image)[0];
  EXPECT_EQ(weight.name, "weight");
  EXPECT_EQ(weight.dims, (std::vector<int64_t>{64, 3, 7, 7}));
  EXPECT_EQ(weight.fan_in, 3 * 49);
  EXPECT_EQ(weight.fan_out, 64 * 49);
  EXPECT_TRUE(weight.is_weight);

  const Conv2d grouped = {
      .out_channels = 64, .kernel = 3, .padding = 1, .groups = 32, .bias = true};
  EXPECT_EQ(macs(grouped, {{2, 64, 5, 5}}), 2 * 64 * 25 * 2 * 9);
  ASSERT_EQ(parameters(grouped, {{2, 64, 5, 5}}).size(), 2u);
  EXPECT_EQ(parameters(grouped, {{2, 64, 5, 5}})[0].dims, (std::vector<int64_t>{64, 2, 3, 3}));
  EXPECT_FALSE(parameters(grouped, {{2, 64, 5, 5}})[1].is_weight);
}

TEST(Conv2d, ErrorsNameTheNumbers) {
  const std::vector<Shape> x = {{2, 6, 5, 4}};
  expect_error(ExitCode::kBadJob, {"7-pixel", "4 pixels", "padding 1"},
               [&] { output_shape(Conv2d{.out_channels = 8, .kernel = 7, .padding = 1}, x); });
  expect_error(ExitCode::kBadJob, {"6 input", "8 output", "4 groups"},
               [&] { output_shape(Conv2d{.out_channels = 8, .kernel = 1, .groups = 4}, x); });
  expect_error(ExitCode::kBadJob, {"6 input", "8 output", "3 groups"},
               [&] { output_shape(Conv2d{.out_channels = 8, .kernel = 1, .groups = 3}, x); });
  expect_error(ExitCode::kBadJob, {"stride 0"},
               [&] { output_shape(Conv2d{.out_channels = 8, .kernel = 1, .stride = 0}, x); });
  expect_error(ExitCode::kBadJob, {"out_channels 0"},
               [&] { output_shape(Conv2d{.kernel = 1}, x); });
  expect_error(ExitCode::kBadJob, {"padding -1"},
               [&] { output_shape(Conv2d{.out_channels = 8, .kernel = 1, .padding = -1}, x); });
  expect_error(ExitCode::kBadJob, {"1 input", "got 2"}, [&] {
    output_shape(Conv2d{.out_channels = 8}, {x[0], x[0]});
  });
}

}  // namespace
}  // namespace convoy::ops
