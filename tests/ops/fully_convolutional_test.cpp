// A network over a larger image is its own average over all the places where it fits.
#include "ops/fully_convolutional.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/core/error.h"
#include "ops/core/random.h"
#include "ops/fusion.h"
#include "ops/network.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

float random_float(uint64_t stream, uint64_t i) {
  return uniform_float(random4(11, Purpose::kSyntheticData, stream, i)[0]);
}

// As AlexNet and VGG end: the whole feature map, then layers of vectors. Without padding, so that a
// window does not know where in the image it lies. 3 x 12 x 12 -> 8 x 3 x 3 -> 7 -> 5.
Graph windowed() {
  Graph g{.name = "windowed", .image = {.n = 1, .c = 3, .h = 12, .w = 12}, .nodes = {}};
  int x = g.add("conv1", Conv2d{.out_channels = 6, .kernel = 3, .bias = true}, {kImage});
  x = g.add("relu1", Relu{}, {g.add("bn1", BatchNorm{}, {x})});
  x = g.add("pool", MaxPool{.kernel = 2, .stride = 2, .padding = 0}, {x});
  x = g.add("conv2", Conv2d{.out_channels = 8, .kernel = 3}, {x});
  x = g.add("relu2", Relu{}, {g.add("bn2", BatchNorm{}, {x})});
  x = g.add("grid", AdaptiveAvgPool{.h = 3, .w = 3}, {x});
  x = g.add("fc1", Linear{.out_features = 7}, {x});
  x = g.add("dropout", Dropout{}, {g.add("relu3", Relu{}, {x})});
  g.add("fc2", Linear{.out_features = 5}, {x});
  return g;
}

Graph pooled() {
  Graph g{.name = "pooled", .image = {.n = 1, .c = 3, .h = 12, .w = 12}, .nodes = {}};
  int x = g.add("conv", Conv2d{.out_channels = 6, .kernel = 3, .padding = 1}, {kImage});
  x = g.add("relu", Relu{}, {g.add("bn", BatchNorm{}, {x})});
  g.add("fc", Linear{.out_features = 5}, {g.add("avgpool", GlobalAvgPool{}, {x})});
  return g;
}

// `pooled` with a classifier beside it that training alone needs, and that wants 9 pixels and more.
Graph with_auxiliary() {
  Graph g = pooled();
  const Node pool = g.nodes[g.nodes.size() - 2], fc = g.nodes.back();
  g.nodes.resize(g.nodes.size() - 2);
  int x = g.add("aux.pool", AvgPool{.kernel = 9, .stride = 3}, {2});
  x = g.add("aux.bn", BatchNorm{},
            {g.add("aux.conv", Conv2d{.out_channels = 4, .kernel = 1}, {x})});
  x = g.add("aux.fc", Linear{.out_features = 5}, {x});
  g.auxiliary = {{.node = x}};
  g.add(fc.name, fc.op, {g.add(pool.name, pool.op, {2})});
  return g;
}

struct Parameters {
  std::vector<float> weights, running;
};

// Of `graph`, for it and for what becomes of it.
Parameters parameters_of(const Graph& graph) {
  const ParameterLayout layout = layout_of(fuse(graph));
  Parameters p{std::vector<float>(layout.parameter_floats),
               std::vector<float>(layout.statistics_floats)};
  for (size_t i = 0; i < p.weights.size(); ++i) p.weights[i] = random_float(1, i) - 0.4f;
  for (size_t i = 0; i < p.running.size(); ++i) p.running[i] = 0.5f + random_float(2, i);
  return p;
}

// Logits of `n` images [n, h, w, 3]; whole: of what `graph` is a part of.
std::vector<float> logits_of(const std::string& device_name, const Graph& graph,
                             const Parameters& p, const std::vector<float>& images, int64_t n,
                             const ParameterLayout* whole = nullptr) {
  const auto device = make_device(device_name, 1);
  Network net(*device, graph, {.batch = n, .training = false, .input = {}, .whole = whole});
  DeviceFloats weights(*device, p.weights.size()), running(*device, p.running.size());
  EXPECT_EQ(net.layout().parameter_floats, p.weights.size());
  std::ranges::copy(p.weights, weights.read().begin());
  std::ranges::copy(p.running, running.read().begin());
  weights.write();
  running.write();
  net.bind({weights.data(), running.data(), nullptr, nullptr});
  net.prepare();
  net.forward_activations(images.data(), {});
  const TensorView y = net.logits();
  std::vector<float> out(static_cast<size_t>(y.shape.elements()));
  device->download(out.data(), y.data, y.bytes());
  return out;
}

std::vector<float> image_of(int64_t h, int64_t w) {
  std::vector<float> x(static_cast<size_t>(h * w * 3));
  for (size_t i = 0; i < x.size(); ++i) x[i] = 2 * random_float(3, i) - 1;
  return x;
}

std::vector<float> window(const std::vector<float>& image, int64_t w, int64_t top, int64_t left,
                          int64_t size) {
  std::vector<float> out;
  for (int64_t y = top; y < top + size; ++y) {
    const auto row = image.begin() + (y * w + left) * 3;
    out.insert(out.end(), row, row + size * 3);
  }
  return out;
}

class FullyConvolutional : public testing::TestWithParam<std::string> {};

// fp32 sums of at most 72 products of about 1, in another order: a few times 72 roundings of 2^-24.
constexpr float kTolerance = 3e-5f;

TEST_P(FullyConvolutional, AtItsOwnSizeItGivesTheSameLogits) {
  for (const Graph& graph : {windowed(), pooled()}) {
    const Parameters p = parameters_of(graph);
    const std::vector<float> x = image_of(12, 12);
    const Graph dense = fully_convolutional(graph, 12, 12);
    const std::vector<float> expected = logits_of(GetParam(), graph, p, x, 1);
    const std::vector<float> got = logits_of(GetParam(), dense, p, x, 1);
    ASSERT_EQ(got.size(), expected.size()) << graph.name;
    for (size_t k = 0; k < got.size(); ++k)
      EXPECT_NEAR(got[k], expected[k], kTolerance) << graph.name << " " << k;
  }
}

TEST_P(FullyConvolutional, OnALargerImageItIsTheMeanOverItsWindows) {
  constexpr int64_t kHeight = 16, kWidth = 20;  // 3 x 5 windows, 2 pixels apart
  const Graph graph = windowed();
  const Parameters p = parameters_of(graph);
  const std::vector<float> image = image_of(kHeight, kWidth);
  std::vector<double> mean(5, 0.0);
  for (int64_t y = 0; y < 3; ++y)
    for (int64_t x = 0; x < 5; ++x) {
      const std::vector<float> logits =
          logits_of(GetParam(), graph, p, window(image, kWidth, 2 * y, 2 * x, 12), 1);
      for (size_t k = 0; k < 5; ++k) mean[k] += static_cast<double>(logits[k]) / 15;
    }
  const Graph dense = fully_convolutional(graph, kHeight, kWidth);
  const std::vector<float> got = logits_of(GetParam(), dense, p, image, 1);
  ASSERT_EQ(got.size(), 5u);
  for (size_t k = 0; k < 5; ++k) EXPECT_NEAR(got[k], mean[k], kTolerance) << k;
}

// Where it lies among the parameters of the whole, and what those need, changes no logit.
TEST_P(FullyConvolutional, AnAuxiliaryClassifierAsksForNoSize) {
  const Graph graph = with_auxiliary();
  const ParameterLayout whole = layout_of(fuse(graph));
  const Parameters p = parameters_of(graph);
  const ParameterLayout alone = layout_of(fuse(pooled()));
  Parameters q = parameters_of(pooled());
  for (const auto& to : alone.parameters) {
    const auto from =
        std::ranges::find(whole.parameters, to.name, &ParameterLayout::Parameter::name);
    std::copy_n(p.weights.begin() + static_cast<ptrdiff_t>(from->offset), to.floats(),
                q.weights.begin() + static_cast<ptrdiff_t>(to.offset));
  }
  const auto bn = std::ranges::find(whole.statistics, "bn", &ParameterLayout::Statistics::name);
  std::copy_n(p.running.begin() + static_cast<ptrdiff_t>(bn->offset), 2 * bn->channels,
              q.running.begin());
  for (const auto& [h, w] : {std::pair{12, 12}, {7, 5}, {2, 2}}) {
    const std::vector<float> x = image_of(h, w);
    const std::vector<float> got =
        logits_of(GetParam(), fully_convolutional(graph, h, w), p, x, 1, &whole);
    EXPECT_EQ(got, logits_of(GetParam(), fully_convolutional(pooled(), h, w), q, x, 1)) << h;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, FullyConvolutional, testing::ValuesIn(device_names()),
                         [](const auto& each) { return each.param; });

TEST(FullyConvolutionalGraph, ChangesOnlyWhatMustSlide) {
  const Graph dense = fully_convolutional(windowed(), 16, 20);
  std::vector<std::string> kinds;
  for (const Node& n : dense.nodes) kinds.push_back(n.name + ":" + kind_of(n.op));
  EXPECT_EQ(kinds,
            (std::vector<std::string>{"conv1:Conv2d", "bn1:BatchNorm", "relu1:ReLU", "pool:MaxPool",
                                      "conv2:Conv2d", "bn2:BatchNorm", "relu2:ReLU", "grid:AvgPool",
                                      "fc1:Conv2d", "relu3:ReLU", "dropout:Dropout", "fc2:Conv2d",
                                      "mean_of_the_score_map:GlobalAvgPool"}));
  EXPECT_EQ(std::get<Conv2d>(dense.nodes[8].op).kernel, 3);
  EXPECT_EQ(std::get<Conv2d>(dense.nodes[11].op).kernel, 1);
  // A network that pools before its classifier stays as it is.
  const Graph same = fully_convolutional(pooled(), 16, 20);
  EXPECT_EQ(same.nodes.size(), pooled().nodes.size());
  EXPECT_TRUE(std::holds_alternative<Linear>(same.nodes.back().op));
}

// The bytes of a weight stay where they are.
TEST(FullyConvolutionalGraph, KeepsTheLayout) {
  const ParameterLayout own = layout_of(fuse(windowed()));
  const ParameterLayout dense = layout_of(fuse(fully_convolutional(windowed(), 40, 30)));
  ASSERT_EQ(own.parameters.size(), dense.parameters.size());
  for (size_t i = 0; i < own.parameters.size(); ++i) {
    EXPECT_EQ(own.parameters[i].name, dense.parameters[i].name);
    EXPECT_EQ(own.parameters[i].offset, dense.parameters[i].offset);
    EXPECT_EQ(own.parameters[i].floats(), dense.parameters[i].floats());
  }
}

TEST(FullyConvolutionalGraph, WhatIsNoPartOfTheWholeIsAFault) {
  const ParameterLayout whole = layout_of(fuse(pooled()));
  expect_error(ExitCode::kFault, {"\"windowed\"", "fc2.weight of 35 floats"},
               [&] { layout_within(whole, fuse(windowed())); });
}

TEST(FullyConvolutionalGraph, ImagesThatAreTooSmallAreRefused) {
  expect_error(ExitCode::kBadJob, {"images of 11 x 20", "\"fc1\"", "3-pixel window"},
               [] { fully_convolutional(windowed(), 11, 20); });
}

}  // namespace
}  // namespace convoy::ops
