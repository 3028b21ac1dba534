// One training step of every family on every device, in fp32 and bf16: the loss is finite and every
// parameter has a gradient. In CI with an eighth of the channels and small images;
// CONVOY_FULL_MODELS=1 takes a step of every model as it is, two images, and prints seconds and
// memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/op_tester.h"
#include "trainer/engine/engine.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

constexpr int64_t kClasses = 10;

// An eighth of the channels wherever eight divide them, an eighth of the groups.
ops::Graph slim(ops::Graph graph) {
  const auto eighth = [](int64_t& channels) {
    if (channels % 8 == 0) channels /= 8;
  };
  for (ops::Node& node : graph.nodes) {
    if (auto* conv = std::get_if<ops::Conv2d>(&node.op)) {
      eighth(conv->out_channels);
      eighth(conv->groups);
    }
    if (auto* linear = std::get_if<ops::Linear>(&node.op)) eighth(linear->out_features);
    if (auto* subsample = std::get_if<ops::Subsample>(&node.op)) eighth(subsample->out_channels);
  }
  return graph;
}

struct Step {
  double loss = 0, seconds = 0;
  size_t bytes = 0;
  // Parameters whose gradient was zero everywhere: their momentum is. (A step of many a gate's
  // bias, -2 in highway_fc100, is smaller than its last bit.)
  std::vector<std::string> still;
};

// `steps` steps of one worker on noise; the seconds are the last one's.
Step train(const std::string& device, const ops::Graph& graph, DType type, int64_t batch,
           int64_t classes, int steps, double learning_rate) {
  const auto communicator = comm::make_communicator("local");
  Shape shape = graph.image;
  shape.n = batch;
  const ops::ImageInput input =
      ops::per_channel_input(shape, std::vector<double>(static_cast<size_t>(shape.c), 0.5),
                             std::vector<double>(static_cast<size_t>(shape.c), 0.25));
  Engine engine(*communicator, graph,
                {.device = device,
                 .workers = 1,
                 .batch_per_worker = batch,
                 .type = type,
                 .input = input,
                 .optimizer = {.momentum = 0.9, .weight_decay = 0}});
  std::vector<uint8_t> pixels(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < pixels.size(); ++i)
    pixels[i] = static_cast<uint8_t>(random4(1, Purpose::kSyntheticData, 0, i / 4)[i % 4] >> 24);
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < batch; ++i) labels.push_back(static_cast<int32_t>(i * 3 % classes));
  const Engine::Source source{[&](uint64_t) {
                                return Engine::Images{pixels.data(), labels.data()};
                              },
                              [](uint64_t) {}};

  Step result{.bytes = engine.memory_bytes()};
  for (int step = 0; step < steps; ++step) {
    const Clock::time_point begin = Clock::now();
    result.loss = engine.step(static_cast<uint64_t>(step), learning_rate, {}, source).loss;
    result.seconds = seconds_since(begin);
  }
  const std::span<const float> momentum = engine.state().momentum;
  for (const auto& p : engine.layout().parameters)
    if (std::ranges::all_of(momentum.subspan(p.offset, p.floats()), [](float v) { return v == 0; }))
      result.still.push_back(p.name);
  return result;
}

struct Small {
  const char* model;
  int64_t side;
  int64_t channels = 3;
};
void PrintTo(const Small& small, std::ostream* out) {
  *out << small.model;
}
// Sides that leave every network some pixels to normalise over.
constexpr Small kSmall[] = {
    {"alexnet", 95},
    {"alexnet_two_tower", 99},
    {"nin", 67},
    {"cifar_nin", 16},
    {"vgg11", 32},
    {"vgg11_bn", 64},
    {"googlenet", 64},
    {"inception_v1", 96},
    {"inception_v1_naive", 96},
    {"highway_fc10", 28, 1},
    {"cifar_highway19", 16},
    {"resnet18", 64},
    {"resnet50", 64},
    {"plain18", 64},
    {"cifar_resnet20", 16},
    {"cifar_resnet18", 16},
    {"preact_resnet50", 64},
    {"cifar_preact_resnet110", 16},
    {"cifar_preact_resnet164", 16},
    {"wide_resnet50_2", 64},
    {"cifar_wrn_16_8", 16},
    {"resnext50_32x4d", 64},
    {"cifar_resnext29_8x64d", 16},
    {"densenet121", 64},
    {"cifar_densenet40_k12", 16},
    {"cifar_densenet_bc100_k12", 16},
};

class ModelStep : public testing::TestWithParam<std::tuple<std::string, Small>> {};

TEST_P(ModelStep, IsFiniteAndHasEveryGradient) {
  const std::string& device = std::get<0>(GetParam());
  const auto [model, side, channels] = std::get<1>(GetParam());
  ModelOptions options;
  options.image = {.n = 1, .c = channels, .h = side, .w = side};
  options.classes = kClasses;
  const ops::Graph graph = slim(make_model(model, options));
  for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
    const Step step = train(device, graph, type, 8, kClasses, 1, 0.1);
    EXPECT_TRUE(std::isfinite(step.loss)) << name_of(type);
    // Random weights know nothing of the classes. What is added: auxiliary classifiers' losses.
    EXPECT_GT(step.loss, 0.5 * std::log(kClasses)) << name_of(type);
    EXPECT_LT(step.loss, 4 * std::log(kClasses)) << name_of(type);
    for (const std::string& name : step.still)
      ADD_FAILURE() << name_of(type) << ": " << name << " has no gradient";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelStep,
                         testing::Combine(testing::ValuesIn(ops::device_names()),
                                          testing::ValuesIn(kSmall)),
                         [](const auto& each) {
                           return fmt::format("{}_{}", std::get<0>(each.param),
                                              std::get<1>(each.param).model);
                         });

TEST(FullModels, TakeAStep) {
  if (!std::getenv("CONVOY_FULL_MODELS"))
    GTEST_SKIP() << "set CONVOY_FULL_MODELS=1 for the models as they are (half an hour)";
  const char* only = std::getenv("CONVOY_FULL_MODEL");    // one of them
  const std::string device = ops::device_names().back();  // a GPU where there is one
  std::cout << fmt::format("{:<24} {:<9} {:>9} {:>9} {:>8}\n", "model", "precision", "seconds",
                           "MiB", "loss");
  for (const ModelEntry& m : model_table()) {
    if (only && m.name != only) continue;
    const ops::Graph graph = make_model(m.name, {});
    for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
      const Step step = train(device, graph, type, 2, m.classes, 2, 0.01);
      std::cout << fmt::format("{:<24} {:<9} {:>9.2f} {:>9.0f} {:>8.3f}\n", m.name, name_of(type),
                               step.seconds, static_cast<double>(step.bytes) / (1 << 20), step.loss)
                << std::flush;
      EXPECT_TRUE(std::isfinite(step.loss)) << m.name;
      for (const std::string& name : step.still)
        ADD_FAILURE() << m.name << ", " << name_of(type) << ": " << name << " has no gradient";
    }
  }
}

}  // namespace
}  // namespace convoy::trainer
