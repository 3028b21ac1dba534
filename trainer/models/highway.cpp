#include "trainer/models/highway.h"

#include <fmt/format.h>

#include <cmath>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;

constexpr double kGateBias = -2.0;

// Glorot and Bengio's, as the authors use it: normal here, uniform there, of the same variance.
double glorot(int64_t fan_in) {
  return 1.0 / std::sqrt(static_cast<double>(fan_in));
}

class HighwayBuilder : public Builder {
 public:
  using Builder::Builder;

  // A plain layer of its own, which may change the number of channels.
  int plain(int x, int64_t inputs, int64_t channels, int64_t kernel) {
    const std::string name = next_name();
    return relu(name + ".relu", conv(name + ".conv", x, filter(inputs, channels, kernel, 0)));
  }
  int plain_fc(int x, int64_t inputs, int64_t units) {
    const std::string name = next_name();
    return relu(name + ".relu", linear(name + ".fc", x, fc(inputs, units, 0)));
  }

  // `count` highway layers of 3x3 convolutions, or of fully connected units.
  int highways(int x, int64_t channels, int count) {
    for (int i = 0; i < count; ++i) {
      const std::string name = next_name();
      const int h = conv(name + ".conv", x, filter(channels, channels, 3, 0));
      const int t = conv(name + ".gate", x, filter(channels, channels, 3, kGateBias));
      x = gated(name, x, relu(name + ".relu", h), t);
    }
    return x;
  }
  int highways_fc(int x, int64_t units, int count) {
    for (int i = 0; i < count; ++i) {
      const std::string name = next_name();
      const int h = linear(name + ".fc", x, fc(units, units, 0));
      const int t = linear(name + ".gate", x, fc(units, units, kGateBias));
      x = gated(name, x, relu(name + ".relu", h), t);
    }
    return x;
  }

  static Linear fc(int64_t inputs, int64_t units, double bias) {
    return {.out_features = units, .weight_std = glorot(inputs), .bias_init = bias};
  }

 private:
  std::string next_name() { return fmt::format("layer{}", ++layers_); }

  static Conv2d filter(int64_t inputs, int64_t channels, int64_t kernel, double bias) {
    return {.out_channels = channels,
            .kernel = kernel,
            .padding = kernel / 2,
            .bias = true,
            .weight_std = glorot(inputs * kernel * kernel),
            .bias_init = bias};
  }

  // h T + x (1 - T); t: what the sigmoid is taken of.
  int gated(const std::string& name, int x, int h, int t) {
    const int transform = add(name + ".transform", Sigmoid{}, {t});
    const int carry = add(name + ".carry", Sigmoid{.complement = true}, {t});
    const int transformed = add(name + ".transformed", Multiply{}, {h, transform});
    const int carried = add(name + ".carried", Multiply{}, {x, carry});
    return add(name + ".add", Add{}, {transformed, carried});
  }

  int layers_ = 0;
};

}  // namespace

Graph make_highway_fc(int layers, const ModelOptions& options) {
  constexpr int64_t kUnits = 50;
  HighwayBuilder net(options);
  int x = net.plain_fc(kImage, options.image.c * options.image.h * options.image.w, kUnits);
  x = net.highways_fc(x, kUnits, layers - 1);
  x = net.dropout("dropout", x);
  net.linear("fc", x, HighwayBuilder::fc(kUnits, options.classes, 0));
  return net.take();
}

Graph make_highway_cifar(const ModelOptions& options) {
  constexpr MaxPool kPool = {.kernel = 2, .stride = 2, .padding = 0};
  HighwayBuilder net(options);
  int x = net.dropout("dropout1", kImage);
  x = net.plain(x, options.image.c, 32, 3);
  x = net.highways(x, 32, 4);
  x = net.dropout("dropout2", net.max_pool("pool1", x, kPool));
  x = net.plain(x, 32, 80, 3);
  x = net.highways(x, 80, 5);
  x = net.dropout("dropout3", net.max_pool("pool2", x, kPool));
  x = net.plain(x, 80, 128, 3);
  x = net.highways(x, 128, 5);
  x = net.plain(x, 128, 100, 1);
  x = net.add("avgpool", GlobalAvgPool{}, {x});
  x = net.dropout("dropout4", x);
  net.linear("fc", x, HighwayBuilder::fc(100, options.classes, 0));
  return net.take();
}

}  // namespace convoy::trainer
