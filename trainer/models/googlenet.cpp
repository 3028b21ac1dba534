#include "trainer/models/googlenet.h"

#include <cmath>

#include "trainer/models/builder.h"

namespace convoy::trainer {
namespace {

using namespace ops;

// One row of the paper's table 1. "reduce": the 1x1 convolution before.
struct Inception {
  const char* name;
  int64_t ones;
  int64_t reduce3, threes;
  int64_t reduce5, fives;
  int64_t pool_proj;
};

constexpr Inception k3a = {"inception3a", 64, 96, 128, 16, 32, 32};
constexpr Inception k3b = {"inception3b", 128, 128, 192, 32, 96, 64};
constexpr Inception k4a = {"inception4a", 192, 96, 208, 16, 48, 64};
constexpr Inception k4b = {"inception4b", 160, 112, 224, 24, 64, 64};
constexpr Inception k4c = {"inception4c", 128, 128, 256, 24, 64, 64};
constexpr Inception k4d = {"inception4d", 112, 144, 288, 32, 64, 64};
constexpr Inception k4e = {"inception4e", 256, 160, 320, 32, 128, 128};
constexpr Inception k5a = {"inception5a", 256, 160, 320, 32, 128, 128};
constexpr Inception k5b = {"inception5b", 384, 192, 384, 48, 128, 128};

constexpr MaxPool kPool = {.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true};
// The paper gives no numbers; these are those of Caffe's edition.
constexpr LocalResponseNorm kNorm = {.size = 5, .alpha = 1e-4, .beta = 0.75, .k = 1};
constexpr double kAuxiliaryDropout = 0.7, kAuxiliaryWeight = 0.3;

enum class Edition { kTorchvision, kPaper, kNaive };

class GoogLeNetBuilder : public Builder {
 public:
  GoogLeNetBuilder(Edition edition, const ModelOptions& options)
      : Builder(options), edition_(edition), channels_(options.image.c) {}

  Graph build() {
    int x = filter("conv1", kImage, 64, 7, 2);
    x = max_pool("maxpool1", x, kPool);
    if (!torchvision()) x = add("norm1", kNorm, {x});
    x = filter("conv2", x, 64, 1);
    x = filter("conv3", x, 192, 3);
    if (!torchvision()) x = add("norm2", kNorm, {x});
    x = max_pool("maxpool2", x, kPool);
    x = inception(k3a, x);
    x = inception(k3b, x);
    x = max_pool("maxpool3", x, kPool);
    x = inception(k4a, x);
    const Features after_4a = {x, channels_};
    x = inception(k4b, x);
    x = inception(k4c, x);
    x = inception(k4d, x);
    const Features after_4d = {x, channels_};
    x = inception(k4e, x);
    x = max_pool("maxpool4", x, torchvision() ? kSmallPool : kPool);
    x = inception(k5a, x);
    x = inception(k5b, x);
    const int64_t features = channels_;
    // Here, because torchvision counts their parameters here.
    auxiliary("aux1", after_4a);
    auxiliary("aux2", after_4d);
    x = add("avgpool", GlobalAvgPool{}, {x});
    x = dropout("dropout", x);
    linear("fc", x, fc(features, options().classes));
    return take();
  }

 private:
  static constexpr MaxPool kSmallPool = {.kernel = 2, .stride = 2, .padding = 0, .ceil_mode = true};

  struct Features {
    int node;
    int64_t channels;
  };

  bool torchvision() const { return edition_ == Edition::kTorchvision; }

  // torchvision: normal of 0.01. The paper names no start: Glorot's variance 1 / fan_in and biases
  // of 0.2, as in Caffe's edition.
  double weight_std(int64_t fan_in) const {
    return torchvision() ? 0.01 : 1.0 / std::sqrt(static_cast<double>(fan_in));
  }

  // A convolution with its ReLU, and torchvision's with its batch norm.
  int filter(const std::string& name, int x, int64_t channels, int64_t kernel, int64_t stride = 1) {
    Conv2d spec = {.out_channels = channels,
                   .kernel = kernel,
                   .stride = stride,
                   .padding = kernel / 2,
                   .weight_std = weight_std(channels_ * kernel * kernel)};
    if (!torchvision()) {
      spec.bias = true;
      spec.bias_init = 0.2;
    }
    channels_ = channels;
    x = conv(name + ".conv", x, spec);
    if (torchvision()) x = batch_norm(name + ".bn", x);
    return relu(name + ".relu", x);
  }
  Linear fc(int64_t inputs, int64_t features) const {
    Linear spec = {.out_features = features, .weight_std = weight_std(inputs)};
    if (!torchvision()) spec.bias_init = 0;
    return spec;
  }

  // Figure 2: (b) with 1x1 reductions, (a) without.
  int inception(const Inception& m, int x) {
    const std::string name = m.name;
    const int64_t in = channels_;
    const bool naive = edition_ == Edition::kNaive;
    const int64_t five = torchvision() ? 3 : 5;
    const auto branch = [&](const std::string& part, int64_t reduce, int64_t channels,
                            int64_t kernel) {
      channels_ = in;
      if (naive) return filter(name + part, x, channels, kernel);
      const int reduced = filter(name + part + ".0", x, reduce, 1);
      return filter(name + part + ".1", reduced, channels, kernel);
    };
    const int branch1 = filter(name + ".branch1", x, m.ones, 1);
    const int branch2 = branch(".branch2", m.reduce3, m.threes, 3);
    const int branch3 = branch(".branch3", m.reduce5, m.fives, five);
    channels_ = in;
    int branch4 = max_pool(name + ".branch4.0", x, {.kernel = 3, .stride = 1, .padding = 1});
    if (!naive) branch4 = filter(name + ".branch4.1", branch4, m.pool_proj, 1);
    channels_ = m.ones + m.threes + m.fives + (naive ? in : m.pool_proj);
    return add(name, Concat{}, {branch1, branch2, branch3, branch4});
  }

  // Section 5: average pool, 1x1 convolution of 128 filters, 1024 units, 70 % dropout, classes.
  // torchvision's pool adapts to the image; the paper's is 5x5 with stride 3.
  void auxiliary(const std::string& name, const Features& source) {
    constexpr int64_t kFilters = 128, kUnits = 1024;
    const OpSpec pool = torchvision() ? OpSpec(AdaptiveAvgPool{.h = 4, .w = 4})
                                      : OpSpec(AvgPool{.kernel = 5, .stride = 3});
    int x = add(name + ".avgpool", pool, {source.node});
    channels_ = source.channels;
    x = filter(name + ".conv", x, kFilters, 1);
    x = linear(name + ".fc1", x, fc(kFilters * 4 * 4, kUnits));
    x = relu(name + ".relu", x);
    x = add(name + ".dropout", Dropout{.rate = kAuxiliaryDropout}, {x});
    x = linear(name + ".fc2", x, fc(kUnits, options().classes));
    graph_.auxiliary.push_back({.node = x, .weight = kAuxiliaryWeight});
  }

  Edition edition_;
  int64_t channels_;  // of what was made last
};

}  // namespace

Graph make_googlenet(const ModelOptions& options) {
  return GoogLeNetBuilder(Edition::kTorchvision, options).build();
}

Graph make_inception_v1(const ModelOptions& options) {
  return GoogLeNetBuilder(Edition::kPaper, options).build();
}

Graph make_inception_v1_naive(const ModelOptions& options) {
  return GoogLeNetBuilder(Edition::kNaive, options).build();
}

}  // namespace convoy::trainer
