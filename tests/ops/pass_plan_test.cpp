// The order of calls: every node once, nobody before what it reads, gathered before going on.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "ops/fusion.h"
#include "ops/network.h"
#include "ops/pass_plan.h"

namespace convoy::ops {
namespace {

using Kind = Call::Kind;

constexpr int64_t kSliceBytes = int64_t{2} << 20;

// A residual block whose shortcut has a batch norm of its own, then one with the identity.
Graph two_blocks(int64_t side) {
  Graph g{.name = "blocks", .image = {.n = 1, .c = 16, .h = side, .w = side}, .nodes = {}};
  int x = kImage;
  for (int block = 0; block < 2; ++block) {
    const auto name = [&](const char* part) { return fmt::format("{}.{}", block, part); };
    int y = g.add(name("conv1"), Conv2d{.out_channels = 16, .padding = 1}, {x});
    y = g.add(name("bn1"), BatchNorm{}, {y});
    y = g.add(name("relu1"), Relu{}, {y});
    y = g.add(name("conv2"), Conv2d{.out_channels = 16, .padding = 1}, {y});
    y = g.add(name("bn2"), BatchNorm{}, {y});
    if (block == 0) {
      x = g.add("shortcut", Conv2d{.out_channels = 16, .kernel = 1}, {x});
      x = g.add("shortcut_bn", BatchNorm{}, {x});
    }
    y = g.add(name("add"), Add{}, {y, x});
    x = g.add(name("relu2"), Relu{}, {y});
  }
  const int pooled = g.add("pool", GlobalAvgPool{}, {x});
  g.add("fc", Linear{.out_features = 10}, {pooled});
  return fuse(g);
}

std::string to_text(const Graph& g, const Segment& segment) {
  std::string text;
  for (const Call& call : segment.calls) {
    const bool gathers = call.kind == Kind::kGatherForward || call.kind == Kind::kGatherBackward;
    if (!text.empty()) text += ' ';
    if (gathers) text += '?';
    text += g.nodes[call.node].name;
  }
  return text;
}

std::vector<std::string> to_text(const Graph& g, const std::vector<Segment>& segments) {
  std::vector<std::string> texts;
  for (const Segment& s : segments) texts.push_back(to_text(g, s));
  return texts;
}

TEST(PassPlan, StatisticsFollowTheirConvolutionAndDxItsBatchNorm) {
  const Graph g = two_blocks(64);
  const PassPlan plan = plan_passes(g, 32, DType::kFloat32, true, kSliceBytes);
  EXPECT_EQ(to_text(g, plan.forward),
            (std::vector<std::string>{
                "0.conv1 ?0.bn1", "0.bn1 0.conv2 ?0.bn2 shortcut ?shortcut_bn",
                "shortcut_bn 0.bn2 1.conv1 ?1.bn1", "1.bn1 1.conv2 ?1.bn2", "1.bn2", "pool fc"}));
  EXPECT_EQ(to_text(g, plan.backward),
            (std::vector<std::string>{
                "fc pool", "?1.bn2", "1.bn2 1.conv2 ?1.bn1", "1.bn1 1.conv1 ?0.bn2 ?shortcut_bn",
                "0.bn2 shortcut_bn shortcut 0.conv2 ?0.bn1", "0.bn1 0.conv1"}));
}

// Of a merged batch norm all that it gathers, and what it gives a shortcut when it goes backward.
TEST(PassPlan, MergedBatchNormsWaitForBothOfTheirInputs) {
  const Graph g = merge_batch_norms(two_blocks(64)).graph;
  const PassPlan plan = plan_passes(g, 32, DType::kFloat32, true, int64_t{1} << 62);
  EXPECT_EQ(
      to_text(g, plan.forward),
      (std::vector<std::string>{"0.conv1 ?0.bn1", "0.bn1 0.conv2 shortcut ?0.bn2",
                                "0.bn2 1.conv1 ?1.bn1", "1.bn1 1.conv2 ?1.bn2", "1.bn2 pool fc"}));
  EXPECT_EQ(
      to_text(g, plan.backward),
      (std::vector<std::string>{"fc pool ?1.bn2", "1.bn2 1.conv2 ?1.bn1", "1.bn1 1.conv1 ?0.bn2",
                                "0.bn2 shortcut 0.conv2 ?0.bn1", "0.bn1 0.conv1"}));
}

TEST(PassPlan, BytesOfMergedBatchNorms) {
  Graph g = two_blocks(64);
  const int conv = g.add("conv", Conv2d{.out_channels = 16, .padding = 1}, {kImage});
  const int pool = g.add("max_pool", MaxPool{}, {g.add("norm", BatchNorm{}, {conv})});
  g.add("last", Concat{}, {pool, g.add("relu", Relu{}, {pool})});
  g = merge_batch_norms(g).graph;
  const auto bytes = [&](const std::string& name, Kind kind) {
    for (size_t i = 0; i < g.nodes.size(); ++i)
      if (g.nodes[i].name == name) return work_of(g, {kind, i}, 2, DType::kFloat32, true).bytes;
    return 0.0;
  };
  constexpr double x = 2 * 16 * 64 * 64 * sizeof(float), mask = x / 32;
  EXPECT_EQ(bytes("0.bn2", Kind::kGatherForward), 2 * x);
  EXPECT_EQ(bytes("0.bn2", Kind::kForward), 3 * x + mask);
  EXPECT_EQ(bytes("0.bn2", Kind::kGatherBackward), 5 * x + mask);  // two gradients; stored
  EXPECT_EQ(bytes("0.bn2", Kind::kBackward), 5 * x);
  constexpr double y = x / 4, places = y / sizeof(float);
  EXPECT_EQ(bytes("norm", Kind::kGatherForward), x);
  EXPECT_EQ(bytes("norm", Kind::kForward), x + y + places);
  EXPECT_EQ(bytes("norm", Kind::kGatherBackward), x + 4 * y + places);  // added: read 2, write 1
  EXPECT_EQ(bytes("norm", Kind::kBackward), 2 * x + y + places);
}

TEST(PassPlan, BytesOfACompactGradient) {
  Graph g{.name = "two", .image = {.n = 1, .c = 8, .h = 15, .w = 8}, .nodes = {}};
  const int norm = g.add("norm", BatchNorm{}, {kImage});
  const int conv = g.add("conv", Conv2d{.out_channels = 24, .kernel = 1, .stride = 2}, {norm});
  const int other = g.add("other", Conv2d{.out_channels = 24, .stride = 2, .padding = 1}, {norm});
  g.add("sum", Add{}, {conv, other});
  const Graph merged = merge_batch_norms(g).graph;
  const auto bytes_less = [&](size_t node, Kind kind) {
    const auto bytes = [&](const Graph& graph) {
      return work_of(graph, {kind, node}, 2, DType::kFloat32, true).bytes;
    };
    return bytes(g) - bytes(merged);
  };
  constexpr double whole = 2 * 8 * 15 * 8 * sizeof(float), stored = 2 * 8 * 8 * 4 * sizeof(float);
  EXPECT_EQ(bytes_less(0, Kind::kGatherBackward), whole - stored);
  EXPECT_EQ(bytes_less(0, Kind::kBackward), 0);
  EXPECT_EQ(bytes_less(1, Kind::kBackward), whole - stored);
  EXPECT_EQ(bytes_less(2, Kind::kBackward), 0);
}

TEST(PassPlan, SlicesFillTheCacheAndDivideTheBatch) {
  const Graph g = two_blocks(64);  // 256 KiB a sample in fp32
  for (const int64_t batch : {1, 6, 7, 32, 100}) {
    const PassPlan plan = plan_passes(g, batch, DType::kFloat32, true, kSliceBytes);
    for (size_t i = 0; i < plan.slice.size(); ++i)
      EXPECT_EQ(batch % plan.slice[i], 0) << g.nodes[i].name;
  }
  EXPECT_EQ(plan_passes(g, 32, DType::kFloat32, true, kSliceBytes).slice[0], 8);
  EXPECT_EQ(plan_passes(g, 32, DType::kBfloat16, true, kSliceBytes).slice[0], 16);
  EXPECT_EQ(plan_passes(g, 62, DType::kFloat32, true, kSliceBytes).slice[0], 31);
  EXPECT_EQ(plan_passes(g, 18, DType::kFloat32, true, kSliceBytes).slice[0], 9);
  EXPECT_EQ(plan_passes(g, 20, DType::kFloat32, true, kSliceBytes).slice[0], 10);
  EXPECT_EQ(plan_passes(g, 7, DType::kFloat32, true, kSliceBytes).slice[0], 7);
  EXPECT_EQ(plan_passes(g, 32, DType::kFloat32, true, kSliceBytes).slice.back(), 32);
}

// Winograd's kernels read 36 floats for nine weights: of 128 to 128 channels 2304 KiB, not 576.
TEST(PassPlan, SlicesGrowWithPackedWeights) {
  const auto slice = [](const Conv2d& conv, int64_t size) {
    Graph g{.name = "one", .image = {.n = 1, .c = 128, .h = size, .w = size}, .nodes = {}};
    g.add("conv", conv, {kImage});
    return plan_passes(g, 8, DType::kFloat32, true, 28 * 28 * 128 * 4).slice[0];  // 392 KiB
  };
  const Conv2d same = {.out_channels = 128, .kernel = 3, .padding = 1};
  EXPECT_EQ(slice(same, 28), 4);  // 2304 / 392
  EXPECT_EQ(slice({.out_channels = 128, .kernel = 3, .padding = 1, .groups = 2}, 28), 1);
  EXPECT_EQ(slice({.out_channels = 128, .kernel = 3, .stride = 2, .padding = 1}, 56), 1);
  EXPECT_EQ(slice({.out_channels = 128, .kernel = 3}, 30), 1);
  EXPECT_EQ(slice({.out_channels = 128, .kernel = 1}, 28), 1);
}

TEST(PassPlan, WithoutBatchStatisticsASliceGoesThroughTheWholeResolution) {
  const Graph g = two_blocks(64);
  const PassPlan plan = plan_passes(g, 32, DType::kFloat32, false, kSliceBytes);
  ASSERT_EQ(plan.forward.size(), 2u);
  EXPECT_EQ(plan.forward[0].calls.size(), g.nodes.size() - 2);
  EXPECT_TRUE(plan.backward.empty());
}

// What one call reads must have been written before: in an earlier segment, or earlier in its own.
void expect_nobody_reads_too_early(const Graph& g) {
  const PassPlan plan = plan_passes(g, 16, DType::kFloat32, true, kSliceBytes);
  std::set<size_t> gathered, forward, gathered_back, backward;
  const auto check_forward = [&](size_t i) {
    for (const int input : g.nodes[i].inputs)
      EXPECT_TRUE(input == kImage || forward.contains(static_cast<size_t>(input)));
  };
  for (const Segment& segment : plan.forward) {
    const std::set<size_t> before = gathered;
    for (const Call& call : segment.calls) {
      if (call.kind == Kind::kGatherForward) {
        EXPECT_TRUE(gathered.insert(call.node).second);
        for (const int input : gathered_inputs(g.nodes[call.node]))
          EXPECT_TRUE(input == kImage || forward.contains(static_cast<size_t>(input)));
        continue;
      }
      check_forward(call.node);
      EXPECT_TRUE(!gathers(g.nodes[call.node].op, true) || before.contains(call.node));
      EXPECT_TRUE(forward.insert(call.node).second);
    }
  }
  EXPECT_EQ(forward.size(), g.nodes.size());
  for (const Segment& segment : plan.backward) {
    const std::set<size_t> before = gathered_back;
    for (const Call& call : segment.calls) {
      for (size_t j = 0; j < g.nodes.size(); ++j)
        for (size_t k = 0; k < g.nodes[j].inputs.size(); ++k) {
          if (g.nodes[j].inputs[k] != static_cast<int>(call.node)) continue;
          const bool in_place = backward_needs(g.nodes[j].op).dx_in_place == static_cast<int>(k) &&
                                gathered_inputs(g.nodes[j]).size() == 1;
          EXPECT_TRUE(backward.contains(j) || (in_place && gathered_back.contains(j)))
              << g.nodes[call.node].name << " before " << g.nodes[j].name;
        }
      if (call.kind == Kind::kGatherBackward) {
        EXPECT_TRUE(gathered_back.insert(call.node).second);
        continue;
      }
      EXPECT_TRUE(!gathers(g.nodes[call.node].op, true) || before.contains(call.node));
      EXPECT_TRUE(backward.insert(call.node).second);
    }
  }
  EXPECT_EQ(backward.size(), g.nodes.size());
}
TEST(PassPlan, NobodyReadsWhatIsNotThereYet) {
  expect_nobody_reads_too_early(two_blocks(32));
  // The shortcut's input is a batch norm, too.
  Graph g = two_blocks(32);
  g.nodes[3].op = BatchNorm{};
  ASSERT_EQ(g.nodes[3].name, "shortcut");
  expect_nobody_reads_too_early(g);
  expect_nobody_reads_too_early(merge_batch_norms(g).graph);
}

// Convolution gradients that only one segment knows need room for one slice.
TEST(PassPlan, WhatLivesInOneSegmentTakesOneSlice) {
  const Graph g = two_blocks(64);
  const PassPlan plan = plan_passes(g, 32, DType::kFloat32, true, kSliceBytes);
  const NetworkMemory m = network_memory(g, plan, 32, DType::kFloat32, true);
  const size_t slice = size_t{8} * 16 * 64 * 64 * sizeof(float);
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    if (!std::holds_alternative<Conv2d>(g.nodes[i].op)) continue;
    const auto dy = static_cast<size_t>(m.dy[i + 1].at(0));
    EXPECT_TRUE(m.one_slice[dy]) << g.nodes[i].name;
    EXPECT_EQ(m.buffers[dy].bytes, slice);
    const auto y = static_cast<size_t>(m.value[i + 1]);
    EXPECT_FALSE(m.one_slice[y]) << g.nodes[i].name;
    EXPECT_EQ(m.buffers[y].bytes, 4 * slice);
  }
}

}  // namespace
}  // namespace convoy::ops
