#include "trainer/models/nin.h"

#include <cmath>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;

// The first pools take what hangs over the border, too: 54 -> 27 -> 13 -> 6, 32 -> 16 -> 8.
constexpr MaxPool kPool = {.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true};

class NinBuilder : public Builder {
 public:
  explicit NinBuilder(const ModelOptions& options) : Builder(options), channels_(options.image.c) {}

  // The paper says nothing of starting weights: normal by fan in (He et al. 2015, arXiv:1502.01852)
  // trains without care for the learning rate.
  int conv(const std::string& name, int x, Conv2d spec) {
    spec.bias = true;
    spec.bias_init = 0;
    spec.weight_std = std::sqrt(2.0 / static_cast<double>(channels_ * spec.kernel * spec.kernel));
    channels_ = spec.out_channels;
    return relu(name + ".relu", Builder::conv(name, x, spec));
  }
  int cccp(const std::string& name, int x, int64_t channels) {
    return conv(name, x, {.out_channels = channels, .kernel = 1});
  }

 private:
  int64_t channels_;
};

}  // namespace

Graph make_nin_imagenet(const ModelOptions& options) {
  NinBuilder net(options);
  int x = net.conv("conv1", kImage, {.out_channels = 96, .kernel = 11, .stride = 4});
  x = net.cccp("cccp2", net.cccp("cccp1", x, 96), 96);
  x = net.max_pool("pool1", x, kPool);
  x = net.conv("conv2", x, {.out_channels = 256, .kernel = 5, .padding = 2});
  x = net.cccp("cccp4", net.cccp("cccp3", x, 256), 256);
  x = net.max_pool("pool2", x, kPool);
  x = net.conv("conv3", x, {.out_channels = 384, .kernel = 3, .padding = 1});
  x = net.cccp("cccp6", net.cccp("cccp5", x, 384), 384);
  x = net.max_pool("pool3", x, kPool);
  x = net.dropout("dropout", x);
  x = net.conv("conv4", x, {.out_channels = 1024, .kernel = 3, .padding = 1});
  x = net.cccp("cccp8", net.cccp("cccp7", x, 1024), options.classes);
  net.add("avgpool", GlobalAvgPool{}, {x});
  return net.take();
}

// Both poolings are maxima, as the paper says.
Graph make_nin_cifar(const ModelOptions& options) {
  NinBuilder net(options);
  int x = net.conv("conv1", kImage, {.out_channels = 192, .kernel = 5, .padding = 2});
  x = net.cccp("cccp2", net.cccp("cccp1", x, 160), 96);
  x = net.dropout("dropout1", net.max_pool("pool1", x, kPool));
  x = net.conv("conv2", x, {.out_channels = 192, .kernel = 5, .padding = 2});
  x = net.cccp("cccp4", net.cccp("cccp3", x, 192), 192);
  x = net.dropout("dropout2", net.max_pool("pool2", x, kPool));
  x = net.conv("conv3", x, {.out_channels = 192, .kernel = 3, .padding = 1});
  x = net.cccp("cccp6", net.cccp("cccp5", x, 192), options.classes);
  net.add("avgpool", GlobalAvgPool{}, {x});
  return net.take();
}

}  // namespace convoy::trainer
