#include "trainer/models/models.h"

#include <algorithm>

#include "ops/core/error.h"
#include "trainer/base/text.h"
#include "trainer/models/alexnet.h"
#include "trainer/models/densenet.h"
#include "trainer/models/googlenet.h"
#include "trainer/models/highway.h"
#include "trainer/models/nin.h"
#include "trainer/models/preact_resnet.h"
#include "trainer/models/resnet.h"
#include "trainer/models/vgg.h"

namespace convoy::trainer {
namespace {

using ops::Graph;
using Make = std::function<Graph(const ModelOptions&)>;
using Shortcut = ModelOptions::Shortcut;

constexpr auto kBasic = Block::kBasic;
constexpr auto kBottleneck = Block::kBottleneck;

// ---- From a family's spec to the function of a row ----

Make vgg(const VggSpec& spec) {
  return [spec](const ModelOptions& o) { return make_vgg(spec, o); };
}

Make resnet(const ResNetSpec& spec) {
  return [spec](const ModelOptions& o) { return make_resnet(spec, o); };
}
Make imagenet(Block block, const std::vector<int>& blocks, bool residual = true) {
  return resnet({.block = block, .blocks = blocks, .residual = residual});
}
// He et al. 2015, section 4.2: 6n + 2 layers of 16, 32 and 64 channels.
Make cifar(int n, bool residual) {
  return resnet({.block = kBasic,
                 .blocks = {n, n, n},
                 .residual = residual,
                 .stem = Stem::kCifar,
                 .stem_channels = 16,
                 .planes = 16,
                 .shortcut = Shortcut::kA});
}

Make preact(const PreActSpec& spec) {
  return [spec](const ModelOptions& o) { return make_preact_resnet(spec, o); };
}
// Layers of 16, 32 and 64 channels, a bottleneck's results four times as wide.
Make cifar_preact(Block block, int n, Shortcut shortcut) {
  return preact({.block = block,
                 .blocks = {n, n, n},
                 .stem = Stem::kCifar,
                 .stem_channels = 16,
                 .planes = 16,
                 .shortcut = shortcut});
}
// WRN-d-k: depth 6n + 4, k times as wide.
Make wide(int depth, int k) {
  const int n = (depth - 4) / 6;
  return preact({.block = kBasic,
                 .blocks = {n, n, n},
                 .stem = Stem::kCifar,
                 .stem_channels = 16,
                 .planes = int64_t{16} * k,
                 .dropout_in_blocks = true});
}

Make densenet(const DenseNetSpec& spec) {
  return [spec](const ModelOptions& o) { return make_densenet(spec, o); };
}
Make imagenet_densenet(int64_t growth, const std::vector<int>& layers, int64_t stem_channels) {
  return densenet({.growth = growth, .layers = layers, .stem_channels = stem_channels});
}
// L = 3n + 4 layers; BC: L = 6n + 4, the stem has 2k channels.
Make cifar_densenet(int64_t growth, int depth, bool bc) {
  const int n = (depth - 4) / (bc ? 6 : 3);
  return densenet({.growth = growth,
                   .layers = {n, n, n},
                   .stem_channels = bc ? 2 * growth : 16,
                   .imagenet = false,
                   .bottleneck = bc,
                   .compression = bc});
}

Make highway_fc(int layers) {
  return [layers](const ModelOptions& o) { return make_highway_fc(layers, o); };
}

// ---- The table ----

constexpr Shape kImageNet = {.n = 1, .c = 3, .h = 224, .w = 224};
constexpr Shape kImageNet227 = {.n = 1, .c = 3, .h = 227, .w = 227};
constexpr Shape kCifar = {.n = 1, .c = 3, .h = 32, .w = 32};
constexpr Shape kMnist = {.n = 1, .c = 1, .h = 28, .w = 28};

std::vector<ModelEntry> make_table() {
  std::vector<ModelEntry> table;
  std::string family;
  bool residual = false;
  const auto add = [&](const char* name, const char* summary, const Make& make, const Shape& image,
                       double dropout = 0.0, double epsilon = 1e-5) {
    const bool thousand = image.h > kCifar.h;
    table.push_back({.family = family,
                     .name = name,
                     .summary = summary,
                     .image = image,
                     .classes = thousand ? 1000 : 10,
                     .make = make,
                     .residual = residual,
                     .dropout = dropout,
                     .batch_norm_epsilon = epsilon});
  };

  family = "AlexNet: Krizhevsky et al. 2012";
  add("alexnet", "one tower, no response normalisation: Krizhevsky 2014, as torchvision",
      make_alexnet, kImageNet, 0.5);
  add("alexnet_two_tower", "the original: figure 2, groups, response normalisation",
      make_alexnet_two_tower, kImageNet227, 0.5);

  family = "Network in Network: Lin et al. 2014";
  add("nin", "section 4, widths of the authors' ImageNet definition", make_nin_imagenet, kImageNet,
      0.5);
  add("cifar_nin", "section 4.2, widths of the authors' CIFAR-10 definition", make_nin_cifar,
      kCifar, 0.5);

  family = "VGG: Simonyan and Zisserman 2015";
  add("vgg11", "table 1, column A", vgg({{1, 1, 2, 2, 2}}), kImageNet, 0.5);
  add("vgg13", "table 1, column B", vgg({{2, 2, 2, 2, 2}}), kImageNet, 0.5);
  add("vgg16", "table 1, column D", vgg({{2, 2, 3, 3, 3}}), kImageNet, 0.5);
  add("vgg19", "table 1, column E", vgg({{2, 2, 4, 4, 4}}), kImageNet, 0.5);
  add("vgg11_bn", "column A with batch norm", vgg({{1, 1, 2, 2, 2}, true}), kImageNet, 0.5);
  add("vgg13_bn", "column B with batch norm", vgg({{2, 2, 2, 2, 2}, true}), kImageNet, 0.5);
  add("vgg16_bn", "column D with batch norm", vgg({{2, 2, 3, 3, 3}, true}), kImageNet, 0.5);
  add("vgg19_bn", "column E with batch norm", vgg({{2, 2, 4, 4, 4}, true}), kImageNet, 0.5);

  family = "GoogLeNet: Szegedy et al. 2014";
  add("googlenet", "table 1 with batch norm, as torchvision (3x3 for 5x5)", make_googlenet,
      kImageNet, 0.2, 1e-3);
  add("inception_v1", "table 1", make_inception_v1, kImageNet, 0.4);
  add("inception_v1_naive", "table 1 with modules of figure 2 (a): no 1x1 reductions",
      make_inception_v1_naive, kImageNet, 0.4);

  family = "Highway networks: Srivastava et al. 2015";
  add("highway_fc10", "section 3.1: 10 fully connected layers of 50 units", highway_fc(10), kMnist);
  add("highway_fc20", "section 3.1: 20 fully connected layers of 50 units", highway_fc(20), kMnist);
  add("highway_fc50", "section 3.1: 50 fully connected layers of 50 units", highway_fc(50), kMnist);
  add("highway_fc100", "section 3.1: 100 fully connected layers of 50 units", highway_fc(100),
      kMnist);
  add("cifar_highway19", "section 3.3: \"Highway 2\", 19 layers of 32, 80 and 128 filters",
      make_highway_cifar, kCifar, 0.2);

  family = "ResNet: He et al. 2015";
  residual = true;
  add("resnet18", "table 1", imagenet(kBasic, {2, 2, 2, 2}), kImageNet);
  add("resnet34", "table 1", imagenet(kBasic, {3, 4, 6, 3}), kImageNet);
  add("resnet50", "table 1; v1.5: stride on the 3x3", imagenet(kBottleneck, {3, 4, 6, 3}),
      kImageNet);
  add("resnet101", "table 1; v1.5: stride on the 3x3", imagenet(kBottleneck, {3, 4, 23, 3}),
      kImageNet);
  add("resnet152", "table 1; v1.5: stride on the 3x3", imagenet(kBottleneck, {3, 8, 36, 3}),
      kImageNet);
  add("plain18", "table 1 without shortcuts", imagenet(kBasic, {2, 2, 2, 2}, false), kImageNet);
  add("plain34", "table 1 without shortcuts", imagenet(kBasic, {3, 4, 6, 3}, false), kImageNet);
  add("cifar_resnet20", "section 4.2, n = 3", cifar(3, true), kCifar);
  add("cifar_resnet32", "section 4.2, n = 5", cifar(5, true), kCifar);
  add("cifar_resnet44", "section 4.2, n = 7", cifar(7, true), kCifar);
  add("cifar_resnet56", "section 4.2, n = 9", cifar(9, true), kCifar);
  add("cifar_resnet110", "section 4.2, n = 18", cifar(18, true), kCifar);
  add("cifar_resnet1202", "section 4.2, n = 200", cifar(200, true), kCifar);
  add("cifar_plain20", "section 4.2 without shortcuts", cifar(3, false), kCifar);
  add("cifar_plain32", "section 4.2 without shortcuts", cifar(5, false), kCifar);
  add("cifar_plain44", "section 4.2 without shortcuts", cifar(7, false), kCifar);
  add("cifar_plain56", "section 4.2 without shortcuts", cifar(9, false), kCifar);
  add("cifar_plain110", "section 4.2 without shortcuts", cifar(18, false), kCifar);
  add("cifar_resnet18", "resnet18's stages of 64 to 512 channels behind a 3x3 stem, no max pool",
      resnet({.block = kBasic, .blocks = {2, 2, 2, 2}, .stem = Stem::kCifar}), kCifar);

  family = "Pre-activation ResNet: He et al. 2016";
  add("preact_resnet50", "ImageNet, figure 4 (e)",
      preact({.block = kBottleneck, .blocks = {3, 4, 6, 3}}), kImageNet);
  add("preact_resnet101", "ImageNet, figure 4 (e)",
      preact({.block = kBottleneck, .blocks = {3, 4, 23, 3}}), kImageNet);
  add("preact_resnet152", "table 5", preact({.block = kBottleneck, .blocks = {3, 8, 36, 3}}),
      kImageNet);
  add("preact_resnet200", "table 5", preact({.block = kBottleneck, .blocks = {3, 24, 36, 3}}),
      kImageNet);
  add("cifar_preact_resnet110", "table 3, basic blocks", cifar_preact(kBasic, 18, Shortcut::kA),
      kCifar);
  add("cifar_preact_resnet164", "table 4, bottlenecks", cifar_preact(kBottleneck, 18, Shortcut::kB),
      kCifar);
  add("cifar_preact_resnet1001", "table 4, bottlenecks",
      cifar_preact(kBottleneck, 111, Shortcut::kB), kCifar);

  family = "Wide ResNet: Zagoruyko and Komodakis 2016";
  add("wide_resnet50_2", "table 8: resnet50 with bottlenecks twice as wide",
      resnet({.block = kBottleneck, .blocks = {3, 4, 6, 3}, .width_per_group = 128}), kImageNet);
  add("wide_resnet101_2", "resnet101 with bottlenecks twice as wide, as torchvision",
      resnet({.block = kBottleneck, .blocks = {3, 4, 23, 3}, .width_per_group = 128}), kImageNet);
  add("cifar_wrn_16_8", "table 5: WRN-16-8", wide(16, 8), kCifar);
  add("cifar_wrn_28_10", "table 5: WRN-28-10", wide(28, 10), kCifar);
  add("cifar_wrn_40_4", "table 5: WRN-40-4", wide(40, 4), kCifar);

  family = "ResNeXt: Xie et al. 2017";
  add("resnext50_32x4d", "table 1",
      resnet({.block = kBottleneck, .blocks = {3, 4, 6, 3}, .groups = 32, .width_per_group = 4}),
      kImageNet);
  add("resnext101_32x8d", "as torchvision",
      resnet({.block = kBottleneck, .blocks = {3, 4, 23, 3}, .groups = 32, .width_per_group = 8}),
      kImageNet);
  add("resnext101_64x4d", "table 4",
      resnet({.block = kBottleneck, .blocks = {3, 4, 23, 3}, .groups = 64, .width_per_group = 4}),
      kImageNet);
  add("cifar_resnext29_8x64d", "section 5.3",
      resnet({.block = kBottleneck,
              .blocks = {3, 3, 3},
              .stem = Stem::kCifar,
              .groups = 8,
              .width_per_group = 64}),
      kCifar);

  family = "DenseNet: Huang et al. 2017";
  residual = false;
  add("densenet121", "table 1", imagenet_densenet(32, {6, 12, 24, 16}, 64), kImageNet);
  add("densenet169", "table 1", imagenet_densenet(32, {6, 12, 32, 32}, 64), kImageNet);
  add("densenet201", "table 1", imagenet_densenet(32, {6, 12, 48, 32}, 64), kImageNet);
  add("densenet161", "k = 48, as torchvision", imagenet_densenet(48, {6, 12, 36, 24}, 96),
      kImageNet);
  add("cifar_densenet40_k12", "table 2: L = 40, k = 12", cifar_densenet(12, 40, false), kCifar);
  add("cifar_densenet100_k12", "table 2: L = 100, k = 12", cifar_densenet(12, 100, false), kCifar);
  add("cifar_densenet_bc100_k12", "table 2: DenseNet-BC, L = 100, k = 12",
      cifar_densenet(12, 100, true), kCifar);
  return table;
}

// What is not set becomes the model's own.
ModelOptions complete(const ModelEntry& model, ModelOptions options) {
  const auto or_own = [](int64_t& value, int64_t own) {
    if (value == 0) value = own;
  };
  or_own(options.image.c, model.image.c);
  or_own(options.image.h, model.image.h);
  or_own(options.image.w, model.image.w);
  options.image.n = 1;
  or_own(options.classes, model.classes);
  if (!options.dropout) options.dropout = model.dropout;
  if (!options.batch_norm_epsilon) options.batch_norm_epsilon = model.batch_norm_epsilon;
  return options;
}

// All options are set.
Graph graph_of(const ModelEntry& model, const ModelOptions& options) {
  Graph graph = model.make(options);
  return options.inference ? ops::inference_graph(graph) : graph;
}

bool takes_image(const ModelEntry& model, ModelOptions options, int64_t side) {
  options.image.h = options.image.w = side;
  try {
    ops::infer_shapes(graph_of(model, options), 1);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

const std::vector<ModelEntry>& model_table() {
  static const std::vector<ModelEntry> table = make_table();
  return table;
}

const ModelEntry* find_model(const std::string& name) {
  for (const ModelEntry& model : model_table())
    if (model.name == name) return &model;
  return nullptr;
}

ModelCounts count(const Graph& graph) {
  const auto sums = [](const Graph& g) {
    ModelCounts total;
    const std::vector<Shape> shapes = ops::infer_shapes(g, 1);
    for (size_t i = 0; i < g.nodes.size(); ++i) {
      const std::vector<Shape> x = ops::input_shapes(g, shapes, i, 1);
      for (const auto& p : ops::parameters(g.nodes[i].op, x)) total.parameters += p.elements();
      total.macs += ops::macs(g.nodes[i].op, x);
    }
    return total;
  };
  ModelCounts counts = sums(ops::inference_graph(graph));
  counts.training_parameters = sums(graph).parameters;
  return counts;
}

// A larger image never fails where a smaller one works.
int64_t smallest_image(const ModelEntry& model, const ModelOptions& options) {
  const ModelOptions all = complete(model, options);
  int64_t too_small = 0, works = std::max(model.image.h, model.image.w);
  while (works - too_small > 1) {
    const int64_t middle = (works + too_small) / 2;
    (takes_image(model, all, middle) ? works : too_small) = middle;
  }
  return works;
}

Graph make_model(const std::string& name, ModelOptions options) {
  const ModelEntry* model = find_model(name);
  if (!model) {
    std::vector<std::string> names;
    for (const ModelEntry& entry : model_table()) names.push_back(entry.name);
    fail(ExitCode::kBadJob, "no model \"{}\"; the nearest is \"{}\" (convoy model list shows all)",
         printable(name), nearest(name, names));
  }
  const bool shortcuts = options.stride_in_first_conv || options.zero_init_residual ||
                         options.shortcut != Shortcut::kDefault;
  if (shortcuts && !model->residual)
    fail(ExitCode::kBadJob,
         "model \"{}\" has no residual blocks; leave out stride_in_first_conv, shortcut and "
         "zero_init_residual",
         name);
  options = complete(*model, options);
  Graph graph = graph_of(*model, options);
  graph.name = name;
  try {
    ops::infer_shapes(graph, 1);
  } catch (const Error&) {
    const int64_t least = smallest_image(*model, options);
    const bool fits = options.image.h >= least && options.image.w >= least;
    if (fits || !takes_image(*model, options, least)) throw;
    fail(
        ExitCode::kBadJob,
        "model \"{}\": an image of {} x {} pixels is too small; the smallest that works is {} x {}",
        name, options.image.h, options.image.w, least, least);
  }
  return graph;
}

}  // namespace convoy::trainer
