// One step of training on one rank: lanes, control flags, and what happens when something fails.
#include "trainer/engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <map>
#include <mutex>
#include <set>

#include "ops/core/error.h"
#include "ops/core/random.h"
#include "tests/support/op_tester.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

// Runs on every device there is.
class EngineTest : public testing::TestWithParam<std::string> {
 protected:
  static constexpr int kWorkers = 4;
  static constexpr int64_t kBatch = 3;

  static ops::Graph graph() {
    ModelOptions options;
    options.image = {.n = 1, .c = 1, .h = 8, .w = 8};
    return make_model("cifar_resnet20", options);
  }
  // The same with an auxiliary classifier behind its first stage.
  static ops::Graph auxiliary_graph() {
    ops::Graph g = graph();
    const ops::Node fc = g.nodes.back();
    g.nodes.pop_back();
    const auto source = std::ranges::find(g.nodes, "layer1.2.relu", &ops::Node::name);
    int x = g.add("aux.pool", ops::AvgPool{.kernel = 5, .stride = 3},
                  {static_cast<int>(source - g.nodes.begin())});
    x = g.add("aux.conv", ops::Conv2d{.out_channels = 24, .kernel = 1}, {x});
    x = g.add("aux.relu", ops::Relu{}, {g.add("aux.bn", ops::BatchNorm{}, {x})});
    x = g.add("aux.fc", ops::Linear{.out_features = 10}, {x});
    g.auxiliary = {{.node = x, .weight = 0.3}};
    g.add(fc.name, fc.op, fc.inputs);
    return g;
  }

  std::unique_ptr<Engine> make(int lanes, ops::OptimizerConfig optimizer = {},
                               const StepHooks& hooks = {}, const ops::Graph& network = graph(),
                               const std::set<std::string>& frozen = {},
                               const std::map<std::string, ops::ParameterFactors>& factors = {},
                               int workers = kWorkers) {
    Shape batch = network.image;
    batch.n = kBatch;
    return std::make_unique<Engine>(
        *communicator_, network,
        EngineConfig{.device = GetParam(),
                     .workers = workers,
                     .batch_per_worker = kBatch,
                     .lanes = lanes,
                     .input = ops::per_channel_input(batch, {0.5}, {0.25}),
                     .optimizer = optimizer,
                     .bucket_mib = 0.1,
                     .frozen = frozen,
                     .factors = factors,
                     .hooks = hooks});
  }

  EngineTest() {
    for (uint64_t w = 0; w < kWorkers; ++w)
      for (uint64_t i = 0; i < kBatch * 64; ++i) {
        const uint32_t word = random4(4, Purpose::kSyntheticData, w, i)[0];
        pixels_[w].push_back(static_cast<uint8_t>(word >> 24));
      }
  }
  Engine::Source source() {
    return {[this](uint64_t w) {
              return Engine::Images{pixels_[w].data(), labels_};
            },
            [](uint64_t) {}};
  }

  std::unique_ptr<comm::Communicator> communicator_ = comm::make_communicator("local");
  std::vector<uint8_t> pixels_[kWorkers];
  int32_t labels_[kBatch] = {3, 1, 7};
};

// A GPU has one lane; there it is two runs.
TEST_P(EngineTest, AnyNumberOfLanesGivesTheSameBits) {
  std::vector<std::vector<float>> results;
  for (const int wanted : {1, 2, 3, 4}) {
    const int lanes = lanes_for(GetParam(), kWorkers, wanted, 1);
    if (lanes != wanted && wanted > 2) continue;
    const auto engine = make(lanes, {}, {}, auxiliary_graph());
    double loss = 0;
    for (uint64_t step = 0; step < 3; ++step) loss = engine->step(step, 0.1, {}, source()).loss;
    EXPECT_GT(loss, 0);
    const Engine::State state = engine->state();
    results.emplace_back(state.parameters.begin(), state.parameters.end());
    results.back().insert(results.back().end(), state.running.begin(), state.running.end());
    EXPECT_EQ(results.back(), results.front()) << lanes << " lanes";
  }
}

// It is trained, its losses are part of no number that is reported, and evaluation runs without it.
TEST_P(EngineTest, AnAuxiliaryClassifierIsTrainedAndNotReported) {
  const auto plain = make(1), auxiliary = make(1, {}, {}, auxiliary_graph());
  const auto copy_to_plain = [&] {
    const Engine::State from = auxiliary->state(), to = plain->state();
    for (const auto& p : plain->layout().parameters) {
      const auto q = std::ranges::find(auxiliary->layout().parameters, p.name,
                                       &ops::ParameterLayout::Parameter::name);
      std::ranges::copy(from.parameters.subspan(q->offset, q->floats()),
                        to.parameters.begin() + static_cast<std::ptrdiff_t>(p.offset));
    }
    for (const auto& s : plain->layout().statistics) {
      const auto q = std::ranges::find(auxiliary->layout().statistics, s.name,
                                       &ops::ParameterLayout::Statistics::name);
      std::ranges::copy(from.running.subspan(q->offset, 2 * static_cast<size_t>(s.channels)),
                        to.running.begin() + static_cast<std::ptrdiff_t>(s.offset));
    }
    plain->put_state();
  };
  copy_to_plain();
  const auto fc = std::ranges::find(auxiliary->layout().parameters, "aux.fc.weight",
                                    &ops::ParameterLayout::Parameter::name);
  const auto weights = [&] {
    const auto now = auxiliary->state().parameters.subspan(fc->offset, fc->floats());
    return std::vector<float>(now.begin(), now.end());
  };
  const std::vector<float> before = weights();
  const Engine::Result with = auxiliary->step(0, 0.1, {}, source());
  const Engine::Result without = plain->step(0, 0.1, {}, source());
  EXPECT_EQ(with.loss, without.loss);
  EXPECT_EQ(with.top1, without.top1);
  EXPECT_GT(with.gradient_norm, without.gradient_norm);
  EXPECT_NE(weights(), before);

  copy_to_plain();
  const auto of = [&](Engine& engine, int64_t side) {
    const ops::ImageInput input =
        ops::per_channel_input({.n = kBatch, .c = 1, .h = side, .w = side}, {0.5}, {0.25});
    double loss = 0;
    for (const auto& r : engine.evaluate(kWorkers, input, Engine::Weights::kTrained, source()))
      loss += r.loss_sum;
    return loss;
  };
  // Its pool wants 5 pixels.
  for (const int64_t side : {8, 4, 3}) EXPECT_EQ(of(*auxiliary, side), of(*plain, side)) << side;
}

// Its loss is in no number that is looked at: its gradient is.
TEST_P(EngineTest, AnAuxiliaryLossThatIsNotFiniteLeavesTheStepOut) {
  const auto engine = make(1, {}, {}, auxiliary_graph());
  engine->step(0, 0.1, {}, source());
  const auto bias = std::ranges::find(engine->layout().parameters, "aux.fc.bias",
                                      &ops::ParameterLayout::Parameter::name);
  engine->state().parameters[bias->offset + 3] = -std::numeric_limits<float>::infinity();
  engine->put_state();
  engine->compute(1, {}, source());
  const Engine::Result result = engine->update(0.1);
  EXPECT_TRUE(std::isfinite(result.loss));
  EXPECT_FALSE(result.updated);
  EXPECT_TRUE(result.diverged);
}

// All of the first layers, their batch norms too.
std::set<std::string> first_layers(const Engine& engine) {
  std::set<std::string> names;
  for (const auto& p : engine.layout().parameters)
    if (!p.name.starts_with("layer3") && !p.name.starts_with("fc")) names.insert(p.name);
  return names;
}

std::vector<float> copy_of(std::span<const float> floats) {
  return {floats.begin(), floats.end()};
}

TEST_P(EngineTest, FrozenParametersStayBitForBit) {
  const auto whole = make(1);
  const std::set<std::string> frozen = first_layers(*whole);
  for (const auto kind : {ops::OptimizerConfig::Kind::kSgd, ops::OptimizerConfig::Kind::kLars}) {
    const auto engine = make(lanes_for(GetParam(), kWorkers, 2, 1),
                             {.kind = kind, .weight_decay = 0.1, .clip_norm = 1, .ema_decay = 0.5},
                             {}, graph(), frozen);
    EXPECT_LT(engine->trained_floats(), engine->layout().parameter_floats);
    const Engine::State start = engine->state();
    const std::vector<float> parameters = copy_of(start.parameters),
                             running = copy_of(start.running);
    for (uint64_t step = 0; step < 3; ++step) engine->step(step, 0.1, {}, source());
    const Engine::State now = engine->state();
    for (const auto& p : engine->layout().parameters) {
      const bool same =
          std::equal(parameters.begin() + static_cast<ptrdiff_t>(p.offset),
                     parameters.begin() + static_cast<ptrdiff_t>(p.offset + p.floats()),
                     now.parameters.begin() + static_cast<ptrdiff_t>(p.offset));
      EXPECT_EQ(same, frozen.contains(p.name)) << p.name;
      for (size_t i = p.offset; i < p.offset + p.floats() && frozen.contains(p.name); ++i) {
        ASSERT_EQ(now.momentum[i], 0.0f) << p.name;
        ASSERT_EQ(now.ema[i], parameters[i]) << p.name;
      }
    }
    for (const auto& s : engine->layout().statistics)
      EXPECT_EQ(std::equal(running.begin() + static_cast<ptrdiff_t>(s.offset),
                           running.begin() + static_cast<ptrdiff_t>(s.offset) + 2 * s.channels,
                           now.running.begin() + static_cast<ptrdiff_t>(s.offset)),
                frozen.contains(s.name + ".weight"))
          << s.name;
  }
}

// Unfreezing between two steps gives what a start in that state would have given, on any lanes; and
// back again.
TEST_P(EngineTest, FreezingFollowsTheState) {
  const ops::OptimizerConfig optimizer = {.kind = ops::OptimizerConfig::Kind::kLars,
                                          .ema_decay = 0.5};
  const std::set<std::string> frozen = first_layers(*make(1));
  std::vector<std::vector<float>> results;
  for (const int wanted : {1, 2}) {
    const auto engine =
        make(lanes_for(GetParam(), kWorkers, wanted, 1), optimizer, {}, graph(), frozen);
    for (uint64_t step = 0; step < 2; ++step) engine->step(step, 0.1, {}, source());
    std::vector<std::vector<float>> kept;
    for (const std::span<float> flat : engine->state().all()) kept.push_back(copy_of(flat));
    engine->freeze({});
    for (size_t i = 0; i < kept.size(); ++i) EXPECT_EQ(copy_of(engine->state().all()[i]), kept[i]);
    for (uint64_t step = 2; step < 4; ++step) engine->step(step, 0.1, {}, source());
    results.push_back(copy_of(engine->state().parameters));
    EXPECT_EQ(engine->state_names().size(), engine->state_digests().size());

    // From the middle, as a run that was resumed there.
    const auto resumed = make(1, optimizer);
    const auto put = [&kept](Engine& into) {
      const Engine::State state = into.state();  // once: a GPU's copy is read anew each time
      for (size_t i = 0; i < kept.size(); ++i) std::ranges::copy(kept[i], state.all()[i].begin());
      into.put_state();
    };
    put(*resumed);
    for (uint64_t step = 2; step < 4; ++step) resumed->step(step, 0.1, {}, source());
    EXPECT_EQ(copy_of(resumed->state().parameters), results.back());

    // Gone back to before the border.
    put(*engine);
    engine->freeze(frozen);
    engine->freeze({});
    for (uint64_t step = 2; step < 4; ++step) engine->step(step, 0.1, {}, source());
    EXPECT_EQ(copy_of(engine->state().parameters), results.back());
  }
  EXPECT_EQ(results[0], results[1]);
}

// Theirs and nobody else's, also where an unfreezing has made all anew.
TEST_P(EngineTest, FactorsAreThoseOfTheirParameters) {
  const ops::OptimizerConfig plain = {.momentum = 0, .weight_decay = 0};
  const auto once = make(1, plain), twice = make(1, plain),
             own = make(1, plain, {}, graph(), {}, {{"fc.weight", {.learning_rate = 2}}});
  own->freeze(first_layers(*own));
  own->freeze({});
  once->step(0, 0.125, {}, source());
  own->step(0, 0.125, {}, source());
  twice->step(0, 0.25, {}, source());
  const std::vector<float> a = copy_of(once->state().parameters),
                           b = copy_of(twice->state().parameters),
                           found = copy_of(own->state().parameters);
  for (const auto& p : own->layout().parameters)
    for (size_t i = p.offset; i < p.offset + p.floats(); ++i)
      ASSERT_EQ(found[i], (p.name == "fc.weight" ? b : a)[i]) << p.name;
  EXPECT_NE(a, b);
}

// A worker that is computed again contributes the same, and there is a name for each part.
TEST_P(EngineTest, AFrozenWorkerComputedAgainGivesTheSameDigests) {
  const auto engine = make(1, {}, {}, graph(), first_layers(*make(1)));
  engine->compute(0, {}, source(), 2);
  const std::vector<uint64_t> digests = engine->contribution();
  EXPECT_EQ(digests.size(), engine->contribution_names().size());
  EXPECT_EQ(engine->compute_again(0, 2, 0, source()), digests);
  engine->update(0.1);
}

TEST_P(EngineTest, AFrozenLayerIsMeasuredWithoutAGradient) {
  const std::set<std::string> frozen = first_layers(*make(1));
  const auto engine = make(1, {}, {}, graph(), frozen);
  engine->compute(0, {}, source());
  LayerStatistics layers;
  engine->update(0.1, &layers);
  for (size_t i = 0; i < layers.weights.size(); ++i) {
    EXPECT_EQ(std::isnan(layers.gradient_norm[i]), frozen.contains(layers.weights[i]));
    EXPECT_EQ(std::isnan(layers.gradient_rms[i]), frozen.contains(layers.weights[i]));
    EXPECT_GT(layers.weight_rms[i], 0) << layers.weights[i];
  }
  ASSERT_EQ(layers.batch_norms.size(), 6u);
  EXPECT_EQ(layers.batch_norms[0], "layer3.0.bn1");
  for (const double std : layers.response_std) {  // gamma is 1 and beta 0
    EXPECT_GT(std, 0.9);
    EXPECT_LE(std, 1.0);
  }
}

TEST_P(EngineTest, NothingToTrainIsAnError) {
  std::set<std::string> all;
  const auto engine = make(1);
  for (const auto& p : engine->layout().parameters) all.insert(p.name);
  ops::expect_error(ExitCode::kBadJob,
                    {"every parameter of cifar_resnet20 is frozen", "nothing to train"},
                    [&] { make(1, {}, {}, graph(), all); });
}

// What is sent ahead is used in its step and in no other: every third time it is not there yet,
// step 3 comes twice (a roll-back), step 5 never, and before step 7 networks are made anew.
TEST_P(EngineTest, ReadingAheadChangesNoBit) {
  std::vector<std::vector<float>> results;
  uint64_t step = 0;
  for (const bool ahead : {false, true}) {
    const auto engine = make(1);
    std::vector<uint8_t> slot[2];
    uint64_t asked = 0;
    const auto pixels_of = [&](uint64_t s, uint64_t w) {
      std::vector<uint8_t>& pixels = slot[s % 2];
      pixels = pixels_[w];
      for (uint8_t& each : pixels) each = static_cast<uint8_t>(each + 17 * s);
      return pixels.data();
    };
    Engine::Source source{.acquire =
                              [&](uint64_t w) {
                                return Engine::Images{pixels_of(step, w), labels_};
                              },
                          .release = [](uint64_t) {}};
    if (ahead)
      source.next = [&](uint64_t w) -> const uint8_t* {
        EXPECT_EQ(w, 0u);
        return ++asked % 3 == 0 ? nullptr : pixels_of(step + 1, w);
      };
    double loss = 0;
    for (const uint64_t each : {0, 1, 2, 3, 3, 4, 6, 7}) {
      step = each;
      if (step == 7) engine->freeze({"conv1.weight"});
      loss = engine->step(step, 0.1, {}, source).loss;
    }
    EXPECT_GT(loss, 0);
    EXPECT_EQ(asked, ahead && GetParam() == "cuda" ? 8u : 0u);
    const Engine::State state = engine->state();
    results.emplace_back(state.parameters.begin(), state.parameters.end());
  }
  EXPECT_EQ(results[0], results[1]);
}

// A batch that ends with an error may be freed at once: nobody reads it any more.
TEST_P(EngineTest, ImagesMayGoAfterAnError) {
  const auto engine = make(1);
  engine->step(0, 0.1, {}, source());
  std::vector<uint8_t> pixels = pixels_[0];
  std::shared_ptr<void> pinned = engine->pin(pixels.data(), pixels.size());
  const int32_t labels[kBatch] = {3, 1000, 7};
  const Engine::Source wrong{.acquire =
                                 [&](uint64_t) {
                                   return Engine::Images{pixels.data(), labels};
                                 },
                             .release = [](uint64_t) {}};
  ops::expect_error(ExitCode::kBadData, {"1000"}, [&] { engine->step(1, 0.1, {}, wrong); });
  pinned.reset();
}

// A watchdog must not take a rank that waits for one that works, nor the other way round.
TEST_P(EngineTest, AStepSaysWhereItIs) {
  std::vector<std::string> said;
  const auto engine =
      make(1, {},
           {.compute = [&] { said.emplace_back("compute"); },
            .reduce = [&](int bucket) { said.push_back(fmt::format("reduce {}", bucket)); }});
  const Engine::Source watched{[&](uint64_t w) {
                                 said.emplace_back("batch");
                                 return source().acquire(w);
                               },
                               [](uint64_t) {}};
  engine->step(0, 0.1, {}, watched);
  ASSERT_GT(said.size(), 10u);
  EXPECT_EQ(said[0], "reduce 0");  // the step before
  EXPECT_EQ(said[1], "compute");
  for (size_t i = 2; i < 2 + kWorkers; ++i) EXPECT_EQ(said[i], "batch");
  EXPECT_EQ(said[2 + kWorkers], "reduce 0");
  EXPECT_EQ(said[3 + kWorkers], "reduce 1");
  EXPECT_EQ(said[4 + kWorkers], "reduce 2");
  EXPECT_EQ(said.back(), "compute");
}

TEST_P(EngineTest, AWorkerAloneHandsItsGradientsOverInOnePiece) {
  std::set<int> reduced;
  const auto engine = make(1, {}, {.reduce = [&](int bucket) { reduced.insert(bucket); }}, graph(),
                           {}, {}, /*workers=*/1);
  engine->step(0, 0.1, {}, source());
  EXPECT_EQ(reduced, (std::set{0, 1}));
}

// What is logged of a step is the same on any number of lanes, says what the optimizer did, and
// changes nothing.
TEST_P(EngineTest, LayersAreMeasuredWithoutAnEffect) {
  const ops::OptimizerConfig plain{.momentum = 0, .weight_decay = 0};
  constexpr double kRate = 0.125;
  std::vector<LayerStatistics> measured;
  std::vector<std::vector<float>> results;
  for (const int wanted : {1, 3}) {
    const auto engine = make(lanes_for(GetParam(), kWorkers, wanted, 1), plain);
    const auto quiet = make(lanes_for(GetParam(), kWorkers, wanted, 1), plain);
    for (uint64_t step = 0; step < 2; ++step) {
      quiet->step(step, kRate, {}, source());
      const Engine::State before = engine->state();
      const std::vector<float> old(before.parameters.begin(), before.parameters.end());
      engine->compute(step, {}, source());
      LayerStatistics layers;
      engine->update(kRate, &layers);
      const std::span<const float> now = engine->state().parameters;
      // Plain descent: the gradient is (old - new) / rate, with the rounding of the new weight.
      size_t weights = 0;
      for (const auto& p : engine->layout().parameters) {
        if (!p.spec.is_weight) continue;
        ++weights;
        double gradient = 0, weight = 0;
        for (size_t i = p.offset; i < p.offset + p.floats(); ++i) {
          gradient += std::pow((static_cast<double>(old[i]) - now[i]) / kRate, 2);
          weight += static_cast<double>(old[i]) * old[i];
        }
        const auto at =
            static_cast<size_t>(std::find(layers.weights.begin(), layers.weights.end(), p.name) -
                                layers.weights.begin());
        ASSERT_LT(at, layers.weights.size()) << p.name;
        EXPECT_NEAR(layers.gradient_norm[at], std::sqrt(gradient),
                    1e-3 * std::sqrt(gradient) + 1e-6)
            << p.name;
        EXPECT_NEAR(layers.weight_norm[at], std::sqrt(weight), 1e-9) << p.name;
        EXPECT_NEAR(layers.gradient_rms[at] * std::sqrt(static_cast<double>(p.floats())),
                    layers.gradient_norm[at], 1e-9);
      }
      EXPECT_EQ(weights, layers.weights.size());
      EXPECT_EQ(layers.weights.front(), "conv1.weight");
      EXPECT_EQ(layers.weights.back(), "fc.weight");
      // At the start gamma is 1 and beta 0: what varies enough comes out with a deviation of 1.
      ASSERT_EQ(layers.batch_norms.size(), 19u);
      EXPECT_EQ(layers.batch_norms[0], "bn1");
      if (step == 0) {
        for (const double std : layers.response_std) {
          EXPECT_GT(std, 0.9);
          EXPECT_LE(std, 1.0);
        }
      }
      measured.push_back(layers);
    }
    const std::span<const float> with = engine->state().parameters;
    results.emplace_back(with.begin(), with.end());
    const std::span<const float> without = quiet->state().parameters;
    EXPECT_TRUE(std::ranges::equal(with, without));
  }
  EXPECT_EQ(results[0], results[1]);
  for (const size_t step : {0, 1}) {
    EXPECT_EQ(measured[step].gradient_norm, measured[step + 2].gradient_norm);
    EXPECT_EQ(measured[step].response_std, measured[step + 2].response_std);
  }
  EXPECT_NE(measured[0].gradient_norm, measured[1].gradient_norm);
}

TEST_P(EngineTest, FlagsReachTheResult) {
  const auto engine = make(lanes_for(GetParam(), kWorkers, 2, 1));
  EXPECT_FALSE(engine->step(0, 0.1, {}, source()).control.stop);
  const Engine::Result result = engine->step(1, 0.1, {.stop = true, .save = false}, source());
  EXPECT_TRUE(result.control.stop);
  EXPECT_FALSE(result.control.save);
}

TEST_P(EngineTest, TheMovingAverageStartsAtTheWeights) {
  const auto engine = make(1, {.ema_decay = 0.999});
  engine->step(0, 0.0, {}, source());
  const std::span<const float> weights = engine->state().parameters, average = engine->state().ema;
  ASSERT_EQ(average.size(), weights.size());
  for (size_t i = 0; i < weights.size(); ++i) ASSERT_EQ(average[i], weights[i]) << i;
}

TEST_P(EngineTest, AStepThatIsNotFiniteChangesNothing) {
  const auto engine = make(lanes_for(GetParam(), kWorkers, 2, 1));
  engine->step(0, 0.1, {}, source());
  EXPECT_TRUE(engine->state_is_finite());
  engine->state().parameters[17] = std::numeric_limits<float>::infinity();
  engine->put_state();
  EXPECT_FALSE(engine->state_is_finite());
  const Engine::State state = engine->state();
  const std::vector<float> before(state.parameters.begin(), state.parameters.end());
  try {
    engine->step(1, 0.1, {}, source());
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kFault);
    EXPECT_NE(std::string(e.what()).find("step 1: the loss is"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(std::equal(before.begin(), before.end(), engine->state().parameters.begin()));
}

// Lane 0 fails; lane 1 waits for a batch that will never come, unless it is told.
TEST_P(EngineTest, ALaneThatFailsFreesTheOthers) {
  if (lanes_for(GetParam(), kWorkers, 2, 1) == 1) GTEST_SKIP() << "there is one lane";
  const auto engine = make(2);
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr stopped;
  const Engine::Source source{[&](uint64_t worker) -> Engine::Images {
                                if (worker == 0) fail(ExitCode::kBadData, "image 0 is broken");
                                std::unique_lock lock(mutex);
                                changed.wait(lock, [&] { return stopped != nullptr; });
                                std::rethrow_exception(stopped);
                              },
                              [](uint64_t) {},
                              [&](const std::exception_ptr& error) {
                                const std::lock_guard lock(mutex);
                                stopped = error;
                                changed.notify_all();
                              }};
  try {
    engine->step(0, 0.1, {}, source);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "image 0 is broken");
  }
}

TEST_P(EngineTest, EvaluationIsTheSameOnAnyNumberOfLanes) {
  const Shape batch = {.n = kBatch, .c = 1, .h = 8, .w = 8};
  const ops::ImageInput input = ops::per_channel_input(batch, {0.5}, {0.25});
  std::vector<double> losses;
  for (const int wanted : {1, 3}) {
    const int lanes = lanes_for(GetParam(), kWorkers, wanted, 1);
    const auto engine = make(lanes);
    const auto results = engine->evaluate(kWorkers, input, Engine::Weights::kTrained, source());
    ASSERT_EQ(results.size(), size_t{kWorkers});
    for (const ops::LossResult& r : results) {
      EXPECT_EQ(r.count, kBatch);
      losses.push_back(r.loss_sum);
    }
  }
  for (size_t i = 0; i < kWorkers; ++i) EXPECT_EQ(losses[i], losses[i + kWorkers]);
  EXPECT_NE(losses[0], losses[1]);
}

INSTANTIATE_TEST_SUITE_P(Devices, EngineTest, testing::ValuesIn(ops::device_names()),
                         [](const auto& each) { return each.param; });

}  // namespace
}  // namespace convoy::trainer
