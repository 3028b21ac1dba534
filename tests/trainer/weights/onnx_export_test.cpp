// The graph of an ONNX file, read back: in order, whole, of the right shapes, and what each of our
// operators becomes. What runs of it is compared by tests/golden/compare_with_onnxruntime.py.
#include "trainer/weights/onnx_export.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <set>

#include "ops/core/error.h"
#include "proto/onnx.pb.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

using Strings = std::vector<std::string>;
using Ints = std::vector<int64_t>;

// Tensors by name, in the same order as the layout has them; element i of parameter number p is
// 0.1 + p + i / 100, of running values likewise, 1000 later.
class Weights {
 public:
  explicit Weights(const ops::Graph& graph) {
    const ops::ParameterLayout layout = ops::layout_of(graph);
    for (const auto& p : layout.parameters)
      add(p.name, p.spec.dims, 0.1f + static_cast<float>(p.order));
    for (const auto& s : layout.statistics) {
      add(s.name + ".running_mean", {s.channels}, 1000.0f);
      add(s.name + ".running_var", {s.channels}, 2000.0f);
    }
  }
  void add(const std::string& name, const Ints& shape, float first) {
    int64_t elements = 1;
    for (const int64_t d : shape) elements *= d;
    std::vector<float>& values = memory_.emplace_back(static_cast<size_t>(elements));
    for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i) / 100;
    list.tensors.push_back({name, StoredType::kF32, shape, std::as_bytes(std::span(values))});
  }
  float* data(std::string_view name) {
    for (size_t i = 0; i < memory_.size(); ++i)
      if (list.tensors[i].name == name) return memory_[i].data();
    ADD_FAILURE() << "no tensor " << name;
    return nullptr;
  }

  TensorList list;

 private:
  std::deque<std::vector<float>> memory_;
};

onnx::ModelProto parsed(const std::string& bytes) {
  onnx::ModelProto model;
  EXPECT_TRUE(model.ParseFromString(bytes));
  return model;
}
onnx::ModelProto exported(const ops::Graph& graph, const OnnxOptions& options = {}) {
  const Weights weights(graph);
  return parsed(onnx_model(graph, weights.list, options));
}

Ints dims_of(const onnx::ValueInfoProto& info) {
  Ints dims;
  for (const auto& dim : info.type().tensor_type().shape().dim())
    dims.push_back(dim.has_dim_param() ? -1 : dim.dim_value());
  return dims;
}

// Every name is given once and before it is used, everything that is given is described, and
// nothing is given in vain.
void expect_sound(const onnx::ModelProto& model) {
  const onnx::GraphProto& graph = model.graph();
  std::set<std::string> given, used, described;
  for (const auto& info : graph.input()) given.insert(info.name());
  for (const auto& t : graph.initializer()) {
    EXPECT_TRUE(given.insert(t.name()).second) << t.name() << " is there twice";
    int64_t elements = 1;
    for (const int64_t d : t.dims()) elements *= d;
    const int64_t size = t.data_type() == onnx::TensorProto::FLOAT ? 4 : 8;
    EXPECT_EQ(static_cast<int64_t>(t.raw_data().size()), elements * size) << t.name();
  }
  for (const auto& node : graph.node()) {
    for (const std::string& input : node.input()) {
      EXPECT_TRUE(given.contains(input)) << node.name() << " reads " << input;
      used.insert(input);
    }
    ASSERT_EQ(node.output_size(), 1);
    EXPECT_TRUE(given.insert(node.output(0)).second) << node.output(0) << " is given twice";
  }
  for (const auto& info : graph.output()) used.insert(info.name());
  for (const auto& info : graph.value_info()) described.insert(info.name());
  for (const auto& node : graph.node())
    EXPECT_TRUE(described.contains(node.output(0)) || node.output(0) == graph.output(0).name())
        << node.output(0);
  for (const std::string& name : given) EXPECT_TRUE(used.contains(name)) << name << " is not used";
}

Strings kinds_of(const onnx::ModelProto& model) {
  Strings kinds;
  for (const auto& node : model.graph().node()) kinds.push_back(node.op_type());
  return kinds;
}
const onnx::NodeProto& node_of(const onnx::ModelProto& model, const std::string& name) {
  for (const auto& node : model.graph().node())
    if (node.name() == name) return node;
  throw std::runtime_error("no node " + name);
}
Ints ints_of(const onnx::NodeProto& node, const std::string& attribute) {
  for (const auto& a : node.attribute())
    if (a.name() == attribute)
      return a.type() == onnx::AttributeProto::INTS ? Ints(a.ints().begin(), a.ints().end())
                                                    : Ints{a.i()};
  return {};
}
float float_of(const onnx::NodeProto& node, const std::string& attribute) {
  for (const auto& a : node.attribute())
    if (a.name() == attribute && a.type() == onnx::AttributeProto::FLOAT) return a.f();
  return -1;
}
template <typename T>
std::vector<T> constant(const onnx::ModelProto& model, const std::string& name) {
  for (const auto& t : model.graph().initializer())
    if (t.name() == name) {
      std::vector<T> values(t.raw_data().size() / sizeof(T));
      std::memcpy(values.data(), t.raw_data().data(), t.raw_data().size());
      return values;
    }
  ADD_FAILURE() << "no initializer " << name;
  return {};
}
Ints shape_of(const onnx::ModelProto& model, const std::string& value) {
  for (const auto& info : model.graph().value_info())
    if (info.name() == value) return dims_of(info);
  return {};
}

ops::Graph graph_of(const Shape& image,
                    const std::vector<std::pair<std::string, ops::OpSpec>>& ops) {
  ops::Graph graph{.name = "chain", .image = image, .nodes = {}};
  int x = ops::kImage;
  for (const auto& [name, op] : ops) x = graph.add(name, op, {x});
  return graph;
}

constexpr Shape kImage = {.n = 1, .c = 3, .h = 8, .w = 8};

TEST(OnnxExport, AResidualNetworkIsSound) {
  const ops::Graph graph = make_model("cifar_resnet20", {});
  const onnx::ModelProto model = exported(graph);
  expect_sound(model);
  EXPECT_EQ(model.ir_version(), 8);
  EXPECT_EQ(model.opset_import(0).version(), 17);
  EXPECT_EQ(model.producer_name(), "convoy");
  ASSERT_EQ(model.graph().input_size(), 1);
  EXPECT_EQ(model.graph().input(0).name(), "input");
  EXPECT_EQ(dims_of(model.graph().input(0)), (Ints{-1, 3, 32, 32}));
  EXPECT_EQ(model.graph().output(0).name(), "logits");
  EXPECT_EQ(dims_of(model.graph().output(0)), (Ints{-1, 10}));
  EXPECT_EQ(shape_of(model, "layer2.0.conv1"), (Ints{-1, 32, 16, 16}));
  // Initializers are the parameters and the running statistics, under their names.
  std::set<std::string> names;
  for (const auto& t : model.graph().initializer()) names.insert(t.name());
  for (const auto& t : Weights(graph).list.tensors) EXPECT_TRUE(names.contains(t.name)) << t.name;
  const ops::ParameterLayout layout = ops::layout_of(graph);
  EXPECT_EQ(std::ranges::count(kinds_of(model), "BatchNormalization"),
            static_cast<int64_t>(layout.statistics.size()));
}

TEST(OnnxExport, TheSameInputGivesTheSameBytes) {
  const ops::Graph graph = make_model("cifar_resnet20", {});
  const Weights weights(graph);
  EXPECT_TRUE(onnx_model(graph, weights.list, {}) == onnx_model(graph, weights.list, {}));
}

TEST(OnnxExport, EachOperatorBecomesItsOwn) {
  const ops::Graph graph = graph_of(
      kImage,
      {{"conv",
        ops::Conv2d{
            .out_channels = 6, .kernel = 3, .stride = 1, .padding = 1, .groups = 3, .bias = true}},
       {"lrn", ops::LocalResponseNorm{.size = 3, .alpha = 0.5, .beta = 0.25, .k = 2}},
       {"relu", ops::Relu{}},
       {"max", ops::MaxPool{.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true}},
       {"average",
        ops::AvgPool{.kernel = 2, .stride = 1, .padding = 1, .count_include_pad = false}},
       {"gate", ops::Sigmoid{.complement = true}},
       {"half", ops::Subsample{.stride = 2, .out_channels = 9}},
       {"drop", ops::Dropout{}},
       {"hidden", ops::Linear{.out_features = 5, .bias = false}},
       {"sigmoid", ops::Sigmoid{}},
       {"fc", ops::Linear{.out_features = 4}}});
  const onnx::ModelProto model = exported(graph);
  expect_sound(model);
  EXPECT_EQ(kinds_of(model),
            (Strings{"Conv", "LRN", "Relu", "MaxPool", "AveragePool", "Neg", "Sigmoid", "Slice",
                     "Pad", "Flatten", "Gemm", "Sigmoid", "Gemm"}));
  const auto& conv = node_of(model, "conv");
  EXPECT_EQ(Strings(conv.input().begin(), conv.input().end()),
            (Strings{"input", "conv.weight", "conv.bias"}));
  EXPECT_EQ(ints_of(conv, "kernel_shape"), (Ints{3, 3}));
  EXPECT_EQ(ints_of(conv, "pads"), (Ints{1, 1, 1, 1}));
  EXPECT_EQ(ints_of(conv, "group"), Ints{3});
  const auto& lrn = node_of(model, "lrn");
  EXPECT_EQ(ints_of(lrn, "size"), Ints{3});
  EXPECT_EQ(float_of(lrn, "alpha"), 0.5f);
  EXPECT_EQ(float_of(lrn, "beta"), 0.25f);
  EXPECT_EQ(float_of(lrn, "bias"), 2.0f);
  // 8 pixels: windows at 0, 2, 4, 6; the last one ends one pixel outside.
  EXPECT_EQ(ints_of(node_of(model, "max"), "pads"), (Ints{0, 0, 1, 1}));
  EXPECT_EQ(shape_of(model, "max"), (Ints{-1, 6, 4, 4}));
  EXPECT_EQ(ints_of(node_of(model, "average"), "count_include_pad"), Ints{0});
  EXPECT_EQ(shape_of(model, "average"), (Ints{-1, 6, 5, 5}));
  EXPECT_EQ(constant<int64_t>(model, "half_slice_steps"), (Ints{2, 2}));
  EXPECT_EQ(shape_of(model, "half_slice"), (Ints{-1, 6, 3, 3}));
  // Three new channels: one in front, two behind.
  EXPECT_EQ(constant<int64_t>(model, "half_pads"), (Ints{0, 1, 0, 0, 0, 2, 0, 0}));
  EXPECT_EQ(ints_of(node_of(model, "hidden"), "transB"), Ints{1});
  EXPECT_EQ(node_of(model, "hidden").input_size(), 2);
  EXPECT_EQ(dims_of(model.graph().output(0)), (Ints{-1, 4}));
}

TEST(OnnxExport, AdaptivePoolingIsAWindowOrAMatrix) {
  const auto model_of = [](int64_t height, int64_t width) {
    return exported(graph_of(kImage, {{"pool", ops::AdaptiveAvgPool{height, width}},
                                      {"fc", ops::Linear{.out_features = 2}}}));
  };
  const onnx::ModelProto even = model_of(4, 2);
  expect_sound(even);
  EXPECT_EQ(kinds_of(even), (Strings{"AveragePool", "Flatten", "Gemm"}));
  EXPECT_EQ(ints_of(node_of(even, "pool"), "kernel_shape"), (Ints{2, 4}));
  EXPECT_EQ(ints_of(node_of(even, "pool"), "strides"), (Ints{2, 4}));
  EXPECT_EQ(kinds_of(model_of(8, 8)), (Strings{"Flatten", "Gemm"}));
  const onnx::ModelProto uneven = model_of(3, 8);
  expect_sound(uneven);
  EXPECT_EQ(kinds_of(uneven), (Strings{"MatMul", "MatMul", "Flatten", "Gemm"}));
  // Rows 0-2, 2-5 and 5-7 of 8, as torch.nn.AdaptiveAvgPool2d(3) takes them.
  const std::vector<float> rows = constant<float>(uneven, "pool_rows");
  const float third = 1.0f / 3, quarter = 0.25f;
  EXPECT_EQ(rows,
            (std::vector<float>{third, third, third,   0,       0,       0,       0,     0,  //
                                0,     0,     quarter, quarter, quarter, quarter, 0,     0,  //
                                0,     0,     0,       0,       0,       third,   third, third}));
  EXPECT_EQ(shape_of(uneven, "pool"), (Ints{-1, 3, 3, 8}));
}

TEST(OnnxExport, FoldingTakesOnlyTheBatchNormThatAloneReadsAConvolution) {
  ops::Graph graph{.name = "folds", .image = kImage, .nodes = {}};
  const int a = graph.add("a", ops::Conv2d{.out_channels = 2, .kernel = 1, .bias = true}, {-1});
  const int a_norm = graph.add("a_norm", ops::BatchNorm{.epsilon = 0.5}, {a});
  const int b = graph.add("b", ops::Conv2d{.out_channels = 2, .kernel = 1}, {a_norm});
  const int b_norm = graph.add("b_norm", ops::BatchNorm{}, {b});
  const int sum = graph.add("sum", ops::Add{}, {b, b_norm});  // reads b, too
  const int mean = graph.add("mean", ops::GlobalAvgPool{}, {sum});
  graph.add("fc", ops::Linear{.out_features = 2}, {mean});
  Weights weights(graph);
  const onnx::ModelProto model = parsed(onnx_model(graph, weights.list, {.fold = true}));
  expect_sound(model);
  EXPECT_EQ(kinds_of(model), (Strings{"Conv", "Conv", "BatchNormalization", "Add",
                                      "GlobalAveragePool", "Flatten", "Gemm"}));
  const std::vector<float> bias = constant<float>(model, "a.bias");
  const std::vector<float> w = constant<float>(model, "a.weight");
  for (size_t k = 0; k < 2; ++k) {
    const auto at = [&](const char* name) { return double{weights.data(name)[k]}; };
    const double scale = at("a_norm.weight") / std::sqrt(at("a_norm.running_var") + 0.5);
    EXPECT_FLOAT_EQ(
        bias[k],
        static_cast<float>(at("a_norm.bias") + (at("a.bias") - at("a_norm.running_mean")) * scale));
    for (size_t i = 0; i < 3; ++i)
      EXPECT_FLOAT_EQ(w[3 * k + i],
                      static_cast<float>(double{weights.data("a.weight")[3 * k + i]} * scale));
  }
  // A channel that cannot be folded is named; kept apart it is exported as it is.
  weights.data("a_norm.running_var")[1] = -3;
  try {
    onnx_model(graph, weights.list, {.fold = true});
    FAIL() << "folded";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(e.what()).find("\"a\": output channel 1 with the batch norm \"a_norm\""),
              std::string::npos)
        << e.what();
  }
  EXPECT_NO_THROW(onnx_model(graph, weights.list, {}));
}

TEST(OnnxExport, PixelsAreNormalisedInTheGraph) {
  const ops::Graph graph = graph_of(kImage, {{"fc", ops::Linear{.out_features = 2}}});
  const Shape one = kImage;
  OnnxOptions options;
  options.pixels = ops::per_channel_input(one, {0.5, 0.25, 0.125}, {1, 0.5, 0.25});
  options.softmax = true;
  options.batch = 4;
  const onnx::ModelProto model = exported(graph, options);
  expect_sound(model);
  EXPECT_EQ(kinds_of(model), (Strings{"Sub", "Mul", "Flatten", "Gemm", "Softmax"}));
  EXPECT_EQ(model.graph().input(0).name(), "pixels");
  EXPECT_EQ(dims_of(model.graph().input(0)), (Ints{4, 3, 8, 8}));
  EXPECT_EQ(model.graph().output(0).name(), "probabilities");
  EXPECT_EQ(ints_of(node_of(model, "probabilities"), "axis"), Ints{1});
  EXPECT_EQ(constant<float>(model, "input.mean"), (std::vector<float>{127.5f, 63.75f, 31.875f}));
  EXPECT_FLOAT_EQ(constant<float>(model, "input.inv_std")[2], 1 / (0.25f * 255));
  // A mean image, which is NHWC with us, becomes NCHW.
  options.pixels->mean[3] = 7;  // place 1, channel 0
  const onnx::ModelProto image = exported(graph, options);
  const std::vector<float> mean = constant<float>(image, "input.mean");
  ASSERT_EQ(mean.size(), 192u);
  EXPECT_EQ(mean[1], 7);
  EXPECT_EQ(mean[64], 63.75f);
}

// [N, C] of a linear layer meets [N, C, 1, 1] of a pool, and a convolution reads a linear layer.
TEST(OnnxExport, RanksAreMadeToFit) {
  ops::Graph graph{.name = "ranks", .image = kImage, .nodes = {}};
  const int pool = graph.add("pool", ops::GlobalAvgPool{}, {ops::kImage});
  const int linear = graph.add("linear", ops::Linear{.out_features = 3}, {ops::kImage});
  const int sum = graph.add("sum", ops::Multiply{}, {pool, linear});
  const int both = graph.add("both", ops::Concat{}, {linear, sum});
  graph.add("conv", ops::Conv2d{.out_channels = 2, .kernel = 1}, {both});
  const onnx::ModelProto model = exported(graph);
  expect_sound(model);
  EXPECT_EQ(kinds_of(model), (Strings{"GlobalAveragePool", "Flatten", "Gemm", "Reshape", "Mul",
                                      "Reshape", "Concat", "Conv", "Flatten"}));
  EXPECT_EQ(dims_of(model.graph().output(0)), (Ints{-1, 2}));
}

TEST(OnnxExport, NamesNeverMeet) {
  ops::Graph graph{.name = "names", .image = kImage, .nodes = {}};
  int x = graph.add("logits", ops::Relu{}, {ops::kImage});
  x = graph.add("fc.weight", ops::Relu{}, {x});
  graph.add("fc", ops::Linear{.out_features = 2}, {x});
  expect_sound(exported(graph));
  // A network whose last node costs nothing gives what the one before gives.
  graph.add("drop", ops::Dropout{}, {2});
  const onnx::ModelProto model = exported(graph);
  expect_sound(model);
  EXPECT_EQ(model.graph().output(0).name(), "logits");
}

TEST(OnnxExport, WhatCannotBeExportedIsNamed) {
  const auto refusal = [](const ops::Graph& graph, const TensorList& weights,
                          const OnnxOptions& options = {}) {
    try {
      onnx_model(graph, weights, options);
      return std::string("accepted");
    } catch (const Error& e) {
      return fmt::format("{}: {}", static_cast<int>(e.code()), e.what());
    }
  };
  const ops::Graph graph = graph_of(kImage, {{"fc", ops::Linear{.out_features = 2}}});
  Weights weights(graph);
  EXPECT_EQ(refusal(graph, weights.list, {.opset = 12}), "64: opset 12: 13 to 22 are known");
  EXPECT_EQ(refusal(graph, {}), "65: the weights have no tensor \"fc.weight\"");
  weights.list.tensors[0].shape = {192, 2};
  EXPECT_EQ(refusal(graph, weights.list),
            "65: tensor \"fc.weight\" is F32 [192, 2], the network wants F32 [2, 192]");
  // 192 x 3,000,000 floats; no weights are looked at.
  const ops::Graph large = graph_of(kImage, {{"fc", ops::Linear{.out_features = 3'000'000}}});
  EXPECT_EQ(refusal(large, {}),
            "65: network \"chain\": its weights take 2316000000 bytes; one ONNX file holds at most "
            "2130706432");
  const ops::Graph even = graph_of(
      kImage, {{"norm", ops::LocalResponseNorm{.size = 4}}, {"mean", ops::GlobalAvgPool{}}});
  EXPECT_NE(refusal(even, {}).find("78: local response norm \"norm\": ONNX shifts windows of 4"),
            std::string::npos);
}

TEST(OnnxExport, TheSmallNetworksOfEveryFamilyAreSound) {
  for (const char* name :
       {"cifar_nin", "inception_v1", "googlenet", "highway_fc10", "cifar_highway19", "resnet18",
        "cifar_preact_resnet110", "resnext50_32x4d", "densenet121"})
    for (const bool fold : {false, true}) {
      SCOPED_TRACE(name);
      const ops::Graph graph = ops::inference_graph(
          make_model(name, {.image = {.n = 1, .c = 3, .h = 80, .w = 80}, .classes = 4}));
      const onnx::ModelProto model = exported(graph, {.fold = fold});
      expect_sound(model);
      EXPECT_EQ(dims_of(model.graph().output(0)), (Ints{-1, 4}));
    }
}

}  // namespace
}  // namespace convoy::trainer
