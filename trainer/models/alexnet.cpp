#include "trainer/models/alexnet.h"

#include <fmt/format.h>

#include <cmath>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;

constexpr MaxPool kPool = {.kernel = 3, .stride = 2, .padding = 0};  // windows overlap

// torchvision starts convolutions as torch does: of variance 1 / (3 fan_in), uniform there, normal
// here.
double torch_std(int64_t fan_in) {
  return 1.0 / std::sqrt(3.0 * static_cast<double>(fan_in));
}

}  // namespace

Graph make_alexnet(const ModelOptions& options) {
  Builder net(options);
  int position = 0;  // in torchvision's sequence "features"
  const auto next = [&] { return fmt::format("features.{}", position++); };
  int64_t channels = options.image.c;
  const auto conv = [&](int x, int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
    const Conv2d spec = {.out_channels = out,
                         .kernel = kernel,
                         .stride = stride,
                         .padding = padding,
                         .bias = true,
                         .weight_std = torch_std(channels * kernel * kernel)};
    channels = out;
    x = net.conv(next(), x, spec);
    return net.relu(next(), x);
  };
  int x = conv(kImage, 64, 11, 4, 2);
  x = net.max_pool(next(), x, kPool);
  x = conv(x, 192, 5, 1, 2);
  x = net.max_pool(next(), x, kPool);
  x = conv(x, 384, 3, 1, 1);
  x = conv(x, 256, 3, 1, 1);
  x = conv(x, 256, 3, 1, 1);
  x = net.max_pool(next(), x, kPool);
  x = net.add("avgpool", AdaptiveAvgPool{.h = 6, .w = 6}, {x});
  x = net.dropout("classifier.0", x);
  x = net.linear("classifier.1", x, {.out_features = 4096});
  x = net.relu("classifier.2", x);
  x = net.dropout("classifier.3", x);
  x = net.linear("classifier.4", x, {.out_features = 4096});
  x = net.relu("classifier.5", x);
  net.linear("classifier.6", x, {.out_features = options.classes});
  return net.take();
}

Graph make_alexnet_two_tower(const ModelOptions& options) {
  constexpr double kStd = 0.01;  // section 5; there, too, which biases start at 1
  // Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75; the op divides alpha by n.
  constexpr LocalResponseNorm kNorm = {.size = 5, .alpha = 5e-4, .beta = 0.75, .k = 2};
  Builder net(options);
  const auto conv = [&](const std::string& name, int x, Conv2d spec) {
    spec.bias = true;
    spec.weight_std = kStd;
    return net.relu(name + ".relu", net.conv(name, x, spec));
  };
  const auto hidden = [&](const std::string& name, int x) {
    x = net.linear(name, x, {.out_features = 4096, .weight_std = kStd, .bias_init = 1});
    return net.dropout(name + ".dropout", net.relu(name + ".relu", x));
  };
  int x = conv("conv1", kImage, {.out_channels = 96, .kernel = 11, .stride = 4, .bias_init = 0});
  x = net.max_pool("pool1", net.add("norm1", kNorm, {x}), kPool);
  x = conv("conv2", x,
           {.out_channels = 256, .kernel = 5, .padding = 2, .groups = 2, .bias_init = 1});
  x = net.max_pool("pool2", net.add("norm2", kNorm, {x}), kPool);
  x = conv("conv3", x, {.out_channels = 384, .kernel = 3, .padding = 1, .bias_init = 0});
  x = conv("conv4", x,
           {.out_channels = 384, .kernel = 3, .padding = 1, .groups = 2, .bias_init = 1});
  x = conv("conv5", x,
           {.out_channels = 256, .kernel = 3, .padding = 1, .groups = 2, .bias_init = 1});
  x = net.max_pool("pool5", x, kPool);
  x = hidden("fc6", x);
  x = hidden("fc7", x);
  net.linear("fc8", x, {.out_features = options.classes, .weight_std = kStd, .bias_init = 0});
  return net.take();
}

}  // namespace convoy::trainer
