#include "trainer/models/resnet.h"

#include <fmt/format.h>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;
using Shortcut = ModelOptions::Shortcut;

class ResNetBuilder : public Builder {
 public:
  ResNetBuilder(const ResNetSpec& spec, const ModelOptions& options)
      : Builder(options),
        spec_(spec),
        shortcut_(options.shortcut == Shortcut::kDefault ? spec.shortcut : options.shortcut) {}

  Graph build() {
    int x = stem();
    int64_t planes = spec_.planes;
    for (size_t stage = 0; stage < spec_.blocks.size(); ++stage, planes *= 2)
      for (int i = 0; i < spec_.blocks[stage]; ++i)
        x = block(fmt::format("layer{}.{}", stage + 1, i), x, planes, stage > 0 && i == 0 ? 2 : 1);
    x = add("avgpool", GlobalAvgPool{}, {x});
    x = dropout("dropout", x);
    linear("fc", x, {.out_features = options().classes});
    return take();
  }

 private:
  int stem() {
    channels_ = spec_.stem_channels;
    if (spec_.stem == Stem::kCifar)
      return relu("relu", batch_norm("bn1", filter("conv1", kImage, channels_, 3, 1)));
    const int x = relu("relu", batch_norm("bn1", filter("conv1", kImage, channels_, 7, 2)));
    return max_pool("maxpool", x, {.kernel = 3, .stride = 2, .padding = 1});
  }

  int filter(const std::string& name, int x, int64_t channels, int64_t kernel, int64_t stride,
             int64_t groups = 1) {
    return conv(name, x,
                {.out_channels = channels,
                 .kernel = kernel,
                 .stride = stride,
                 .padding = kernel / 2,
                 .groups = groups});
  }

  int block(const std::string& name, int x, int64_t planes, int64_t stride) {
    const bool bottleneck = spec_.block == Block::kBottleneck;
    const int64_t out = bottleneck ? 4 * planes : planes;
    const bool zero_init = options().zero_init_residual;
    int y;
    if (bottleneck) {
      const int64_t width = planes * spec_.width_per_group / 64 * spec_.groups;
      const int64_t first = options().stride_in_first_conv ? stride : 1;
      y = filter(name + ".conv1", x, width, 1, first);
      y = relu(name + ".relu1", batch_norm(name + ".bn1", y));
      y = filter(name + ".conv2", y, width, 3, stride / first, spec_.groups);
      y = relu(name + ".relu2", batch_norm(name + ".bn2", y));
      y = filter(name + ".conv3", y, out, 1, 1);
      y = batch_norm(name + ".bn3", y, zero_init);
    } else {
      y = filter(name + ".conv1", x, planes, 3, stride);
      y = relu(name + ".relu1", batch_norm(name + ".bn1", y));
      y = filter(name + ".conv2", y, planes, 3, 1);
      y = batch_norm(name + ".bn2", y, zero_init);
    }
    if (spec_.residual) y = add(name + ".add", Add{}, {y, skip(name, x, out, stride)});
    channels_ = out;
    return relu(name + ".relu", y);
  }

  // What is added to a block's result: x itself, or x brought to its shape.
  int skip(const std::string& name, int x, int64_t out, int64_t stride) {
    const bool same = channels_ == out && stride == 1;
    if (same && shortcut_ != Shortcut::kC) return x;
    if (shortcut_ == Shortcut::kA)
      return add(name + ".downsample", Subsample{.stride = stride, .out_channels = out}, {x});
    return batch_norm(name + ".downsample.1", filter(name + ".downsample.0", x, out, 1, stride));
  }

  ResNetSpec spec_;
  Shortcut shortcut_;
  int64_t channels_ = 0;  // of the block's input
};

}  // namespace

Graph make_resnet(const ResNetSpec& spec, const ModelOptions& options) {
  return ResNetBuilder(spec, options).build();
}

}  // namespace convoy::trainer
