// Which tensor of a file becomes which of a network's: names, prefixes, types, and what is said of
// all that does not fit.
#include "trainer/weights/weight_mapping.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>

#include "ops/core/error.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

// Tensors that a test changes before they are "a file".
class File {
 public:
  struct Tensor {
    std::string name;
    StoredType type = StoredType::kF32;
    std::vector<int64_t> shape;
    std::string bytes;
  };

  // All that the network has, element i of tensor t being t + i / 1000; no num_batches_tracked.
  explicit File(const ops::Graph& graph) {
    for (const MappedTensor& t : map_weights({}, graph).tensors) {
      size_t elements = 1;
      for (const int64_t d : t.shape) elements *= static_cast<size_t>(d);
      std::vector<float> values(elements);
      for (size_t i = 0; i < elements; ++i)
        values[i] = static_cast<float>(tensors.size()) + static_cast<float>(i) / 1000;
      tensors.push_back({t.name,
                         StoredType::kF32,
                         t.shape,
                         {reinterpret_cast<const char*>(values.data()), 4 * elements}});
    }
  }

  Tensor& at(std::string_view name) { return *std::ranges::find(tensors, name, &Tensor::name); }
  void erase(std::string_view name) {
    std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
  }
  void set(std::string_view name, size_t element, float value) {
    std::memcpy(at(name).bytes.data() + 4 * element, &value, 4);
  }
  void add_tracked(const std::string& name, int64_t count) {
    tensors.push_back(
        {name, StoredType::kI64, {}, {reinterpret_cast<const char*>(&count), sizeof count}});
  }
  // Borrows.
  TensorList list() const {
    TensorList out;
    for (const Tensor& t : tensors)
      out.tensors.push_back({t.name, t.type, t.shape, std::as_bytes(std::span(t.bytes))});
    return out;
  }

  std::vector<Tensor> tensors;
};

ops::Graph resnet20(int64_t classes = 10) {
  return make_model("cifar_resnet20", {.classes = classes});
}

// The problems as one text.
std::string problems(const File& file, const ops::Graph& graph) {
  const TensorList list = file.list();
  return fmt::format("{}", fmt::join(problems_of(map_weights(list, graph)), "\n"));
}

// Values by name after the import.
std::map<std::string, std::vector<float>> imported(const File& file, const ops::Graph& graph) {
  const TensorList list = file.list();
  const ops::ParameterLayout layout = ops::layout_of(graph);
  const WeightMapping mapping = map_weights(list, graph);
  EXPECT_TRUE(mapping.misfits.empty()) << problems_of(mapping)[0];
  const ImportedWeights weights = take_weights(mapping, layout);
  std::map<std::string, std::vector<float>> out;
  const auto copy = [](const std::vector<float>& from, size_t offset, size_t count) {
    return std::vector<float>(from.begin() + static_cast<int64_t>(offset),
                              from.begin() + static_cast<int64_t>(offset + count));
  };
  for (const auto& p : layout.parameters)
    out[p.name] = copy(weights.parameters, p.offset, p.floats());
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    out[s.name + ".running_mean"] = copy(weights.running, s.offset, channels);
    out[s.name + ".running_var"] = copy(weights.running, s.offset + channels, channels);
  }
  return out;
}

// As `tensors` of the file said before it was changed.
void expect_values(const std::map<std::string, std::vector<float>>& got, const File& original) {
  ASSERT_EQ(got.size(), original.tensors.size());
  for (const File::Tensor& t : original.tensors) {
    ASSERT_TRUE(got.contains(t.name)) << t.name;
    const std::vector<float>& values = got.at(t.name);
    ASSERT_EQ(4 * values.size(), t.bytes.size()) << t.name;
    EXPECT_EQ(std::memcmp(values.data(), t.bytes.data(), t.bytes.size()), 0) << t.name;
  }
}

TEST(WeightMapping, EveryTensorFindsItsPlaceInAnyOrder) {
  const ops::Graph graph = resnet20();
  const File original(graph);
  ASSERT_GT(original.tensors.size(), 90u);
  EXPECT_EQ(original.tensors[0].name, "conv1.weight");
  EXPECT_EQ(original.tensors[3].name, "bn1.running_mean");  // behind bn1.weight and bn1.bias
  File file = original;
  std::ranges::reverse(file.tensors);
  expect_values(imported(file, graph), original);
}

TEST(WeightMapping, APrefixIsCutOff) {
  const ops::Graph graph = resnet20();
  const File original(graph);
  for (const std::string prefix : {"module.", "model.", "_orig_mod.module."}) {
    File file = original;
    for (File::Tensor& t : file.tensors) t.name = prefix + t.name;
    file.add_tracked(prefix + "bn1.num_batches_tracked", 5);
    const TensorList list = file.list();
    EXPECT_EQ(map_weights(list, graph).prefix, prefix);
    EXPECT_EQ(map_weights(list, graph).batches_tracked, 5);
    expect_values(imported(file, graph), original);
  }
  // "layer1.0." stands in front of "conv1.weight", too, which is a name of the network's.
  EXPECT_EQ(map_weights(original.list(), graph).prefix, "");
}

// A few names that happen to be the network's do not make a prefix; nor do names that no network
// has, which must not cost time either.
TEST(WeightMapping, APrefixNeedsMoreThanHalfOfTheNetworkAndNamesOfUsualLength) {
  const ops::Graph graph = resnet20();
  const File original(graph);
  const auto prefix_of = [&](const std::string& prefix, size_t tensors) {
    File file = original;
    file.tensors.resize(tensors);
    for (File::Tensor& t : file.tensors) t.name = prefix + t.name;
    const TensorList list = file.list();
    return map_weights(list, graph).prefix;
  };
  const size_t all = original.tensors.size();
  EXPECT_EQ(prefix_of("x.", 5), "");
  EXPECT_EQ(prefix_of("x.", all / 2), "");
  EXPECT_EQ(prefix_of("x.", all / 2 + 1), "x.");
  std::string deep, deeper;
  for (int i = 0; i < 13; ++i) deep += "a.";  // and three of "layer1.0.conv1.weight"
  for (int i = 0; i < 17; ++i) deeper += "a.";
  EXPECT_EQ(prefix_of(deep, all), deep);
  EXPECT_EQ(prefix_of(deeper, all), "");
  EXPECT_EQ(prefix_of(std::string(200, 'x') + ".", all), "");

  File file = original;
  file.tensors.push_back({std::string(3'000'000, '.'), StoredType::kF32, {0}, ""});
  for (int i = 0; i < 30'000; ++i)
    file.tensors.push_back({std::string(200, '.') + std::to_string(i), StoredType::kF32, {0}, ""});
  const TensorList list = file.list();
  const WeightMapping mapping = map_weights(list, graph);
  EXPECT_EQ(mapping.prefix, "");
  EXPECT_EQ(problems_of(mapping).size(), 30'001u);
}

// Names of a network of one's own come from outside as the file's do.
TEST(WeightMapping, NamesOfTheNetworkArePrintable) {
  ops::Graph graph;
  graph.image = {.n = 1, .c = 1, .h = 2, .w = 2};
  graph.add("fc\033[31m", ops::Linear{.out_features = 2}, {ops::kImage});
  const std::string missing = problems(File(resnet20()), graph);
  EXPECT_NE(missing.find("\"fc\\x1b[31m.weight\" [2, 4] is missing"), std::string::npos) << missing;
  EXPECT_EQ(missing.find('\033'), std::string::npos);
  File file(graph);
  file.set("fc\033[31m.bias", 0, std::numeric_limits<float>::quiet_NaN());
  const TensorList list = file.list();
  const auto warnings = take_weights(map_weights(list, graph), ops::layout_of(graph)).warnings;
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0], "\"fc\\x1b[31m.bias\": 1 of 2 values are infinite or not a number");
}

TEST(WeightMapping, BatchesTrackedMayBeThereOrNot) {
  const ops::Graph graph = resnet20();
  File file(graph);
  EXPECT_EQ(problems(file, graph), "");
  file.add_tracked("bn1.num_batches_tracked", 7);
  file.add_tracked("layer1.0.bn1.num_batches_tracked", 70);
  EXPECT_EQ(problems(file, graph), "");
  EXPECT_EQ(map_weights(file.list(), graph).batches_tracked, 70);
  // Of a batch norm that the network does not have it is a tensor too much.
  file.add_tracked("layer9.bn1.num_batches_tracked", 1);
  EXPECT_NE(problems(file, graph).find("\"layer9.bn1.num_batches_tracked\" [] has no place"),
            std::string::npos);
}

TEST(WeightMapping, SixteenBitsBecomeFloatsExactly) {
  const ops::Graph graph = resnet20(3);
  File file(graph);
  const auto halves = [&](const char* name, StoredType type, const std::vector<uint16_t>& bits) {
    file.at(name).type = type;
    file.at(name).bytes.assign(reinterpret_cast<const char*>(bits.data()), 2 * bits.size());
  };
  halves("fc.bias", StoredType::kF16, {0x3c01, 0xc000, 0x0001});  // the smallest denormal
  std::vector<uint16_t> ones(16, 0x3f80);
  ones[1] = 0xc049;
  halves("bn1.weight", StoredType::kBf16, ones);
  const auto values = imported(file, graph);
  EXPECT_EQ(values.at("fc.bias"), (std::vector<float>{1.0009765625f, -2.0f, 0x1p-24f}));
  EXPECT_EQ(values.at("bn1.weight")[0], 1.0f);
  EXPECT_EQ(values.at("bn1.weight")[1], -3.140625f);
}

TEST(WeightMapping, AllThatDoesNotFitIsSaidAtOnce) {
  const ops::Graph graph = resnet20();
  File file(graph);
  file.at("layer1.0.conv1.weight").name = "layer1.0.convolution1.weight";
  file.erase("bn1.running_var");
  file.at("fc.weight").shape = {64, 10};
  file.at("fc.bias").type = StoredType::kI32;
  file.add_tracked("step", 3);
  const std::string text = problems(file, graph);
  for (const char* words :
       {"\"layer1.0.conv1.weight\" [16, 16, 3, 3] is missing; the nearest there is "
        "\"layer1.0.convolution1.weight\" [16, 16, 3, 3]",
        "\"layer1.0.convolution1.weight\" [16, 16, 3, 3] has no place in the network; the nearest "
        "there is \"layer1.0.conv1.weight\" [16, 16, 3, 3]",
        "\"bn1.running_var\" [16] is missing", "\"fc.weight\" is [64, 10] in the file, [10, 64]",
        "\"fc.bias\" is of type I32; weights are F32, BF16 or F16",
        "\"step\" [] has no place in the network"})
    EXPECT_NE(text.find(words), std::string::npos) << words << "\nin\n" << text;
  EXPECT_EQ(std::ranges::count(text, '\n'), 5) << text;
}

TEST(WeightMapping, TheClassesAreTheFiles) {
  const File file(resnet20(7));
  EXPECT_EQ(classes_in(file.list(), resnet20()), 7);
  EXPECT_EQ(classes_in({}, resnet20()), 0);
  EXPECT_EQ(problems(file, resnet20(7)), "");
  EXPECT_NE(problems(file, resnet20()).find("\"fc.weight\" is [7, 64] in the file, [10, 64]"),
            std::string::npos);
}

TEST(WeightMapping, ValuesThatNoNetworkCanUseAreNamed) {
  const ops::Graph graph = resnet20();
  File file(graph);
  const auto warnings = [&] {
    const TensorList list = file.list();
    return take_weights(map_weights(list, graph), ops::layout_of(graph)).warnings;
  };
  EXPECT_TRUE(warnings().empty());
  file.set("layer1.0.conv1.weight", 5, std::numeric_limits<float>::quiet_NaN());
  file.set("layer1.0.conv1.weight", 9, std::numeric_limits<float>::infinity());
  file.set("bn1.running_var", 1, -0.5f);
  const std::string text = fmt::format("{}", fmt::join(warnings(), "\n"));
  EXPECT_NE(text.find("\"layer1.0.conv1.weight\": 2 of 2304 values are infinite or not a number"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\"bn1.running_var\": a variance is below 0"), std::string::npos) << text;
}

// torchvision's pretrained googlenet comes without its auxiliary heads.
TEST(WeightMapping, AuxiliaryHeadsMayBeMissingWhole) {
  const ops::Graph graph = make_model("googlenet", {});
  const File whole(graph);
  EXPECT_TRUE(map_weights(whole.list(), graph).absent_heads.empty());
  File file = whole;
  std::erase_if(file.tensors, [](const auto& t) { return t.name.starts_with("aux"); });
  ASSERT_LT(file.tensors.size(), whole.tensors.size());
  const TensorList list = file.list();
  const WeightMapping mapping = map_weights(list, graph);
  EXPECT_TRUE(problems_of(mapping).empty());
  EXPECT_EQ(mapping.absent_heads, (std::vector<std::string>{"aux1", "aux2"}));
  const WeightMapping strict = map_weights(list, graph, {.absent_heads = false});
  EXPECT_EQ(strict.misfits.size(), whole.tensors.size() - file.tensors.size());
  EXPECT_TRUE(strict.absent_heads.empty());
  // Half a head is a mistake.
  file = whole;
  file.erase("aux1.fc1.bias");
  EXPECT_NE(problems(file, graph).find("\"aux1.fc1.bias\" [1024] is missing"), std::string::npos);
}

TEST(WeightMapping, OldNamesOfDenseNetAreUnderstood) {
  const ops::Graph graph = make_model("densenet121", {});
  const File original(graph);
  File file = original;
  int renamed = 0;
  for (File::Tensor& t : file.tensors)
    for (const std::string part : {"norm1.", "norm2.", "conv1.", "conv2."})
      if (const size_t at = t.name.find(part);
          at != std::string::npos && t.name.find("denselayer") != std::string::npos) {
        t.name.insert(at + 4, ".");
        ++renamed;
      }
  EXPECT_EQ(renamed, 58 * (4 + 4 + 1 + 1));
  EXPECT_EQ(map_weights(file.list(), graph, {.foreign_names = false}).misfits.size(),
            2 * static_cast<size_t>(renamed));  // missing here, too much there
  expect_values(imported(file, graph), original);
}

}  // namespace
}  // namespace convoy::trainer
