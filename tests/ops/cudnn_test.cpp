// ops/cudnn.*: one choice exactly, what engines are never taken, what is decided before a network
// is made, the fastest choice, and TF32 on its way to the engines.
#include "ops/cudnn.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "ops/core/cuda_handle.h"
#include "ops/network.h"
#include "ops/plan_timer.h"
#include "tests/support/op_tester.h"

namespace convoy::cudnn {
namespace {

using ops::expect_error;

Convolution convolution(Pass pass, DType type, int64_t groups = 1) {
  return {.pass = pass,
          .x = {2, 16, 6, 5},
          .y = {2, 24, 6, 5},
          .kernel = 3,
          .padding = 1,
          .groups = groups,
          .type = type};
}
const Convolution kForward = convolution(Pass::kForward, DType::kFloat32);
// Of groups, no engine has an fp32 gradient in 16 bit.
const Convolution kNone = convolution(Pass::kBackwardWeights, DType::kFloat16, 8);

TEST(CudnnChoice, ConvolutionsThatDifferHaveOtherNames) {
  std::vector<Convolution> all(12, kForward);
  all[1].pass = Pass::kBackwardData;
  all[2].pass = Pass::kBackwardWeights;
  all[3].x.n = all[3].y.n = 3;
  all[4].stride = 2;
  all[5].groups = 2;
  all[6].type = DType::kFloat16;
  all[7].tf32 = true;
  all[8].bias = true;
  all[9].residual = true;
  all[10].relu = true;
  all[11].padding = 2;
  for (size_t i = 0; i < all.size(); ++i)
    for (size_t k = 0; k < i; ++k) EXPECT_NE(to_text(all[i]), to_text(all[k]));
}

// Needs a GPU, an emulated one in most programs.
class CudnnTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = ops::make_device("cuda", 1);
    } catch (const Error& e) {
      GTEST_SKIP() << "SKIPPED: cuDNN was not asked: " << e.what();
    }
  }
  static Library library() { return Library(); }
  bool is_emulated() const {
    return device_->instruction_set().find("emulated") != std::string::npos;
  }

  std::unique_ptr<ops::Device> device_;
};

TEST_F(CudnnTest, OnePlanServesAllThatAskForIt) {
  Library all = library();
  const auto plan = all.find(kForward);
  ASSERT_TRUE(plan);
  EXPECT_EQ(all.find(kForward), plan);
  EXPECT_EQ(all.plan("conv1", kForward), plan);
  EXPECT_NE(all.find(convolution(Pass::kBackwardData, DType::kFloat32)), plan);
}

TEST_F(CudnnTest, EnginesSumInFp32InAFixedOrder) {
  Library all = library();
  for (const Pass pass : {Pass::kForward, Pass::kBackwardData, Pass::kBackwardWeights})
    for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16}) {
      const auto plan = all.find(convolution(pass, type));
      ASSERT_TRUE(plan);
      for (const std::string& note : plan->notes())
        EXPECT_TRUE(note == "STRICT_NAN_PROP" || (note == "TENSOR_CORE" && type != DType::kFloat32))
            << note;
    }
}

TEST_F(CudnnTest, APrescribedChoiceIsTakenExactly) {
  const std::vector<Choice> choices = library().choices(kForward);
  int taken = 0;
  for (const Choice& choice : choices) {
    Library all = library();
    try {
      EXPECT_EQ(all.make(kForward, choice)->choice(), choice);
    } catch (const Error&) {
      continue;  // recommended, but it does not work
    }
    ++taken;
    all.decisions().prescribe(fmt::format("{} = {}\n", to_text(kForward), to_text(choice)));
    EXPECT_EQ(all.find(kForward)->choice(), choice);
  }
  EXPECT_GT(taken, 1);
}

TEST_F(CudnnTest, DecisionsAreTakenOverByAnotherLibrary) {
  Library first = library();
  EXPECT_EQ(first.find(kNone), nullptr);
  const auto plan = first.find(kForward);
  // Another choice than the library's favourite, chosen by who has measured.
  Choice measured;
  for (const Choice& choice : first.choices(kForward))
    if (choice != plan->choice()) measured = choice;
  first.decisions().prescribe(to_text(kForward) + " = " + to_text(measured));
  EXPECT_EQ(first.find(kForward)->choice(), measured);

  Library second = library();
  second.decisions().prescribe(first.decisions().text());
  EXPECT_EQ(second.find(kForward)->choice(), measured);
  EXPECT_EQ(second.find(kNone), nullptr);
  EXPECT_EQ(second.decisions().text(), first.decisions().text());
}

TEST_F(CudnnTest, APrescribedChoiceThatDoesNotWorkIsAnError) {
  for (const char* choice : {"999999", "9:2=999"}) {
    Library all = library();
    all.decisions().prescribe(to_text(kForward) + " = " + choice);
    expect_error(ExitCode::kBadJob, {"cuDNN 9.", choice, "forward x [2, 16, 6, 5]", "fp32"},
                 [&] { all.plan("layer1.conv1", kForward); });
    expect_error(ExitCode::kBadJob, {choice}, [&] { all.find(kForward); });
  }
  // None was there when the run began: there is none now, although the library has one.
  Library all = library();
  all.decisions().prescribe(to_text(kForward) + " = none");
  EXPECT_EQ(all.find(kForward), nullptr);

  expect_error(ExitCode::kBadData, {"forward 62"},
               [&] { all.decisions().prescribe("forward 62\n"); });
  expect_error(ExitCode::kBadData, {"fast"},
               [&] { all.decisions().prescribe("forward = fast\n"); });
}

TEST_F(CudnnTest, TheFastestIsTakenWhereSomebodyMeasures) {
  Library first = library(), all = library();
  const Choice favourite = first.find(kForward)->choice();
  // Those that are measured, in this order; sign -1: each is faster than the one before.
  std::vector<Choice> measured;
  const auto by = [&](double sign) {
    measured.clear();
    return [&measured, sign](const Convolution& c, const Plan& plan) {
      EXPECT_EQ(to_text(c), to_text(kForward));
      measured.push_back(plan.choice());
      return sign * static_cast<double>(measured.size());
    };
  };
  all.choose_by(by(-1));
  const Choice fastest = all.find(kForward)->choice();
  ASSERT_FALSE(measured.empty());
  EXPECT_EQ(fastest, measured.back());
  EXPECT_NE(measured.back(), favourite);
  EXPECT_EQ(measured.front(), favourite);
  EXPECT_LE(measured.size(), 8u);
  for (const double sign : {0.0, 1.0}) {
    Library another = library();
    another.choose_by(by(sign));
    EXPECT_EQ(another.find(kForward)->choice(), favourite);
  }
  // What is prescribed is not measured.
  Library told = library();
  told.decisions().prescribe(all.decisions().text());
  told.choose_by(by(1));
  EXPECT_EQ(told.find(kForward)->choice(), fastest);
  EXPECT_TRUE(measured.empty());
}

// Something else takes a second.
TEST_F(CudnnTest, WhatIsMeasuredToBeFasterElsewhereIsNotTaken) {
  const Library::Rival rival = {.seconds = [] { return 1.0; }, .preferred = true};
  const auto in_seconds = [](double seconds) {
    return [seconds](const Convolution&, const Plan&) { return seconds; };
  };
  Library unmeasured = library();
  EXPECT_FALSE(unmeasured.find_beside(rival, kForward));
  EXPECT_EQ(unmeasured.decisions().text(), to_text(kForward) + " = elsewhere\n");
  Library favoured = library();
  const auto favourite = favoured.find_beside({.seconds = rival.seconds}, kForward);
  ASSERT_TRUE(favourite && *favourite);
  EXPECT_EQ((*favourite)->choice(), library().find(kForward)->choice());
  Library slower = library(), faster = library();
  slower.choose_by(in_seconds(1.0));
  EXPECT_FALSE(slower.find_beside(rival, kForward));
  faster.choose_by(in_seconds(0.9));
  const auto plan = faster.find_beside(rival, kForward);
  ASSERT_TRUE(plan && *plan);
  EXPECT_EQ(faster.find_beside(rival, kForward), plan);
  EXPECT_EQ((*plan)->choice(), library().find(kForward)->choice());

  // Whatever is prescribed is done, without a look at the clock.
  Library told = library();
  told.decisions().prescribe(faster.decisions().text());
  const Library::Rival unseen = {.seconds = [] {
    ADD_FAILURE() << "measured";
    return 0.0;
  }};
  const auto same = told.find_beside(unseen, kForward);
  ASSERT_TRUE(same && *same);
  EXPECT_EQ((*same)->choice(), (*plan)->choice());
  Library other = library();
  other.decisions().prescribe(unmeasured.decisions().text());
  other.choose_by(in_seconds(0));
  EXPECT_FALSE(other.find_beside(rival, kForward));
  // That there was no engine was said where nothing else was known.
  other.decisions().prescribe(to_text(kForward) + " = none");
  ASSERT_TRUE(other.find_beside(rival, kForward));
  EXPECT_EQ(*other.find_beside(rival, kForward), nullptr);
  Library alone = library();
  alone.decisions().prescribe(unmeasured.decisions().text());
  expect_error(ExitCode::kBadJob, {"something else", to_text(kForward), "nothing else"},
               [&] { alone.find(kForward); });
}

// 1x1 convolutions in 16 bit: gradients of weights are products, the rest where these were measured
// to be faster.
TEST_F(CudnnTest, ConvolutionsOf1x1MayBeProducts) {
  ops::Graph graph{.name = "two", .image = {.n = 1, .c = 16, .h = 4, .w = 4}, .nodes = {}};
  const int first =
      graph.add("first", ops::Conv2d{.out_channels = 24, .kernel = 3, .padding = 1}, {ops::kImage});
  graph.add("conv", ops::Conv2d{.out_channels = 16, .kernel = 1}, {first});
  const auto decided = [&](DType type, bool tune) {
    const auto device = ops::make_device("cuda", 1);
    device->tune(tune);
    ops::decide(*device, graph, {.batch = 2, .type = type});
    return device->decisions();
  };
  const auto elsewhere = [](const std::string& plans) {
    std::vector<std::string> passes;
    for (const auto& [name, choice] : parse_choices(plans))
      if (choice.engine == Choice::kElsewhere) passes.push_back(name.substr(0, name.find(" x ")));
    return passes;
  };
  for (const DType type : {DType::kFloat16, DType::kBfloat16}) {
    const std::string plans = decided(type, false), measured = decided(type, true);
    EXPECT_EQ(elsewhere(plans), std::vector<std::string>{"backward weights"});
    EXPECT_NE(plans.find("product [16, 32 transposed] x [32, 24]"), std::string::npos) << plans;
    // On the emulated GPU products take no time.
    if (!is_emulated()) continue;
    EXPECT_EQ(elsewhere(measured),
              (std::vector<std::string>{"backward data", "backward weights", "forward"}));
    for (const char* product :
         {"product [32, 24] x [24, 16 transposed]", "product [32, 16] x [16, 24]"})
      EXPECT_NE(measured.find(product), std::string::npos) << measured;
  }
  EXPECT_EQ(decided(DType::kFloat32, true).find("product"), std::string::npos);
}

// Of one that skips pixels, the gradient of those that it sees, whether it stays compact or not.
TEST_F(CudnnTest, GradientsOfConvolutionsThatSkipPixelsAreOfThoseTheySee) {
  ops::Graph graph{.name = "skips", .image = {.n = 1, .c = 8, .h = 8, .w = 7}, .nodes = {}};
  const ops::Conv2d wide = {.out_channels = 24, .kernel = 3, .padding = 1},
                    other = {.out_channels = 16, .kernel = 3, .stride = 2, .padding = 1},
                    skips = {.out_channels = 16, .kernel = 1, .stride = 2};
  const int norm = graph.add("norm", ops::BatchNorm{}, {graph.add("conv", wide, {ops::kImage})});
  const int sum = graph.add("other", other, {norm});
  graph.add("sum", ops::Add{}, {sum, graph.add("skips", skips, {norm})});
  for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16})
    for (const bool tune : {false, true}) {
      const auto decided = [&](bool merge) {
        const auto device = ops::make_device("cuda", 1);
        device->tune(tune);
        ops::decide(*device, graph, {.batch = 2, .type = type, .merge = merge});
        return device->decisions();
      };
      const std::string plans = decided(true);
      EXPECT_NE(plans.find("backward data x [2, 24, 4, 4] y [2, 16, 4, 4] kernel 1 stride 1"),
                std::string::npos)
          << plans;
      EXPECT_EQ(plans.find("backward data x [2, 24, 8, 7] y [2, 16, 4, 4] kernel 1"),
                std::string::npos);
      if (!is_emulated()) continue;  // measured apart, they may differ
      EXPECT_EQ(plans, decided(false));
      EXPECT_EQ(plans.find("product [32, 16] x [16, 24]") != std::string::npos,
                tune && type != DType::kFloat32);
    }
}

// Channels that are padded to as many as another layer has are that layer's convolution: what is
// decided for one is decided for both, whichever comes first.
TEST_F(CudnnTest, PaddedChannelsDecideNothingElse) {
  const auto graph = [](const std::vector<int64_t>& widths) {
    ops::Graph g{.name = "some", .image = {.n = 1, .c = 16, .h = 4, .w = 4}, .nodes = {}};
    std::vector<int> branches;
    for (const int64_t width : widths) {
      const std::string name = std::to_string(width);
      const int wide = g.add(
          "a" + name, ops::Conv2d{.out_channels = width, .kernel = 3, .padding = 1}, {ops::kImage});
      branches.push_back(g.add("b" + name, ops::Conv2d{.out_channels = 16, .kernel = 1}, {wide}));
    }
    if (branches.size() > 1) g.add("sum", ops::Add{}, branches);
    return g;
  };
  const auto decided = [&](const std::vector<int64_t>& widths, bool tune,
                           const std::string& before) {
    const auto device = ops::make_device("cuda", 1);
    device->prescribe(before, Refused::kStop);
    device->tune(tune);
    ops::decide(*device, graph(widths), {.batch = 2, .type = DType::kFloat16});
    return device->decisions();
  };
  const auto of_both = [](const std::string& plans) {
    std::map<std::string, Choice> found;
    for (const auto& [name, choice] : parse_choices(plans))
      if (name.find("kernel 1 ") != std::string::npos) found[name] = choice;
    return found;
  };
  for (const bool tune : {false, true}) {
    if (tune && !is_emulated()) break;  // what a GPU measures depends on the moment
    const std::string narrow = decided({30}, tune, ""), wide = decided({32}, tune, "");
    EXPECT_EQ(of_both(narrow).size(), 3u);
    EXPECT_EQ(of_both(narrow), of_both(wide));
    for (const auto& widths : {std::vector<int64_t>{30, 32}, {32, 30}})
      EXPECT_EQ(of_both(decided(widths, tune, "")), of_both(wide));
    EXPECT_EQ(of_both(decided({30}, tune, wide)), of_both(wide));
    EXPECT_EQ(of_both(decided({32}, tune, narrow)), of_both(wide));
  }
}

// Sums of y: by engines that keep those of their parts. The emulated ones that are compiled, as all
// for bf16, are as those of the library: they do not, and do not say so.
TEST_F(CudnnTest, SumsAreThoseOfEnginesThatAddThemInOrder) {
  for (const DType type : {DType::kFloat16, DType::kBfloat16, DType::kFloat32}) {
    Convolution c = convolution(Pass::kForward, type);
    c.sums = true;
    Library all = library();
    const auto plan = all.find(c);
    EXPECT_EQ(plan != nullptr, type == DType::kFloat16) << name_of(type);
    if (plan) {
      EXPECT_GT(plan->workspace_bytes(), 0u);
    }
    if (!is_emulated() || !plan) continue;
    EXPECT_EQ(plan->choice().engine, 5);
    for (const Choice& choice : all.choices(c)) EXPECT_NE(choice.engine, 7);
    expect_error(ExitCode::kBadJob, {"keeps no sums"},
                 [&] { library().make(c, {.engine = 0, .knobs = {}}); });
  }
}

// A network that measures takes its batch norms' statistics from the convolutions before them where
// that is faster (in fp16), and computes what it computes without.
TEST_F(CudnnTest, StatisticsFromConvolutionsAreThoseOfAPass) {
  ops::Graph graph{.name = "two", .image = {.n = 1, .c = 16, .h = 9, .w = 8}, .nodes = {}};
  int x = graph.add("a", ops::Conv2d{.out_channels = 16, .kernel = 3, .padding = 1}, {ops::kImage});
  x = graph.add("bn_a", ops::BatchNorm{}, {x});
  x = graph.add("pool", ops::MaxPool{}, {graph.add("relu", ops::Relu{}, {x})});  // merged
  const int s = graph.add("s", ops::Conv2d{.out_channels = 24, .kernel = 1, .stride = 2}, {x});
  x = graph.add("b", ops::Conv2d{.out_channels = 24, .kernel = 3, .stride = 2, .padding = 1}, {x});
  x = graph.add("bn_b", ops::BatchNorm{}, {x});
  x = graph.add("add", ops::Add{}, {x, graph.add("bn_s", ops::BatchNorm{}, {s})});  // merged
  graph.add("fc", ops::Linear{.out_features = 5}, {graph.add("mean", ops::GlobalAvgPool{}, {x})});
  const bool emulated = is_emulated();

  const auto train = [&](bool tune, std::string& decisions) {
    const auto device = ops::make_device("cuda", 1);
    device->tune(tune);
    ops::Network net(*device, graph, {.batch = 4, .type = DType::kFloat16});
    decisions = device->decisions();
    const ops::ParameterLayout& layout = net.layout();
    ops::DeviceFloats parameters(*device, layout.parameter_floats),
        running(*device, layout.statistics_floats), gradients(*device, layout.gradient_floats),
        statistics(*device, layout.batch_floats);
    ops::initialise(layout, 1, parameters.read().data());
    parameters.write();
    net.bind({parameters.data(), running.data(), gradients.data(), statistics.data()});
    // Far from zero beside its spread, which sums of squares feel.
    std::vector<Float16> image(4 * 16 * 9 * 8);
    for (size_t i = 0; i < image.size(); ++i)
      image[i] = to_float16(3.0f + ops::random_value(1, 0, i));
    const std::vector<int32_t> labels = {0, 1, 2, 3};
    std::vector<std::vector<float>> found;
    for (int step = 0; step < 3; ++step) {
      net.prepare();
      net.forward_activations(image.data(), {});
      net.loss(labels.data(), 0.25);
      net.backward({}, [](size_t) {});
      found.push_back({statistics.read().begin(), statistics.read().end()});
      found.push_back({gradients.read().begin(), gradients.read().end()});
    }
    EXPECT_EQ(found[0], found[2]) << "its bits repeat";
    EXPECT_EQ(found[1], found[3]);
    return found;
  };
  std::string plain, tuned;
  const auto expected = train(false, plain), given = train(true, tuned);
  EXPECT_NE(plain.find("fp16 sums = elsewhere"), std::string::npos) << plain;
  if (emulated) {
    size_t with_sums = 0;
    for (const auto& [name, choice] : parse_choices(tuned))
      with_sums += name.ends_with(" sums") && choice.engine >= 0 ? 1 : 0;
    EXPECT_EQ(with_sums, 3u) << tuned;
    EXPECT_NE(given[0], expected[0]) << "the order of sums";
  }
  for (size_t k = 0; k < expected.size(); ++k) {
    double distance = 0, norm = 0;
    for (size_t i = 0; i < expected[k].size(); ++i) {
      distance += std::pow(static_cast<double>(given[k][i] - expected[k][i]), 2);
      norm += std::pow(static_cast<double>(expected[k][i]), 2);
    }
    // Statistics are fp32's; gradients in fp16 differ where the last bit of an activation does.
    EXPECT_LT(std::sqrt(distance / norm), k % 2 == 0 ? 1e-4 : 1e-2) << k;
  }
}

// On the emulated GPU engine 0 is the fastest.
TEST_F(CudnnTest, APlanIsTimed) {
  Library all = library();
  ops::PlanTimer timer(static_cast<cudaStream_t>(device_->queue()));
  for (Convolution c : {kForward, convolution(Pass::kBackwardData, DType::kFloat16),
                        convolution(Pass::kBackwardWeights, DType::kBfloat16)}) {
    const double seconds = timer.measure(c, *all.find(c));
    EXPECT_GT(seconds, 0);
    EXPECT_LT(seconds, 10);
    if (is_emulated()) {
      EXPECT_GT(seconds, timer.measure(c, *all.make(c, {.engine = 0, .knobs = {}})));
    }
  }
  Convolution fused = convolution(Pass::kForward, DType::kFloat16);
  fused.bias = fused.residual = fused.relu = true;
  EXPECT_GT(timer.measure(fused, *all.find(fused)), 0);
}

ops::Graph small_network() {
  ops::Graph graph{.name = "small", .image = {.n = 1, .c = 3, .h = 8, .w = 8}, .nodes = {}};
  const int conv =
      graph.add("conv", ops::Conv2d{.out_channels = 16, .kernel = 3, .padding = 1}, {ops::kImage});
  const int norm = graph.add("bn", ops::BatchNorm{}, {conv});
  const int relu = graph.add("relu", ops::Relu{}, {norm});
  graph.add("fc", ops::Linear{.out_features = 10}, {relu});
  return graph;
}

// What is decided before a network is made is what it will ask for, and no less.
TEST_F(CudnnTest, NetworksAskForWhatWasDecided) {
  for (const DType type : {DType::kFloat32, DType::kFloat16})
    for (const bool training : {true, false}) {
      const auto device = ops::make_device("cuda", 1);
      const ops::NetworkConfig config = {.batch = 2, .type = type, .training = training};
      ops::decide(*device, small_network(), config);
      const std::string decided = device->decisions();
      // The image's own is not cuDNN's in 16 bit.
      EXPECT_EQ(decided.find("forward x [2, 3, 8, 8]") != std::string::npos,
                type == DType::kFloat32)
          << decided;
      EXPECT_NE(decided.find("product [2, 1024] x [1024, 10 transposed]"), std::string::npos)
          << decided;
      const ops::Network made(*device, small_network(), config);
      EXPECT_EQ(device->decisions(), decided);
      const auto alone = ops::make_device("cuda", 1);
      const ops::Network undecided(*alone, small_network(), config);
      EXPECT_EQ(alone->decisions(), decided);
    }
}

TEST_F(CudnnTest, NetworksNameTheNodeWhoseEngineIsRefused) {
  ops::decide(*device_, small_network(), {.batch = 2});
  const std::string decided = device_->decisions();
  for (const auto& [start, node] : {std::pair{"forward x", "\"conv\""}, {"product", "\"fc\""}}) {
    const size_t begin = decided.find(start), end = decided.find('\n', begin);
    const std::string line = decided.substr(begin, end - begin);
    const std::string name = line.substr(0, line.find(" = "));
    for (const char* engine : {"999999", "9:99999999=1", "66:3=4", "66:1=4294967296", "66:99=1"}) {
      const auto device = ops::make_device("cuda", 1);
      device->prescribe(name + " = " + engine, Refused::kStop);
      for (const bool decides : {true, false}) try {
          if (decides)
            ops::decide(*device, small_network(), {.batch = 2});
          else
            ops::Network(*device, small_network(), {.batch = 2});
          ADD_FAILURE() << name << " = " << engine;
        } catch (const PlanRefused& e) {
          const std::string what = e.what();
          for (const std::string& word : {std::string(node), std::string(engine), name})
            EXPECT_NE(what.find(word), std::string::npos) << what;
        }
      device->prescribe(name + " = " + engine, Refused::kReplace);
      ops::decide(*device, small_network(), {.batch = 2});
      EXPECT_EQ(device->decisions(), decided);
    }
  }
}

// All fp32 gradients of 16-bit weights are compiled; on the emulated GPU engine 10 is, which can be
// told to compile nothing.
TEST_F(CudnnTest, AKernelIsCompiledOnce) {
  const bool emulated = is_emulated();
  const Convolution c = convolution(Pass::kBackwardWeights, DType::kFloat16);
  std::map<std::string, std::string> kept;
  const KernelStore store = {
      .read = [&](const std::string& as) { return kept.contains(as) ? kept.at(as) : ""; },
      .write = [&](const std::string& as, const std::string& kernel) { kept[as] = kernel; }};
  const auto gradient = [&](const Plan& plan) {
    const auto filled = [&](int64_t elements) {
      std::vector<Float16> values;
      for (int64_t i = 0; i < elements; ++i)
        values.push_back(to_float16(static_cast<float>(i % 7 - 3) / 8));
      auto memory = device_->allocate(values.size() * sizeof(Float16));
      device_->upload(memory.data.get(), values.data(), memory.bytes);
      return memory;
    };
    const auto x = filled(c.x.elements()), y = filled(c.y.elements());
    std::vector<float> out(static_cast<size_t>(c.y.c * c.x.c) * 9);
    const auto w = device_->allocate(out.size() * sizeof(float));
    const auto workspace = device_->allocate(plan.workspace_bytes() + 1);
    plan.run({.x = x.data.get(),
              .w = w.data.get(),
              .y = y.data.get(),
              .workspace = workspace.data.get()},
             static_cast<cudaStream_t>(device_->queue()));
    device_->download(out.data(), w.data.get(), w.bytes);
    return out;
  };

  if (emulated) ::setenv("CONVOY_EMULATED_CUDNN_PREFERS", "10", 1);
  Library first = library();
  first.keep_kernels(store);
  const auto compiled = first.find(c);
  ::unsetenv("CONVOY_EMULATED_CUDNN_PREFERS");
  const std::string name = to_text(c) + " = " + to_text(compiled->choice());
  ASSERT_EQ(kept.size(), 1u);
  const auto& [kept_as, kernel] = *kept.begin();
  EXPECT_EQ(kept_as, fmt::format("{} by {} from graph 1", name, Library::compiler()));
  ASSERT_FALSE(kernel.empty());
  EXPECT_EQ(compiled->kernel(), kernel);
  const std::vector<float> expected = gradient(*compiled);
  EXPECT_NE(expected[0], 0);

  if (emulated) ::setenv("CONVOY_EMULATED_CUDNN_REFUSES", "10", 1);
  Library another = library();
  another.decisions().prescribe(name);
  another.keep_kernels(store);
  const auto again = another.find(c);
  EXPECT_EQ(again->kernel(), "");
  EXPECT_EQ(again->choice(), compiled->choice());
  EXPECT_EQ(again->workspace_bytes(), compiled->workspace_bytes());
  EXPECT_EQ(gradient(*again), expected);
  if (emulated) {
    Library without = library();
    without.decisions().prescribe(name);
    EXPECT_THROW(without.find(c), PlanRefused);
  }
  ::unsetenv("CONVOY_EMULATED_CUDNN_REFUSES");

  // Something else, or a part: compiled, and kept, again. Engine 7 wants another workspace.
  std::vector<std::string> wrong = {"{}", compiled->kernel().substr(0, 99)};
  if (emulated) wrong.push_back(first.make(c, {.engine = 7, .knobs = {}})->kernel());
  for (const std::string& text : wrong) {
    EXPECT_NE(text, "");
    kept[kept_as] = text;
    Library all = library();
    all.decisions().prescribe(name);
    all.keep_kernels(store);
    EXPECT_EQ(gradient(*all.find(c)), expected);
    EXPECT_NE(kernel, text);
    if (emulated) {
      EXPECT_EQ(kernel, compiled->kernel());  // the real library's texts differ
    }
    Library after = library();
    after.decisions().prescribe(name);
    after.keep_kernels(store);
    EXPECT_EQ(after.find(c)->kernel(), "") << "what was kept again serves";
  }
}

TEST_F(CudnnTest, AnAlgorithmThatCannotBeMadeAgainIsNotRecorded) {
  if (!is_emulated()) GTEST_SKIP() << "SKIPPED: the real library does not forget on request";
  ::setenv("CONVOY_EMULATED_CUBLAS_FORGETS", "1", 1);
  testing::internal::CaptureStderr();
  const ops::Network made(*device_, small_network(), {.batch = 2});
  const std::string said = testing::internal::GetCapturedStderr();
  ::unsetenv("CONVOY_EMULATED_CUBLAS_FORGETS");
  EXPECT_EQ(device_->decisions().find("product"), std::string::npos);
  EXPECT_NE(device_->decisions().find("forward"), std::string::npos);
  for (const char* word : {"cuBLASLt", "66:1=20", "product [2, 1024]", "not recorded"})
    EXPECT_NE(said.find(word), std::string::npos) << said;
}

TEST_F(CudnnTest, WithoutAnEngineTheErrorNamesTheLayer) {
  expect_error(ExitCode::kBadJob,
               {"\"layer1.conv1\"", "cuDNN", "deterministic", "backward weights", "[2, 16, 6, 5]",
                "[2, 24, 6, 5]", "groups 8", "fp16"},
               [&] { library().plan("layer1.conv1", kNone); });
}

// The emulated GPU's engines are known.
TEST_F(CudnnTest, EnginesThatNobodyMayTakeAreRefused) {
  if (!is_emulated())
    GTEST_SKIP() << "SKIPPED: the real library's engines are asked in cudnn_plans_test";
  for (const auto& [engine, why] :
       std::initializer_list<std::pair<int64_t, const char*>>{{3, "NONDETERMINISTIC"},
                                                              {4, "REDUCED_PRECISION_REDUCTION"},
                                                              {12, "FFT_OR_WINOGRAD"},
                                                              {5, "TENSOR_CORE"},
                                                              {6, "never work"},
                                                              {8, "workspace"}})
    expect_error(ExitCode::kBadJob, {why},
                 [&] { library().make(kForward, {.engine = engine, .knobs = {}}); });
  Convolution tf32 = kForward;
  tf32.tf32 = true;
  EXPECT_EQ(library().make(tf32, {.engine = 5, .knobs = {}})->notes(),
            std::vector<std::string>{"TENSOR_CORE"});
}

// What has gone wrong is seen, not cut off by a ReLU that cuDNN fuses.
TEST_F(CudnnTest, FoldedReluKeepsNan) {
  for (const DType type : {DType::kFloat32, DType::kBfloat16, DType::kFloat16}) {
    const ops::OpCase c = {.spec = ops::Conv2d{.out_channels = 16,
                                               .kernel = 1,
                                               .batch_norm = ops::BatchNorm{.relu = true}},
                           .x = {{1, 16, 2, 1}},
                           .training = false};
    ops::OpData data = ops::make_data(c, type);
    data.x[0][3] = std::numeric_limits<float>::quiet_NaN();  // of the first pixel
    const std::vector<float> y = ops::run(*device_, type, c, data).y;
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i < 16) << i;
  }
}

// A network's TF32 reaches its convolutions, and FP32 stays FP32.
TEST_F(CudnnTest, Tf32IsTheNetworksChoice) {
  ops::Graph graph{.name = "one", .image = {.n = 1, .c = 64, .h = 4, .w = 4}, .nodes = {}};
  graph.add("conv", ops::Conv2d{.out_channels = 8, .kernel = 3, .padding = 1}, {ops::kImage});
  const auto logits = [&](bool tf32) {
    ops::Network net(*device_, graph, {.batch = 2, .tf32 = tf32, .training = false});
    ops::DeviceFloats parameters(*device_, net.layout().parameter_floats);
    ops::initialise(net.layout(), 1, parameters.read().data());
    parameters.write();
    net.bind({.parameters = parameters.data()});
    net.prepare();
    std::vector<float> x(2 * 64 * 16);
    for (size_t i = 0; i < x.size(); ++i) x[i] = ops::random_value(1, 0, i);
    net.forward_activations(x.data(), {});
    std::vector<float> y(2 * 8 * 16);
    device_->download(y.data(), net.logits().data, y.size() * sizeof(float));
    return y;
  };
  const std::vector<float> fp32 = logits(false), tf32 = logits(true);
  EXPECT_NE(tf32, fp32);
  for (size_t i = 0; i < fp32.size(); ++i) EXPECT_NEAR(tf32[i], fp32[i], 0.01);
}

}  // namespace
}  // namespace convoy::cudnn
