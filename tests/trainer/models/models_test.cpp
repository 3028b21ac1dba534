// Models against published counts, and networks as text.
#include "trainer/models/models.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/digest.h"
#include "ops/core/error.h"
#include "ops/fusion.h"
#include "ops/network.h"
#include "trainer/job/graph_text.h"

namespace convoy::trainer {
namespace {

// Published counts. `parameters_unit`, `macs_unit`: of the last digit given; 1 is an exact number.
// MACs 0: none published. Those of torchvision's models are in
// tests/golden/torchvision_models.json.
struct Published {
  const char* model;
  double parameters, parameters_unit, macs, macs_unit;
  const char* source;
  const char* differs = nullptr;  // why ours is another number
};

constexpr double kM = 1e6, kG = 1e9;
// By formula: the parameters of a plain net are those of a residual one of shortcuts A.
constexpr const char* kTable6 = "He et al. 2015, table 6, and by formula";
constexpr const char* kLessProjections = "resnet18 and 34 less their projections, by formula";
constexpr const char* kWrn5 = "Zagoruyko and Komodakis 2016, table 5";
constexpr const char* kHighway = "Srivastava et al. 2015, section 3.1, by formula";
constexpr Published kPublished[] = {
    {"alexnet_two_tower", 60965224, 1, 724 * kM, kM,
     "Krizhevsky et al. 2012, figure 2, by formula; MACs: Sze et al. 2017, table 2"},
    {"nin", 7.6 * kM, 0.1 * kM, 0, 0, "the authors' file of 29 MiB"},
    {"cifar_nin", 1.0 * kM, 0.1 * kM, 0, 0, "Springenberg et al. 2015, table 3"},
    {"inception_v1", 6998552, 1, 1.502 * kG, 0.001 * kG,
     "by Caffe's edition; MACs: Szegedy et al. 2014, table 1",
     "table 1 says 34 M of the first convolution, which has 118 M; the other rows agree as "
     "rounded"},
    {"highway_fc10", 784 * 50 + 50 + 9 * 5100 + 510, 1, 0, 0, kHighway},
    {"highway_fc20", 784 * 50 + 50 + 19 * 5100 + 510, 1, 0, 0, kHighway},
    {"highway_fc50", 784 * 50 + 50 + 49 * 5100 + 510, 1, 0, 0, kHighway},
    {"highway_fc100", 784 * 50 + 50 + 99 * 5100 + 510, 1, 0, 0, kHighway},
    {"cifar_highway19", 2.3 * kM, 0.1 * kM, 0, 0, "Srivastava et al. 2015, table 2"},
    // Every n adds six 3x3 convolutions of 2,359,296 MACs, 14,155,776 in all.
    {"cifar_resnet20", 269722, 1, 40551040, 1, kTable6},
    {"cifar_resnet32", 464154, 1, 68862592, 1, kTable6},
    {"cifar_resnet44", 658586, 1, 97174144, 1, kTable6},
    {"cifar_resnet56", 853018, 1, 125485696, 1, kTable6},
    {"cifar_resnet110", 1727962, 1, 252887680, 1, kTable6},
    {"cifar_resnet1202", 19421274, 1, 2829238912, 1, kTable6},
    {"cifar_plain20", 269722, 1, 40551040, 1, kTable6},
    {"cifar_plain32", 464154, 1, 68862592, 1, kTable6},
    {"cifar_plain44", 658586, 1, 97174144, 1, kTable6},
    {"cifar_plain56", 853018, 1, 125485696, 1, kTable6},
    {"cifar_plain110", 1727962, 1, 252887680, 1, kTable6},
    {"plain18", 11689512 - 173824, 1, 1814073344 - 3 * 6422528, 1, kLessProjections},
    {"plain34", 21797672 - 173824, 1, 3663761408 - 3 * 6422528, 1, kLessProjections},
    {"cifar_resnet18", 11173962, 1, 0.56 * kG, 0.01 * kG,
     "the count that is usual for this edition"},
    {"preact_resnet200", 64.7 * kM, 0.1 * kM, 0, 0, "Zagoruyko and Komodakis 2016, table 8"},
    {"cifar_preact_resnet110", 1.7 * kM, 0.1 * kM, 0, 0, kWrn5},
    {"cifar_preact_resnet164", 1.7 * kM, 0.1 * kM, 0, 0, kWrn5},
    {"cifar_preact_resnet1001", 10.2 * kM, 0.1 * kM, 0, 0, kWrn5,
     "the authors' own code makes 10.33 M"},
    {"cifar_wrn_16_8", 11.0 * kM, 0.1 * kM, 0, 0, kWrn5},
    {"cifar_wrn_28_10", 36.5 * kM, 0.1 * kM, 0, 0, kWrn5},
    {"cifar_wrn_40_4", 8.9 * kM, 0.1 * kM, 0, 0, kWrn5},
    {"cifar_resnext29_8x64d", 34.4 * kM, 0.1 * kM, 0, 0, "Xie et al. 2017, table 7"},
    {"cifar_densenet40_k12", 1.0 * kM, 0.1 * kM, 0, 0, "Huang et al. 2017, table 2"},
    {"cifar_densenet100_k12", 7.0 * kM, 0.1 * kM, 0, 0, "Huang et al. 2017, table 2"},
    {"cifar_densenet_bc100_k12", 0.8 * kM, 0.1 * kM, 0, 0, "Huang et al. 2017, table 2"},
};
// No paper has a count of them.
constexpr const char* kUnpublished[] = {"inception_v1_naive", "preact_resnet50", "preact_resnet101",
                                        "preact_resnet152"};

nlohmann::ordered_json torchvision_models() {
  std::ifstream file(GOLDEN_DIR "/torchvision_models.json");
  return nlohmann::ordered_json::parse(file).at("models");
}

std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto i = static_cast<ptrdiff_t>(text.size()) - 3; i > 0; i -= 3)
    text.insert(static_cast<size_t>(i), 1, ',');
  return text;
}

// A row of the table that the test prints: ours beside what is published.
std::string row(const std::string& model, const ModelCounts& ours, const std::string& published,
                const std::string& equal) {
  return fmt::format("{:<24} {:>12} {:>15}  {:<5}  {}\n", model, grouped(ours.parameters),
                     grouped(ours.macs), equal, published);
}

TEST(Models, HaveThePublishedParametersAndMacs) {
  std::string table = fmt::format("{:<24} {:>12} {:>15}  {:<5}  {}\n", "model", "parameters",
                                  "MACs", "equal", "published");
  std::set<std::string> seen;
  const nlohmann::ordered_json models = torchvision_models();
  for (const auto& [model, theirs] : models.items()) {
    seen.insert(model);
    const ModelCounts ours = count(make_model(model, {}));
    EXPECT_EQ(ours.parameters, theirs.at("parameters")) << model;
    EXPECT_EQ(ours.macs, theirs.at("macs")) << model;
    table += row(model, ours, "torchvision's own", "yes");
  }
  const auto within = [](int64_t ours, double published, double unit) {
    return std::abs(static_cast<double>(ours) - published) < (unit > 1 ? unit / 2 : 0.5);
  };
  for (const Published& p : kPublished) {
    seen.insert(p.model);
    const ModelCounts ours = count(make_model(p.model, {}));
    const bool equal = within(ours.parameters, p.parameters, p.parameters_unit) &&
                       (p.macs == 0 || within(ours.macs, p.macs, p.macs_unit));
    EXPECT_EQ(equal, p.differs == nullptr)
        << p.model << ": " << ours.parameters << " parameters, " << ours.macs << " MACs";
    std::string published = fmt::format("{:g} M", p.parameters / kM);
    if (p.parameters_unit == 1) published = grouped(static_cast<int64_t>(p.parameters));
    if (p.macs > 0) published += fmt::format(", {:g} G", p.macs / kG);
    published += fmt::format(": {}", p.source);
    if (p.differs) published += fmt::format(" ({})", p.differs);
    table += row(p.model, ours, published, equal ? "yes" : "no");
  }
  for (const char* model : kUnpublished) {
    seen.insert(model);
    table += row(model, count(make_model(model, {})), "nowhere", "-");
  }
  EXPECT_EQ(seen.size(), model_table().size());
  for (const ModelEntry& m : model_table()) EXPECT_TRUE(seen.contains(m.name)) << m.name;
  std::cout << table;
}

// Lines as tests/golden/make_models.py makes them, by the first two words of a name.
std::vector<std::pair<std::string, std::string>> parts_of(const ops::Graph& graph) {
  std::vector<std::pair<std::string, std::string>> parts;
  const auto add = [&](const std::string& name, const std::string& line) {
    const size_t second = name.find('.', name.find('.') + 1);
    const std::string part = name.find('.') == std::string::npos ? name : name.substr(0, second);
    const auto found = std::ranges::find_if(parts, [&](const auto& p) { return p.first == part; });
    if (found != parts.end())
      found->second += line;
    else
      parts.emplace_back(part, line);
  };
  ops::ParameterLayout layout = ops::layout_of(graph);
  std::ranges::sort(layout.parameters, {}, &ops::ParameterLayout::Parameter::order);
  for (const auto& p : layout.parameters)
    add(p.name, fmt::format("{} [{}]\n", p.name, fmt::join(p.spec.dims, ", ")));
  for (const auto& s : layout.statistics)
    add(s.name, fmt::format("{} running [{}]\n", s.name, s.channels));
  return parts;
}

TEST(Models, ParametersHaveTorchvisionsNamesShapesAndOrder) {
  const nlohmann::ordered_json models = torchvision_models();
  for (const auto& [model, theirs] : models.items()) {
    std::vector<std::pair<std::string, std::string>> expected;
    for (const auto& [part, of_part] : theirs.at("parts").items())
      expected.emplace_back(part, of_part.at("sha256").get<std::string>());
    const auto ours = parts_of(make_model(model, {}));
    ASSERT_EQ(ours.size(), expected.size()) << model;
    for (size_t i = 0; i < ours.size(); ++i) {
      EXPECT_EQ(ours[i].first, expected[i].first) << model;
      EXPECT_EQ(sha256_hex(ours[i].second).substr(0, 16), expected[i].second)
          << model << ", " << expected[i].first << ", ours:\n"
          << ours[i].second;
    }
  }
}

TEST(Models, EveryRowMakesANetworkOfItsShape) {
  for (const ModelEntry& m : model_table()) {
    const ops::Graph graph = make_model(m.name, {});
    EXPECT_EQ(graph.name, m.name);
    EXPECT_EQ(ops::infer_shapes(graph, 2).back(), (Shape{.n = 2, .c = m.classes})) << m.name;
    ModelOptions options;
    options.classes = 7;
    EXPECT_EQ(ops::infer_shapes(make_model(m.name, options), 2).back(), (Shape{.n = 2, .c = 7}))
        << m.name;
  }
}

TEST(Models, EveryMemoryIsPlanned) {
  constexpr int64_t kSliceBytes = 1 << 20;
  for (const ModelEntry& m : model_table()) {
    const ops::Graph graph = make_model(m.name, {});
    for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
      const auto training = ops::planned_arena(graph, 2, type, true, kSliceBytes);
      const auto inference = ops::planned_arena(graph, 2, type, false, kSliceBytes);
      EXPECT_GT(inference.bytes, 0u) << m.name;
      EXPECT_LT(inference.bytes, training.bytes) << m.name;
      EXPECT_LT(training.bytes, training.naive_bytes) << m.name;
    }
  }
}

// Follows the calls of a step, slice by slice: what a call reads must have been written, and
// nothing written over it since. What is aside reads again, as late as it may.
class MemoryWalk {
 public:
  // gpu: as one runs it, with work aside and merged batch norms.
  MemoryWalk(const ops::Graph& graph, int64_t batch, bool training, int64_t slice_bytes, bool gpu)
      : graph_(!training ? ops::fold_batch_norms(ops::fuse(graph)).graph
               : gpu     ? ops::merge_batch_norms(ops::fuse(graph)).graph
                         : ops::fuse(graph)),
        passes_(ops::plan_passes(graph_, batch, DType::kFloat32, training, slice_bytes)),
        memory_(ops::network_memory(graph_, passes_, batch, DType::kFloat32, training, gpu)),
        plan_(ops::plan_memory(memory_.buffers)),
        batch_(batch),
        valid_(memory_.buffers.size(), false) {
    write(memory_.value[0], true);
    for (const ops::Segment& segment : passes_.forward) walk(segment);
    read(memory_.value.back());
    if (!training) return;
    write(memory_.dlogits, true);
    for (const int dlogits : memory_.auxiliary_dlogits) write(dlogits, true);
    for (const ops::Segment& segment : passes_.backward) walk(segment);
    join();
  }
  int works_aside() const { return works_aside_; }
  int overwritten() const { return overwritten_; }
  int64_t most_slices() const { return most_slices_; }

 private:
  void walk(const ops::Segment& segment) {
    const int64_t slices = batch_ / passes_.slice[segment.calls.front().node];
    most_slices_ = std::max(most_slices_, slices);
    for (int64_t s = 0; s < slices; ++s)
      for (const ops::Call& call : segment.calls) walk(call, s == 0);
  }
  void walk(const ops::Call& call, bool first) {
    using Kind = ops::Call::Kind;
    const ops::Node& node = graph_.nodes[call.node];
    const ops::BackwardNeeds needs = ops::backward_needs(node.op);
    const bool forward = call.kind == Kind::kForward || call.kind == Kind::kGatherForward;
    for (size_t k = 0; k < node.inputs.size(); ++k)
      if (forward ? call.kind == Kind::kForward || k < ops::gathered_inputs(node).size()
                  : needs.reads_input(k))
        read(memory_.value[static_cast<size_t>(node.inputs[k] + 1)]);
    if (call.kind == Kind::kForward) {
      write(memory_.value[call.node + 1], first);
      if (memory_.saved[call.node] >= 0) write(memory_.saved[call.node], first);
    }
    if (forward) return;
    if (needs.output) read(memory_.value[call.node + 1]);
    if (memory_.saved[call.node] >= 0) read(memory_.saved[call.node]);
    for (const int dy : memory_.dy[call.node + 1]) read(dy);
    if (call.kind != Kind::kBackward) return;
    if (memory_.aside[call.node]) {
      join();
      ++works_aside_;
      aside_ = memory_.dy[call.node + 1];
      for (const int input : node.inputs)
        aside_.push_back(memory_.value[static_cast<size_t>(input + 1)]);
    }
    for (const int dx : memory_.dx[call.node])
      if (dx >= 0) write(dx, first);
  }

  void join() {
    for (const int buffer : aside_) read(buffer);
    aside_.clear();
  }
  void read(int buffer) { overwritten_ += valid_[static_cast<size_t>(buffer)] ? 0 : 1; }
  void write(int buffer, bool first_slice) {
    const auto b = static_cast<size_t>(buffer);
    const auto end = [&](size_t i) { return plan_.offsets[i] + memory_.buffers[i].bytes; };
    for (size_t c = 0; c < valid_.size(); ++c)
      if (c != b && plan_.offsets[c] < end(b) && plan_.offsets[b] < end(c)) valid_[c] = false;
    for (const int read : aside_) overwritten_ += read == buffer ? 1 : 0;
    // Who writes over a part of a batch spoils it, though later slices are written yet.
    if (first_slice || memory_.one_slice[b]) valid_[b] = true;
  }

  ops::Graph graph_;
  ops::PassPlan passes_;
  ops::NetworkMemory memory_;
  ops::MemoryPlan plan_;
  int64_t batch_, most_slices_ = 0;
  std::vector<bool> valid_;  // per buffer
  std::vector<int> aside_;   // what is read aside
  int overwritten_ = 0, works_aside_ = 0;
};

TEST(Models, NoMemoryIsWrittenOverBeforeItIsRead) {
  for (const char* model : {"alexnet_two_tower", "cifar_nin", "googlenet", "inception_v1_naive",
                            "cifar_highway19", "resnet50", "cifar_preact_resnet110",
                            "resnext50_32x4d", "densenet121", "cifar_densenet40_k12"})
    for (const auto& [training, gpu] : {std::pair{false, false}, {true, false}, {true, true}})
      for (const int64_t slice_bytes : {1, 1 << 20, 1 << 30}) {
        const MemoryWalk walk(make_model(model, {}), 4, training, slice_bytes, gpu);
        EXPECT_EQ(walk.overwritten(), 0) << model << ", training " << training << ", GPU " << gpu;
        EXPECT_TRUE(gpu || walk.works_aside() == 0) << model;
        EXPECT_TRUE(!gpu || slice_bytes < 1 << 30 || walk.works_aside() > 4) << model;
        if (slice_bytes == 1) {
          EXPECT_GT(walk.most_slices(), 1) << model;
        }
      }
}

// Where calls leave their memory to later ones, depth costs inference none.
TEST(Models, InferenceOfADeepNetworkTakesNoMoreMemory) {
  const auto bytes = [](const char* model) {
    return ops::planned_arena(make_model(model, {}), 2, DType::kFloat32, false, 1 << 20).bytes;
  };
  EXPECT_EQ(bytes("cifar_resnet1202"), bytes("cifar_resnet20"));
  EXPECT_EQ(bytes("cifar_preact_resnet1001"), bytes("cifar_preact_resnet164"));
  EXPECT_EQ(bytes("resnet152"), bytes("resnet50"));
}

// What auxiliary classifiers ask for, inference does not.
TEST(Models, InferenceTakesImagesThatAreTooSmallForAuxiliaryClassifiers) {
  for (const char* name : {"googlenet", "inception_v1", "inception_v1_naive"}) {
    ModelOptions options;
    options.image = {.n = 1, .c = 0, .h = 40, .w = 40};
    options.inference = true;
    const ops::Graph graph = make_model(name, options);
    EXPECT_EQ(ops::infer_shapes(graph, 1).back(), (Shape{1, 1000, 1, 1})) << name;
    EXPECT_TRUE(graph.auxiliary.empty());
  }
}

// The smallest image works, one pixel less is an error that says both sizes; both sides count.
TEST(Models, AnImageThatIsTooSmallIsNamed) {
  const nlohmann::ordered_json torchvision = torchvision_models();
  for (const ModelEntry& m : model_table()) {
    const int64_t least = smallest_image(m);
    if (torchvision.contains(m.name)) {
      EXPECT_EQ(least, torchvision[m.name].at("min_size")) << m.name;
    }
    const auto with = [&](int64_t h, int64_t w) {
      ModelOptions options;
      options.image = {.n = 1, .c = 0, .h = h, .w = w};
      return make_model(m.name, options);
    };
    EXPECT_EQ(ops::infer_shapes(with(least, least), 1).back().c, m.classes) << m.name;
    EXPECT_EQ(ops::infer_shapes(with(least + 3, 2 * least + 1), 1).back().c, m.classes) << m.name;
    if (least == 1) continue;
    for (const auto& [h, w] : {std::pair(least - 1, least - 1), {least - 1, 300}, {300, least - 1}})
      try {
        with(h, w);
        ADD_FAILURE() << m.name << ": no error";
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ExitCode::kBadJob);
        EXPECT_EQ(e.what(),
                  fmt::format("model \"{}\": an image of {} x {} pixels is too small; the "
                              "smallest that works is {} x {}",
                              m.name, h, w, least, least));
      }
  }
}

// An error that no larger image would help is said as it is.
TEST(Models, OtherErrorsAreNotBlamedOnTheImage) {
  ModelOptions options;
  options.image = {.n = 1, .c = 3, .h = 8, .w = 8};
  options.classes = -1;
  try {
    make_model("vgg11", options);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find("too small"), std::string::npos) << e.what();
  }
}

TEST(Models, DropoutAndEpsilonAreTheModelsOwnUnlessSet) {
  const auto rates = [](const char* model, std::optional<double> dropout) {
    ModelOptions options;
    options.dropout = dropout;
    std::vector<double> out;
    for (const ops::Node& node : make_model(model, options).nodes)
      if (const auto* d = std::get_if<ops::Dropout>(&node.op)) out.push_back(d->rate);
    return out;
  };
  EXPECT_EQ(rates("alexnet", {}), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(rates("alexnet", 0.3), (std::vector<double>{0.3, 0.3}));
  EXPECT_EQ(rates("alexnet", 0.0), std::vector<double>{});
  EXPECT_EQ(rates("googlenet", {}), (std::vector<double>{0.7, 0.7, 0.2}));
  EXPECT_EQ(rates("googlenet", 0.0), (std::vector<double>{0.7, 0.7}));
  EXPECT_EQ(rates("resnet18", {}), std::vector<double>{});
  EXPECT_EQ(rates("resnet18", 0.1), std::vector<double>{0.1});
  EXPECT_EQ(rates("cifar_wrn_16_8", 0.3).size(), 6u);
  EXPECT_EQ(rates("cifar_densenet40_k12", 0.2).size(), 36u);

  const auto epsilon = [](const char* model, std::optional<double> value) {
    ModelOptions options;
    options.batch_norm_epsilon = value;
    for (const ops::Node& node : make_model(model, options).nodes)
      if (const auto* bn = std::get_if<ops::BatchNorm>(&node.op)) return bn->epsilon;
    return 0.0;
  };
  EXPECT_EQ(epsilon("googlenet", {}), 1e-3);
  EXPECT_EQ(epsilon("googlenet", 1e-5), 1e-5);
  EXPECT_EQ(epsilon("resnet18", {}), 1e-5);
}

// Starting values: torchvision's, or what the paper says.
TEST(Models, ParametersStartAsTheirSourceSays) {
  using ops::Init;
  struct Start {
    const char *model, *parameter;
    Init init;
    double value = 0;
  };
  const auto by_fan_in = [](double gain, int fan_in) { return std::sqrt(gain / fan_in); };
  const Start starts[] = {
      {"resnet50", "layer1.0.conv2.weight", Init::kHeNormal},
      {"vgg16", "features.2.weight", Init::kHeNormal},
      {"vgg16", "features.2.bias", Init::kConstant, 0},
      {"vgg16", "classifier.0.weight", Init::kNormal, 0.01},
      {"vgg16_bn", "classifier.6.bias", Init::kConstant, 0},
      {"alexnet", "features.3.weight", Init::kNormal, by_fan_in(1.0 / 3, 64 * 25)},
      {"alexnet", "features.3.bias", Init::kUniform},
      {"alexnet", "classifier.1.weight", Init::kUniform},
      {"alexnet_two_tower", "conv1.bias", Init::kConstant, 0},
      {"alexnet_two_tower", "conv2.bias", Init::kConstant, 1},
      {"alexnet_two_tower", "conv4.weight", Init::kNormal, 0.01},
      {"alexnet_two_tower", "fc7.bias", Init::kConstant, 1},
      {"alexnet_two_tower", "fc8.bias", Init::kConstant, 0},
      {"googlenet", "inception3a.branch1.conv.weight", Init::kNormal, 0.01},
      {"googlenet", "aux1.fc1.weight", Init::kNormal, 0.01},
      {"googlenet", "fc.bias", Init::kUniform},
      {"inception_v1", "inception3a.branch3.1.conv.weight", Init::kNormal, by_fan_in(1, 16 * 25)},
      {"inception_v1", "conv1.conv.bias", Init::kConstant, 0.2},
      {"densenet121", "features.conv0.weight", Init::kNormal, by_fan_in(2, 3 * 49)},
      {"densenet121", "features.denseblock2.denselayer3.conv2.weight", Init::kNormal,
       by_fan_in(2, 128 * 9)},
      {"densenet121", "classifier.bias", Init::kConstant, 0},
      {"cifar_nin", "cccp1.weight", Init::kNormal, by_fan_in(2, 192)},
      {"cifar_highway19", "layer2.gate.bias", Init::kConstant, -2},
      {"cifar_highway19", "layer2.conv.bias", Init::kConstant, 0},
      {"cifar_highway19", "layer2.gate.weight", Init::kNormal, by_fan_in(1, 32 * 9)},
      {"highway_fc10", "layer10.gate.bias", Init::kConstant, -2},
  };
  for (const Start& s : starts) {
    const ops::ParameterLayout layout = ops::layout_of(make_model(s.model, {}));
    const auto p =
        std::ranges::find(layout.parameters, s.parameter, &ops::ParameterLayout::Parameter::name);
    ASSERT_NE(p, layout.parameters.end()) << s.model << ": " << s.parameter;
    EXPECT_EQ(p->spec.init, s.init) << s.model << ": " << s.parameter;
    EXPECT_DOUBLE_EQ(p->spec.value, s.value) << s.model << ": " << s.parameter;
  }
}

// y = H(x) T(x) + x (1 - T(x)), both gates of the same numbers.
TEST(Models, HighwaysAreGatedTwice) {
  for (const char* model : {"highway_fc50", "cifar_highway19"}) {
    const ops::Graph graph = make_model(model, {});
    const auto input = [&](const ops::Node& node, size_t k) -> const ops::Node& {
      return graph.nodes[static_cast<size_t>(node.inputs[k])];
    };
    int layers = 0;
    for (const ops::Node& add : graph.nodes) {
      if (!std::holds_alternative<ops::Add>(add.op)) continue;
      ++layers;
      const ops::Node &transformed = input(add, 0), &carried = input(add, 1);
      const ops::Node &h = input(transformed, 0), &transform = input(transformed, 1);
      const ops::Node& carry = input(carried, 1);
      EXPECT_FALSE(std::get<ops::Sigmoid>(transform.op).complement) << add.name;
      EXPECT_TRUE(std::get<ops::Sigmoid>(carry.op).complement) << add.name;
      EXPECT_EQ(transform.inputs, carry.inputs) << add.name;
      EXPECT_TRUE(input(transform, 0).name.ends_with(".gate")) << add.name;
      EXPECT_EQ(input(h, 0).inputs[0], carried.inputs[0]) << add.name;  // both of x
    }
    EXPECT_EQ(layers, std::string(model) == "highway_fc50" ? 49 : 14);
  }
}

TEST(Models, OptionsOfResidualNetworksAreRefusedElsewhere) {
  ModelOptions options;
  options.shortcut = ModelOptions::Shortcut::kB;
  EXPECT_THROW(make_model("vgg16", options), Error);
  EXPECT_NO_THROW(make_model("cifar_resnext29_8x64d", options));
  options = {};
  options.zero_init_residual = true;
  EXPECT_NO_THROW(make_model("wide_resnet50_2", options));
  EXPECT_THROW(make_model("preact_resnet50", options), Error);
}

// Parameters of the three shortcuts by formula: A adds none; B two (CIFAR) 1x1 projections with
// their batch norms; C one in every block.
TEST(Models, ShortcutsAddTheirParameters) {
  const auto with = [](ModelOptions::Shortcut shortcut) {
    ModelOptions options;
    options.shortcut = shortcut;
    return count(make_model("cifar_resnet20", options)).parameters;
  };
  using Shortcut = ModelOptions::Shortcut;
  const int64_t projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64);
  EXPECT_EQ(with(Shortcut::kB) - with(Shortcut::kA), projections);
  const int64_t others = 3 * (16 * 16 + 32) + 2 * (32 * 32 + 64) + 2 * (64 * 64 + 128);
  EXPECT_EQ(with(Shortcut::kC) - with(Shortcut::kB), others);
}

TEST(Models, V1HasItsStrideOnTheFirstConvolution) {
  ModelOptions options;
  options.stride_in_first_conv = true;
  const ModelCounts v1 = count(make_model("resnet50", options));
  EXPECT_EQ(v1.parameters, 25557032);
  EXPECT_EQ(v1.macs, 3857973248);  // He et al. 2015, table 1: 3.8 x 10^9
}

TEST(Models, AnUnknownNameIsAnsweredWithTheNearest) {
  try {
    make_model("resnet51", {});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_NE(std::string(e.what()).find("\"resnet50\""), std::string::npos) << e.what();
  }
}

TEST(GraphText, EveryModelComesBackAsItWas) {
  for (const ModelEntry& m : model_table()) {
    const ops::Graph graph = make_model(m.name, {});
    const std::string text = to_text(graph);
    const ops::Graph back = parse_graph(text, "test");
    EXPECT_EQ(to_text(back), text) << m.name;
    EXPECT_LT(text.size(), size_t{1} << 20) << m.name;  // a file may have four times as much
    EXPECT_EQ(count(back).macs, count(graph).macs) << m.name;
    EXPECT_EQ(count(back).training_parameters, count(graph).training_parameters) << m.name;
  }
}

// What no model has: every op, starts, auxiliary classifiers.
TEST(GraphText, EveryFieldComesBackAsItWas) {
  ops::Graph g{.name = "all", .image = {.n = 1, .c = 3, .h = 32, .w = 32}, .nodes = {}};
  int x =
      g.add("conv",
            ops::Conv2d{
                .out_channels = 8, .padding = 1, .bias = true, .weight_std = 0.01, .bias_init = 0},
            {ops::kImage});
  x = g.add("lrn", ops::LocalResponseNorm{.size = 4, .alpha = 5e-4, .beta = 0.5, .k = 2}, {x});
  const int gate = g.add("gate", ops::Sigmoid{.complement = true}, {x});
  x = g.add("gated", ops::Multiply{}, {g.add("other", ops::Sigmoid{}, {x}), gate});
  x = g.add("grid", ops::AdaptiveAvgPool{.h = 6, .w = 5}, {x});
  const int aux = g.add("aux", ops::Linear{.out_features = 10, .bias_init = -2}, {x});
  g.add("fc", ops::Linear{.out_features = 10, .weight_std = 0.1}, {x});
  g.auxiliary = {{.node = aux, .weight = 0.7}};
  const std::string text = to_text(g);
  const ops::Graph back = parse_graph(text, "test");
  EXPECT_EQ(to_text(back), text);
  EXPECT_EQ(count(back).parameters, count(g).parameters);
  ASSERT_EQ(back.auxiliary.size(), 1u);
  EXPECT_EQ(back.auxiliary[0].node, aux);
  EXPECT_EQ(back.auxiliary[0].weight, 0.7);
  const auto& conv = std::get<ops::Conv2d>(back.nodes[0].op);
  EXPECT_EQ(conv.weight_std, 0.01);
  EXPECT_EQ(conv.bias_init, 0.0);
  const auto& lrn = std::get<ops::LocalResponseNorm>(back.nodes[1].op);
  EXPECT_EQ(lrn.size, 4);
  EXPECT_EQ(lrn.alpha, 5e-4);
  EXPECT_EQ(lrn.beta, 0.5);
  EXPECT_EQ(lrn.k, 2);
  EXPECT_TRUE(std::get<ops::Sigmoid>(back.nodes[2].op).complement);
  EXPECT_FALSE(std::get<ops::Sigmoid>(back.nodes[3].op).complement);
  const auto& grid = std::get<ops::AdaptiveAvgPool>(back.nodes[5].op);
  EXPECT_EQ(grid.h, 6);
  EXPECT_EQ(grid.w, 5);
  EXPECT_EQ(std::get<ops::Linear>(back.nodes[6].op).bias_init, -2.0);
  const auto& fc = std::get<ops::Linear>(back.nodes[7].op);
  EXPECT_EQ(fc.weight_std, 0.1);
  EXPECT_FALSE(fc.bias_init.has_value());
  // Left out: the published weight of GoogLeNet.
  EXPECT_EQ(
      parse_graph("node { name: 'a' relu {} } auxiliary { node: 'a' }", "t").auxiliary[0].weight,
      0.3);
}

TEST(GraphText, AllMistakesAreNamedAtOnce) {
  const auto error_of = [](const char* text) -> std::string {
    try {
      parse_graph(text, "net.txtpb");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadJob);
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error_of("node { name: 'a' input: 'nowhere' relu {} }\n"
                     "node { name: 'a' input: 'a' }"),
            "net.txtpb: node \"a\": input \"nowhere\" is neither \"input\" nor an earlier node\n"
            "net.txtpb: node \"a\": no op; give one, e.g. conv2d { out_channels: 16 }\n"
            "net.txtpb: node \"a\": the name is taken");
  EXPECT_EQ(error_of("node { name: 'a' input: 'input' relu {} }\n"
                     "auxiliary { node: 'b' } auxiliary { node: 'input' } auxiliary {}"),
            "net.txtpb: auxiliary classifier \"b\" is no node\n"
            "net.txtpb: auxiliary classifier \"input\" is no node\n"
            "net.txtpb: auxiliary classifier \"\" is no node");
  EXPECT_EQ(error_of("node {\n  kernel: 3 }").substr(0, 14), "net.txtpb:2:9:");
}

}  // namespace
}  // namespace convoy::trainer
