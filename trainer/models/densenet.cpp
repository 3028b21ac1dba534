#include "trainer/models/densenet.h"

#include <fmt/format.h>

#include <cmath>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;

class DenseNetBuilder : public Builder {
 public:
  DenseNetBuilder(const DenseNetSpec& spec, const ModelOptions& options)
      : Builder(options), spec_(spec), channels_(options.image.c) {}

  Graph build() {
    int x = stem();
    for (size_t i = 0; i < spec_.layers.size(); ++i) {
      x = dense_block(fmt::format("features.denseblock{}", i + 1), x, spec_.layers[i]);
      if (i + 1 < spec_.layers.size())
        x = transition(fmt::format("features.transition{}", i + 1), x);
    }
    // torchvision's name for the last norm counts its four blocks and the stem.
    x = activation(fmt::format("features.norm{}", spec_.layers.size() + 1), "relu", x);
    x = add("avgpool", GlobalAvgPool{}, {x});
    linear("classifier", x, {.out_features = options().classes, .bias_init = 0});
    return take();
  }

 private:
  int activation(const std::string& norm, const std::string& name, int x) {
    return relu(name, batch_norm(norm, x));
  }

  // Starts as torchvision's do: normal by fan in (He et al. 2015, arXiv:1502.01852).
  int filter(const std::string& name, int x, int64_t channels, int64_t kernel, int64_t stride = 1) {
    const double fan_in = static_cast<double>(channels_ * kernel * kernel);
    channels_ = channels;
    return conv(name, x,
                {.out_channels = channels,
                 .kernel = kernel,
                 .stride = stride,
                 .padding = kernel / 2,
                 .weight_std = std::sqrt(2.0 / fan_in)});
  }

  int stem() {
    if (!spec_.imagenet) return filter("features.conv0", kImage, spec_.stem_channels, 3);
    int x = filter("features.conv0", kImage, spec_.stem_channels, 7, 2);
    x = activation("features.norm0", "features.relu0", x);
    return max_pool("features.pool0", x, {.kernel = 3, .stride = 2, .padding = 1});
  }

  // Each layer's features are put behind all that came before, which the next layer reads.
  int dense_block(const std::string& block, int x, int layers) {
    for (int i = 0; i < layers; ++i) {
      const std::string name = fmt::format("{}.denselayer{}", block, i + 1);
      const int64_t before = channels_;
      const int y = dense_layer(name, x);
      x = add(name + ".concat", Concat{}, {x, y});
      channels_ = before + spec_.growth;
    }
    return x;
  }

  int dense_layer(const std::string& name, int x) {
    x = activation(name + ".norm1", name + ".relu1", x);
    if (spec_.bottleneck) {
      x = filter(name + ".conv1", x, 4 * spec_.growth, 1);
      x = activation(name + ".norm2", name + ".relu2", x);
      x = filter(name + ".conv2", x, spec_.growth, 3);
    } else {
      x = filter(name + ".conv1", x, spec_.growth, 3);
    }
    return dropout(name + ".dropout", x);
  }

  int transition(const std::string& name, int x) {
    x = activation(name + ".norm", name + ".relu", x);
    x = filter(name + ".conv", x, spec_.compression ? channels_ / 2 : channels_, 1);
    return add(name + ".pool", AvgPool{.kernel = 2, .stride = 2}, {x});
  }

  DenseNetSpec spec_;
  int64_t channels_;  // of what was made last
};

}  // namespace

Graph make_densenet(const DenseNetSpec& spec, const ModelOptions& options) {
  return DenseNetBuilder(spec, options).build();
}

}  // namespace convoy::trainer
