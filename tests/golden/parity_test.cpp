// Our networks against PyTorch's numbers: logits, loss and every gradient of one step, the losses
// of ten, and all parameters and running statistics after them.
#include <gtest/gtest.h>

#include <cstring>

#include "ops/network.h"
#include "tests/support/golden_file.h"
#include "trainer/models/models.h"

namespace convoy {
namespace {

class Parity : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(Parity, OneStepAndTenStepsEqualPyTorch) {
  const auto [file_name, model] = GetParam();
  const golden::File file = golden::read(std::string(GOLDEN_DIR) + "/" + file_name);
  const auto [n, c, h, w] = file.input_shape;
  trainer::ModelOptions options;
  options.image = {.n = 1, .c = c, .h = h, .w = w};
  options.classes = file.classes;
  const auto device = ops::make_device("cpu", 1);
  ops::Network net(*device, trainer::make_model(model, options), {.batch = n, .input = {}});

  const ops::ParameterLayout& layout = net.layout();
  std::vector<float> parameters(layout.parameter_floats), gradients(layout.parameter_floats);
  std::vector<float> running(layout.statistics_floats), statistics(layout.statistics_floats);
  ASSERT_EQ(file.parameters.size(), layout.parameters.size());
  for (const auto& p : layout.parameters) {
    const auto order = static_cast<size_t>(p.order);
    ASSERT_EQ(file.parameters[order].name, p.name);
    ASSERT_EQ(file.parameters[order].shape, p.spec.dims) << p.name;
    const std::vector<float> values = golden::make_parameter(file, order);
    std::copy(values.begin(), values.end(), parameters.begin() + static_cast<int64_t>(p.offset));
  }
  ops::initialise_statistics(layout, running.data());
  net.bind({.parameters = parameters.data(),
            .running = running.data(),
            .gradients = gradients.data(),
            .statistics = statistics.data()});
  const auto optimizer = device->make_optimizer({.momentum = file.sgd.momentum,
                                                 .weight_decay = file.sgd.weight_decay,
                                                 .decay_batch_norm_and_bias = true},
                                                layout);
  std::vector<const float*> gradient_of;
  for (const auto& p : layout.parameters) gradient_of.push_back(gradients.data() + p.offset);

  const auto named = [&](const std::vector<float>& flat) {
    golden::Tensors tensors;
    for (const auto& p : layout.parameters)
      tensors[p.name] = std::span(flat).subspan(p.offset, p.floats());
    return tensors;
  };
  const auto expect_none = [](const std::vector<std::string>& mismatches) {
    for (const std::string& m : mismatches) ADD_FAILURE() << m;
  };

  std::vector<double> losses;
  for (int64_t step = 0; step < file.steps(); ++step) {
    const std::vector<float> input = golden::make_input(file, step);
    const std::vector<int32_t> labels = golden::make_labels(file, step);
    net.prepare();
    net.forward_activations(input.data(), {});
    net.loss(labels.data(), 1.0 / static_cast<double>(n));
    losses.push_back(net.loss_result().loss_sum / static_cast<double>(n));
    if (step == 0) {
      const TensorView logits = net.logits();
      expect_none(golden::compare_logits(
          file, {logits.as<float>(), static_cast<size_t>(logits.shape.elements())}));
    }
    net.backward({}, [](size_t) {});
    if (step == 0) expect_none(golden::compare_tensors(file.gradients, named(gradients)));
    optimizer->update(parameters.data(), gradient_of, file.sgd.learning_rate);
    optimizer->update_running(running.data(), statistics.data(), 1.0f);
  }
  expect_none(golden::compare_losses(file, losses));
  expect_none(golden::compare_tensors(file.parameters_after, named(parameters)));
  golden::Tensors after;
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    after[s.name + ".running_mean"] = std::span(running).subspan(s.offset, channels);
    after[s.name + ".running_var"] = std::span(running).subspan(s.offset + channels, channels);
  }
  expect_none(golden::compare_tensors(file.running_after, after));
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity,
                         testing::Values(std::pair("resnet20.json", "cifar_resnet20"),
                                         std::pair("resnet18_64.json", "resnet18")),
                         [](const auto& each) { return std::string(each.param.second); });

}  // namespace
}  // namespace convoy
