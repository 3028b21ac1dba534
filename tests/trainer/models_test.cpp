// Models against published counts, and networks as text.
#include "trainer/models/models.h"

#include <gtest/gtest.h>

#include "ops/core/error.h"
#include "trainer/graph_text.h"

namespace convoy::trainer {
namespace {

struct Counts {
  const char* model;
  int64_t parameters, macs;
};

// torchvision 0.29's models (sum of parameters; MACs of convolutions and linear layers at 224), and
// He et al. 2015 for CIFAR: table 6 gives 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 million; every n
// adds six 3x3 convolutions of 2,359,296 MACs, 14,155,776 in all.
constexpr Counts kPublished[] = {
    {"resnet18", 11689512, 1814073344},         {"resnet34", 21797672, 3663761408},
    {"resnet50", 25557032, 4089184256},         {"resnet101", 44549160, 7801405440},
    {"resnet152", 60192808, 11513626624},       {"cifar_resnet20", 269722, 40551040},
    {"cifar_resnet32", 464154, 68862592},       {"cifar_resnet44", 658586, 97174144},
    {"cifar_resnet56", 853018, 125485696},      {"cifar_resnet110", 1727962, 252887680},
    {"cifar_resnet1202", 19421274, 2829238912},
};

Counts count(const ops::Graph& graph) {
  const std::vector<Shape> shapes = ops::infer_shapes(graph, 1);
  Counts total{"", 0, 0};
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const auto x = ops::input_shapes(graph, shapes, i, 1);
    for (const auto& p : ops::parameters(graph.nodes[i].op, x)) total.parameters += p.elements();
    total.macs += ops::macs(graph.nodes[i].op, x);
  }
  return total;
}

TEST(Models, HaveThePublishedParametersAndMacs) {
  for (const Counts& c : kPublished) {
    const Counts ours = count(make_model(c.model, {}));
    EXPECT_EQ(ours.parameters, c.parameters) << c.model;
    EXPECT_EQ(ours.macs, c.macs) << c.model;
  }
}

TEST(Models, EveryRowMakesANetworkOfItsShape) {
  for (const ModelEntry& m : model_table()) {
    const ops::Graph graph = make_model(m.name, {});
    EXPECT_EQ(graph.name, m.name);
    EXPECT_EQ(ops::infer_shapes(graph, 2).back(), (Shape{.n = 2, .c = m.classes})) << m.name;
  }
}

// Parameters of the three shortcuts by formula: A adds none; B two (CIFAR) 1x1 projections with
// their batch norms; C one in every block.
TEST(Models, ShortcutsAddTheirParameters) {
  const auto with = [](ModelOptions::Shortcut shortcut) {
    ModelOptions options;
    options.shortcut = shortcut;
    return count(make_model("cifar_resnet20", options)).parameters;
  };
  using Shortcut = ModelOptions::Shortcut;
  const int64_t projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64);
  EXPECT_EQ(with(Shortcut::kB) - with(Shortcut::kA), projections);
  const int64_t others = 3 * (16 * 16 + 32) + 2 * (32 * 32 + 64) + 2 * (64 * 64 + 128);
  EXPECT_EQ(with(Shortcut::kC) - with(Shortcut::kB), others);
}

TEST(Models, V1HasItsStrideOnTheFirstConvolution) {
  ModelOptions options;
  options.stride_in_first_conv = true;
  const Counts v1 = count(make_model("resnet50", options));
  EXPECT_EQ(v1.parameters, 25557032);
  EXPECT_EQ(v1.macs, 3857973248);  // He et al. 2015, table 1: 3.8 x 10^9
}

TEST(Models, AnUnknownNameIsAnsweredWithTheNearest) {
  try {
    make_model("resnet51", {});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_NE(std::string(e.what()).find("\"resnet50\""), std::string::npos) << e.what();
  }
}

TEST(GraphText, EveryModelComesBackAsItWas) {
  for (const ModelEntry& m : model_table()) {
    const ops::Graph graph = make_model(m.name, {});
    const std::string text = to_text(graph);
    const ops::Graph back = parse_graph(text, "test");
    EXPECT_EQ(to_text(back), text) << m.name;
    EXPECT_EQ(count(back).macs, count(graph).macs) << m.name;
  }
}

// What no model has: every op, starts, auxiliary classifiers.
TEST(GraphText, EveryFieldComesBackAsItWas) {
  ops::Graph g{.name = "all", .image = {.n = 1, .c = 3, .h = 32, .w = 32}, .nodes = {}};
  int x =
      g.add("conv",
            ops::Conv2d{
                .out_channels = 8, .padding = 1, .bias = true, .weight_std = 0.01, .bias_init = 0},
            {ops::kImage});
  x = g.add("lrn", ops::LocalResponseNorm{.size = 4, .alpha = 5e-4, .beta = 0.5, .k = 2}, {x});
  const int gate = g.add("gate", ops::Sigmoid{.complement = true}, {x});
  x = g.add("gated", ops::Multiply{}, {g.add("other", ops::Sigmoid{}, {x}), gate});
  x = g.add("grid", ops::AdaptiveAvgPool{.h = 6, .w = 5}, {x});
  const int aux = g.add("aux", ops::Linear{.out_features = 10, .bias_init = -2}, {x});
  g.add("fc", ops::Linear{.out_features = 10, .weight_std = 0.1}, {x});
  g.auxiliary = {{.node = aux, .weight = 0.7}};
  const std::string text = to_text(g);
  const ops::Graph back = parse_graph(text, "test");
  EXPECT_EQ(to_text(back), text);
  EXPECT_EQ(count(back).parameters, count(g).parameters);
  ASSERT_EQ(back.auxiliary.size(), 1u);
  EXPECT_EQ(back.auxiliary[0].node, aux);
  EXPECT_EQ(back.auxiliary[0].weight, 0.7);
  const auto& conv = std::get<ops::Conv2d>(back.nodes[0].op);
  EXPECT_EQ(conv.weight_std, 0.01);
  EXPECT_EQ(conv.bias_init, 0.0);
  const auto& lrn = std::get<ops::LocalResponseNorm>(back.nodes[1].op);
  EXPECT_EQ(lrn.size, 4);
  EXPECT_EQ(lrn.alpha, 5e-4);
  EXPECT_EQ(lrn.beta, 0.5);
  EXPECT_EQ(lrn.k, 2);
  EXPECT_TRUE(std::get<ops::Sigmoid>(back.nodes[2].op).complement);
  EXPECT_FALSE(std::get<ops::Sigmoid>(back.nodes[3].op).complement);
  const auto& grid = std::get<ops::AdaptiveAvgPool>(back.nodes[5].op);
  EXPECT_EQ(grid.h, 6);
  EXPECT_EQ(grid.w, 5);
  EXPECT_EQ(std::get<ops::Linear>(back.nodes[6].op).bias_init, -2.0);
  const auto& fc = std::get<ops::Linear>(back.nodes[7].op);
  EXPECT_EQ(fc.weight_std, 0.1);
  EXPECT_FALSE(fc.bias_init.has_value());
  // Left out: the published weight of GoogLeNet.
  EXPECT_EQ(
      parse_graph("node { name: 'a' relu {} } auxiliary { node: 'a' }", "t").auxiliary[0].weight,
      0.3);
}

TEST(GraphText, AllMistakesAreNamedAtOnce) {
  const auto error_of = [](const char* text) -> std::string {
    try {
      parse_graph(text, "net.txtpb");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadJob);
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error_of("node { name: 'a' input: 'nowhere' relu {} }\n"
                     "node { name: 'a' input: 'a' }"),
            "net.txtpb: node \"a\": input \"nowhere\" is neither \"input\" nor an earlier node\n"
            "net.txtpb: node \"a\": no op; give one, e.g. conv2d { out_channels: 16 }\n"
            "net.txtpb: node \"a\": the name is taken");
  EXPECT_EQ(error_of("node { name: 'a' input: 'input' relu {} }\n"
                     "auxiliary { node: 'b' } auxiliary { node: 'input' } auxiliary {}"),
            "net.txtpb: auxiliary classifier \"b\" is no node\n"
            "net.txtpb: auxiliary classifier \"input\" is no node\n"
            "net.txtpb: auxiliary classifier \"\" is no node");
  EXPECT_EQ(error_of("node {\n  kernel: 3 }").substr(0, 14), "net.txtpb:2:9:");
}

}  // namespace
}  // namespace convoy::trainer
