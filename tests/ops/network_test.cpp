// Graphs, fusion, the memory plan, and networks as a whole.
#include "ops/network.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "ops/core/cache_line.h"
#include "ops/core/error.h"
#include "ops/core/isa.h"
#include "ops/core/random.h"
#include "ops/freezing.h"
#include "ops/fusion.h"
#include "tests/support/op_tester.h"

namespace convoy::ops {
namespace {

float random_float(uint64_t stream, uint64_t i) {
  return uniform_float(random4(7, Purpose::kSyntheticData, stream, i)[0]);
}

// Every op of the catalogue, two residual joins, a gate, a concat, values with three readers.
Graph small_graph() {
  Graph g{.name = "small", .image = {.n = 1, .c = 3, .h = 9, .w = 9}, .nodes = {}};
  int x =
      g.add("stem", Conv2d{.out_channels = 8, .kernel = 3, .padding = 1, .bias = true}, {kImage});
  x = g.add("stem_relu", Relu{}, {g.add("stem_bn", BatchNorm{}, {x})});
  const int pooled = g.add("max_pool", MaxPool{}, {x});
  const int normed = g.add("lrn", LocalResponseNorm{.size = 3, .alpha = 1}, {pooled});
  int y =
      g.add("conv_a", Conv2d{.out_channels = 8, .kernel = 3, .padding = 1, .groups = 2}, {normed});
  y = g.add("bn_a", BatchNorm{}, {y});
  y = g.add("relu_a", Relu{}, {g.add("add_a", Add{}, {y, pooled})});
  int z = g.add("conv_b", Conv2d{.out_channels = 16, .kernel = 1, .stride = 2}, {y});
  z = g.add("bn_b", BatchNorm{}, {z});
  const int skip = g.add("skip", Subsample{.stride = 2, .out_channels = 16}, {y});
  z = g.add("relu_b", Relu{}, {g.add("add_b", Add{}, {z, skip})});
  const int shrunk = g.add("avg_pool", AvgPool{.kernel = 2, .stride = 2}, {y});
  const int up = g.add("conv_c", Conv2d{.out_channels = 4, .kernel = 2, .padding = 1}, {shrunk});
  const int gate = g.add("gate", Sigmoid{.complement = true}, {up});
  const int gated = g.add("gated", Multiply{}, {gate, up});
  const int joined = g.add("concat", Concat{}, {z, gated, skip});
  x = g.add("grid", AdaptiveAvgPool{.h = 2, .w = 2}, {joined});
  x = g.add("dropout", Dropout{.rate = 0.25}, {g.add("pool", GlobalAvgPool{}, {x})});
  g.add("fc", Linear{.out_features = 5}, {x});
  return g;
}

int index_of(const Graph& graph, const std::string& name) {
  return static_cast<int>(std::ranges::find(graph.nodes, name, &Node::name) - graph.nodes.begin());
}
Node& node_of(Graph& graph, const std::string& name) {
  return graph.nodes[static_cast<size_t>(index_of(graph, name))];
}

// small_graph() with two auxiliary classifiers: one as GoogLeNet's; one that ends in a batch norm,
// and whose logits the trunk reads, too.
Graph auxiliary_graph() {
  Graph g = small_graph();
  const Node fc = g.nodes.back();
  g.nodes.pop_back();
  int a = g.add("aux1.pool", AdaptiveAvgPool{.h = 2, .w = 2}, {index_of(g, "relu_a")});
  a = g.add("aux1.conv", Conv2d{.out_channels = 6, .kernel = 1}, {a});
  a = g.add("aux1.relu", Relu{}, {g.add("aux1.bn", BatchNorm{}, {a})});
  a = g.add("aux1.drop", Dropout{.rate = 0.5},
            {g.add("aux1.fc1", Linear{.out_features = 12}, {a})});
  const int first = g.add("aux1.fc2", Linear{.out_features = 5}, {a});
  a = g.add("aux2.pool", GlobalAvgPool{}, {index_of(g, "gated")});
  const int second =
      g.add("aux2.bn", BatchNorm{}, {g.add("aux2.fc", Linear{.out_features = 5}, {a})});
  g.auxiliary = {{.node = first, .weight = 0.3}, {.node = second, .weight = 0.8}};
  g.add("fc", fc.op, {g.add("joined", Concat{}, {fc.inputs[0], second})});
  return g;
}

// The network whose last node is an auxiliary classifier's, with what it needs and nothing else.
Graph alone(Graph graph, int node) {
  graph.nodes.resize(static_cast<size_t>(node) + 1);
  graph.auxiliary.clear();
  return inference_graph(graph);
}

// A network in training, with its flat buffers.
class Trained {
 public:
  // slice_bytes, record, stops, aside, merge: see NetworkConfig; slice_bytes 1 takes the batch
  // sample by sample.
  Trained(const std::string& device, const Graph& graph, int64_t batch, DType type, int threads = 1,
          int64_t slice_bytes = 0, bool record = false, const std::vector<size_t>& stops = {},
          bool aside = true, bool merge = true)
      : device_(make_test_device(device, threads)),
        batch_(batch),
        net(*device_, graph,
            {.batch = batch,
             .type = type,
             .merge = merge,
             .input = {},
             .slice_bytes = slice_bytes,
             .record = record,
             .aside = aside,
             .stops = stops}),
        parameters(*device_, net.layout().parameter_floats),
        gradients(*device_, net.layout().gradient_floats),
        running(*device_, net.layout().statistics_floats),
        statistics(*device_, net.layout().batch_floats) {
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
  // Each gradient has the bits of `expected` when backward() tells of it.
  void backward_gives(const std::vector<float>& expected) {
    size_t told = 0;
    net.backward(step, [&](size_t ready) {
      std::vector<float> now = gradients_now();
      now.resize(ready);
      const auto end = expected.begin() + static_cast<ptrdiff_t>(ready);
      EXPECT_EQ(bits_of(now), bits_of({expected.begin(), end})) << ready;
      told = ready;
    });
    EXPECT_EQ(told, expected.size());
  }
  Device& device() { return *device_; }
  // Takes those of another network that are called as its own.
  void copy_parameters(Trained& other) {
    const std::span<const float> from = other.parameters.read();
    const std::span<float> to = parameters.read();
    for (const auto& p : net.layout().parameters) {
      const auto& all = other.net.layout().parameters;
      const auto q = std::ranges::find(all, p.name, &ParameterLayout::Parameter::name);
      std::ranges::copy(from.subspan(q->offset, q->floats()),
                        to.begin() + static_cast<std::ptrdiff_t>(p.offset));
    }
    parameters.write();
  }
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
  std::unique_ptr<Device> device(int threads = 1) const {
    return make_test_device(GetParam(), threads);
  }
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

// Auxiliary classifiers' losses count with their weights: each comes from a network of its own.
void expect_gradients_of_the_loss(const std::string& device, const Graph& graph,
                                  int64_t slice_bytes) {
  Trained t(device, graph, 6, DType::kFloat32, 1, slice_bytes);
  std::vector<std::unique_ptr<Trained>> heads;
  for (const Auxiliary& a : graph.auxiliary)
    heads.push_back(std::make_unique<Trained>(device, alone(graph, a.node), 6, DType::kFloat32));
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
      double loss = t.loss();
      for (size_t k = 0; k < heads.size(); ++k) {
        heads[k]->copy_parameters(t);
        loss += graph.auxiliary[k].weight * heads[k]->loss();
      }
      return loss;
    };
    // The step is small enough that few ReLUs flip, and the loss is summed in double, so 1 % of the
    // typical derivative is an error of formulas, not of rounding.
    const float h = 2e-5f;
    const double measured = (loss_at(h) - loss_at(-h)) / (2 * double{h});
    EXPECT_NEAR(measured, expected, 0.01 * norm(gradients)) << "direction " << direction;
  }
}

TEST_P(NetworkTest, GradientsEqualCentralDifferencesOfTheLoss) {
  expect_gradients_of_the_loss(GetParam(), small_graph(), 0);
}

TEST_P(NetworkTest, GradientsEqualCentralDifferencesSampleBySample) {
  expect_gradients_of_the_loss(GetParam(), small_graph(), 1);
}

TEST_P(NetworkTest, AuxiliaryGradientsEqualCentralDifferencesOfAllLosses) {
  expect_gradients_of_the_loss(GetParam(), auxiliary_graph(), 0);
  expect_gradients_of_the_loss(GetParam(), auxiliary_graph(), 1);
}

// The gradients are the sum of those of networks that have one classifier each.
TEST_P(NetworkTest, AuxiliaryGradientsAreTheSumOfTheClassifiers) {
  const Graph graph = auxiliary_graph();
  Graph without = inference_graph(graph);
  Trained all(GetParam(), graph, 6, DType::kFloat32), main(GetParam(), without, 6, DType::kFloat32);
  std::map<std::string, std::vector<float>> sum;
  const auto add = [&](Trained& t, double weight) {
    t.copy_parameters(all);
    t.loss();
    t.backward();
    const std::vector<float> g = t.gradients_now();
    for (const auto& p : t.net.layout().parameters) {
      std::vector<float>& to = sum[p.name];
      to.resize(p.floats());
      for (size_t i = 0; i < p.floats(); ++i) to[i] += static_cast<float>(weight) * g[p.offset + i];
    }
  };
  const double loss = all.loss();
  all.backward();
  add(main, 1);
  EXPECT_EQ(loss, main.loss()) << "the loss that is reported is the main classifier's";
  for (const Auxiliary& a : graph.auxiliary) {
    Trained head(GetParam(), alone(graph, a.node), 6, DType::kFloat32);
    add(head, a.weight);
  }
  const std::vector<float> g = all.gradients_now();
  EXPECT_EQ(sum.size(), all.net.layout().parameters.size());
  std::vector<float> expected(g.size());
  for (const auto& p : all.net.layout().parameters)
    std::ranges::copy(sum[p.name], expected.begin() + static_cast<std::ptrdiff_t>(p.offset));
  expect_near(g, expected, 1e-5);  // the order of sums
}

// No memory and no time: inference runs the network that has no auxiliary classifier, on buffers
// that have all parameters.
TEST_P(NetworkTest, InferenceHasNoAuxiliaryClassifiers) {
  const Graph graph = auxiliary_graph(), without = inference_graph(graph);
  EXPECT_EQ(without.nodes.size() + 7, graph.nodes.size());  // all of aux1; the trunk reads aux2
  NetworkConfig config = {.batch = 4, .training = false, .input = {}, .slice_bytes = 1};
  Trained all(GetParam(), graph, 6, DType::kFloat32), part(GetParam(), without, 6, DType::kFloat32);
  part.copy_parameters(all);
  // Neither where batch norms stay as they are.
  {
    config.fold = false;
    Network net(all.device(), graph, config);
    for (const Node& n : net.graph().nodes) EXPECT_FALSE(n.name.starts_with("aux1")) << n.name;
    EXPECT_TRUE(net.graph().auxiliary.empty());
    config.fold = true;
  }
  for (Trained* t : {&all, &part}) {
    t->statistics.read();
    std::ranges::fill(t->running.read(), 0.7f);
    t->running.write();
  }
  std::vector<std::vector<float>> logits;
  std::vector<size_t> arenas;
  std::vector<std::string> names[2];
  for (const auto& [t, g] : {std::pair{&all, &graph}, std::pair{&part, &without}}) {
    Network net(t->device(), *g, config);
    for (const Node& n : net.graph().nodes) names[arenas.size()].push_back(n.name);
    arenas.push_back(net.arena_bytes());
    EXPECT_EQ(net.layout().parameter_floats, t->parameters.size());
    net.bind({t->parameters.data(), t->running.data(), nullptr, nullptr});
    net.prepare();
    net.forward_activations(std::vector<float>(4 * 3 * 9 * 9, 0.3f).data(), {});
    logits.push_back(read_logits(t->device(), net));
    const std::vector<int32_t> labels = {0, 1, 2, 3};
    net.loss(labels.data(), 1);
    EXPECT_GT(net.loss_result().loss_sum, 0);
    EXPECT_EQ(planned_arena(*g, 4, DType::kFloat32, false, 1).bytes,
              planned_arena(without, 4, DType::kFloat32, false, 1).bytes);
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(names[0], names[1]);
  EXPECT_EQ(arenas[0], arenas[1]);
}

// The loss of the main classifier knows nothing of it: the gradient must.
TEST_P(NetworkTest, AnAuxiliaryLossThatIsNotFiniteReachesTheGradients) {
  for (const float bad : {-std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Graph graph = auxiliary_graph();
    graph.auxiliary.pop_back();  // only that whose logits nobody else reads
    Trained t(GetParam(), graph, 6, DType::kFloat32);
    const auto& all = t.net.layout().parameters;
    const auto bias = std::ranges::find(all, "aux1.fc2.bias", &ParameterLayout::Parameter::name);
    t.parameters.read()[bias->offset + 1] = bad;  // the logit of class 1 of all samples
    t.parameters.write();
    EXPECT_TRUE(std::isfinite(t.loss()));
    t.net.backward(t.step, [](size_t) {});
    const auto finite = [](float v) { return std::isfinite(v); };
    const std::vector<float> g = t.gradients_now();
    EXPECT_FALSE(std::ranges::all_of(g, finite)) << bad;
  }
}

// What slices change is the order of sums over the batch.
TEST_P(NetworkTest, SlicesOfTheBatchChangeRoundingAlone) {
  Trained whole(GetParam(), auxiliary_graph(), 6, DType::kFloat32),
      sliced(GetParam(), auxiliary_graph(), 6, DType::kFloat32, 1, 1);
  for (Trained* t : {&whole, &sliced}) {
    t->loss();
    t->backward();
  }
  expect_near(sliced.gradients_now(), whole.gradients_now(), 1e-5);
  EXPECT_LT(sliced.net.arena_bytes(), whole.net.arena_bytes());
}

// Whoever reads the image: it lies in memory as all of them would have it, or as it is.
TEST_P(NetworkTest, ReadersOfTheImageAreCloseToFp32In16Bit) {
  const auto graph_with = [](const std::function<void(Graph&)>& add_readers) {
    Graph g{.name = "readers", .image = {.n = 1, .c = 3, .h = 9, .w = 7}, .nodes = {}};
    add_readers(g);
    g.add("fc", Linear{.out_features = 5}, {static_cast<int>(g.nodes.size()) - 1});
    return g;
  };
  const Conv2d same = {.out_channels = 8, .kernel = 3, .padding = 1},
               grouped = {.out_channels = 6, .kernel = 3, .padding = 1, .groups = 3};
  const bool on_a_gpu = GetParam() == "cuda";
  EXPECT_EQ(device()->wants_four_channels(same, {.n = 6, .c = 3, .h = 9, .w = 7}, DType::kFloat16),
            on_a_gpu);
  const std::vector<Graph> graphs = {
      graph_with([&](Graph& g) { g.add("conv", same, {kImage}); }),
      graph_with([&](Graph& g) { g.add("conv", grouped, {kImage}); }),
      graph_with([&](Graph& g) {
        g.add("both", Concat{}, {g.add("a", same, {kImage}), g.add("b", same, {kImage})});
      }),
      graph_with([&](Graph& g) {
        g.add("both", Concat{}, {g.add("a", same, {kImage}), g.add("b", grouped, {kImage})});
      }),
      graph_with([&](Graph& g) {
        const Conv2d other = {.out_channels = 16, .kernel = 7, .padding = 3};
        g.add("both", Concat{}, {g.add("a", same, {kImage}), g.add("b", other, {kImage})});
      }),
      graph_with([&](Graph& g) {
        const Conv2d as_many = {.out_channels = 3, .kernel = 3, .padding = 1};
        g.add("sum", Add{}, {g.add("conv", as_many, {kImage}), g.add("bn", BatchNorm{}, {kImage})});
      }),
      graph_with([](Graph& g) { g.add("fc0", Linear{.out_features = 11}, {kImage}); })};
  for (size_t n = 0; n < graphs.size(); ++n)
    for (const int64_t slice_bytes : {0, 1}) {
      Trained exact(GetParam(), graphs[n], 6, DType::kFloat32, 1, slice_bytes);
      const double loss = exact.loss();
      exact.backward();
      const std::vector<float> gradients = exact.gradients_now();
      for (const DType type : {DType::kBfloat16, DType::kFloat16}) {
        if (!device()->supports(type)) continue;  // SixteenBitsAreCloseToFp32 says so
        SCOPED_TRACE(fmt::format("graph {}, slices {}, {}", n, slice_bytes, name_of(type)));
        Trained rounded(GetParam(), graphs[n], 6, type, 1, slice_bytes);
        EXPECT_NEAR(rounded.loss(), loss, 0.02 * loss);
        rounded.backward();
        expect_near(rounded.gradients_now(), gradients, 0.05);
      }
    }
}

TEST_P(NetworkTest, SixteenBitsAreCloseToFp32) {
  Trained exact(GetParam(), auxiliary_graph(), 8, DType::kFloat32);
  const double loss = exact.loss();
  exact.backward();
  const std::vector<float> gradients = exact.gradients_now();
  int types = 0;
  for (const DType type : {DType::kBfloat16, DType::kFloat16}) {
    if (!device()->supports(type)) continue;
    ++types;
    // bf16 keeps 8 bits; a dozen layers of rounding give a few percent of the gradient's norm.
    Trained rounded(GetParam(), auxiliary_graph(), 8, type);
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
    Trained a(GetParam(), auxiliary_graph(), 6, DType::kFloat32, threads, slice_bytes),
        b(GetParam(), auxiliary_graph(), 6, DType::kFloat32, threads, slice_bytes);
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

// What a GPU repeats has the bits of what it is told each time: with other weights, another step's
// masks, other buffers, and pieces of backward that end elsewhere.
void expect_the_bits_of_what_is_told(const std::string& device) {
  for (const DType type : {DType::kFloat32, DType::kFloat16}) {
    if (!make_test_device(device, 1)->supports(type)) continue;
    Trained told(device, auxiliary_graph(), 4, type);
    const size_t floats = told.gradients.size();
    Trained repeated(device, auxiliary_graph(), 4, type, 1, 0, true, {floats / 3, floats});
    DeviceFloats others(repeated.device(), floats);
    std::set<std::vector<float>> different;
    for (uint64_t step = 0; step < 7; ++step) {
      const bool elsewhere = step == 4;
      repeated.net.bind({repeated.parameters.data(), repeated.running.data(),
                         elsewhere ? others.data() : repeated.gradients.data(),
                         repeated.statistics.data()});
      for (Trained* t : {&told, &repeated}) {
        t->step.step = step;
        for (float& w : t->parameters.read()) w += 0.01f * static_cast<float>(step);
        t->parameters.write();
      }
      EXPECT_EQ(told.loss(), repeated.loss()) << step;
      told.backward();
      repeated.net.backward(repeated.step, [](size_t) {});
      const std::vector<float> expected = told.gradients_now();
      const auto found = elsewhere ? others.read() : repeated.gradients.read();
      EXPECT_EQ(bits_of(expected), bits_of({found.begin(), found.end()})) << step;
      EXPECT_EQ(told.statistics_now(), repeated.statistics_now()) << step;
      different.insert(expected);
    }
    EXPECT_EQ(different.size(), 7u);
  }
}
TEST_P(NetworkTest, RecordedStepsHaveTheSameBits) {
  expect_the_bits_of_what_is_told(GetParam());
}
// Where a driver makes no graphs.
TEST_P(NetworkTest, StepsThatCannotBeRecordedHaveTheSameBits) {
  ::setenv("CONVOY_EMULATED_GPU_NO_GRAPHS", "1", 1);
  expect_the_bits_of_what_is_told(GetParam());
  ::unsetenv("CONVOY_EMULATED_GPU_NO_GRAPHS");
}

// And they are there when backward() tells of them.
TEST_P(NetworkTest, GradientsThatAreComputedAsideHaveTheSameBits) {
  for (const DType type : {DType::kFloat32, DType::kFloat16})
    for (const int64_t slice_bytes : {0, 1, 900})
      for (const bool record : {false, true}) {
        if (!device()->supports(type)) continue;
        Trained in_order(GetParam(), auxiliary_graph(), 4, type, 1, slice_bytes, record, {}, false),
            aside(GetParam(), auxiliary_graph(), 4, type, 1, slice_bytes, record);
        if (GetParam() == "cuda" && slice_bytes == 0)
          EXPECT_GT(aside.net.arena_bytes(), in_order.net.arena_bytes());
        else
          EXPECT_GE(aside.net.arena_bytes(), in_order.net.arena_bytes());
        for (uint64_t step = 0; step < 4; ++step) {
          in_order.step.step = aside.step.step = step;
          EXPECT_EQ(in_order.loss(), aside.loss());
          in_order.backward();
          SCOPED_TRACE(fmt::format("{}, slices {}, graphs {}", name_of(type), slice_bytes, record));
          aside.backward_gives(in_order.gradients_now());
        }
      }
}

// The first stages of a ResNet: what merge_batch_norms() looks for, between two batch norms that it
// leaves.
Graph stages_graph() {
  Graph g{.name = "stages", .image = {.n = 1, .c = 3, .h = 19, .w = 22}, .nodes = {}};
  const auto block = [&](const std::string& name, int x, int64_t channels, int64_t stride) {
    const int short_conv = g.add(
        name + ".short", Conv2d{.out_channels = channels, .kernel = 1, .stride = stride}, {x});
    const int first =
        g.add(name + ".conv1",
              Conv2d{.out_channels = channels, .kernel = 3, .stride = stride, .padding = 1}, {x});
    const int relu = g.add(name + ".relu", Relu{}, {g.add(name + ".bn1", BatchNorm{}, {first})});
    const int second =
        g.add(name + ".conv2", Conv2d{.out_channels = channels, .kernel = 3, .padding = 1}, {relu});
    const int shortcut = g.add(name + ".short_bn", BatchNorm{.epsilon = 0.01}, {short_conv});
    const int bn = g.add(name + ".bn2", BatchNorm{}, {second});
    return g.add(name + ".out", Relu{}, {g.add(name + ".add", Add{}, {bn, shortcut})});
  };
  int x = g.add("conv", Conv2d{.out_channels = 8, .kernel = 3, .padding = 1}, {kImage});
  x = g.add("relu", Relu{}, {g.add("bn", BatchNorm{}, {x})});
  x = g.add("pool", MaxPool{}, {x});
  x = block("a", block("b", x, 12, 1), 16, 2);
  x = g.add("last_pool", MaxPool{}, {g.add("last_bn", BatchNorm{}, {x})});
  g.add("fc", Linear{.out_features = 5}, {g.add("mean", GlobalAvgPool{}, {x})});
  return g;
}

// Where merging has to look twice: the image, batch norms of batch norms, several readers, a pooled
// one as a residual, a pool behind a pool.
Graph odd_stages_graph() {
  Graph g{.name = "odd", .image = {.n = 1, .c = 3, .h = 18, .w = 21}, .nodes = {}};
  const auto norm = [&](const std::string& name, int x) { return g.add(name, BatchNorm{}, {x}); };
  const auto convolve = [&](const std::string& name, int x, int64_t channels) {
    return g.add(name, Conv2d{.out_channels = channels, .kernel = 3, .padding = 1}, {x});
  };
  const auto sum = [&](const std::string& name, int a, int b) {
    return g.add(name, Add{}, {a, b});
  };
  int x = sum("of_image", norm("main0", convolve("conv0", kImage, 3)), norm("image_bn", kImage));
  x = sum("of_norm", norm("main1", convolve("conv1", x, 3)),
          norm("norm_of_norm", norm("inner", convolve("conv_inner", x, 3))));
  x = g.add("pool1", MaxPool{}, {g.add("relu1", Relu{}, {norm("bn1", convolve("conv2", x, 8))})});
  x = g.add("pool2", MaxPool{.kernel = 2, .padding = 0}, {x});  // behind a pool
  const int both = convolve("both", x, 8);
  x = sum("of_both", norm("both_a", both), norm("both_b", both));
  // Of three who read a convolution the shortcut is the first.
  const int three = convolve("three", x, 8);
  const int shortcut = norm("three_bn", three), other = convolve("three_conv", three, 8);
  x = sum("of_three", sum("more", other, three),
          sum("late", norm("main3", convolve("conv3", x, 8)), shortcut));
  const int pooled = g.add("pool3", MaxPool{}, {norm("bn3", convolve("conv4", x, 8))});
  const int strided =
      g.add("strided", Conv2d{.out_channels = 8, .kernel = 3, .stride = 2, .padding = 1}, {x});
  x = sum("of_pooled", norm("main4", strided), pooled);
  g.add("fc", Linear{.out_features = 5}, {g.add("mean", GlobalAvgPool{}, {x})});
  return g;
}

// Batch norms whose gradients come from convolutions that skip pixels, and from others: as in a
// ResNet, with the stride in the first convolution, too, and without a residual.
Graph skipping_graph() {
  Graph g{.name = "skipping", .image = {.n = 1, .c = 3, .h = 13, .w = 10}, .nodes = {}};
  const auto convolve = [&](const std::string& name, int x, int64_t channels, int64_t stride) {
    return g.add(name, Conv2d{.out_channels = channels, .kernel = 1, .stride = stride}, {x});
  };
  const auto block = [&](const std::string& name, int x, int64_t channels, int64_t first,
                         int64_t stride) {
    int y = g.add(name + ".bn1", BatchNorm{}, {convolve(name + ".conv1", x, 8, first)});
    y = g.add(name + ".conv2",
              Conv2d{.out_channels = channels, .stride = stride / first, .padding = 1},
              {g.add(name + ".relu1", Relu{}, {y})});
    y = g.add(name + ".bn2", BatchNorm{}, {y});
    if (stride > 1)
      x = g.add(name + ".short_bn", BatchNorm{}, {convolve(name + ".short", x, channels, stride)});
    return g.add(name + ".out", Relu{}, {g.add(name + ".add", Add{}, {y, x})});
  };
  int x = g.add("bn", BatchNorm{}, {convolve("conv", kImage, 12, 1)});
  x = block("a", g.add("relu", Relu{}, {x}), 12, 1, 1);
  x = block("b", x, 17, 1, 2);
  x = block("c", x, 16, 3, 3);
  x = g.add("d.bn", BatchNorm{}, {convolve("d.conv", x, 16, 1)});
  const int pool = g.add("d.pool", MaxPool{}, {x});
  x = g.add("d.join", Concat{}, {convolve("d.short", x, 8, 2), pool});
  g.add("fc", Linear{.out_features = 5}, {g.add("mean", GlobalAvgPool{}, {x})});
  return g;
}

std::vector<std::string> compact_of(const Graph& graph) {
  std::vector<std::string> all;
  for (const Node& n : graph.nodes) {
    const BackwardNeeds needs = backward_needs(n.op);
    if (needs.dx_stride > 1) all.push_back(fmt::format("{} gives {}", n.name, needs.dx_stride));
    if (needs.dy1_stride > 1) all.push_back(fmt::format("{} adds {}", n.name, needs.dy1_stride));
  }
  return all;
}

TEST(Fusion, OneOfTwoGradientsOfABatchNormStaysCompact) {
  using Names = std::vector<std::string>;
  const Graph fused = fuse(skipping_graph()), merged = merge_batch_norms(fused).graph;
  EXPECT_EQ(compact_of(fused), Names{});
  EXPECT_EQ(compact_of(merged), (Names{"a.bn2 adds 2", "b.short gives 2", "b.bn2 adds 3",
                                       "c.short gives 3", "d.bn adds 2", "d.short gives 2"}));
  EXPECT_EQ(compact_of(merge_batch_norms(fuse(stages_graph())).graph),
            (Names{"b.bn2 adds 2", "a.short gives 2"}));

  // It lies behind the whole one, whoever goes backward first.
  for (const int64_t slice_bytes : {int64_t{1}, int64_t{1} << 62}) {
    const PassPlan passes = plan_passes(merged, 4, DType::kFloat16, true, slice_bytes);
    const NetworkMemory memory = network_memory(merged, passes, 4, DType::kFloat16, true);
    const auto bytes = [&](const std::string& name, size_t k) {
      const auto& dy = memory.dy[static_cast<size_t>(index_of(merged, name) + 1)];
      EXPECT_EQ(dy.size(), 2u);
      return memory.buffers[static_cast<size_t>(dy.at(k))].bytes;
    };
    EXPECT_EQ(bytes("a.bn2", 0), 4u * 13 * 10 * 12 * 2);
    EXPECT_EQ(bytes("a.bn2", 1), 4u * 7 * 5 * 12 * 2);
    EXPECT_EQ(bytes("b.bn2", 0), 4u * 7 * 5 * 17 * 2);
    EXPECT_EQ(bytes("b.bn2", 1), 4u * 3 * 2 * 17 * 2);
    EXPECT_EQ(bytes("d.bn", 1), 4u * 2 * 1 * 16 * 2);
  }

  // Nor with a third gradient, or of a convolution that sees more.
  const auto left = [&](const std::function<void(Graph&)>& change) {
    Graph g = fused;
    change(g);
    return compact_of(merge_batch_norms(g).graph).size();
  };
  const auto conv = [](Graph& g, const std::string& name) -> Conv2d& {
    return std::get<Conv2d>(node_of(g, name).op);
  };
  EXPECT_EQ(left([&](Graph& g) { g.auxiliary = {{index_of(g, "d.bn"), 1.0}}; }), 4u);
  EXPECT_EQ(left([&](Graph& g) { node_of(g, "d.join").inputs.push_back(index_of(g, "d.bn")); }),
            4u);
  EXPECT_EQ(left([&](Graph& g) { node_of(g, "d.pool").inputs = {index_of(g, "c.bn2")}; }), 4u);
  EXPECT_EQ(left([&](Graph& g) { conv(g, "b.short").kernel = 2; }), 4u);
  EXPECT_EQ(left([&](Graph& g) { conv(g, "b.short").padding = 1; }), 4u);
  EXPECT_EQ(left([&](Graph& g) { conv(g, "b.short").stride = 1; }), 4u);
  EXPECT_EQ(left([&](Graph& g) { conv(g, "c.short").kernel = 2; }), 6u);  // c.conv1 in its place
}

std::vector<std::string> batch_norms_of(const Graph& graph) {
  std::vector<std::string> all;
  for (const Node& n : graph.nodes)
    if (std::holds_alternative<BatchNorm>(n.op)) all.push_back(n.name + ": " + kind_of(n.op));
  return all;
}

TEST(Fusion, MergesBatchNormsWithShortcutsAndPools) {
  using Names = std::vector<std::string>;
  const Graph fused = fuse(stages_graph());
  const RunningGraph merged = merge_batch_norms(fused);
  EXPECT_EQ(batch_norms_of(merged.graph),
            (Names{"bn: BatchNorm+ReLU+MaxPool", "b.bn1: BatchNorm+ReLU",
                   "b.bn2: BatchNorm+BatchNorm+Add+ReLU", "a.bn1: BatchNorm+ReLU",
                   "a.bn2: BatchNorm+BatchNorm+Add+ReLU", "last_bn: BatchNorm+MaxPool"}));
  for (size_t i = 0; i < fused.nodes.size(); ++i) {
    const std::string& name = fused.nodes[i].name;
    const std::string expected = name == "pool"         ? "bn"
                                 : name == "last_pool"  ? "last_bn"
                                 : name == "a.short_bn" ? "a.bn2"
                                 : name == "b.short_bn" ? "b.bn2"
                                                        : name;
    EXPECT_EQ(merged.graph.nodes[merged.node_of[i]].name, expected);
  }
  // What both read and what they are: the shapes stay.
  EXPECT_EQ(infer_shapes(merged.graph, 2).back(), infer_shapes(fused, 2).back());
  const Node& pair =
      merged.graph.nodes[merged.node_of[static_cast<size_t>(index_of(fused, "a.bn2"))]];
  EXPECT_EQ(std::get<BatchNorm>(pair.op).shortcut->epsilon, 0.01);
  EXPECT_EQ(merged.graph.nodes[static_cast<size_t>(pair.inputs[1])].name, "a.short");

  // Frozen ones, whose statistics are no batch's, stay; a parameter that is frozen does not matter.
  const auto left = [&](const std::set<std::string>& frozen) {
    return batch_norms_of(merge_batch_norms(fuse(freeze(stages_graph(), frozen))).graph).size();
  };
  EXPECT_EQ(left({"a.short_bn.weight", "b.bn2.bias", "bn.weight"}), 6u);
  EXPECT_EQ(left({"a.short_bn.weight", "a.short_bn.bias"}), 7u);
  EXPECT_EQ(left({"a.bn2.weight", "a.bn2.bias"}), 7u);
  const std::set<std::string> pooled = {"bn.weight", "bn.bias"};
  EXPECT_EQ(merge_batch_norms(fuse(freeze(stages_graph(), pooled))).graph.nodes.size(),
            merged.graph.nodes.size() + 1);

  EXPECT_EQ(batch_norms_of(merge_batch_norms(fuse(odd_stages_graph())).graph),
            (Names{"main0: BatchNorm+BatchNorm+Add", "inner: BatchNorm",
                   "main1: BatchNorm+BatchNorm+Add", "bn1: BatchNorm+ReLU+MaxPool",
                   "both_b: BatchNorm", "both_a: BatchNorm+Add", "three_bn: BatchNorm",
                   "main3: BatchNorm+Add", "bn3: BatchNorm+MaxPool", "main4: BatchNorm+Add"}));

  // Nor what somebody else reads, has a ReLU or a residual of its own, or is pooled otherwise.
  const auto changed = [&](const std::function<void(Graph&)>& change) {
    Graph g = fused;
    change(g);
    return merge_batch_norms(g).graph.nodes.size() - merged.graph.nodes.size();
  };
  const auto spec = [](Graph& g, const std::string& name) -> BatchNorm& {
    return std::get<BatchNorm>(node_of(g, name).op);
  };
  EXPECT_EQ(changed([&](Graph& g) { spec(g, "a.short_bn").relu = true; }), 1u);
  EXPECT_EQ(changed([&](Graph& g) {
              spec(g, "a.short_bn").residual = true;
              node_of(g, "a.short_bn").inputs.push_back(index_of(g, "a.short"));
            }),
            1u);
  EXPECT_EQ(changed([&](Graph& g) { node_of(g, "fc").inputs = {index_of(g, "bn")}; }), 1u);
  EXPECT_EQ(changed([&](Graph& g) { g.auxiliary = {{index_of(g, "b.short_bn"), 1.0}}; }), 1u);
  EXPECT_EQ(changed([&](Graph& g) { std::get<MaxPool>(node_of(g, "pool").op).stride = 1; }), 1u);
  EXPECT_EQ(changed([&](Graph& g) { std::get<MaxPool>(node_of(g, "pool").op).kernel = 5; }), 1u);
}

void expect_the_bits_of_batch_norms_apart(const std::string& device, const Graph& graph,
                                          int64_t slice_bytes) {
  const bool merges = make_test_device(device, 1)->merges_batch_norms();
  for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16})
    for (const bool record : {false, true}) {
      if (!make_test_device(device, 1)->supports(type)) continue;
      SCOPED_TRACE(fmt::format("{}, slices {}, graphs {}", name_of(type), slice_bytes, record));
      Trained apart(device, graph, 4, type, 1, slice_bytes, record, {}, true, false),
          merged(device, graph, 4, type, 1, slice_bytes, record);
      const size_t nodes = merged.net.graph().nodes.size();
      if (merges)
        EXPECT_LT(nodes, apart.net.graph().nodes.size());
      else
        EXPECT_EQ(nodes, apart.net.graph().nodes.size());
      for (int step = 0; step < 3; ++step) {
        EXPECT_EQ(apart.loss(), merged.loss());
        EXPECT_EQ(bits_of(apart.statistics_now()), bits_of(merged.statistics_now()));
        apart.backward();
        merged.backward_gives(apart.gradients_now());
      }
    }
}

// Whatever is frozen: merged batch norms are the same ones. (In slices, too, where those of a
// pooled one are those that it has apart.)
TEST_P(NetworkTest, MergedBatchNormsHaveTheSameBits) {
  for (const std::set<std::string>& frozen :
       {std::set<std::string>{},
        {"a.short_bn.weight"},
        {"conv.weight", "bn.weight", "b.bn2.bias", "b.short.weight"},
        {"conv.weight", "bn.weight", "bn.bias", "b.short.weight", "b.conv1.weight", "b.bn1.bias"}})
    for (const int64_t slice_bytes : {0, 1}) {
      SCOPED_TRACE(fmt::format("{} frozen", frozen.size()));
      expect_the_bits_of_batch_norms_apart(GetParam(), freeze(stages_graph(), frozen), slice_bytes);
    }
  expect_the_bits_of_batch_norms_apart(GetParam(), odd_stages_graph(), 0);
  for (const std::set<std::string>& frozen :
       {std::set<std::string>{},
        {"a.bn2.weight", "a.bn2.bias", "b.short.weight", "d.bn.weight", "d.bn.bias"},
        {"conv.weight", "bn.weight", "bn.bias", "a.conv1.weight", "b.bn1.bias"}})
    for (const int64_t slice_bytes : {0, 1})
      expect_the_bits_of_batch_norms_apart(GetParam(), freeze(skipping_graph(), frozen),
                                           slice_bytes);
  const Graph graph = stages_graph();
  const NetworkConfig apart = {.batch = 4, .merge = false, .input = {}};
  if (device()->merges_batch_norms()) {
    EXPECT_LT(Network(*device(), graph, {.batch = 4, .input = {}}).arena_bytes(),
              Network(*device(), graph, apart).arena_bytes());
  }
}

TEST_P(NetworkTest, BackwardTellsOfTheStopsThatItPasses) {
  const auto told_with = [&](const std::vector<size_t>& stops) {
    Trained t(GetParam(), small_graph(), 2, DType::kFloat32, 1, 0, true, stops);
    std::vector<size_t> told;
    t.loss();
    t.net.backward(t.step, [&](size_t ready) { told.push_back(ready); });
    return told;
  };
  const std::vector<size_t> all = told_with({});
  ASSERT_GT(all.size(), 3u);
  EXPECT_EQ(told_with(all), all);
  EXPECT_EQ(told_with({all.back()}), std::vector<size_t>{all.back()});
  EXPECT_EQ(told_with({1, all[0] + 1, all.back()}),
            (std::vector<size_t>{all[0], all[1], all.back()}));
  // Two that one segment passes.
  EXPECT_EQ(told_with({all[1] - 1, all[1], all.back()}), (std::vector<size_t>{all[1], all.back()}));
}

// Lanes pack their weights once for all of them, each a part.
TEST(Network, SharedWeightsAreTheOthersAndPackedInParts) {
  // Without AMX, in bf16 the first convolution takes the kernels for first layers; the second takes
  // Winograd's, also in fp32, the third oneDNN's.
  Graph graph{.name = "three", .image = {.n = 1, .c = 3, .h = 8, .w = 8}, .nodes = {}};
  int x = graph.add("conv_a", Conv2d{.out_channels = 16, .padding = 1}, {kImage});
  x = graph.add("bn", BatchNorm{}, {x});
  x = graph.add("conv_b", Conv2d{.out_channels = 16, .padding = 1}, {x});
  x = graph.add("conv_c", Conv2d{.out_channels = 24, .kernel = 1, .bias = true}, {x});
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
  EXPECT_EQ(kinds,
            (std::vector<std::string>{
                "stem:Conv2d", "stem_bn:BatchNorm+ReLU", "max_pool:MaxPool",
                "lrn:LocalResponseNorm", "conv_a:Conv2d", "bn_a:BatchNorm+Add+ReLU",
                "conv_b:Conv2d", "skip:Subsample", "bn_b:BatchNorm+Add+ReLU", "avg_pool:AvgPool",
                "conv_c:Conv2d", "gate:Sigmoid", "gated:Multiply", "concat:Concat",
                "grid:AdaptiveAvgPool", "pool:GlobalAvgPool", "dropout:Dropout", "fc:Linear"}));
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

TEST(Fusion, AnAuxiliaryClassifierIsARelayThatStays) {
  Graph g{.name = "aux", .image = {.n = 1, .c = 2, .h = 1, .w = 1}, .nodes = {}};
  const int bn = g.add("bn", BatchNorm{}, {kImage});
  g.add("relu", Relu{}, {bn});
  EXPECT_EQ(fuse(g).nodes.size(), 1u);
  g.auxiliary = {{.node = bn, .weight = 1}};
  EXPECT_EQ(fuse(g).nodes.size(), 2u);  // the loss reads the batch norm's own output

  // What is fused before it moves its number.
  const Graph fused = fuse(auxiliary_graph());
  ASSERT_EQ(fused.auxiliary.size(), 2u);
  EXPECT_EQ(fused.auxiliary[0].node, index_of(fused, "aux1.fc2"));
  EXPECT_EQ(fused.auxiliary[1].node, index_of(fused, "aux2.bn"));
  EXPECT_EQ(fused.auxiliary[1].weight, 0.8);
  const RunningGraph folded = fold_batch_norms(fused);
  EXPECT_TRUE(folded.graph.auxiliary.empty());
  for (size_t i = 0; i < fused.nodes.size(); ++i) {
    const bool is_gone = fused.nodes[i].name.starts_with("aux1.");
    EXPECT_EQ(folded.node_of[i] == kNobody, is_gone) << fused.nodes[i].name;
    EXPECT_TRUE(is_gone || folded.node_of[i] < folded.graph.nodes.size());
  }
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
  const RunningGraph folded = fold_batch_norms(fused);
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
  const RunningGraph folded = fold_batch_norms(fused);
  std::vector<std::string> kinds;
  for (const Node& n : folded.graph.nodes) kinds.push_back(n.name + ":" + kind_of(n.op));
  EXPECT_EQ(kinds, (std::vector<std::string>{"conv:Conv2d+BatchNorm+ReLU", "bn_second:BatchNorm",
                                             "fc:Linear"}));
  EXPECT_EQ(folded.node_of, (std::vector<size_t>{0, 0, 1, 2}));
}

void expect_folded_equals_unfolded(const std::string& device_name, int64_t slice_bytes) {
  for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16}) {
    const auto device = make_test_device(device_name, 1);
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
  std::get<Conv2d>(node_of(g, "conv_a").op).groups = 3;
  EXPECT_NE(
      error_of(g).find("\"conv_a\": 8 input and 8 output channels do not divide into 3 groups"),
      std::string::npos)
      << error_of(g);
  g = good;
  node_of(g, "add_a").inputs = {5};
  EXPECT_NE(error_of(g).find("\"add_a\": takes 2 input(s), got 1"), std::string::npos)
      << error_of(g);
  g = good;
  node_of(g, "add_a").inputs = {5, 20};
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

TEST(Graph, AuxiliaryClassifiersThatAreNoneAreNamed) {
  const Graph good = auxiliary_graph();
  const int last = static_cast<int>(good.nodes.size()) - 1;
  const auto with = [&](int node, double weight) {
    Graph g = good;
    g.auxiliary.back() = {.node = node, .weight = weight};
    return error_of(g);
  };
  const int aux2 = good.auxiliary[1].node;
  EXPECT_EQ(with(aux2, 0), "");
  const auto expect = [](const std::string& error, const char* part) {
    EXPECT_NE(error.find(part), std::string::npos) << error;
  };
  for (const double weight : {-0.3, std::nan(""), std::numeric_limits<double>::infinity()})
    expect(with(aux2, weight), "\"aux2.bn\": its weight is");
  for (const int node : {-1, -7, last + 1, 1 << 30})
    expect(with(node, 0.3), "auxiliary classifier 1");
  expect(with(last, 0.3), "\"fc\" is the last node");
  expect(with(index_of(good, "relu_a"), 0.3),
         "\"relu_a\" gives [2, 8, 5, 5]; it must give a logit for each of the 5 classes, [2, 5, 1, "
         "1]");
  expect(with(index_of(good, "aux1.fc1"), 0.3), "\"aux1.fc1\" gives [2, 12, 1, 1]");
  expect(with(good.auxiliary[0].node, 0.3), "\"aux1.fc2\" is there twice");
}

// Sizes of a hostile file, whose products no integer holds.
TEST(Graph, SizesBeyondAllMemoryAreErrors) {
  const auto with = [](const Shape& image, const OpSpec& spec) {
    Graph g{.name = "big", .image = image, .nodes = {}};
    g.add("node", spec, {kImage});
    return error_of(g);
  };
  constexpr int64_t kBig = 4294967295;
  const Shape small = {.n = 1, .c = 3, .h = 32, .w = 32};
  EXPECT_NE(with({1, kBig, kBig, kBig}, Relu{}).find("images of"), std::string::npos);
  for (const OpSpec& spec :
       {OpSpec(AdaptiveAvgPool{.h = kBig, .w = kBig}), OpSpec(Linear{.out_features = kBig}),
        OpSpec(Conv2d{.out_channels = kBig, .padding = kBig}),
        OpSpec(Conv2d{.out_channels = kBig, .kernel = 32}),
        OpSpec(Conv2d{.out_channels = 8, .kernel = kBig, .padding = kBig})})
    EXPECT_NE(with({.n = 1, .c = int64_t{1} << 20, .h = 32, .w = 32}, spec).find("\"node\": "),
              std::string::npos)
        << kind_of(spec) << ": " << with(small, spec);
  Graph many{.name = "many", .image = small, .nodes = {}};
  int x = kImage;
  for (int i = 0; i < 40000; ++i) x = many.add(std::to_string(i), Relu{}, {x});
  EXPECT_NE(error_of(many).find("40000 nodes"), std::string::npos) << error_of(many);
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

TEST(Graph, ParametersStartAsTheirSpecsSay) {
  Graph g{.name = "starts", .image = {.n = 1, .c = 64, .h = 8, .w = 8}, .nodes = {}};
  const auto conv = [](double std, std::optional<double> bias) {
    return Conv2d{
        .out_channels = 128, .padding = 1, .bias = true, .weight_std = std, .bias_init = bias};
  };
  int x = g.add("usual", conv(0, {}), {kImage});
  x = g.add("conv", conv(0.01, 0.2), {x});
  x = g.add("pool", GlobalAvgPool{}, {x});
  x = g.add("fc1", Linear{.out_features = 300, .weight_std = 0.05, .bias_init = 0}, {x});
  g.add("fc2", Linear{.out_features = 10}, {x});
  const ParameterLayout layout = layout_of(g);
  std::vector<float> w(layout.parameter_floats);
  initialise(layout, 1, w.data());
  const auto values = [&](const char* name) {
    const auto p = std::ranges::find(layout.parameters, name, &ParameterLayout::Parameter::name);
    const auto begin = w.begin() + static_cast<std::ptrdiff_t>(p->offset);
    return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(p->floats()));
  };
  const auto deviation = [&](const char* name) {
    return norm(values(name)) / std::sqrt(static_cast<double>(values(name).size()));
  };
  // 147,456 and 38,400 draws: five standard errors are 1 % and 2 %.
  EXPECT_NEAR(deviation("conv.weight"), 0.01, 1e-4);
  EXPECT_NEAR(deviation("fc1.weight"), 0.05, 1e-3);
  EXPECT_EQ(values("conv.bias"), std::vector<float>(128, 0.2f));
  EXPECT_EQ(values("fc1.bias"), std::vector<float>(300, 0.0f));
  // As they have always started, bit for bit: these lie in checkpoints and recorded results.
  EXPECT_NEAR(deviation("usual.weight"), std::sqrt(2.0 / 1152), 0.001);
  EXPECT_EQ(values("usual.bias")[0], 0x1.88e05p-6f);
  EXPECT_EQ(values("fc2.weight")[7], 0x1.5871c2p-5f);

  const auto error = [](const Conv2d& spec) {
    Graph bad{.name = "bad", .image = {.n = 1, .c = 3, .h = 8, .w = 8}, .nodes = {}};
    bad.add("conv", spec, {kImage});
    return error_of(bad);
  };
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    EXPECT_NE(error(conv(bad, {})).find("\"conv\": weight_std is"), std::string::npos);
  for (const double bad : {std::nan(""), -std::numeric_limits<double>::infinity()})
    EXPECT_NE(error(conv(0, bad)).find("\"conv\": bias_init is"), std::string::npos);
}

// ---- Freezing ----

// Parameters of these nodes.
Graph freeze_nodes(const Graph& graph, const std::set<std::string>& nodes) {
  return freeze(graph, [&](const std::string& name) {
    return nodes.contains(name.substr(0, name.rfind('.')));
  });
}

// All batch norms, and nothing else.
const std::set<std::string> kBatchNorms = {"stem_bn", "bn_a", "bn_b", "aux1.bn", "aux2.bn"};
// What a gradient reaches only through what is frozen, and what none reaches at all.
const std::set<std::string> kStem = {"stem", "stem_bn"};
const std::set<std::string> kMiddle = {"conv_a", "bn_a", "conv_b", "stem_bn"};

std::set<std::string> with_batch_norms(std::set<std::string> nodes) {
  nodes.insert(kBatchNorms.begin(), kBatchNorms.end());
  return nodes;
}

std::map<std::string, std::vector<float>> gradients_by_name(Trained& t) {
  std::map<std::string, std::vector<float>> out;
  const std::vector<float> all = t.gradients_now();
  for (const auto& p : t.net.layout().parameters)
    if (p.trained) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>(p.gradient);
      out[p.name] = {begin, begin + static_cast<ptrdiff_t>(p.floats())};
    }
  return out;
}

// Numbers that differ from 0 and 1, and from channel to channel.
void set_running(Trained& t) {
  const std::span<float> running = t.running.read();
  for (const auto& s : t.net.layout().statistics)
    for (size_t k = 0; k < static_cast<size_t>(s.channels); ++k) {
      running[s.offset + k] = random_float(11, s.offset + k) - 0.5f;
      running[s.offset + static_cast<size_t>(s.channels) + k] =
          0.5f + random_float(12, s.offset + k);
    }
  t.running.write();
}

// What is trained has the very gradients that it has where only the batch norms are frozen,
// whatever else is; in slices and whole.
void expect_the_same_gradients(const std::string& device, const Graph& graph, DType type,
                               const std::vector<std::set<std::string>>& frozen) {
  Trained all(device, freeze_nodes(graph, with_batch_norms({})), 3, type, 1, 1);
  set_running(all);
  const double loss = all.loss();
  all.backward();
  const auto expected = gradients_by_name(all);
  for (const auto& nodes : frozen) {
    Trained t(device, freeze_nodes(graph, nodes), 3, type, 1, 1);
    set_running(t);
    EXPECT_EQ(t.loss(), loss);
    t.backward();
    const auto found = gradients_by_name(t);
    EXPECT_EQ(found.size(), [&] {
      size_t trained = 0;
      for (const auto& [name, gradient] : expected)
        trained += nodes.contains(name.substr(0, name.rfind('.'))) ? 0 : 1;
      return trained;
    }());
    EXPECT_FALSE(found.empty());
    for (const auto& [name, gradient] : found)
      EXPECT_EQ(bits_of(gradient), bits_of(expected.at(name))) << name;
    // A second step finds nothing of the first.
    EXPECT_EQ(t.loss(), loss);
    t.backward();
    EXPECT_EQ(gradients_by_name(t), found);
  }
}

TEST_P(NetworkTest, FrozenNodesLeaveTheOthersTheirGradients) {
  for (const DType type : {DType::kFloat32, DType::kBfloat16})
    if (device()->supports(type))
      expect_the_same_gradients(
          GetParam(), small_graph(), type,
          {with_batch_norms(kStem), with_batch_norms(kMiddle),
           with_batch_norms({"stem", "conv_a", "conv_b", "conv_c"}), with_batch_norms({"fc"})});
}

// Either factor, or both, or only what is behind them: the gradient of one reads the other's value.
TEST_P(NetworkTest, AGateMayBeFrozen) {
  Graph g{.name = "gate", .image = {.n = 1, .c = 3, .h = 5, .w = 5}, .nodes = {}};
  const Conv2d conv = {.out_channels = 8, .padding = 1, .bias = true};
  const int h = g.add("h", conv, {kImage});
  const int t = g.add("gate", Sigmoid{}, {g.add("t", conv, {kImage})});
  int x = g.add("lrn", LocalResponseNorm{.size = 3}, {g.add("product", Multiply{}, {h, t})});
  x = g.add("grid", AdaptiveAvgPool{.h = 2, .w = 2}, {x});
  g.add("fc", Linear{.out_features = 5}, {x});
  for (const DType type : {DType::kFloat32, DType::kBfloat16})
    if (device()->supports(type))
      expect_the_same_gradients(GetParam(), g, type, {{"h"}, {"t"}, {"h", "t"}, {"fc"}});
}

// The trunk's head alone, where no auxiliary classifier trains anything; an auxiliary one alone,
// which leaves the trunk's loss without a gradient; what only they go through.
TEST_P(NetworkTest, AuxiliaryClassifiersMayBeFrozen) {
  const Graph graph = auxiliary_graph();
  const auto all_but = [&](const std::string& trained) {
    std::set<std::string> names;
    for (const Node& node : graph.nodes)
      if (node.name != trained) names.insert(node.name);
    return names;
  };
  for (const DType type : {DType::kFloat32, DType::kBfloat16})
    if (device()->supports(type))
      expect_the_same_gradients(
          GetParam(), graph, type,
          {all_but("fc"), all_but("aux1.fc2"), all_but("aux2.fc"), all_but("conv_b"),
           with_batch_norms({"aux1.conv", "aux1.fc1", "aux1.fc2"}), with_batch_norms(kStem)});
  const NetworkMemory head_alone =
      network_memory(freeze_nodes(graph, all_but("fc")),
                     plan_passes(freeze_nodes(graph, all_but("fc")), 2, DType::kFloat32, true, 1),
                     2, DType::kFloat32, true);
  EXPECT_EQ(head_alone.auxiliary_dlogits, (std::vector<int>{-1, -1}));
}

// Weight and bias of one node may differ. A batch norm then is no frozen one.
TEST_P(NetworkTest, OnePartOfANodeMayBeFrozen) {
  Trained all(GetParam(), small_graph(), 3, DType::kFloat32, 1, 1);
  all.loss();
  all.backward();
  const auto expected = gradients_by_name(all);
  for (const std::string part : {".weight", ".bias"}) {
    const Graph graph =
        freeze(small_graph(), [&](const std::string& name) { return name.ends_with(part); });
    Trained t(GetParam(), graph, 3, DType::kFloat32, 1, 1);
    t.loss();
    t.backward();
    const auto found = gradients_by_name(t);
    EXPECT_EQ(found.empty(), false);
    for (const auto& [name, gradient] : found) {
      EXPECT_FALSE(name.ends_with(part)) << name;
      EXPECT_EQ(bits_of(gradient), bits_of(expected.at(name))) << name;
    }
  }
}

// Along random directions, with frozen convolutions and batch norms between what is trained.
TEST_P(NetworkTest, GradientsPastFrozenNodesEqualDifferences) {
  Trained t(GetParam(), freeze_nodes(small_graph(), kMiddle), 4, DType::kFloat32);
  set_running(t);
  t.loss();
  t.backward();
  const auto gradients = gradients_by_name(t);
  for (uint64_t trial = 0; trial < 4; ++trial) {
    const std::span<float> w = t.parameters.read();
    const std::vector<float> before(w.begin(), w.end());
    // A step in which nothing flips at a ReLU or a maximum; the sums of losses round by 1e-7.
    const float h = 1e-3f;
    double along = 0, squares = 0;
    const auto moved = [&](float sign) {
      const std::span<float> now = t.parameters.read();
      along = squares = 0;
      for (const auto& p : t.net.layout().parameters)
        for (size_t i = 0; p.trained && i < p.floats(); ++i) {
          const float direction = 2 * random_float(20 + trial, p.offset + i) - 1;
          now[p.offset + i] = before[p.offset + i] + sign * h * direction;
          along += double{direction} * double{gradients.at(p.name)[i]};
          squares += double{gradients.at(p.name)[i]} * double{gradients.at(p.name)[i]};
        }
      t.parameters.write();
      return t.loss();
    };
    const double above = moved(1), below = moved(-1);
    EXPECT_NEAR(along, (above - below) / (2 * double{h}), 5e-3 * std::sqrt(squares)) << trial;
    std::ranges::copy(before, t.parameters.read().begin());
    t.parameters.write();
  }
}

// Below the lowest node that is trained nothing goes backward, nothing is kept, and the images'
// tensors make room for others.
TEST_P(NetworkTest, BackwardEndsAtTheLowestTrainedNode) {
  const Graph graph =
      freeze_nodes(fuse(small_graph()), with_batch_norms({"stem", "conv_a", "conv_b", "conv_c"}));
  const PassPlan passes = plan_passes(graph, 2, DType::kFloat32, true, 1 << 20);
  std::set<std::string> backward;
  for (const Segment& segment : passes.backward)
    for (const Call& call : segment.calls) backward.insert(graph.nodes[call.node].name);
  EXPECT_EQ(backward, std::set<std::string>{"fc"});
  const NetworkMemory memory = network_memory(graph, passes, 2, DType::kFloat32, true);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const bool is_dropout = graph.nodes[i].name == "dropout";  // draws its mask all the same
    EXPECT_EQ(memory.saved[i] >= 0, is_dropout) << graph.nodes[i].name;
    for (const int dx : memory.dx[i]) EXPECT_EQ(dx, -1) << graph.nodes[i].name;
  }
  const auto arena = [](const Graph& g) {
    return planned_arena(g, 8, DType::kFloat32, true, 1).bytes;  // sample by sample
  };
  EXPECT_LT(arena(graph), arena(small_graph()) / 2);
}

TEST(Freezing, LayoutKeepsPlacesAndPacksGradients) {
  const Graph graph = freeze_nodes(small_graph(), kMiddle);
  const ParameterLayout whole = layout_of(small_graph()), frozen = layout_of(graph);
  ASSERT_EQ(whole.parameters.size(), frozen.parameters.size());
  size_t gradient = 0;
  for (size_t i = 0; i < whole.parameters.size(); ++i) {
    const auto &before = whole.parameters[i], &now = frozen.parameters[i];
    EXPECT_EQ(now.name, before.name);
    EXPECT_EQ(now.offset, before.offset);
    EXPECT_EQ(now.trained, !kMiddle.contains(now.name.substr(0, now.name.rfind('.'))));
    EXPECT_TRUE(before.trained);
    EXPECT_EQ(before.gradient, before.offset);
    if (!now.trained) continue;
    EXPECT_EQ(now.gradient, gradient);
    gradient += now.floats();
  }
  EXPECT_EQ(frozen.gradient_floats, gradient);
  EXPECT_EQ(frozen.parameter_floats, whole.parameter_floats);
  EXPECT_EQ(frozen.statistics_floats, whole.statistics_floats);
  EXPECT_EQ(frozen.batch_floats, 2u * 16);  // bn_b alone
  // Of a batch norm one of whose parameters is trained the statistics are the batch's.
  const Graph half =
      freeze(small_graph(), [](const std::string& name) { return name == "bn_b.weight"; });
  EXPECT_EQ(layout_of(half).batch_floats, whole.batch_floats);
}

// Only the gradient of its weights would read it.
TEST(Freezing, AFrozenConvolutionKeepsNoInput) {
  Graph g{.name = "two", .image = {.n = 1, .c = 3, .h = 5, .w = 5}, .nodes = {}};
  const Conv2d conv = {.out_channels = 8, .kernel = 3, .padding = 1};
  const int x = g.add("above", conv, {g.add("below", conv, {kImage})});
  g.add("fc", Linear{.out_features = 5}, {g.add("pool", GlobalAvgPool{}, {x})});
  const auto end_of_input = [](const Graph& graph) {
    const PassPlan passes = plan_passes(graph, 2, DType::kFloat32, true, 1 << 20);
    const NetworkMemory memory = network_memory(graph, passes, 2, DType::kFloat32, true);
    return memory.buffers[static_cast<size_t>(memory.value[1])].last;
  };
  EXPECT_LT(end_of_input(freeze_nodes(g, {"above"})), end_of_input(g));
}

TEST(Freezing, ANetworkWithNothingToTrainIsAnError) {
  const Graph graph = freeze(small_graph(), [](const std::string&) { return true; });
  expect_error(ExitCode::kBadJob, {"small", "frozen", "nothing to train"},
               [&] { planned_arena(graph, 2, DType::kFloat32, true, 1 << 20); });
}

}  // namespace
}  // namespace convoy::ops
