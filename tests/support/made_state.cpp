#include "tests/support/made_state.h"

#include <cmath>

#include "ops/core/random.h"
#include "ops/network.h"

namespace convoy::golden {
namespace {

uint64_t fnv1a(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

// Calls put(i, value) for each element.
template <typename Put>
void fill(const std::string& name, int64_t count, double low, double high, const Put& put) {
  const uint64_t key = fnv1a(name);
  Random4 words{};
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0) words = random4(0, Purpose::kSyntheticData, key, static_cast<uint64_t>(i / 4));
    const double unit = uniform_float(words[static_cast<size_t>(i % 4)]);
    put(i, static_cast<float>(low + (high - low) * unit));
  }
}

// A filter has He's uniform bound; of a batch norm's channel the scale is a little below 1 and the
// shift small.
void fill_parameter(const ops::ParameterLayout::Parameter& p, float* to) {
  const auto put = [&](int64_t i, float value) { to[i] = value; };
  const int64_t count = p.spec.elements();
  if (p.spec.dims.size() > 1) {
    const double bound =
        std::sqrt(6.0 / (static_cast<double>(count) / static_cast<double>(p.spec.dims[0])));
    fill(p.name, count, -bound, bound, put);
  } else if (p.name.ends_with("weight")) {
    fill(p.name, count, 0.5, 1.0, put);
  } else {
    fill(p.name, count, -0.1, 0.1, put);
  }
}

}  // namespace

MadeState make_state(const ops::ParameterLayout& layout) {
  MadeState state{.parameters = std::vector<float>(layout.parameter_floats),
                  .running = std::vector<float>(layout.statistics_floats)};
  for (const auto& p : layout.parameters) fill_parameter(p, state.parameters.data() + p.offset);
  for (const auto& s : layout.statistics) {
    float* mean = state.running.data() + s.offset;
    fill(s.name + ".running_mean", s.channels, -0.1, 0.1, [&](int64_t i, float v) { mean[i] = v; });
    fill(s.name + ".running_var", s.channels, 0.5, 1.0,
         [&](int64_t i, float v) { mean[s.channels + i] = v; });
  }
  return state;
}

std::vector<float> make_images(const Shape& shape) {
  std::vector<float> nhwc(static_cast<size_t>(shape.elements()));
  const int64_t pixels = shape.h * shape.w, sample = shape.c * pixels;
  fill("input", shape.elements(), -2.0, 2.0, [&](int64_t i, float value) {
    const int64_t channel = i % sample / pixels, pixel = i % pixels;
    nhwc[static_cast<size_t>(i / sample * sample + pixel * shape.c + channel)] = value;
  });
  return nhwc;
}

namespace {

std::vector<float> run(const ops::Graph& graph, const StateOf& state_of,
                       const ops::NetworkConfig& config,
                       const std::function<void(ops::Network&)>& forward) {
  const auto device = ops::make_device("cpu", 1);
  ops::Network network(*device, graph, config);
  const MadeState state = state_of(network.layout());
  network.bind({.parameters = state.parameters.data(), .running = state.running.data()});
  network.prepare();
  forward(network);
  const TensorView logits = network.logits();
  std::vector<float> out(static_cast<size_t>(logits.shape.elements()));
  device->download(out.data(), logits.data, logits.bytes());
  return out;
}

}  // namespace

std::vector<float> logits_of(const ops::Graph& graph, const StateOf& state,
                             const std::vector<float>& images, int64_t batch) {
  return run(graph, state, {.batch = batch, .training = false, .input = {}},
             [&](ops::Network& network) { network.forward_activations(images.data(), {}); });
}

std::vector<float> logits_of(const ops::Graph& graph, const StateOf& state,
                             const std::vector<uint8_t>& pixels, const ops::ImageInput& input) {
  return run(graph, state, {.batch = input.shape.n, .training = false, .input = input},
             [&](ops::Network& network) { network.forward(pixels.data(), {}); });
}

}  // namespace convoy::golden
