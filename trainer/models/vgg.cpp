#include "trainer/models/vgg.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/models/builder.h"

namespace convoy::trainer {

using namespace ops;

Graph make_vgg(const VggSpec& spec, const ModelOptions& options) {
  Builder net(options);
  int position = 0;  // in torchvision's sequence "features"
  const auto next = [&] { return fmt::format("features.{}", position++); };
  int x = kImage;
  int64_t channels = 64;
  for (const int convolutions : spec.convolutions) {
    for (int i = 0; i < convolutions; ++i) {
      x = net.conv(next(), x,
                   {.out_channels = channels,
                    .kernel = 3,
                    .padding = 1,
                    .bias = true,
                    .bias_init = 0});  // weights: He et al. 2015, by fan out
      if (spec.batch_norm) x = net.batch_norm(next(), x);
      x = net.relu(next(), x);
    }
    x = net.max_pool(next(), x, {.kernel = 2, .stride = 2, .padding = 0});
    channels = std::min<int64_t>(2 * channels, 512);
  }
  const auto linear = [&](const std::string& name, int64_t out_features) {
    x = net.linear(name, x, {.out_features = out_features, .weight_std = 0.01, .bias_init = 0});
  };
  x = net.add("avgpool", AdaptiveAvgPool{.h = 7, .w = 7}, {x});
  linear("classifier.0", 4096);
  x = net.dropout("classifier.2", net.relu("classifier.1", x));
  linear("classifier.3", 4096);
  x = net.dropout("classifier.5", net.relu("classifier.4", x));
  linear("classifier.6", options.classes);
  return net.take();
}

}  // namespace convoy::trainer
