#include "trainer/models/preact_resnet.h"

#include <fmt/format.h>

#include "ops/core/error.h"
#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;
using Shortcut = ModelOptions::Shortcut;

class PreActBuilder : public Builder {
 public:
  PreActBuilder(const PreActSpec& spec, const ModelOptions& options)
      : Builder(options),
        spec_(spec),
        shortcut_(options.shortcut == Shortcut::kDefault ? spec.shortcut : options.shortcut) {}

  Graph build() {
    int x = stem();
    int64_t planes = spec_.planes;
    for (size_t stage = 0; stage < spec_.blocks.size(); ++stage, planes *= 2)
      for (int i = 0; i < spec_.blocks[stage]; ++i)
        x = block({.name = fmt::format("layer{}.{}", stage + 1, i),
                   .x = x,
                   .planes = planes,
                   .stride = stage > 0 && i == 0 ? 2 : 1,
                   .activated = stage == 0 && i == 0});
    x = activation("bn", "relu", x);
    x = add("avgpool", GlobalAvgPool{}, {x});
    if (!spec_.dropout_in_blocks) x = dropout("dropout", x);
    linear("fc", x, {.out_features = options().classes});
    return take();
  }

 private:
  struct BlockSpec {
    std::string name;
    int x;
    int64_t planes, stride;
    bool activated;  // x comes out of a ReLU
  };

  int stem() {
    channels_ = spec_.stem_channels;
    const bool imagenet = spec_.stem == Stem::kImageNet;
    int x = filter("conv1", kImage, channels_, imagenet ? 7 : 3, imagenet ? 2 : 1);
    x = activation("bn1", "relu1", x);
    return imagenet ? max_pool("maxpool", x, {.kernel = 3, .stride = 2, .padding = 1}) : x;
  }

  int activation(const std::string& norm, const std::string& name, int x) {
    return relu(name, batch_norm(norm, x));
  }
  int filter(const std::string& name, int x, int64_t channels, int64_t kernel, int64_t stride) {
    return conv(
        name, x,
        {.out_channels = channels, .kernel = kernel, .stride = stride, .padding = kernel / 2});
  }

  int block(const BlockSpec& b) {
    const bool bottleneck = spec_.block == Block::kBottleneck;
    const int64_t out = bottleneck ? 4 * b.planes : b.planes;
    const std::string& name = b.name;
    const int a = b.activated ? b.x : activation(name + ".bn1", name + ".relu1", b.x);
    int y;
    if (bottleneck) {
      const int64_t first = options().stride_in_first_conv ? b.stride : 1;
      y = filter(name + ".conv1", a, b.planes, 1, first);
      y = filter(name + ".conv2", activation(name + ".bn2", name + ".relu2", y), b.planes, 3,
                 b.stride / first);
      y = filter(name + ".conv3", activation(name + ".bn3", name + ".relu3", y), out, 1, 1);
    } else {
      y = filter(name + ".conv1", a, b.planes, 3, b.stride);
      y = activation(name + ".bn2", name + ".relu2", y);
      if (spec_.dropout_in_blocks) y = dropout(name + ".dropout", y);
      y = filter(name + ".conv2", y, b.planes, 3, 1);
    }
    y = add(name + ".add", Add{}, {y, skip(b, a, out)});
    channels_ = out;
    return y;
  }

  // What is added to a block's result: its input, or its first activation brought to the shape.
  int skip(const BlockSpec& b, int activated, int64_t out) {
    const bool same = channels_ == out && b.stride == 1;
    if (same && shortcut_ != Shortcut::kC) return b.x;
    if (shortcut_ == Shortcut::kA)
      return add(b.name + ".downsample", Subsample{.stride = b.stride, .out_channels = out},
                 {activated});
    return filter(b.name + ".downsample", activated, out, 1, b.stride);
  }

  PreActSpec spec_;
  Shortcut shortcut_;
  int64_t channels_ = 0;  // of the block's input
};

}  // namespace

Graph make_preact_resnet(const PreActSpec& spec, const ModelOptions& options) {
  if (options.zero_init_residual)
    fail(ExitCode::kBadJob,
         "model.zero_init_residual: the branches of a pre-activation network end in a convolution, "
         "not in a batch norm; leave it out");
  return PreActBuilder(spec, options).build();
}

}  // namespace convoy::trainer
