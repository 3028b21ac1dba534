#include "trainer/models/resnet.h"

#include <fmt/format.h>

namespace convoy::trainer {
namespace {

using namespace ops;
using Shortcut = ModelOptions::Shortcut;

class ResNetBuilder {
 public:
  ResNetBuilder(const ResNetSpec& spec, const ModelOptions& options)
      : spec_(spec), options_(options) {
    graph_.image = options.image;
  }

  int conv(const std::string& name, int x, int64_t channels, int64_t kernel, int64_t stride) {
    return graph_.add(
        name,
        Conv2d{.out_channels = channels, .kernel = kernel, .stride = stride, .padding = kernel / 2},
        {x});
  }
  int batch_norm(const std::string& name, int x, bool zero_init = false) {
    return graph_.add(name,
                      BatchNorm{.epsilon = options_.batch_norm_epsilon,
                                .momentum = options_.batch_norm_momentum,
                                .zero_init = zero_init},
                      {x});
  }
  int relu(const std::string& name, int x) { return graph_.add(name, Relu{}, {x}); }
  int max_pool(const std::string& name, int x) { return graph_.add(name, MaxPool{}, {x}); }

  // A stage: `blocks` blocks of `width` channels, the first one with the stride.
  int stage(int number, int x, int blocks, int64_t width, int64_t stride, Shortcut shortcut) {
    for (int i = 0; i < blocks; ++i)
      x = block(fmt::format("layer{}.{}", number, i), x, width, i == 0 ? stride : 1, shortcut);
    return x;
  }

  Graph classifier(int x, int64_t classes) {
    x = graph_.add("avgpool", GlobalAvgPool{}, {x});
    if (options_.dropout > 0) x = graph_.add("dropout", Dropout{.rate = options_.dropout}, {x});
    graph_.add("fc", Linear{.out_features = classes}, {x});
    return std::move(graph_);
  }

  void set_channels(int64_t channels) { channels_ = channels; }

 private:
  int block(const std::string& name, int x, int64_t width, int64_t stride, Shortcut shortcut) {
    const bool bottleneck = spec_.block == Block::kBottleneck;
    const int64_t out = bottleneck ? 4 * width : width;
    int y;
    if (bottleneck) {
      const int64_t first = options_.stride_in_first_conv ? stride : 1;
      y = conv(name + ".conv1", x, width, 1, first);
      y = relu(name + ".relu1", batch_norm(name + ".bn1", y));
      y = conv(name + ".conv2", y, width, 3, stride / first);
      y = relu(name + ".relu2", batch_norm(name + ".bn2", y));
      y = conv(name + ".conv3", y, out, 1, 1);
      y = batch_norm(name + ".bn3", y, options_.zero_init_residual);
    } else {
      y = conv(name + ".conv1", x, width, 3, stride);
      y = relu(name + ".relu1", batch_norm(name + ".bn1", y));
      y = conv(name + ".conv2", y, width, 3, 1);
      y = batch_norm(name + ".bn2", y, options_.zero_init_residual);
    }
    if (spec_.residual)
      y = graph_.add(name + ".add", Add{}, {y, skip(name, x, out, stride, shortcut)});
    channels_ = out;
    return relu(name + ".relu", y);
  }

  // What is added to a block's result: x itself, or x brought to its shape.
  int skip(const std::string& name, int x, int64_t out, int64_t stride, Shortcut shortcut) {
    const bool same = channels_ == out && stride == 1;
    if (same && shortcut != Shortcut::kC) return x;
    if (shortcut == Shortcut::kA)
      return graph_.add(name + ".downsample", Subsample{.stride = stride, .out_channels = out},
                        {x});
    return batch_norm(name + ".downsample.1", conv(name + ".downsample.0", x, out, 1, stride));
  }

  ResNetSpec spec_;
  ModelOptions options_;
  Graph graph_;
  int64_t channels_ = 0;
};

}  // namespace

Graph make_imagenet_resnet(const ResNetSpec& spec, const ModelOptions& options) {
  const Shortcut shortcut =
      options.shortcut == Shortcut::kDefault ? Shortcut::kB : options.shortcut;
  ResNetBuilder net(spec, options);
  int x = net.conv("conv1", kImage, 64, 7, 2);
  x = net.relu("relu", net.batch_norm("bn1", x));
  x = net.max_pool("maxpool", x);
  net.set_channels(64);
  for (int stage = 1; stage <= 4; ++stage)
    x = net.stage(stage, x, spec.blocks[static_cast<size_t>(stage - 1)], int64_t{32} << stage,
                  stage == 1 ? 1 : 2, shortcut);
  return net.classifier(x, options.classes);
}

Graph make_cifar_resnet(const ResNetSpec& spec, const ModelOptions& options) {
  const Shortcut shortcut =
      options.shortcut == Shortcut::kDefault ? Shortcut::kA : options.shortcut;
  ResNetBuilder net(spec, options);
  int x = net.conv("conv1", kImage, 16, 3, 1);
  x = net.relu("relu", net.batch_norm("bn1", x));
  net.set_channels(16);
  for (int stage = 1; stage <= 3; ++stage)
    x = net.stage(stage, x, spec.blocks[static_cast<size_t>(stage - 1)], int64_t{8} << stage,
                  stage == 1 ? 1 : 2, shortcut);
  return net.classifier(x, options.classes);
}

}  // namespace convoy::trainer
