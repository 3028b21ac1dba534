#include "trainer/models/models.h"

#include "ops/core/error.h"
#include "trainer/models/resnet.h"
#include "trainer/text.h"

namespace convoy::trainer {
namespace {

using ops::Graph;

constexpr Shape kImageNet = {.n = 1, .c = 3, .h = 224, .w = 224};
constexpr Shape kCifar = {.n = 1, .c = 3, .h = 32, .w = 32};

template <Block kBlock, bool kResidual, int... kBlocks>
Graph imagenet(const ModelOptions& options) {
  return make_imagenet_resnet({.block = kBlock, .blocks = {kBlocks...}, .residual = kResidual},
                              options);
}

template <int kBlocks, bool kResidual>
Graph cifar(const ModelOptions& options) {
  return make_cifar_resnet(
      {.block = Block::kBasic, .blocks = {kBlocks, kBlocks, kBlocks}, .residual = kResidual},
      options);
}

}  // namespace

const std::vector<ModelEntry>& model_table() {
  constexpr auto kBasic = Block::kBasic;
  constexpr auto kBottleneck = Block::kBottleneck;
  const std::string paper = "He et al. 2015, ";
  static const std::vector<ModelEntry> table = {
      {"resnet18", paper + "table 1", kImageNet, 1000, imagenet<kBasic, true, 2, 2, 2, 2>},
      {"resnet34", paper + "table 1", kImageNet, 1000, imagenet<kBasic, true, 3, 4, 6, 3>},
      {"resnet50", paper + "table 1; v1.5: stride on the 3x3", kImageNet, 1000,
       imagenet<kBottleneck, true, 3, 4, 6, 3>},
      {"resnet101", paper + "table 1; v1.5: stride on the 3x3", kImageNet, 1000,
       imagenet<kBottleneck, true, 3, 4, 23, 3>},
      {"resnet152", paper + "table 1; v1.5: stride on the 3x3", kImageNet, 1000,
       imagenet<kBottleneck, true, 3, 8, 36, 3>},
      {"plain18", paper + "table 1 without shortcuts", kImageNet, 1000,
       imagenet<kBasic, false, 2, 2, 2, 2>},
      {"plain34", paper + "table 1 without shortcuts", kImageNet, 1000,
       imagenet<kBasic, false, 3, 4, 6, 3>},
      {"cifar_resnet20", paper + "section 4.2, n = 3", kCifar, 10, cifar<3, true>},
      {"cifar_resnet32", paper + "section 4.2, n = 5", kCifar, 10, cifar<5, true>},
      {"cifar_resnet44", paper + "section 4.2, n = 7", kCifar, 10, cifar<7, true>},
      {"cifar_resnet56", paper + "section 4.2, n = 9", kCifar, 10, cifar<9, true>},
      {"cifar_resnet110", paper + "section 4.2, n = 18", kCifar, 10, cifar<18, true>},
      {"cifar_resnet1202", paper + "section 4.2, n = 200", kCifar, 10, cifar<200, true>},
      {"cifar_plain20", paper + "section 4.2 without shortcuts", kCifar, 10, cifar<3, false>},
      {"cifar_plain32", paper + "section 4.2 without shortcuts", kCifar, 10, cifar<5, false>},
      {"cifar_plain44", paper + "section 4.2 without shortcuts", kCifar, 10, cifar<7, false>},
      {"cifar_plain56", paper + "section 4.2 without shortcuts", kCifar, 10, cifar<9, false>},
      {"cifar_plain110", paper + "section 4.2 without shortcuts", kCifar, 10, cifar<18, false>},
  };
  return table;
}

Graph make_model(const std::string& name, ModelOptions options) {
  std::vector<std::string> names;
  for (const ModelEntry& entry : model_table()) {
    names.push_back(entry.name);
    if (entry.name != name) continue;
    if (options.image.c == 0) options.image.c = entry.image.c;
    if (options.image.h == 0) options.image.h = entry.image.h;
    if (options.image.w == 0) options.image.w = entry.image.w;
    options.image.n = 1;
    if (options.classes == 0) options.classes = entry.classes;
    Graph graph = entry.make(options);
    graph.name = name;
    return graph;
  }
  fail(ExitCode::kBadJob, "no model \"{}\"; the nearest is \"{}\" (convoy model list shows all)",
       printable(name), nearest(name, names));
}

}  // namespace convoy::trainer
