// Our networks against PyTorch's numbers: logits, loss and every gradient of one step, the losses
// of ten, and all parameters and running statistics after them. One is frozen up to its second
// stage, and what is trained of it has several learning rates.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "ops/freezing.h"
#include "ops/network.h"
#include "tests/support/golden_file.h"
#include "tests/support/op_tester.h"
#include "trainer/models/models.h"

namespace convoy {
namespace {

struct Case {
  std::string device, model, file;
  bool frozen = false;

  std::string name() const { return model + (frozen ? "_frozen_" : "_") + device; }
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name();
}
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& device : ops::device_names()) {
    all.push_back({device, "cifar_resnet20", "resnet20.json"});
    all.push_back({device, "cifar_resnet20", "resnet20_frozen.json", true});
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
  const auto [device_name, model, file_name, frozen] = GetParam();
  const golden::File file = golden::read(golden_folder() + "/" + file_name);
  const auto [n, c, h, w] = file.input_shape;
  trainer::ModelOptions options;
  options.image = {.n = 1, .c = c, .h = h, .w = w};
  options.classes = file.classes;
  const auto device = ops::make_device(device_name, 1);
  const std::set<std::string> not_trained(file.frozen.begin(), file.frozen.end());
  ASSERT_EQ(!not_trained.empty(), frozen);
  const ops::Graph graph = ops::freeze(trainer::make_model(model, options), not_trained);
  ops::Network net(*device, graph, {.batch = n, .input = {}});

  ops::ParameterLayout layout = net.layout();
  for (auto& p : layout.parameters)
    for (const golden::Factors& f : file.factors)
      if (p.name.starts_with(f.prefix)) p.factors = {f.learning_rate, f.weight_decay};
  ops::DeviceFloats parameters(*device, layout.parameter_floats),
      gradients(*device, layout.gradient_floats);
  ops::DeviceFloats running(*device, layout.statistics_floats),
      statistics(*device, layout.batch_floats);
  ASSERT_EQ(file.parameters.size(), layout.parameters.size());
  for (const auto& p : layout.parameters) {
    const auto order = static_cast<size_t>(p.order);
    ASSERT_EQ(file.parameters[order].name, p.name);
    ASSERT_EQ(file.parameters[order].shape, p.spec.dims) << p.name;
    const std::vector<float> values = golden::make_parameter(file, order);
    std::ranges::copy(values, parameters.read().subspan(p.offset).begin());
    parameters.write();
  }
  const std::span<float> first_running = running.read();
  ops::initialise_statistics(layout, first_running.data());
  const auto named_running = [&](std::span<float> now) {
    std::map<std::string, std::span<float>> tensors;
    for (const auto& s : layout.statistics) {
      const auto channels = static_cast<size_t>(s.channels);
      tensors[s.name + ".running_mean"] = now.subspan(s.offset, channels);
      tensors[s.name + ".running_var"] = now.subspan(s.offset + channels, channels);
    }
    return tensors;
  };
  for (size_t i = 0; i < file.running.size(); ++i)
    std::ranges::copy(golden::make_running(file, i),
                      named_running(first_running).at(file.running[i].name).begin());
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
  for (const auto& p : layout.parameters)
    gradient_of.push_back(p.trained ? gradients.data() + p.gradient : nullptr);

  const auto named = [&] {
    const std::span<const float> now = parameters.read();
    golden::Tensors tensors;
    for (const auto& p : layout.parameters) tensors[p.name] = now.subspan(p.offset, p.floats());
    return tensors;
  };
  const auto named_gradients = [&] {
    const std::span<const float> now = gradients.read();
    golden::Tensors tensors;
    for (const auto& p : layout.parameters)
      if (p.trained) tensors[p.name] = now.subspan(p.gradient, p.floats());
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
    if (step == 0) expect_none(golden::compare_tensors(file.gradients, named_gradients()));
    optimizer->update(parameters.data(), gradient_of, file.sgd.learning_rate);
    optimizer->update_running(running.data(), statistics.data(), 1.0f);
  }
  expect_none(golden::compare_losses(file, losses));
  expect_none(golden::compare_tensors(file.parameters_after, named()));
  golden::Tensors after;
  for (const auto& [name, tensor] : named_running(running.read())) after[name] = tensor;
  expect_none(golden::compare_tensors(file.running_after, after));

  // What is frozen has not changed by a bit.
  for (size_t i = 0; i < file.parameters.size(); ++i)
    if (const std::string& name = file.parameters[i].name; not_trained.contains(name)) {
      EXPECT_TRUE(std::ranges::equal(named().at(name), golden::make_parameter(file, i))) << name;
    }
  for (size_t i = 0; i < file.running.size(); ++i) {
    const std::string& name = file.running[i].name;
    const std::string weight = name.substr(0, name.rfind('.')) + ".weight";
    EXPECT_EQ(std::ranges::equal(after.at(name), golden::make_running(file, i)),
              not_trained.contains(weight))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity, testing::ValuesIn(cases()),
                         [](const auto& each) { return each.param.name(); });

}  // namespace
}  // namespace convoy
