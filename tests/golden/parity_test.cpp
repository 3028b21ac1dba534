// Our networks against PyTorch's numbers: logits, loss and every gradient of one step, the losses
// of ten, and all parameters and running statistics after them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "ops/network.h"
#include "tests/support/golden_file.h"
#include "tests/support/op_tester.h"
#include "trainer/models/models.h"

namespace convoy {
namespace {

struct Case {
  std::string device, model, file;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " on " << c.device;
}
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& device : ops::device_names()) {
    all.push_back({device, "cifar_resnet20", "resnet20.json"});
    all.push_back({device, "resnet18", "resnet18_64.json"});
  }
  return all;
}

// A program that was carried to another machine is told where the files are.
std::string golden_folder() {
  const char* told = std::getenv("GOLDEN_DIR");
  return told ? told : GOLDEN_DIR;
}

class Parity : public testing::TestWithParam<Case> {};

TEST_P(Parity, OneStepAndTenStepsEqualPyTorch) {
  const auto [device_name, model, file_name] = GetParam();
  const golden::File file = golden::read(golden_folder() + "/" + file_name);
  const auto [n, c, h, w] = file.input_shape;
  trainer::ModelOptions options;
  options.image = {.n = 1, .c = c, .h = h, .w = w};
  options.classes = file.classes;
  const auto device = ops::make_device(device_name, 1);
  ops::Network net(*device, trainer::make_model(model, options), {.batch = n, .input = {}});

  const ops::ParameterLayout& layout = net.layout();
  ops::DeviceFloats parameters(*device, layout.parameter_floats),
      gradients(*device, layout.parameter_floats);
  ops::DeviceFloats running(*device, layout.statistics_floats),
      statistics(*device, layout.statistics_floats);
  ASSERT_EQ(file.parameters.size(), layout.parameters.size());
  for (const auto& p : layout.parameters) {
    const auto order = static_cast<size_t>(p.order);
    ASSERT_EQ(file.parameters[order].name, p.name);
    ASSERT_EQ(file.parameters[order].shape, p.spec.dims) << p.name;
    const std::vector<float> values = golden::make_parameter(file, order);
    std::ranges::copy(values, parameters.read().subspan(p.offset).begin());
    parameters.write();
  }
  ops::initialise_statistics(layout, running.read().data());
  running.write();
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

  const auto named = [&](ops::DeviceFloats& flat) {
    const std::span<const float> now = flat.read();
    golden::Tensors tensors;
    for (const auto& p : layout.parameters) tensors[p.name] = now.subspan(p.offset, p.floats());
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
      const TensorView on_device = net.logits();
      std::vector<float> logits(static_cast<size_t>(on_device.shape.elements()));
      device->download(logits.data(), on_device.data, on_device.bytes());
      expect_none(golden::compare_logits(file, logits));
    }
    net.backward({}, [](size_t) {});
    if (step == 0) expect_none(golden::compare_tensors(file.gradients, named(gradients)));
    optimizer->update(parameters.data(), gradient_of, file.sgd.learning_rate);
    optimizer->update_running(running.data(), statistics.data(), 1.0f);
  }
  expect_none(golden::compare_losses(file, losses));
  expect_none(golden::compare_tensors(file.parameters_after, named(parameters)));
  golden::Tensors after;
  const std::span<const float> running_now = running.read();
  for (const auto& s : layout.statistics) {
    const auto channels = static_cast<size_t>(s.channels);
    after[s.name + ".running_mean"] = running_now.subspan(s.offset, channels);
    after[s.name + ".running_var"] = running_now.subspan(s.offset + channels, channels);
  }
  expect_none(golden::compare_tensors(file.running_after, after));
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity, testing::ValuesIn(cases()), [](const auto& each) {
  return each.param.model + "_" + each.param.device;
});

}  // namespace
}  // namespace convoy
