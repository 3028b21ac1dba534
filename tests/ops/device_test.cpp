// The device itself: which there are, accumulate, image input, what it refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

INSTANTIATE_TEST_SUITE_P(Devices, OpTest, ::testing::ValuesIn(targets()), target_name);

std::vector<Target> fp32_targets() {
  std::vector<Target> all;
  for (const Target& t : targets())
    if (t.type == DType::kFloat32) all.push_back(t);
  return all;
}
INSTANTIATE_TEST_SUITE_P(Devices, Fp32Test, ::testing::ValuesIn(fp32_targets()), target_name);

TEST(Device, CpuIsThere) {
  EXPECT_EQ(make_device("cpu", 1)->name(), "cpu");
  EXPECT_TRUE(make_device("cpu", 1)->supports(DType::kFloat32));
  EXPECT_FALSE(make_device("cpu", 1)->supports(DType::kFloat16));
  const std::string libraries = make_device("cpu", 1)->libraries();
  EXPECT_NE(libraries.find("oneDNN"), std::string::npos) << libraries;
  EXPECT_NE(libraries.find("own kernels"), std::string::npos) << libraries;
}

TEST(Device, CudaIsThere) {
  try {
    EXPECT_EQ(make_device("cuda", 1)->name(), "cuda");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    GTEST_SKIP() << "SKIPPED: no operator was tested on a GPU: " << e.what();
  }
}

TEST(Device, UnknownNamesAreRefused) {
  expect_error(ExitCode::kUsage, {"t\\npu", "cpu and cuda"}, [] { make_device("t\npu", 1); });
}

TEST(Device, TheCpuRefusesFp16) {
  const auto device = make_device("cpu", 1);
  const Shape x = {2, 16, 4, 4};
  const auto config = [&](Shape y) {
    return OpConfig{.name = "layer1",
                    .x = {x},
                    .y = y,
                    .batch = y.n,
                    .type = DType::kFloat16,
                    .y_type = DType::kFloat16,
                    .training = true,
                    .wants_dx = {true}};
  };
  for (const OpSpec& spec :
       {OpSpec(Relu{}), OpSpec(BatchNorm{}), OpSpec(MaxPool{}), OpSpec(Dropout{}),
        OpSpec(GlobalAvgPool{}), OpSpec(Conv2d{.out_channels = 16, .kernel = 1}),
        OpSpec(Linear{.out_features = 10})})
    expect_error(ExitCode::kBadJob, {name_of(DType::kFloat16)},
                 [&] { device->make(spec, config(output_shape(spec, {x}))); });
}

TEST_P(Fp32Test, MemoryIsZeroed) {
  Device& d = device();
  const DeviceMemory memory = d.allocate(100000);
  EXPECT_EQ(memory.bytes, 100000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data.get()) % 64, 0u);
  std::vector<unsigned char> bytes(memory.bytes, 1);
  d.download(bytes.data(), memory.data.get(), bytes.size());
  EXPECT_EQ(bytes, std::vector<unsigned char>(memory.bytes));
}

TEST_P(OpTest, AccumulateAdds) {
  for (const size_t n : {1, 15, 16, 17, 33, 1000, 70001})
    for (const int threads : {1, 2, 3, 4}) {
      std::vector<float> a(n + 1), b(n + 1);
      for (size_t i = 0; i <= n; ++i) {
        a[i] = random_value(1, 0, i);
        b[i] = random_value(1, 1, i);
      }
      Device& d = device(threads);
      const DeviceMemory sum = upload(d, a, type()), addend = upload(d, b, type());
      a = download(d, sum, type());
      b = download(d, addend, type());
      d.accumulate(sum.data.get(), addend.data.get(), static_cast<int64_t>(n), type());
      const std::vector<float> out = download(d, sum, type());
      for (size_t i = 0; i < n; ++i) {
        const float expected = a[i] + b[i];
        ASSERT_EQ(out[i], round_to(type(), expected));
      }
      EXPECT_EQ(out[n], a[n]) << "written behind the end";
      EXPECT_EQ(download(d, addend, type()), b);
    }
}

TEST_P(OpTest, MeasuresItsProducts) {
  if (!device().supports(type())) return;
  EXPECT_GT(device().measure_gemm(type(), 64), 0.0);
}

// What lies behind x is not touched.
std::vector<float> normalised(Device& device, const ImageInput& input, DType type,
                              const std::vector<uint8_t>& pixels, const BatchMix& mix) {
  const Shape shape = input.four_channels ? with_four_channels(input.shape) : input.shape;
  const DeviceMemory x =
      upload(device, {}, type, static_cast<size_t>(shape.elements() + 1) * size_of(type));
  const auto op = device.make_input(input, type);
  std::vector<uint8_t> slot = pixels;
  op->send(slot.data());
  op->run(x.data.get(), mix);
  device.inputs_read();
  slot.assign(slot.size(), 7);  // the next batch
  std::vector<float> out = download(device, x, type);
  EXPECT_TRUE(std::isnan(out.back())) << "written behind the end";
  out.pop_back();
  return out;
}

TEST_P(OpTest, ImageInputNormalisesEachPlace) {
  int readers = 0;
  for (const Shape& shape :
       {Shape{1, 1, 1, 1}, Shape{2, 3, 5, 7}, Shape{3, 1, 28, 28}, Shape{2, 3, 32, 32},
        Shape{1, 17, 3, 3}, Shape{19, 3, 8, 5}, Shape{9, 4, 3, 5}}) {
    ImageInput input = {.shape = shape, .mean = {}, .inv_std = {}};
    const auto plane = static_cast<size_t>(shape.elements() / shape.n);
    for (size_t i = 0; i < plane; ++i) {
      input.mean.push_back(128 + 64 * random_value(1, 0, i));
      input.inv_std.push_back((2 + random_value(1, 1, i)) / 128);
    }
    const auto n = static_cast<size_t>(shape.elements());
    std::vector<uint8_t> pixels(n);
    for (size_t i = 0; i < n; ++i)
      pixels[i] = static_cast<uint8_t>(random4(1, Purpose::kSyntheticData, 2, i)[0]);
    pixels[0] = 255;
    std::vector<double> expected(n);
    for (size_t i = 0; i < n; ++i)
      expected[i] = (static_cast<double>(pixels[i]) - static_cast<double>(input.mean[i % plane])) *
                    static_cast<double>(input.inv_std[i % plane]);
    std::vector<float> first;
    for (const int threads : {1, 2, 3, 4}) {
      const std::vector<float> out = normalised(device(threads), input, type(), pixels, {});
      expect_close("x", out, expected, type());
      if (threads == 1) first = out;
      EXPECT_EQ(out, first) << threads << " threads";
    }
    // As convolutions would have it.
    if (!device().wants_four_channels({.out_channels = 8, .kernel = 1}, shape, type())) continue;
    ++readers;
    input.four_channels = true;
    EXPECT_EQ(normalised(device(), input, type(), pixels, {}), in_four_channels(shape, first))
        << to_string(shape);
  }
  const bool on_a_gpu = GetParam().device == "cuda" && type() != DType::kFloat32;
  EXPECT_EQ(readers, on_a_gpu ? 6 : 0);
}

TEST_P(OpTest, ImageInputRefusesFourChannelsWhereItHasNone) {
  const auto refuses = [&](const Shape& shape) {
    ImageInput input{.shape = shape, .mean = {}, .inv_std = {}, .four_channels = true};
    input.mean.resize(static_cast<size_t>(shape.elements()));
    input.inv_std = input.mean;
    expect_error(ExitCode::kFault, {to_string(shape), "four channels"},
                 [&] { device().make_input(input, type()); });
  };
  refuses({1, 5, 4, 4});
  if (GetParam().device == "cpu" || type() == DType::kFloat32) refuses({1, 3, 4, 4});
}

// A GPU has not begun the first when the last has been copied.
TEST_P(OpTest, ImageInputTakesBatchesAheadOfTheDevice) {
  constexpr size_t kBatches = 5, kPixels = 2 * 4 * 4 * 3;
  const ImageInput input = per_channel_input({2, 3, 4, 4}, {0, 0, 0}, {1, 1, 1});
  Device& d = device();
  std::vector<uint8_t> slot(kPixels);
  const std::shared_ptr<void> pinned = d.pin(slot.data(), slot.size());
  const auto op = d.make_input(input, type());
  std::vector<DeviceMemory> x;
  for (size_t k = 0; k < kBatches; ++k) {
    slot.assign(kPixels, static_cast<uint8_t>(51 * k));
    op->send(slot.data());
    op->run(x.emplace_back(upload(d, {}, type(), kPixels * size_of(type()))).data.get(), {});
    if (k + 1 < kBatches) d.inputs_read();
  }
  for (size_t k = 0; k < kBatches; ++k)
    expect_close("x", download(d, x[k], type()),
                 std::vector<double>(kPixels, 0.2 * static_cast<double>(k)), type());
}

TEST_P(OpTest, ImageInputMixesABoxWithTheImageBefore) {
  const Shape shape{3, 3, 5, 7};
  const auto n = static_cast<size_t>(shape.elements()), plane = n / 3;
  ImageInput input = {.shape = shape, .mean = {}, .inv_std = {}};
  std::vector<uint8_t> pixels(n);
  for (size_t i = 0; i < plane; ++i) {
    input.mean.push_back(128 + 64 * random_value(1, 0, i));
    input.inv_std.push_back((2 + random_value(1, 1, i)) / 128);
  }
  for (size_t i = 0; i < n; ++i)
    pixels[i] = static_cast<uint8_t>(random4(1, Purpose::kSyntheticData, 2, i)[0]);
  for (const BatchMix& mix :
       {BatchMix{.bottom = 5, .right = 7, .image_share = 0.25f},
        BatchMix{.top = 1, .bottom = 4, .left = 2, .right = 7, .image_share = 0.0f},
        BatchMix{.top = 2, .bottom = 2, .left = 2, .right = 7, .image_share = 0.0f}}) {
    std::vector<double> expected(n);
    for (size_t i = 0; i < n; ++i) {
      const size_t place = i % plane;
      const auto y = static_cast<int64_t>(place / 21), x = static_cast<int64_t>(place % 21 / 3);
      const bool mixed = y >= mix.top && y < mix.bottom && x >= mix.left && x < mix.right;
      const double share = mixed ? static_cast<double>(mix.image_share) : 1.0;
      const double pixel = share * pixels[i] + (1 - share) * pixels[(i + n - plane) % n];
      expected[i] = (pixel - static_cast<double>(input.mean[place])) *
                    static_cast<double>(input.inv_std[place]);
    }
    for (const int threads : {1, 2}) {
      Device& d = device(threads);
      const std::vector<float> out = normalised(d, input, type(), pixels, mix);
      expect_close("x", out, expected, type());
      if (!d.wants_four_channels({.out_channels = 8, .kernel = 1}, shape, type())) continue;
      ImageInput as_wanted = input;
      as_wanted.four_channels = true;
      EXPECT_EQ(normalised(d, as_wanted, type(), pixels, mix), in_four_channels(shape, out));
    }
  }
}

// As first nodes of a network: nobody asks for the gradient of the images.
TEST_P(OpTest, OpsWithOneInputRunWithoutInputGradient) {
  for (const OpSpec& spec :
       {OpSpec(BatchNorm{}), OpSpec(Relu{}), OpSpec(MaxPool{}), OpSpec(AvgPool{}),
        OpSpec(GlobalAvgPool{}), OpSpec(Dropout{.rate = 0}), OpSpec(Concat{}),
        OpSpec(Subsample{.out_channels = 30}), OpSpec(Conv2d{.out_channels = 33}),
        OpSpec(Linear{.out_features = 33})})
    check_op(device(), type(), {.spec = spec, .x = {{2, 24, 5, 7}}, .wants_dx = {false}});
}

TEST(ImageInput, ChannelMeansAreTorchvisions) {
  const ImageInput input =
      per_channel_input({4, 3, 2, 2}, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225});
  ASSERT_EQ(input.mean.size(), 12u);
  ASSERT_EQ(input.inv_std.size(), 12u);
  for (size_t i = 0; i < 12; ++i) {
    const double mean = std::array{0.485, 0.456, 0.406}[i % 3];
    const double std = std::array{0.229, 0.224, 0.225}[i % 3];
    // Pixel 200: as ToTensor and Normalize make it.
    EXPECT_NEAR(
        (200.0 - static_cast<double>(input.mean[i])) * static_cast<double>(input.inv_std[i]),
        (200.0 / 255 - mean) / std, 1e-5);
  }
  expect_error(ExitCode::kBadJob, {"1 means", "3 standard deviations", "3 channels"}, [] {
    per_channel_input({4, 3, 2, 2}, {0.5}, {1, 1, 1});
  });
}

TEST(Catalogue, KindsSayWhatIsFused) {
  EXPECT_EQ(kind_of(Conv2d{}), "Conv2d");
  EXPECT_EQ(kind_of(BatchNorm{}), "BatchNorm");
  EXPECT_EQ(kind_of(BatchNorm{.relu = true, .residual = true}), "BatchNorm+Add+ReLU");
}

}  // namespace
}  // namespace convoy::ops
