// Weights of a file in a network: names, heads, what is missing, extra or of another shape.
#include "trainer/run/initial_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "ops/core/error.h"
#include "tests/support/temp_folder.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

using test::TempFolder;

ops::Graph network(int64_t classes, const std::string& model = "cifar_resnet20",
                   int64_t pixels = 8) {
  ModelOptions options;
  options.image = {.n = 1, .c = 1, .h = pixels, .w = pixels};
  options.classes = classes;
  return make_model(model, options);
}

// A file's tensors, that own their numbers.
struct File {
  TensorList list;
  std::vector<std::unique_ptr<std::vector<float>>> numbers;

  void add(const std::string& name, const std::vector<int64_t>& shape, float first) {
    size_t n = 1;
    for (const int64_t d : shape) n *= static_cast<size_t>(d);
    numbers.push_back(std::make_unique<std::vector<float>>(n));
    for (size_t i = 0; i < n; ++i) (*numbers.back())[i] = first + static_cast<float>(i);
    list.tensors.push_back(
        {name, StoredType::kF32, shape, std::as_bytes(std::span(*numbers.back()))});
  }
  NamedTensor& at(const std::string& name) {
    return *std::ranges::find(list.tensors, name, &NamedTensor::name);
  }
  void remove(const std::string& name) {
    std::erase_if(list.tensors, [&](const NamedTensor& t) { return t.name == name; });
  }
};

constexpr int64_t kSteps[] = {7};

// All tensors of a network, as torchvision would save them: parameter k begins at 1000 k.
File file_of(const ops::Graph& graph) {
  const ops::ParameterLayout layout = ops::layout_of(graph);
  File file;
  float first = 0;
  for (const auto& p : layout.parameters) file.add(p.name, p.spec.dims, first += 1000);
  for (const auto& s : layout.statistics) {
    file.add(s.name + ".running_mean", {s.channels}, first += 1000);
    file.add(s.name + ".running_var", {s.channels}, first += 1000);
    file.list.tensors.push_back(
        {s.name + ".num_batches_tracked", StoredType::kI64, {}, std::as_bytes(std::span(kSteps))});
  }
  return file;
}

class Weights {
 public:
  explicit Weights(int64_t classes) : Weights(network(classes)) {}
  explicit Weights(const ops::Graph& network)
      : graph(network),
        layout(ops::layout_of(graph)),
        parameters(layout.parameter_floats, -1.0f),
        running(layout.statistics_floats, -1.0f) {}

  WeightsTaken take(const File& file, const std::vector<std::string>& anew = {}) {
    return copy_weights(file.list, "net.safetensors", graph, layout, anew, parameters, running);
  }
  std::string refusal(const File& file, const std::vector<std::string>& anew = {}) {
    try {
      take(file, anew);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadData);
      EXPECT_TRUE(std::ranges::all_of(parameters, [](float v) { return v == -1.0f; }));
      return e.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }
  float first_of(const std::string& name) const {
    for (const auto& p : layout.parameters)
      if (p.name == name) return parameters[p.offset];
    return 0;
  }

  ops::Graph graph;
  ops::ParameterLayout layout;
  std::vector<float> parameters, running;
};

TEST(InitialWeights, EveryTensorComesToItsPlace) {
  Weights w(10);
  const File file = file_of(w.graph);
  const WeightsTaken taken = w.take(file);
  EXPECT_EQ(taken.tensors, w.layout.parameters.size() + 2 * w.layout.statistics.size());
  EXPECT_TRUE(taken.heads.empty());
  float first = 0;
  for (const auto& p : w.layout.parameters) {
    first += 1000;
    for (size_t i = 0; i < p.floats(); ++i)
      ASSERT_EQ(w.parameters[p.offset + i], first + static_cast<float>(i)) << p.name;
  }
  for (const auto& s : w.layout.statistics) {
    EXPECT_EQ(w.running[s.offset], first += 1000);
    EXPECT_EQ(w.running[s.offset + static_cast<size_t>(s.channels)], first += 1000);
  }
}

TEST(InitialWeights, APrefixOfAllNamesIsLeftOut) {
  for (const std::string prefix : {"module.", "model."}) {
    Weights w(10);
    File file = file_of(w.graph);
    for (NamedTensor& t : file.list.tensors) t.name = prefix + t.name;
    EXPECT_EQ(w.take(file).prefix, prefix);
    EXPECT_EQ(w.first_of("fc.weight"), 1000);
    file.at(prefix + "fc.weight").name = "fc.weight";  // not all
    EXPECT_NE(Weights(10).refusal(file).find("missing: conv1.weight"), std::string::npos);
  }
}

TEST(InitialWeights, AHeadOfOtherClassesStartsAnew) {
  Weights w(5);
  const WeightsTaken taken = w.take(file_of(network(10)));
  EXPECT_EQ(taken.heads, std::vector<std::string>{"fc: 10 classes there, 5 here"});
  EXPECT_EQ(w.first_of("fc.weight"), -1);
  EXPECT_EQ(w.first_of("fc.bias"), -1);
  EXPECT_EQ(w.first_of("layer3.2.bn2.weight"), 3000);
}

TEST(InitialWeights, HeadsOfAuxiliaryClassifiersStartAnewToo) {
  Weights w(network(5, "googlenet", 64));
  const WeightsTaken taken = w.take(file_of(network(10, "googlenet", 64)));
  EXPECT_EQ(taken.heads, (std::vector<std::string>{"aux1.fc2: 10 classes there, 5 here",
                                                   "aux2.fc2: 10 classes there, 5 here",
                                                   "fc: 10 classes there, 5 here"}));
  for (const char* name : {"aux1.fc2.weight", "aux2.fc2.bias", "fc.weight"})
    EXPECT_EQ(w.first_of(name), -1) << name;
  for (const char* name : {"aux1.fc1.weight", "aux2.conv.bn.bias"})
    EXPECT_NE(w.first_of(name), -1) << name;
}

// The head of another network, not of other classes.
TEST(InitialWeights, AHeadOfOtherFeaturesIsAnError) {
  File file = file_of(network(10));
  file.remove("fc.weight");
  file.add("fc.weight", {10, 63}, 0);
  const std::string error = Weights(5).refusal(file);
  EXPECT_NE(error.find("fc.weight is F32 [10, 63] there, the network wants [5, 64]"),
            std::string::npos)
      << error;
}

TEST(InitialWeights, AllThatDiffersIsListed) {
  Weights w(10);
  File file = file_of(w.graph);
  file.remove("layer1.0.conv1.weight");
  file.remove("bn1.running_var");
  file.remove("conv1.weight");
  file.add("conv1.weight", {16, 3, 3, 3}, 0);
  file.add("extra\n.weight", {2}, 0);
  file.at("fc.bias").type = StoredType::kI32;
  const std::string error = w.refusal(file);
  for (const char* part :
       {"net.safetensors: its tensors are not those of cifar_resnet20 (5 differ)",
        "\n  missing: layer1.0.conv1.weight [16, 16, 3, 3]", "\n  missing: bn1.running_var [16]",
        "\n  of another shape: conv1.weight is F32 [16, 3, 3, 3] there, the network wants [16, 1, "
        "3, 3]",
        "\n  of another shape: fc.bias is I32 [10] there", "\n  extra: extra\\n.weight [2]"})
    EXPECT_NE(error.find(part), std::string::npos) << part << " is not in: " << error;
}

TEST(InitialWeights, AFileOfAnotherModelIsNotListedWithoutEnd) {
  File file = file_of(network(10));
  for (NamedTensor& t : file.list.tensors) t.name = "x" + t.name;
  const std::string error = Weights(10).refusal(file);
  EXPECT_LT(std::ranges::count(error, '\n'), 60);
  EXPECT_NE(error.find("more"), std::string::npos);
}

TEST(InitialWeights, WhatStartsAnewNeedNotBeThere) {
  Weights w(10);
  File file = file_of(w.graph);
  file.remove("layer1.0.conv1.weight");
  file.remove("layer1.0.bn1.running_var");
  const WeightsTaken taken = w.take(file, {"layer1.0", "fc"});
  EXPECT_EQ(w.first_of("fc.weight"), -1);
  EXPECT_EQ(w.first_of("layer1.0.conv1.weight"), -1);
  EXPECT_EQ(w.first_of("layer1.0.conv2.weight"), -1);
  EXPECT_NE(w.first_of("layer1.1.conv1.weight"), -1);
  // All but layer1.0's two convolutions and two batch norms of four tensors, and fc's two.
  EXPECT_EQ(taken.tensors, w.layout.parameters.size() + 2 * w.layout.statistics.size() - 12);
  EXPECT_TRUE(std::ranges::count(taken.anew, "layer1.0.conv1.weight") == 1);
  EXPECT_TRUE(std::ranges::count(taken.anew, "layer1.0.bn1.running_mean") == 1);
}

TEST(InitialWeights, HalvesBecomeFloats) {
  Weights w(10);
  File file = file_of(w.graph);
  const Float16 half[10] = {to_float16(1.5f)};
  const Bfloat16 brain[16] = {to_bfloat16(-2.25f)};
  file.at("fc.bias").type = StoredType::kF16;
  file.at("fc.bias").bytes = std::as_bytes(std::span(half));
  file.at("bn1.weight").type = StoredType::kBf16;
  file.at("bn1.weight").bytes = std::as_bytes(std::span(brain));
  w.take(file);
  EXPECT_EQ(w.first_of("fc.bias"), 1.5f);
  EXPECT_EQ(w.first_of("bn1.weight"), -2.25f);
}

TEST(InitialWeights, TheDigestIsOfTensorsNotOfTheirOrder) {
  File file = file_of(network(10));
  const std::string digest = tensors_digest(file.list);
  std::ranges::reverse(file.list.tensors);
  EXPECT_EQ(tensors_digest(file.list), digest);
  const TempFolder folder;
  const std::string path = folder.path("net.safetensors");
  write_safetensors(path, file.list.tensors, {{"format", "pt"}});
  EXPECT_EQ(tensors_digest(read_weights(path)), digest);
  (*file.numbers[3])[0] += 1;
  EXPECT_NE(tensors_digest(file.list), digest);
}

}  // namespace
}  // namespace convoy::trainer
