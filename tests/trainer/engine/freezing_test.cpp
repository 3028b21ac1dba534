// Patterns, blocks and phases of what a job trains.
#include "trainer/engine/freezing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "ops/core/error.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

ops::Graph resnet18() {
  return make_model("resnet18", {});
}

std::string error_of(const Job& job, const ops::Graph& graph, const RunLength& length = {}) {
  try {
    plan_training(job, graph, length);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    return e.what();
  }
  return "";
}

TEST(Patterns, FitTheWholeText) {
  EXPECT_TRUE(fits("conv1", "conv1"));
  EXPECT_FALSE(fits("conv1", "conv12"));
  EXPECT_FALSE(fits("conv1", "xconv1"));
  EXPECT_TRUE(fits("conv?", "conv1"));
  EXPECT_FALSE(fits("conv?", "conv"));
  EXPECT_TRUE(fits("*", ""));
  EXPECT_TRUE(fits("a*b*c", "a.b.x.b.c"));
  EXPECT_FALSE(fits("a*b*c", "a.b.x.b.d"));
  EXPECT_TRUE(fits("*.bias", "layer1.0.bn1.bias"));
  EXPECT_FALSE(fits("", "x"));
  EXPECT_TRUE(fits("", ""));
  // Stars that may begin anywhere: each must not double the work.
  EXPECT_FALSE(fits("*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(1000, 'a')));
}

TEST(Patterns, TakeWhatLiesBelow) {
  const std::string name = "layer1.0.bn1.bias";
  for (const char* pattern : {"layer1", "layer1.0", "layer1.0.bn1", "layer1.0.bn1.bias", "layer?",
                              "layer1.*", "*.bn1", "*.bias", "*"})
    EXPECT_TRUE(takes(pattern, name)) << pattern;
  for (const char* pattern : {"layer", "layer2", "0", "bn1", "layer1.", "*.weight", ""})
    EXPECT_FALSE(takes(pattern, name)) << pattern;
}

// Names as torchvision's of the families, each parameter a convolution, a batch norm or a linear
// layer.
std::vector<std::string> last_blocks(const std::vector<std::string>& nodes, size_t count) {
  ops::Graph graph{.name = "names", .image = {.n = 1, .c = 4, .h = 1, .w = 1}, .nodes = {}};
  int x = ops::kImage;
  for (const std::string& name : nodes) {
    const bool is_norm =
        name.find("norm") != std::string::npos || name.find("bn") != std::string::npos;
    const ops::OpSpec op = is_norm ? ops::OpSpec(ops::BatchNorm{})
                                   : ops::OpSpec(ops::Conv2d{.out_channels = 4, .kernel = 1});
    x = graph.add(name, op, {x});
  }
  const auto blocks = blocks_of(graph);
  std::vector<std::string> out;
  for (size_t b = blocks.size() - std::min(count, blocks.size()); b < blocks.size(); ++b)
    for (const std::string& name : blocks[b])
      if (name.ends_with(".weight")) out.push_back(name.substr(0, name.rfind('.')));
  return out;
}

TEST(Blocks, AreWhatNamesSay) {
  using Names = std::vector<std::string>;
  const Names resnet = {"conv1",
                        "bn1",
                        "layer1.0.conv1",
                        "layer1.0.bn1",
                        "layer4.0.conv1",
                        "layer4.0.bn1",
                        "layer4.0.downsample.0",
                        "layer4.1.conv1",
                        "layer4.1.bn1",
                        "fc"};
  EXPECT_EQ(last_blocks(resnet, 1), Names{"fc"});
  EXPECT_EQ(last_blocks(resnet, 2), (Names{"layer4.1.conv1", "layer4.1.bn1", "fc"}));
  EXPECT_EQ(last_blocks(resnet, 3).size(), 6u);
  EXPECT_EQ(last_blocks(resnet, 5), resnet);  // conv1 with its bn1
  // vgg16_bn: a batch norm belongs to the convolution before it.
  EXPECT_EQ(last_blocks({"features.0.x", "features.1.bn", "features.3.x", "features.4.bn",
                         "classifier.0.x", "classifier.3.x"},
                        3),
            (Names{"features.3.x", "features.4.bn", "classifier.0.x", "classifier.3.x"}));
  const Names densenet = {"features.conv0",
                          "features.norm0",
                          "features.denseblock1.denselayer1.norm1",
                          "features.denseblock1.denselayer1.conv1",
                          "features.transition1.norm",
                          "features.transition1.conv",
                          "features.denseblock2.denselayer1.norm1",
                          "features.denseblock2.denselayer1.conv1",
                          "features.norm5",
                          "classifier"};
  EXPECT_EQ(last_blocks(densenet, 2),
            (Names{"features.denseblock2.denselayer1.norm1",
                   "features.denseblock2.denselayer1.conv1", "features.norm5", "classifier"}));
  const Names googlenet = {"conv1.conv",
                           "conv1.bn",
                           "inception5a.branch1.conv",
                           "inception5a.branch1.bn",
                           "inception5b.branch1.conv",
                           "inception5b.branch2.0.conv",
                           "inception5b.branch2.0.bn",
                           "fc"};
  EXPECT_EQ(last_blocks(googlenet, 2),
            (Names{"inception5b.branch1.conv", "inception5b.branch2.0.conv",
                   "inception5b.branch2.0.bn", "fc"}));
}

// GoogLeNet's two, which torchvision counts just before the last layer.
TEST(Blocks, AnAuxiliaryClassifierBelongsToTheBlockThatItReads) {
  const auto blocks = blocks_of(make_model("googlenet", {}));
  const auto of = [&](const std::string& name) {
    const auto has = [&](const auto& block) { return std::ranges::count(block, name) == 1; };
    return std::ranges::find_if(blocks, has) - blocks.begin();
  };
  EXPECT_EQ(of("aux1.conv.conv.weight"), of("inception4a.branch1.conv.weight"));
  EXPECT_EQ(of("aux1.fc2.bias"), of("inception4a.branch1.conv.weight"));
  EXPECT_EQ(of("aux2.fc1.weight"), of("inception4d.branch1.conv.weight"));
  EXPECT_EQ(blocks.back(), (std::vector<std::string>{"fc.weight", "fc.bias"}));
  EXPECT_EQ(blocks[blocks.size() - 2][0], "inception5b.branch1.conv.weight");
}

TEST(TrainingPlan, NothingIsFrozenUnlessSaid) {
  const TrainingPlan plan = plan_training({}, resnet18(), {});
  EXPECT_EQ(plan.phases.size(), 1u);
  EXPECT_TRUE(plan.frozen_at(0).empty());
  EXPECT_TRUE(plan.factors.empty());
}

TEST(TrainingPlan, AllThatIsSaidIsFrozen) {
  Job job;
  job.transfer.train_last_blocks = 9;
  job.transfer.freeze = {"fc.bias", "layer1.0.conv?", "bn1"};
  EXPECT_EQ(plan_training(job, resnet18(), {}).frozen_at(0),
            (std::set<std::string>{"conv1.weight", "bn1.weight", "bn1.bias", "fc.bias",
                                   "layer1.0.conv1.weight", "layer1.0.conv2.weight"}));
}

TEST(TrainingPlan, PhasesBeginAtTheFirstStepOfAnEpoch) {
  Job job;
  job.transfer.train_last_blocks = 1;
  job.transfer.unfreeze = {{2.5, "layer3"}, {1, "layer4.*"}};
  const RunLength length = {.dataset_size = 100, .global_batch = 32, .epochs = 4};
  const TrainingPlan plan = plan_training(job, resnet18(), length);
  ASSERT_EQ(plan.phases.size(), 3u);
  EXPECT_EQ(plan.phases[1].step, 4u);  // 3 * 32 < 100 <= 4 * 32
  EXPECT_EQ(plan.phases[2].step, 8u);  // 7 * 32 < 250 <= 8 * 32
  EXPECT_TRUE(plan.frozen_at(3).contains("layer4.1.conv2.weight"));
  EXPECT_FALSE(plan.frozen_at(3).contains("fc.weight"));
  EXPECT_FALSE(plan.frozen_at(4).contains("layer4.1.conv2.weight"));
  EXPECT_TRUE(plan.frozen_at(7).contains("layer3.0.bn1.bias"));
  EXPECT_FALSE(plan.frozen_at(8).contains("layer3.0.bn1.bias"));
  EXPECT_TRUE(plan.frozen_at(1000).contains("conv1.weight"));
  EXPECT_EQ(&plan.frozen_at(1000), &plan.last().frozen);
  // An epoch that ends with a step begins with the next.
  EXPECT_EQ(plan_training(job, resnet18(), {.dataset_size = 64, .global_batch = 32, .epochs = 4})
                .phases[1]
                .step,
            2u);
  // Unfreezings that fall on one step are one phase.
  job.transfer.unfreeze = {{1.27, "layer3"}, {1, "layer4"}};
  const TrainingPlan one = plan_training(job, resnet18(), length);
  ASSERT_EQ(one.phases.size(), 2u);
  EXPECT_EQ(one.phases[1].step, 4u);  // 4 * 32 = 1.28 * 100
  EXPECT_TRUE(one.frozen_at(3).contains("layer4.1.conv2.weight"));
  EXPECT_FALSE(one.frozen_at(4).contains("layer4.1.conv2.weight"));
  EXPECT_FALSE(one.frozen_at(4).contains("layer3.0.bn1.bias"));
  EXPECT_TRUE(one.frozen_at(4).contains("layer2.0.bn1.bias"));
}

TEST(TrainingPlan, TheFirstGroupThatTakesAParameterCounts) {
  Job job;
  job.optimizer.group = {{"*.bias", 1, 0}, {"layer?.*", 0.1, 2}};
  const auto factors = plan_training(job, resnet18(), {}).factors;
  EXPECT_EQ(factors.at("layer1.0.bn1.bias").learning_rate, 1);
  EXPECT_EQ(factors.at("layer1.0.bn1.bias").weight_decay, 0);
  EXPECT_EQ(factors.at("layer1.0.bn1.weight").learning_rate, 0.1);
  EXPECT_EQ(factors.at("layer1.0.bn1.weight").weight_decay, 2);
  EXPECT_FALSE(factors.contains("fc.weight"));
}

TEST(TrainingPlan, EveryMistakeIsNamedWithTheNearestName) {
  Job job;
  job.transfer.freeze = {"layr1", "conv1"};
  job.transfer.unfreeze = {{1, "layer9"}, {2, "layer2"}};
  job.transfer.start_anew = {"head"};
  job.optimizer.group = {{"layer1.0.covn1", 0.1, 1}};
  const std::string error = error_of(job, resnet18());
  for (const char* part :
       {"5 mistakes", "resnet18",
        "transfer.freeze \"layr1\" takes no parameter; the nearest name is "
        "\"layer1\"",
        "transfer.unfreeze \"layer9\"",
        "transfer.unfreeze \"layer2\" at epoch 2: all that it takes "
        "is trained already",
        "transfer.start_anew \"head\"",
        "optimizer.group \"layer1.0.covn1\" takes no parameter; the nearest name is "
        "\"layer1.0.conv1\""})
    EXPECT_NE(error.find(part), std::string::npos) << part << " is not in: " << error;
}

TEST(TrainingPlan, WhatWouldTrainNothingIsAnError) {
  Job job;
  job.transfer.freeze = {"*"};
  job.transfer.unfreeze = {{1, "fc"}};
  EXPECT_NE(error_of(job, resnet18()).find("everything is frozen"), std::string::npos);
  Job many;
  many.transfer.train_last_blocks = 11;
  EXPECT_NE(error_of(many, resnet18()).find("train_last_blocks is 11, but there are 10 blocks"),
            std::string::npos);
  many.transfer.train_last_blocks = 10;
  EXPECT_TRUE(plan_training(many, resnet18(), {}).frozen_at(0).empty());
}

TEST(TrainingPlan, SharesAreCountedInElements) {
  const ops::Graph graph = resnet18();
  Job job;
  job.transfer.train_last_blocks = 1;
  const TrainingPlan plan = plan_training(job, graph, {});
  EXPECT_EQ(trained_share(ops::layout_of(graph), plan.frozen_at(0)),
            "513000 of 11689512 parameters are trained");
  EXPECT_EQ(trained_share(ops::layout_of(graph), {}), "11689512 parameters");
}

}  // namespace
}  // namespace convoy::trainer
