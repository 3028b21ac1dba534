// What `convoy model show` says of a layer: sizes, receptive fields, formulas.
#include "trainer/pictures/model_facts.h"

#include <gtest/gtest.h>

#include <sstream>

#include "ops/core/error.h"
#include "trainer/models/models.h"

namespace convoy::trainer {
namespace {

using ops::kImage;

const LayerFacts& fact(const std::vector<LayerFacts>& facts, const std::string& name) {
  for (const LayerFacts& f : facts)
    if (f.name == name) return f;
  throw std::runtime_error("no layer " + name);
}

ops::Graph one(const ops::OpSpec& op, const Shape& image) {
  ops::Graph graph;
  graph.image = image;
  graph.add("x", op, {kImage});
  return graph;
}

std::string arithmetic(const ops::OpSpec& op, int64_t h, int64_t w) {
  return layer_facts(one(op, {.n = 1, .c = 4, .h = h, .w = w}))[0].arithmetic;
}

TEST(ModelFacts, SaysHowTheSizeComesAbout) {
  const ops::Conv2d stem{.out_channels = 64, .kernel = 7, .stride = 2, .padding = 3};
  EXPECT_EQ(arithmetic(stem, 224, 224), "floor((224+2*3-7)/2) + 1 = 112");
  EXPECT_EQ(arithmetic(ops::Conv2d{.out_channels = 8, .padding = 1}, 32, 32),
            "(32+2*1-3)/1 + 1 = 32");
  EXPECT_EQ(arithmetic(stem, 224, 9), "h floor((224+2*3-7)/2) + 1 = 112; w (9+2*3-7)/2 + 1 = 5");
  EXPECT_EQ(arithmetic(ops::MaxPool{.padding = 0, .ceil_mode = true}, 112, 112),
            "ceil((112+2*0-3)/2) + 1 = 56");
  EXPECT_EQ(arithmetic(ops::MaxPool{.padding = 0, .ceil_mode = false}, 112, 112),
            "floor((112+2*0-3)/2) + 1 = 55");
  // The last window would begin behind the image and its padding.
  EXPECT_EQ(
      arithmetic(ops::MaxPool{.kernel = 2, .stride = 3, .padding = 1, .ceil_mode = true}, 6, 6),
      "(6+2*1-2)/3 + 1 = 3");
  EXPECT_EQ(
      arithmetic(ops::MaxPool{.kernel = 2, .stride = 4, .padding = 1, .ceil_mode = true}, 7, 7),
      "ceil((7+2*1-2)/4) + 1 - 1 = 2");
  EXPECT_EQ(arithmetic(ops::Subsample{.stride = 2, .out_channels = 4}, 8, 8), "8/2 = 4");
  EXPECT_EQ(arithmetic(ops::Subsample{.stride = 2, .out_channels = 4}, 7, 7), "ceil(7/2) = 4");
  EXPECT_EQ(arithmetic(ops::Relu{}, 7, 7), "");
}

// What the arithmetic ends in is the size.
TEST(ModelFacts, ArithmeticIsRightForEveryModel) {
  for (const ModelEntry& m : model_table())
    for (const LayerFacts& f : layer_facts(make_model(m.name, {}))) {
      if (f.arithmetic.empty()) continue;
      EXPECT_TRUE(f.arithmetic.ends_with(fmt::format(" = {}", f.y.h))) << f.name << f.arithmetic;
    }
}

// "64*3*7*7 + 64" as a number.
int64_t value_of(const std::string& formula) {
  std::istringstream in(formula);
  int64_t sum = 0, product = 1, factor = 0;
  char sign = '+';
  while (in >> factor) {
    product *= factor;
    if (in >> sign && sign == '*') continue;
    sum += product;
    product = 1;
  }
  return sum;
}

TEST(ModelFacts, FormulasGiveTheParameters) {
  const auto resnet = layer_facts(make_model("resnet18", {}));
  EXPECT_EQ(fact(resnet, "conv1").formula, "64*3*7*7");
  EXPECT_EQ(fact(resnet, "bn1").formula, "2*64");
  EXPECT_EQ(fact(resnet, "fc").formula, "1000*512 + 1000");
  EXPECT_EQ(fact(resnet, "relu").formula, "");
  int checked = 0;
  for (const ModelEntry& m : model_table())
    for (const LayerFacts& f : layer_facts(make_model(m.name, {}))) {
      EXPECT_EQ(value_of(f.formula), f.parameters) << m.name << " " << f.name << ": " << f.formula;
      checked += f.parameters > 0;
    }
  EXPECT_GT(checked, 500);
}

// Of the last layer in front of the global pool. Araujo et al. 2019 (Distill) describe the rule;
// numbers by hand for ResNet-18: the stem and its pool see 11 pixels of 4 apart; stages of four 3x3
// add 2 * 4 * 4 = 32, then 2 * 4 + 6 * 8 = 56, 2 * 8 + 6 * 16 = 112 and 2 * 16 + 6 * 32 = 224.
TEST(ModelFacts, ReceptiveFields) {
  const auto resnet = layer_facts(make_model("resnet18", {}));
  EXPECT_EQ(fact(resnet, "conv1").field.size, 7);
  EXPECT_EQ(fact(resnet, "maxpool").field.size, 11);
  EXPECT_EQ(fact(resnet, "maxpool").field.jump, 4);
  EXPECT_EQ(fact(resnet, "layer1.1.relu").field.size, 11 + 32);
  EXPECT_EQ(fact(resnet, "layer4.1.relu").field.size, 11 + 32 + 56 + 112 + 224);
  EXPECT_EQ(fact(resnet, "layer4.1.relu").field.jump, 32);
  // The global pool sees all windows of a 7 x 7.
  EXPECT_EQ(fact(resnet, "avgpool").field.size, 435 + 6 * 32);
  EXPECT_EQ(fact(resnet, "fc").field.size, fact(resnet, "avgpool").field.size);
  // The largest of a join: the shortcut alone sees less.
  EXPECT_LT(fact(resnet, "layer2.0.downsample.1").field.size,
            fact(resnet, "layer2.0.add").field.size);
  EXPECT_EQ(fact(resnet, "layer2.0.bn2").field.size, fact(resnet, "layer2.0.add").field.size);
}

TEST(ModelFacts, AbsurdFieldsAreBounded) {
  ops::Graph graph;
  graph.image = {.n = 1, .c = 1, .h = 1 << 20, .w = 1 << 20};
  int x = kImage;
  for (int i = 0; i < 60; ++i)
    x = graph.add(fmt::format("p{}", i),
                  ops::MaxPool{.kernel = 15, .stride = 1 << 20, .padding = 7}, {x});
  EXPECT_LE(layer_facts(graph).back().field.size, int64_t{1'000'000'000'000'000});
  EXPECT_GT(layer_facts(graph).back().field.size, 1 << 20);
}

TEST(ModelFacts, NumbersAreGrouped) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(25557032), "25,557,032");
}

}  // namespace
}  // namespace convoy::trainer
