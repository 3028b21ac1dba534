// Evaluation with several looks and several networks, against a plain loop: geometries by the
// transforms, logits by a network of one image, softmax and mean in double.
#include "trainer/evaluation/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data_loader/image.h"
#include "ops/core/error.h"
#include "ops/device.h"
#include "ops/network.h"
#include "tests/support/op_tester.h"
#include "tests/support/tiny_images.h"
#include "trainer/models/models.h"
#include "trainer/weights/model_state.h"

namespace convoy::trainer {
namespace {

using Members = std::vector<std::unique_ptr<Classifier>>;

constexpr const char* kJob = R"(data {
  format: IMAGE_FOLDER path: "unused" classes: 3
  train { size: 24 }
  eval { resize: 28 }
  mean: [0.5, 0.4, 0.3]
  std: [0.2, 0.3, 0.25]
}
model { name: "cifar_resnet20" }
workers: 1
evaluation { batch: 4 }
)";

// Batches of several images may be summed in other blocks than one alone: a few roundings of
// 2^-24 of logits of about 10.
constexpr double kTolerance = 2e-5;

class EvaluationTest : public testing::TestWithParam<std::string> {
 protected:
  EvaluationTest() {
    make_images();
    dataset_ = data::open_dataset(
        {.format = data::Format::kImageFolder, .path = folder_.path(), .synthetic_shape = {}},
        data::Split::kVal);
    watchdog_ = std::make_unique<comm::Watchdog>(*alone_, comm::WatchdogConfig{});
  }

  // Of several aspect ratios, some of them twice.
  void make_images() {
    uint64_t seed = 0;
    for (const auto& [w, h] : {std::pair{40, 30},
                               {64, 30},
                               {30, 47},
                               {40, 30},
                               {33, 33},
                               {90, 31},
                               {31, 64},
                               {64, 31},
                               {40, 41},
                               {47, 90}}) {
      folder_.write(fmt::format("val/class_{}/image_{:02}.jpg", seed % 3, seed),
                    test::encode_jpeg(test::make_image(w, h, 3, seed)));
      ++seed;
    }
    for (int c = 0; c < 3; ++c)
      folder_.write(fmt::format("train/class_{}/image.jpg", c),
                    test::encode_jpeg(test::make_image(40, 40, 3, 100)));
  }

  // With weights of its own: as they start from this seed, running statistics moved.
  std::unique_ptr<Classifier> classifier(const std::string& model, uint64_t seed, int lanes = 1) {
    Trained trained;
    trained.folder = model;
    trained.job = parse_job(kJob, "job", {"model.name=" + model, fmt::format("seed={}", seed)}, "");
    trained.job.threads_per_worker = 1;
    EngineConfig config = engine_config(trained.job, "cpu", 0, {}, 1);
    config.training = false;
    Engine engine(*alone_, graph_of(trained.job, {24, 24, 3}), config);
    const Engine::State state = engine.state();
    for (size_t i = 0; i < state.running.size(); ++i)
      state.running[i] += 0.1f * static_cast<float>((i * seed) % 7);
    // Larger scores, so that the networks tell images apart.
    for (const auto& p : engine.layout().parameters)
      if (p.name == "fc.weight")
        for (size_t i = 0; i < p.floats(); ++i) state.parameters[p.offset + i] *= 400;
    engine.put_state();
    trained.state.model = model_tensors(engine, 1);
    parameters_[{model, seed}] = {{state.parameters.begin(), state.parameters.end()},
                                  {state.running.begin(), state.running.end()}};
    const int use = lanes_for(GetParam(), lanes, lanes, 1);
    return std::make_unique<Classifier>(*alone_, std::move(trained), dataset_.get(), GetParam(),
                                        use);
  }
  Members members(const std::vector<std::pair<std::string, uint64_t>>& list, int lanes = 1) {
    Members out;
    for (const auto& [model, seed] : list) out.push_back(classifier(model, seed, lanes));
    return out;
  }

  static std::vector<ImageNetwork> views(const Members& networks) {
    std::vector<ImageNetwork> out;
    for (const auto& network : networks) out.push_back(network->network());
    return out;
  }

  std::vector<Prediction> run(const Members& networks, EvaluationConfig config,
                              Accuracy* accuracy = nullptr) {
    config.top = 5;
    Evaluation evaluation(*alone_, *watchdog_, views(networks), *dataset_, config);
    std::vector<Prediction> all;
    const Accuracy a = evaluation.run(Engine::Weights::kTrained, 1,
                                      [&](const Prediction& p) { all.push_back(p); });
    if (accuracy) *accuracy = a;
    return all;
  }

  // Probabilities of image i by a plain loop, mean over the given looks.
  std::vector<double> reference(const std::string& model, uint64_t seed, uint64_t i,
                                const std::vector<data::Looks>& looks) {
    data::Sample sample;
    dataset_->read(i, sample);
    data::ImageDecoder decoder;
    data::ImageShape shape;
    data::ImageCodec& codec = decoder.open(sample.bytes, "image", 1u << 20, shape);
    data::Image image;
    codec.decode({0, 0, shape.width, shape.height}, 1, image);
    std::vector<data::Geometry> geometries;
    for (const data::Looks& l : looks) {
      if (l.kind == data::Looks::Kind::kWhole)
        geometries.push_back(data::dense_geometry(shape, l.scale));
      else if (l.kind == data::Looks::Kind::kCentre)
        geometries.push_back(data::eval_geometry(l.transform, shape, {24, 24, 3}, "image"));
      else
        for (int crop = 0; crop < 10; ++crop)
          geometries.push_back(
              data::ten_crop_geometry(l.transform, crop, shape, {24, 24, 3}, "image"));
    }
    std::vector<double> mean(3, 0.0);
    for (const data::Geometry& g : geometries) {
      std::vector<uint8_t> pixels(static_cast<size_t>(g.x.count * g.y.count * 3));
      data::ResizeScratch scratch;
      data::apply(pixels.data(), g, image.view(), scratch);
      const std::vector<double> p = probabilities(model, seed, pixels, g.y.count, g.x.count);
      for (size_t k = 0; k < 3; ++k) mean[k] += p[k] / static_cast<double>(geometries.size());
    }
    return mean;
  }

  std::vector<double> probabilities(const std::string& model, uint64_t seed,
                                    const std::vector<uint8_t>& pixels, int h, int w) {
    ModelOptions options;
    options.image = {.n = 1, .c = 3, .h = h, .w = w};
    options.classes = 3;
    const auto device = ops::make_device(GetParam(), 1);
    ops::Network net(*device, make_model(model, options),
                     {.batch = 1,
                      .training = false,
                      .input = ops::per_channel_input({.n = 1, .c = 3, .h = h, .w = w},
                                                      {0.5, 0.4, 0.3}, {0.2, 0.3, 0.25})});
    const auto& [weights, statistics] = parameters_.at({model, seed});
    ops::DeviceFloats parameters(*device, weights.size()), running(*device, statistics.size());
    std::ranges::copy(weights, parameters.read().begin());
    std::ranges::copy(statistics, running.read().begin());
    parameters.write();
    running.write();
    net.bind({parameters.data(), running.data(), nullptr, nullptr});
    net.prepare();
    net.forward(pixels.data(), {});
    const TensorView y = net.logits();
    std::vector<float> logits(3);
    device->download(logits.data(), y.data, y.bytes());
    std::vector<double> p;
    double sum = 0;
    for (const float v : logits) sum += std::exp(static_cast<double>(v));
    for (const float v : logits) p.push_back(std::exp(static_cast<double>(v)) / sum);
    return p;
  }

  void expect_reference(const std::vector<Prediction>& got,
                        const std::vector<std::pair<std::string, uint64_t>>& networks,
                        const std::vector<data::Looks>& looks) {
    ASSERT_EQ(got.size(), dataset_->size());
    double spread = 0;
    for (uint64_t i = 0; i < got.size(); ++i) {
      std::vector<double> expected(3, 0.0);
      for (const auto& [model, seed] : networks) {
        const std::vector<double> one = reference(model, seed, i, looks);
        for (size_t k = 0; k < 3; ++k) expected[k] += one[k] / static_cast<double>(networks.size());
      }
      EXPECT_EQ(got[i].image, i);
      EXPECT_EQ(got[i].label, dataset_->label(i));
      ASSERT_EQ(got[i].top.size(), 3u);
      double all = 0;
      for (const Guess& g : got[i].top) {
        EXPECT_NEAR(g.probability, expected[static_cast<size_t>(g.label)], kTolerance)
            << "image " << i << ", class " << g.label;
        all += g.probability;
        spread = std::max(spread, std::abs(g.probability - 1 / 3.0));
      }
      EXPECT_NEAR(all, 1, 1e-12);
    }
    EXPECT_GT(spread, 0.1);
  }

  const data::Looks centre_{.kind = data::Looks::Kind::kCentre, .transform = {28, 24}};
  const data::Looks ten_{.kind = data::Looks::Kind::kTenCrops, .transform = {28, 24}};
  static data::Looks whole(int scale) {
    return {.kind = data::Looks::Kind::kWhole, .transform = {}, .scale = scale};
  }

  test::TempFolder folder_;
  std::unique_ptr<comm::Communicator> alone_ = comm::make_communicator("local");
  std::unique_ptr<comm::Watchdog> watchdog_;
  std::unique_ptr<data::Dataset> dataset_;
  std::map<std::pair<std::string, uint64_t>, std::pair<std::vector<float>, std::vector<float>>>
      parameters_;
};

bool same(const std::vector<Prediction>& a, const std::vector<Prediction>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].image != b[i].image || a[i].label != b[i].label || a[i].loss != b[i].loss)
      return false;
    for (size_t k = 0; k < a[i].top.size(); ++k)
      if (a[i].top[k].label != b[i].top[k].label ||
          a[i].top[k].probability != b[i].top[k].probability)
        return false;
  }
  return true;
}

// Training's, of which nobody asks for predictions, computes no probabilities.
TEST_P(EvaluationTest, TheCentreEqualsThePlainLoopAndTrainingsEvaluation) {
  const auto networks = members({{"cifar_resnet20", 1}});
  Accuracy accuracy;
  const std::vector<Prediction> got = run(networks, {}, &accuracy);
  expect_reference(got, {{"cifar_resnet20", 1}}, {centre_});
  uint64_t right = 0;
  double loss = 0;
  for (const Prediction& p : got) {
    right += p.right() ? 1 : 0;
    loss += p.loss / static_cast<double>(got.size());
  }
  EXPECT_EQ(accuracy.top1, right);
  // The same formula written otherwise, as in TwoCopiesEqualOne.
  EXPECT_NEAR(accuracy.loss, loss, 1e-12 * loss);
  Evaluation training(*alone_, *watchdog_, views(networks), *dataset_, {});
  const Accuracy expected = training.run(Engine::Weights::kTrained, 1);
  EXPECT_EQ(accuracy.images, expected.images);
  EXPECT_EQ(accuracy.top1, expected.top1);
  EXPECT_EQ(accuracy.top5, expected.top5);
  EXPECT_EQ(accuracy.loss, expected.loss);
}

TEST_P(EvaluationTest, TenCropsEqualThePlainLoop) {
  Accuracy accuracy;
  const auto got = run(members({{"cifar_resnet20", 1}}), {.ten_crop = true}, &accuracy);
  expect_reference(got, {{"cifar_resnet20", 1}}, {ten_});
  uint64_t right = 0;
  double loss = 0;
  for (const Prediction& p : got) {
    right += p.right() ? 1 : 0;
    loss += p.loss;
  }
  EXPECT_EQ(accuracy.top1, right);
  EXPECT_DOUBLE_EQ(accuracy.loss, loss / static_cast<double>(got.size()));
}

TEST_P(EvaluationTest, ScalesEqualThePlainLoop) {
  const auto got = run(members({{"cifar_resnet20", 1}}), {.scales = {24, 33, 64}});
  expect_reference(got, {{"cifar_resnet20", 1}}, {whole(24), whole(33), whole(64)});
}

TEST_P(EvaluationTest, ThreadsAndLanesChangeNoBit) {
  for (const EvaluationConfig& config : {EvaluationConfig{}, EvaluationConfig{.ten_crop = true},
                                         EvaluationConfig{.scales = {28, 40}}}) {
    const auto first = run(members({{"cifar_resnet20", 3}}, 1), config);
    for (const auto& [lanes, threads] : {std::pair{2, 0}, {3, 3}}) {
      EvaluationConfig other = config;
      other.data_threads = threads;
      EXPECT_TRUE(same(run(members({{"cifar_resnet20", 3}}, lanes), other), first))
          << lanes << " lanes, " << threads << " threads";
    }
  }
}

TEST_P(EvaluationTest, TwoCopiesEqualOne) {
  Accuracy one, two;
  const auto single = run(members({{"cifar_resnet20", 1}}), {}, &one);
  const auto copies = run(members({{"cifar_resnet20", 1}, {"cifar_resnet20", 1}}), {}, &two);
  EXPECT_TRUE(same(single, copies));
  EXPECT_EQ(one.top1, two.top1);
  EXPECT_EQ(one.top5, two.top5);
  // One sums its loss on the device, image by image in the same formula written otherwise.
  EXPECT_NEAR(one.loss, two.loss, 1e-12 * one.loss);
  EXPECT_FALSE(same(single, run(members({{"cifar_resnet20", 2}}), {})));
}

TEST_P(EvaluationTest, NetworksOfSeveralModelsAreAveraged) {
  expect_reference(run(members({{"cifar_resnet20", 1}, {"cifar_plain20", 2}}), {}),
                   {{"cifar_resnet20", 1}, {"cifar_plain20", 2}}, {centre_});
}

INSTANTIATE_TEST_SUITE_P(Devices, EvaluationTest, testing::ValuesIn(ops::device_names()),
                         [](const auto& each) { return each.param; });

}  // namespace
}  // namespace convoy::trainer
