// Graphs, fusion, the memory plan, and networks as a whole.
#include "ops/network.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "ops/core/cache_line.h"
#include "ops/core/error.h"
#include "ops/core/isa.h"
#include "ops/core/random.h"
#include "ops/fusion.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

float random_float(uint64_t stream, uint64_t i) {
  return uniform_float(random4(7, Purpose::kSyntheticData, stream, i)[0]);
}

// Every op of the catalogue, two residual joins, a concat, a value with three readers.
Graph small_graph() {
  Graph g{.name = "small", .image = {.n = 1, .c = 3, .h = 9, .w = 9}, .nodes = {}};
  int x =
      g.add("stem", Conv2d{.out_channels = 8, .kernel = 3, .padding = 1, .bias = true}, {kImage});
  x = g.add("stem_relu", Relu{}, {g.add("stem_bn", BatchNorm{}, {x})});
  const int pooled = g.add("max_pool", MaxPool{}, {x});
  int y =
      g.add("conv_a", Conv2d{.out_channels = 8, .kernel = 3, .padding = 1, .groups = 2}, {pooled});
  y = g.add("bn_a", BatchNorm{}, {y});
  y = g.add("relu_a", Relu{}, {g.add("add_a", Add{}, {y, pooled})});
  int z = g.add("conv_b", Conv2d{.out_channels = 16, .kernel = 1, .stride = 2}, {y});
  z = g.add("bn_b", BatchNorm{}, {z});
  const int skip = g.add("skip", Subsample{.stride = 2, .out_channels = 16}, {y});
  z = g.add("relu_b", Relu{}, {g.add("add_b", Add{}, {z, skip})});
  const int shrunk = g.add("avg_pool", AvgPool{.kernel = 2, .stride = 2}, {y});
  const int up = g.add("conv_c", Conv2d{.out_channels = 4, .kernel = 2, .padding = 1}, {shrunk});
  const int joined = g.add("concat", Concat{}, {z, up, skip});
  x = g.add("dropout", Dropout{.rate = 0.25}, {g.add("pool", GlobalAvgPool{}, {joined})});
  g.add("fc", Linear{.out_features = 5}, {x});
  return g;
}

// A network in training, with its flat buffers.
class Trained {
 public:
  // slice_bytes: see NetworkConfig; 1 takes the batch sample by sample.
  Trained(const std::string& device, const Graph& graph, int64_t batch, DType type, int threads = 1,
          int64_t slice_bytes = 0)
      : device_(make_device(device, threads)),
        batch_(batch),
        net(*device_, graph,
            {.batch = batch, .type = type, .input = {}, .slice_bytes = slice_bytes}),
        parameters(*device_, net.layout().parameter_floats),
        gradients(*device_, net.layout().parameter_floats),
        running(*device_, net.layout().statistics_floats),
        statistics(*device_, net.layout().statistics_floats) {
    const ParameterLayout& layout = net.layout();
    const std::span<float> start = parameters.read();
    initialise(layout, 5, start.data());
    // Batch norms that really scale and shift.
    for (const auto& p : layout.parameters)
      if (!p.spec.is_weight)
        for (size_t i = 0; i < p.floats(); ++i)
          start[p.offset + i] += random_float(1, p.offset + i);
    parameters.write();
    initialise_statistics(layout, running.read().data());
    running.write();
    std::ranges::fill(gradients.read(), std::nanf(""));
    gradients.write();
    net.bind({parameters.data(), running.data(), gradients.data(), statistics.data()});
    const auto pixels = static_cast<size_t>(batch * graph.image.elements());
    std::vector<float> input;
    for (size_t i = 0; i < pixels; ++i) input.push_back(4 * random_float(2, i) - 2);
    input_ = encode(input, type);
    for (int64_t i = 0; i < batch; ++i) labels_.push_back(static_cast<int32_t>(i % 5));
  }

  double loss() {
    net.prepare();
    return loss_of_prepared();
  }
  double loss_of_prepared() {
    net.forward_activations(input_.data(), step);
    net.loss(labels_.data(), 1.0 / static_cast<double>(batch_));
    return net.loss_result().loss_sum / static_cast<double>(batch_);
  }
  void backward() {
    size_t last = 0;
    net.backward(step, [&](size_t ready) {
      EXPECT_GT(ready, last);
      const std::span<const float> now = gradients.read();
      for (size_t i = last; i < ready; ++i) EXPECT_FALSE(std::isnan(now[i])) << i;
      last = ready;
    });
    EXPECT_EQ(last, gradients.size());
  }
  Device& device() { return *device_; }
  std::vector<float> gradients_now() { return copy_of(gradients); }
  std::vector<float> statistics_now() { return copy_of(statistics); }

  StepInfo step = {.seed = 3, .step = 1, .worker = 0};

 private:
  static std::vector<float> copy_of(DeviceFloats& floats) {
    const std::span<const float> now = floats.read();
    return {now.begin(), now.end()};
  }

  std::unique_ptr<Device> device_;
  int64_t batch_;
  std::vector<unsigned char> input_;
  std::vector<int32_t> labels_;

 public:
  Network net;
  DeviceFloats parameters, gradients, running, statistics;
};

std::vector<float> read_logits(Device& device, const Network& net) {
  const TensorView y = net.logits();
  std::vector<float> out(static_cast<size_t>(y.shape.elements()));
  device.download(out.data(), y.data, y.bytes());
  return out;
}

// Runs on every device there is.
class NetworkTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Device> device(int threads = 1) const { return make_device(GetParam(), threads); }
};
INSTANTIATE_TEST_SUITE_P(Devices, NetworkTest, testing::ValuesIn(device_names()),
                         [](const auto& each) { return each.param; });

double norm(const std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += double{x} * double{x};
  return std::sqrt(sum);
}

void expect_near(std::vector<float> values, const std::vector<float>& expected, double share) {
  for (size_t i = 0; i < values.size(); ++i) values[i] -= expected[i];
  EXPECT_LT(norm(values), share * norm(expected));
}

void expect_gradients_of_the_loss(const std::string& device, int64_t slice_bytes) {
  Trained t(device, small_graph(), 6, DType::kFloat32, 1, slice_bytes);
  t.loss();
  t.backward();
  const std::vector<float> gradients = t.gradients_now();
  const std::span<float> parameters = t.parameters.read();
  const std::vector<float> start(parameters.begin(), parameters.end());
  for (uint64_t direction = 0; direction < 8; ++direction) {
    std::vector<float> d(start.size());
    for (size_t i = 0; i < d.size(); ++i)
      d[i] = random_float(100 + direction, i) < 0.5f ? -1.0f : 1.0f;
    double expected = 0;
    for (size_t i = 0; i < d.size(); ++i) expected += double{gradients[i]} * double{d[i]};
    const auto loss_at = [&](float by) {
      for (size_t i = 0; i < d.size(); ++i) parameters[i] = start[i] + by * d[i];
      t.parameters.write();
      return t.loss();
    };
    // The step is small enough that few ReLUs flip, and the loss is summed in double, so 1 % of the
    // typical derivative is an error of formulas, not of rounding.
    const float h = 1e-4f;
    const double measured = (loss_at(h) - loss_at(-h)) / (2 * double{h});
    EXPECT_NEAR(measured, expected, 0.01 * norm(gradients)) << "direction " << direction;
  }
}

TEST_P(NetworkTest, GradientsEqualCentralDifferencesOfTheLoss) {
  expect_gradients_of_the_loss(GetParam(), 0);
}

TEST_P(NetworkTest, GradientsEqualCentralDifferencesSampleBySample) {
  expect_gradients_of_the_loss(GetParam(), 1);
}

// What slices change is the order of sums over the batch.
TEST_P(NetworkTest, SlicesOfTheBatchChangeRoundingAlone) {
  Trained whole(GetParam(), small_graph(), 6, DType::kFloat32),
      sliced(GetParam(), small_graph(), 6, DType::kFloat32, 1, 1);
  for (Trained* t : {&whole, &sliced}) {
    t->loss();
    t->backward();
  }
  expect_near(sliced.gradients_now(), whole.gradients_now(), 1e-5);
  EXPECT_LT(sliced.net.arena_bytes(), whole.net.arena_bytes());
}

TEST_P(NetworkTest, SixteenBitsAreCloseToFp32) {
  Trained exact(GetParam(), small_graph(), 8, DType::kFloat32);
  const double loss = exact.loss();
  exact.backward();
  const std::vector<float> gradients = exact.gradients_now();
  int types = 0;
  for (const DType type : {DType::kBfloat16, DType::kFloat16}) {
    if (!device()->supports(type)) continue;
    ++types;
    // bf16 keeps 8 bits; a dozen layers of rounding give a few percent of the gradient's norm.
    Trained rounded(GetParam(), small_graph(), 8, type);
    EXPECT_NEAR(rounded.loss(), loss, 0.02 * loss) << name_of(type);
    rounded.backward();
    expect_near(rounded.gradients_now(), gradients, 0.1);
    EXPECT_NE(rounded.gradients_now(), gradients) << name_of(type);
  }
  if (types == 0) GTEST_SKIP() << "SKIPPED: this processor has no AVX-512, so no bf16";
}

TEST_P(NetworkTest, RepeatsItsBits) {
  for (const int threads : {1, 2}) {
    const int64_t slice_bytes = threads == 2 ? 1 : 0;
    Trained a(GetParam(), small_graph(), 6, DType::kFloat32, threads, slice_bytes),
        b(GetParam(), small_graph(), 6, DType::kFloat32, threads, slice_bytes);
    a.loss();
    a.backward();
    b.loss();
    b.backward();
    EXPECT_EQ(a.gradients_now(), b.gradients_now());
    EXPECT_EQ(a.statistics_now(), b.statistics_now());
    b.loss();
    b.backward();
    EXPECT_EQ(a.gradients_now(), b.gradients_now()) << "the second pass through the same arena";
  }
}

// Lanes pack their weights once for all of them, each a part.
TEST(Network, SharedWeightsAreTheOthersAndPackedInParts) {
  // In fp32 the first convolution takes Winograd's kernels, the second oneDNN's.
  Graph graph{.name = "two", .image = {.n = 1, .c = 16, .h = 8, .w = 8}, .nodes = {}};
  int x = graph.add("conv_a", Conv2d{.out_channels = 16, .padding = 1}, {kImage});
  x = graph.add("bn", BatchNorm{}, {x});
  x = graph.add("conv_b", Conv2d{.out_channels = 24, .kernel = 1, .bias = true}, {x});
  graph.add("fc", Linear{.out_features = 5}, {graph.add("pool", GlobalAvgPool{}, {x})});
  for (const DType type : {DType::kFloat32, DType::kBfloat16}) {
    if (type == DType::kBfloat16 && !cpu_supports_bf16()) continue;
    Trained leader("cpu", graph, 6, type), follower("cpu", graph, 6, type);
    const double expected = leader.loss();
    leader.backward();
    follower.net.share_weights(leader.net);
    // Its own parameters no longer matter where they are packed.
    for (const auto& p : follower.net.layout().parameters)
      if (p.name.ends_with("weight") && p.spec.dims.size() > 1)
        std::fill_n(follower.parameters.data() + p.offset, p.floats(), 0.0f);
    for (const int part : {2, 0, 1}) leader.net.prepare(part, 3);
    EXPECT_EQ(follower.loss_of_prepared(), expected);
    follower.backward();
    EXPECT_EQ(follower.gradients_now(), leader.gradients_now());
  }
}

TEST_P(NetworkTest, InferenceUsesRunningStatisticsAndNoDropout) {
  const Graph graph = small_graph();
  Trained t(GetParam(), graph, 6, DType::kFloat32);
  Network infer(t.device(), graph, {.batch = 1, .training = false, .input = {}});
  const std::span<float> running = t.running.read();
  for (const auto& s : t.net.layout().statistics)
    for (int64_t k = 0; k < 2 * s.channels; ++k)
      running[s.offset + static_cast<size_t>(k)] = 0.5f + random_float(9, static_cast<uint64_t>(k));
  t.running.write();
  infer.bind({t.parameters.data(), t.running.data(), nullptr, nullptr});
  infer.prepare();
  const std::vector<float> x(static_cast<size_t>(graph.image.elements()), 0.3f);
  const auto logits = [&](const StepInfo& step) {
    infer.forward_activations(x.data(), step);
    return read_logits(t.device(), infer);
  };
  const std::vector<float> first = logits({.seed = 1, .step = 1, .worker = 0});
  EXPECT_EQ(first, logits({.seed = 9, .step = 2, .worker = 3}));
  for (float& r : running) r *= 0.5f;
  t.running.write();
  infer.prepare();
  EXPECT_NE(first, logits({}));
}

TEST(Fusion, MovesReluAndAddIntoBatchNorm) {
  const Graph fused = fuse(small_graph());
  std::vector<std::string> kinds;
  for (const Node& n : fused.nodes) kinds.push_back(n.name + ":" + kind_of(n.op));
  EXPECT_EQ(kinds, (std::vector<std::string>{
                       "stem:Conv2d", "stem_bn:BatchNorm+ReLU", "max_pool:MaxPool", "conv_a:Conv2d",
                       "bn_a:BatchNorm+Add+ReLU", "conv_b:Conv2d", "skip:Subsample",
                       "bn_b:BatchNorm+Add+ReLU", "avg_pool:AvgPool", "conv_c:Conv2d",
                       "concat:Concat", "pool:GlobalAvgPool", "dropout:Dropout", "fc:Linear"}));
  std::set<std::string> before, after;
  for (const auto& p : layout_of(small_graph()).parameters) before.insert(p.name);
  for (const auto& p : layout_of(fused).parameters) after.insert(p.name);
  EXPECT_EQ(before, after);
}

TEST(Fusion, LeavesWhatSomebodyElseReads) {
  Graph g{.name = "shared", .image = {.n = 1, .c = 2, .h = 4, .w = 4}, .nodes = {}};
  const int bn = g.add("bn", BatchNorm{}, {kImage});
  const int relu = g.add("relu", Relu{}, {bn});
  g.add("add", Add{}, {relu, bn});
  EXPECT_EQ(fuse(g).nodes.size(), 3u);
}

// A residual network with all that folding must look at. Where `apart`, a dropout, which inference
// passes through, stands between each convolution and its batch norm, so that nothing is folded.
Graph residual_graph(bool apart) {
  Graph g{.name = "residual", .image = {.n = 1, .c = 3, .h = 11, .w = 9}, .nodes = {}};
  const auto convolve = [&](const std::string& name, int x, Conv2d conv) {
    const int y = g.add(name, conv, {x});
    return apart ? g.add(name + "_apart", Dropout{.rate = 0.5}, {y}) : y;
  };
  const auto norm = [&](const std::string& name, int x) { return g.add(name, BatchNorm{}, {x}); };
  const auto relu = [&](const std::string& name, int x) { return g.add(name, Relu{}, {x}); };
  const auto sum = [&](const std::string& name, int a, int b) {
    return g.add(name, Add{}, {a, b});
  };
  const Conv2d same = {.out_channels = 8, .kernel = 3, .padding = 1};

  // With a bias; a batch norm of a pool, which is no convolution.
  int x =
      relu("relu0",
           norm("bn0", convolve("conv0", kImage, {.out_channels = 8, .padding = 1, .bias = true})));
  x = norm("bn_pool", g.add("pool0", MaxPool{.kernel = 3, .stride = 1, .padding = 1}, {x}));
  // Two blocks, the second's residual written over the first's.
  for (const std::string block : {"a", "b"}) {
    const int y = relu("relu_" + block, norm("bn1" + block, convolve("conv1" + block, x, same)));
    x = relu("out_" + block,
             sum("add_" + block, norm("bn2" + block, convolve("conv2" + block, y, same)), x));
  }
  // A shortcut with a convolution of its own; no ReLU at the end.
  const Conv2d wide = {.out_channels = 16, .kernel = 3, .stride = 2, .padding = 1};
  int y = convolve("conv_main", x, wide);
  const int shortcut =
      norm("bn_short", convolve("conv_short", x, {.out_channels = 16, .kernel = 1, .stride = 2}));
  x = sum("add_short", norm("bn_main", y), shortcut);
  // The convolution reads its own residual: stays.
  x = sum("add_self", norm("bn_self", convolve("conv_self", x, {.out_channels = 16, .padding = 1})),
          x);
  // Somebody reads the residual later: stays.
  y = sum("add_late",
          norm("bn_late",
               convolve("conv_late", relu("relu_late", x), {.out_channels = 16, .padding = 1})),
          x);
  x = g.add("concat", Concat{}, {x, y});
  // Two read the convolution: stays.
  y = convolve("conv_two", x, same);
  x = sum("add_two", norm("bn_two", y), y);
  // What conv_moved reads is overwritten by conv_over before bn_moved, its place when folded:
  // stays.
  const int source = relu("relu_moved", x);
  y = convolve("conv_moved", source, same);
  const int over = sum("add_over", norm("bn_over", convolve("conv_over", x, same)), source);
  x = sum("add_moved", norm("bn_moved", y), over);
  g.add("fc", Linear{.out_features = 5}, {g.add("pool", GlobalAvgPool{}, {x})});
  return g;
}

TEST(Fusion, FoldsBatchNormsWhereNothingElseIsOverwritten) {
  const Graph fused = fuse(residual_graph(false));
  const InferenceGraph folded = fold_batch_norms(fused);
  std::vector<std::string> convolutions, batch_norms;
  for (const Node& n : folded.graph.nodes) {
    const std::string kind = kind_of(n.op);
    if (kind.starts_with("Conv2d+")) convolutions.push_back(n.name + kind.substr(6));
    if (kind.starts_with("BatchNorm")) batch_norms.push_back(n.name);
  }
  EXPECT_EQ(convolutions,
            (std::vector<std::string>{"conv0+BatchNorm+ReLU", "conv1a+BatchNorm+ReLU",
                                      "conv2a+BatchNorm+Add+ReLU", "conv1b+BatchNorm+ReLU",
                                      "conv2b+BatchNorm+Add+ReLU", "conv_short+BatchNorm",
                                      "conv_main+BatchNorm+Add", "conv_over+BatchNorm+Add"}));
  EXPECT_EQ(batch_norms,
            (std::vector<std::string>{"bn_pool", "bn_self", "bn_late", "bn_two", "bn_moved"}));
  for (size_t i = 0; i < fused.nodes.size(); ++i) {
    const Node& node = folded.graph.nodes[folded.node_of[i]];
    const auto* bn = std::get_if<BatchNorm>(&fused.nodes[i].op);
    if (!bn || std::holds_alternative<BatchNorm>(node.op))
      EXPECT_EQ(node.name, fused.nodes[i].name);
    else
      EXPECT_EQ(node.name, fused.nodes[static_cast<size_t>(fused.nodes[i].inputs[0])].name);
  }
  EXPECT_EQ(fold_batch_norms(fuse(residual_graph(true))).graph.nodes.size(),
            fuse(residual_graph(true)).nodes.size());
}

// A convolution takes one batch norm over; the next one stays, and so do its parameters.
TEST(Fusion, ABatchNormBehindAFoldedOneStays) {
  Graph g{.name = "twice", .image = {.n = 1, .c = 2, .h = 4, .w = 4}, .nodes = {}};
  int x = g.add("conv", Conv2d{.out_channels = 4, .padding = 1}, {kImage});
  x = g.add("relu", Relu{}, {g.add("bn_first", BatchNorm{}, {x})});
  x = g.add("bn_second", BatchNorm{}, {x});
  g.add("fc", Linear{.out_features = 5}, {x});
  const Graph fused = fuse(g);
  const InferenceGraph folded = fold_batch_norms(fused);
  std::vector<std::string> kinds;
  for (const Node& n : folded.graph.nodes) kinds.push_back(n.name + ":" + kind_of(n.op));
  EXPECT_EQ(kinds, (std::vector<std::string>{"conv:Conv2d+BatchNorm+ReLU", "bn_second:BatchNorm",
                                             "fc:Linear"}));
  EXPECT_EQ(folded.node_of, (std::vector<size_t>{0, 0, 1, 2}));
}

void expect_folded_equals_unfolded(const std::string& device_name, int64_t slice_bytes) {
  for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16}) {
    const auto device = make_device(device_name, 1);
    if (!device->supports(type)) continue;  // SixteenBitsAreCloseToFp32 says so
    constexpr int64_t kBatch = 6;
    const NetworkConfig config = {
        .batch = kBatch, .type = type, .training = false, .input = {}, .slice_bytes = slice_bytes};
    Network folded(*device, residual_graph(false), config);
    Network lane(*device, residual_graph(false), config);
    Network apart(*device, residual_graph(true), config);
    const ParameterLayout &layout = folded.layout(), &other = apart.layout();
    ASSERT_EQ(layout.parameters.size(), other.parameters.size());
    for (size_t i = 0; i < layout.parameters.size(); ++i) {
      EXPECT_EQ(layout.parameters[i].name, other.parameters[i].name);
      EXPECT_EQ(layout.parameters[i].offset, other.parameters[i].offset);
    }
    DeviceFloats parameters(*device, layout.parameter_floats);
    DeviceFloats running(*device, layout.statistics_floats);
    const std::span<float> start = parameters.read(), statistics = running.read();
    initialise(layout, 5, start.data());
    for (const auto& p : layout.parameters)
      if (!p.spec.is_weight)
        for (size_t i = 0; i < p.floats(); ++i)
          start[p.offset + i] += random_float(1, p.offset + i);
    for (size_t i = 0; i < statistics.size(); ++i) statistics[i] = 0.5f + random_float(9, i);
    parameters.write();
    running.write();
    std::vector<float> x(static_cast<size_t>(kBatch * 3 * 11 * 9));
    for (size_t i = 0; i < x.size(); ++i) x[i] = 4 * random_float(2, i) - 2;
    const std::vector<unsigned char> input = encode(x, type);
    const auto logits = [&](Network& net) {
      net.bind({parameters.data(), running.data(), nullptr, nullptr});
      net.forward_activations(input.data(), {});
      return read_logits(*device, net);
    };
    apart.bind({parameters.data(), running.data(), nullptr, nullptr});
    apart.prepare();
    folded.bind({parameters.data(), running.data(), nullptr, nullptr});
    folded.prepare();
    const std::vector<float> a = logits(folded), b = logits(apart);
    EXPECT_EQ(a, logits(folded)) << "the second pass through the same arena";
    if (device_name == "cpu") {  // packed by two threads' parts, used by another lane
      folded.prepare(0, 2);
      folded.prepare(1, 2);
      lane.share_weights(folded);
      EXPECT_EQ(a, logits(lane));
    }
    // Thirteen layers deep: fp32 rounds by 6e-8 in each, bf16 by 4e-3 at most.
    const double tolerance = type == DType::kFloat32 ? 1e-6 : 2e-2;
    SCOPED_TRACE(name_of(type));
    expect_near(a, b, tolerance);
  }
}

TEST_P(NetworkTest, FoldedInferenceEqualsUnfolded) {
  expect_folded_equals_unfolded(GetParam(), 0);
}

TEST_P(NetworkTest, FoldedInferenceEqualsUnfoldedSampleBySample) {
  expect_folded_equals_unfolded(GetParam(), 1);
}

TEST(MemoryPlan, LiveBuffersNeverOverlapAndBytesAreReused) {
  for (uint64_t round = 0; round < 50; ++round) {
    std::vector<Lifetime> buffers;
    for (uint64_t i = 0; i < 60; ++i) {
      const Random4 r = random4(round, Purpose::kSyntheticData, 1, i);
      const int first = static_cast<int>(r[0] % 40);
      buffers.push_back({r[1] % 5000, first, first + static_cast<int>(r[2] % 8)});
    }
    const MemoryPlan plan = plan_memory(buffers);
    size_t alive_at_once = 0;
    for (int moment = 0; moment < 50; ++moment) {
      size_t alive = 0;
      for (const Lifetime& b : buffers)
        if (b.first <= moment && moment <= b.last) alive += (b.bytes + 63) / 64 * 64;
      alive_at_once = std::max(alive_at_once, alive);
    }
    for (size_t a = 0; a < buffers.size(); ++a) {
      EXPECT_EQ(plan.offsets[a] % kCacheLineBytes, 0u);
      EXPECT_LE(plan.offsets[a] + buffers[a].bytes, plan.bytes);
      for (size_t b = 0; b < a; ++b) {
        const bool together =
            buffers[a].first <= buffers[b].last && buffers[b].first <= buffers[a].last;
        const bool apart = plan.offsets[a] + buffers[a].bytes <= plan.offsets[b] ||
                           plan.offsets[b] + buffers[b].bytes <= plan.offsets[a];
        EXPECT_TRUE(!together || apart || buffers[a].bytes == 0 || buffers[b].bytes == 0);
      }
    }
    EXPECT_GE(plan.bytes, alive_at_once);
    EXPECT_LT(plan.bytes, plan.naive_bytes / 2);
  }
}

std::string error_of(const Graph& graph) {
  try {
    infer_shapes(graph, 2);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    return e.what();
  }
  return "";
}

TEST(Graph, ErrorsNameTheNode) {
  const Graph good = small_graph();
  EXPECT_EQ(error_of(good), "");
  Graph g = good;
  std::get<Conv2d>(g.nodes[4].op).groups = 3;
  EXPECT_NE(
      error_of(g).find("\"conv_a\": 8 input and 8 output channels do not divide into 3 groups"),
      std::string::npos)
      << error_of(g);
  g = good;
  g.nodes[6].inputs = {5};
  EXPECT_NE(error_of(g).find("\"add_a\": takes 2 input(s), got 1"), std::string::npos)
      << error_of(g);
  g = good;
  g.nodes[6].inputs = {5, 20};
  EXPECT_NE(error_of(g).find("\"add_a\": input 20 is not an earlier node"), std::string::npos);
  g = good;
  g.nodes[3].name = "stem";
  EXPECT_NE(error_of(g).find("\"stem\", which is taken"), std::string::npos);
  g = good;
  g.image = {.n = 1, .c = 3, .h = 0, .w = 9};
  EXPECT_NE(error_of(g).find("empty"), std::string::npos);
  EXPECT_NE(error_of(Graph{.name = "none", .image = {1, 1, 1, 1}, .nodes = {}}).find("no nodes"),
            std::string::npos);
}

TEST(Graph, ParametersLieInBackwardOrder) {
  const ParameterLayout layout = layout_of(small_graph());
  EXPECT_EQ(layout.parameters.front().name, "fc.weight");
  EXPECT_EQ(layout.parameters[1].name, "fc.bias");
  EXPECT_EQ(layout.parameters.back().name, "stem.bias");
  size_t offset = 0;
  for (const auto& p : layout.parameters) {
    EXPECT_EQ(p.offset, offset);
    offset += p.floats();
  }
  EXPECT_EQ(offset, layout.parameter_floats);
  EXPECT_EQ(layout.statistics_floats, 2u * (8 + 8 + 16));
}

TEST(Graph, HeInitialisationHasItsStandardDeviation) {
  Graph g{.name = "wide", .image = {.n = 1, .c = 64, .h = 8, .w = 8}, .nodes = {}};
  g.add("conv", Conv2d{.out_channels = 128, .kernel = 3, .padding = 1}, {kImage});
  const ParameterLayout layout = layout_of(g);
  std::vector<float> w(layout.parameter_floats), other(layout.parameter_floats);
  initialise(layout, 1, w.data());
  initialise(layout, 2, other.data());
  EXPECT_NE(w, other);
  // std = sqrt(2 / (128 * 9)); 73,728 draws: the estimate is good to 0.3 %.
  EXPECT_NEAR(norm(w) / std::sqrt(static_cast<double>(w.size())), std::sqrt(2.0 / 1152.0), 0.0005);
}

}  // namespace
}  // namespace convoy::ops
