// Pictures of networks: nothing overlaps, every line is drawn, the files are well formed whatever
// names say.
#include "trainer/pictures/model_picture.h"

#include <gtest/gtest.h>

#include <ctime>
#include <set>
#include <sstream>

#include "ops/core/error.h"
#include "tests/support/xml_check.h"
#include "trainer/models/models.h"
#include "trainer/pictures/model_drawing.h"

namespace convoy::trainer {
namespace {

using ops::kImage;
using Kind = PictureItem::Kind;

struct Drawn {
  ops::Graph graph;
  std::vector<LayerFacts> facts;
  PictureItem picture;

  explicit Drawn(ops::Graph g, Fold fold = Fold::kNo)
      : graph(std::move(g)), facts(layer_facts(graph)), picture(make_picture(graph, facts, fold)) {}
  std::string svg() const { return to_svg(graph, facts, picture); }
};

struct Rect {
  double left, top, right, bottom;
  std::string name;
};

// Boxes of the picture in its coordinates; every child lies in its group.
void gather(const PictureItem& item, double x, double y, std::vector<Rect>& boxes) {
  if (item.kind != Kind::kGroup) {
    boxes.push_back({x, y, x + item.width, y + item.height, item.name});
    return;
  }
  for (const PictureItem& child : item.children) {
    EXPECT_GE(child.x, -0.01) << child.name;
    EXPECT_GE(child.y, -0.01) << child.name;
    EXPECT_LE(child.x + child.width, item.width + 0.01) << child.name << " in " << item.name;
    EXPECT_LE(child.y + child.height, item.height + 0.01) << child.name << " in " << item.name;
    gather(child, x + child.x, y + child.y, boxes);
  }
}

void expect_apart(const PictureItem& picture) {
  std::vector<Rect> boxes;
  gather(picture, 0, 0, boxes);
  std::sort(boxes.begin(), boxes.end(), [](const Rect& a, const Rect& b) { return a.top < b.top; });
  for (size_t i = 0; i < boxes.size(); ++i)
    for (size_t k = i + 1; k < boxes.size() && boxes[k].top < boxes[i].bottom; ++k)
      EXPECT_TRUE(boxes[k].left >= boxes[i].right || boxes[i].left >= boxes[k].right)
          << boxes[i].name << " and " << boxes[k].name << " overlap";
}

// Which child of each group on the way down holds a node.
bool holds(const PictureItem& item, size_t node) {
  return std::find(item.nodes.begin(), item.nodes.end(), node) != item.nodes.end();
}

// A line of the graph from `from` (none: the image) to `to`: inside one box it needs none; else it
// is an edge of the innermost group that holds both, and goes through the ports of those below.
void expect_line(const PictureItem& group, std::optional<size_t> from, std::optional<size_t> to) {
  int source = -1, target = -1;
  for (size_t c = 0; c < group.children.size(); ++c) {
    if (from && holds(group.children[c], *from)) source = static_cast<int>(c);
    if (to && holds(group.children[c], *to)) target = static_cast<int>(c);
  }
  if (source == target) {
    if (source < 0) return;
    const PictureItem& inner = group.children[static_cast<size_t>(source)];
    if (inner.kind == Kind::kGroup) expect_line(inner, from, to);
    return;
  }
  const bool found = std::any_of(group.edges.begin(), group.edges.end(), [&](const auto& edge) {
    return edge.from == source && edge.to == target && !edge.path.empty();
  });
  EXPECT_TRUE(found) << "no line from " << (from ? std::to_string(*from) : "outside") << " to "
                     << (to ? std::to_string(*to) : "outside") << " in \"" << group.name << "\"";
  for (const int end : {source, target}) {
    if (end < 0) continue;
    const PictureItem& inner = group.children[static_cast<size_t>(end)];
    if (inner.kind == Kind::kGroup)
      expect_line(inner, end == source ? from : std::nullopt, end == target ? to : std::nullopt);
  }
}

void expect_all_lines(const Drawn& drawn) {
  for (size_t i = 0; i < drawn.graph.nodes.size(); ++i) {
    ASSERT_TRUE(holds(drawn.picture, i)) << drawn.graph.nodes[i].name;
    for (const int input : drawn.graph.nodes[i].inputs)
      expect_line(drawn.picture,
                  input == kImage ? std::nullopt : std::optional(static_cast<size_t>(input)), i);
  }
}

size_t paths_with_class(const test::XmlElement& svg, const std::string& style) {
  size_t count = 0;
  for (const test::XmlElement* path : test::elements(svg, "path"))
    if (const auto found = path->attributes.find("class");
        found != path->attributes.end() && found->second == style)
      ++count;
  return count;
}

class EveryModel : public testing::TestWithParam<std::string> {};

TEST_P(EveryModel, HasAPictureWithoutOverlapsAndWithAllLines) {
  const ops::Graph graph = make_model(GetParam(), {});
  const bool large = graph.nodes.size() > 2000;  // lines are looked for one by one
  for (const Fold fold : {Fold::kNo, Fold::kYes}) {
    const Drawn drawn(graph, fold);
    expect_apart(drawn.picture);
    if (!large) expect_all_lines(drawn);
    const std::string svg = drawn.svg();
    EXPECT_EQ(svg, Drawn(graph, fold).svg());
    EXPECT_EQ(test::parse_xml(svg).name, "svg");
  }
}

std::vector<std::string> names_of_models() {
  std::vector<std::string> names;
  for (const ModelEntry& m : model_table()) names.push_back(m.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Models, EveryModel, testing::ValuesIn(names_of_models()),
                         [](const auto& each) { return each.param; });

TEST(ModelPicture, AResNetsShortcutsCurveBesideItsBlocks) {
  const Drawn drawn(make_model("resnet18", {}));
  // Five blocks have the identity, three a projection, which is a box of its own: all come into the
  // side of their addition.
  const test::XmlElement svg = test::parse_xml(drawn.svg());
  EXPECT_EQ(paths_with_class(svg, "k"), 8u);
  const PictureItem& stage = drawn.picture.children[2];
  ASSERT_EQ(stage.name, "layer1");
  EXPECT_TRUE(stage.column);
  ASSERT_EQ(stage.children.size(), 2u);
  const PictureItem& block = stage.children[0];
  EXPECT_EQ(block.name, "layer1.0");
  EXPECT_EQ(block.label, "layer1.0");
  EXPECT_FALSE(block.column);
  ASSERT_EQ(block.children.size(), 3u);
  EXPECT_EQ(block.children[0].label,
            "3\xC3\x97"
            "3 conv, 64");
  ASSERT_EQ(block.children[0].chips.size(), 2u);
  EXPECT_EQ(block.children[0].chips[0].text, "BN");
  EXPECT_EQ(block.children[2].kind, Kind::kJoin);
  EXPECT_EQ(block.parameters, 2 * (64 * 64 * 9 + 2 * 64));
}

TEST(ModelPicture, FoldedBlocksAreOneBoxAndRunsOfThemAnother) {
  const Drawn drawn(make_model("resnet152", {}), Fold::kAuto);
  std::vector<Rect> boxes;
  gather(drawn.picture, 0, 0, boxes);
  EXPECT_LT(boxes.size(), 20u);
  const PictureItem& stage = drawn.picture.children[4];
  ASSERT_EQ(stage.name, "layer3");
  ASSERT_EQ(stage.children.size(), 2u);
  EXPECT_EQ(stage.children[1].kind, Kind::kFolded);
  EXPECT_EQ(stage.children[1].repeats, 35);
  EXPECT_EQ(stage.children[1].label, "layer3.1 \xE2\x80\x93 35");
  expect_all_lines(drawn);
}

// Three branches and a concatenation, as an inception module has.
ops::Graph branches() {
  ops::Graph graph;
  graph.name = "branches";
  graph.image = {.n = 1, .c = 8, .h = 16, .w = 16};
  const int stem = graph.add("stem", ops::Conv2d{.out_channels = 16, .padding = 1}, {kImage});
  const ops::Conv2d point{.out_channels = 8, .kernel = 1}, square{.out_channels = 8, .padding = 1};
  const int a = graph.add("mix.a.conv", point, {stem});
  const int b = graph.add("mix.b.0.conv", point, {stem});
  const int b2 = graph.add("mix.b.1.conv", square, {b});
  const int c = graph.add("mix.c.0.conv", point, {stem});
  const int c2 = graph.add("mix.c.1.conv", square, {c});
  const int c3 = graph.add("mix.c.2.conv", square, {c2});
  const int all = graph.add("mix.cat", ops::Concat{}, {a, b2, c3});
  graph.add("fc", ops::Linear{.out_features = 10},
            {graph.add("pool", ops::GlobalAvgPool{}, {all})});
  return graph;
}

// The note of a folded block says whole layers and is cut once; the head counts as `model list` and
// torchvision do.
TEST(ModelPicture, AFoldedGoogLeNetIsCutOnceAndCountedWithoutAuxiliaryClassifiers) {
  const std::string svg = Drawn(make_model("googlenet", {}), Fold::kYes).svg();
  size_t notes = 0;
  std::istringstream in(svg);
  for (std::string line; std::getline(in, line);) {
    const size_t cut = line.find("\xE2\x80\xA6");
    if (cut == std::string::npos) continue;
    EXPECT_EQ(line.substr(cut), "\xE2\x80\xA6</text>") << line;
    ++notes;
  }
  EXPECT_GE(notes, 9u);
  EXPECT_NE(svg.find("6,624,904 parameters  \xC2\xB7  1.5 G multiply-adds  \xC2\xB7  auxiliary: "
                     "6,379,984 more"),
            std::string::npos);
}

TEST(ModelPicture, BranchesStandSideBySide) {
  const Drawn drawn(branches());
  expect_apart(drawn.picture);
  expect_all_lines(drawn);
  const PictureItem& mix = drawn.picture.children[1];
  ASSERT_EQ(mix.name, "mix");
  ASSERT_EQ(mix.children.size(), 7u);
  const auto middle = [&](size_t c) { return mix.children[c].x + mix.children[c].axis; };
  EXPECT_LT(middle(0), middle(1));
  EXPECT_LT(middle(1), middle(3));
  EXPECT_EQ(middle(3), middle(4));
  EXPECT_EQ(middle(4), middle(5));
  EXPECT_NEAR(middle(6), mix.axis, 0.1);  // the concatenation in the middle
  EXPECT_EQ(mix.children[0].y, mix.children[3].y);
}

// Names with what means something in XML and DOT, control characters, no UTF-8, a whole script.
TEST(ModelPicture, HostileNamesAreText) {
  const std::string names[] = {"</text><script>alert(1)</script>",
                               "a\" onload=\"alert(1)",
                               "]]>&amp;&#x41;",
                               "\x01\x02\n\r\t\x7f",
                               "\xff\xfe\xc3\xed\xa0\x80",
                               "\\\"]; evil [label=\"",
                               std::string(5000, 'x') + ".conv",
                               "a.b.c.d.e.f.g.h.i.j.k.l.m.n",
                               "..",
                               "."};
  ops::Graph graph;
  graph.name = names[0];
  graph.image = {.n = 1, .c = 3, .h = 8, .w = 8};
  int x = kImage;
  for (const std::string& name : names)
    x = graph.add(name, ops::Conv2d{.out_channels = 3, .padding = 1}, {x});
  const test::XmlElement plain = test::parse_xml(Drawn(branches()).svg());
  const std::string plain_script = test::elements(plain, "script").at(0)->text;
  for (const Fold fold : {Fold::kNo, Fold::kYes}) {
    const Drawn drawn(graph, fold);
    expect_all_lines(drawn);
    const test::XmlElement svg = test::parse_xml(drawn.svg());
    // One script, ours, and nothing that runs another.
    const auto scripts = test::elements(svg, "script");
    ASSERT_EQ(scripts.size(), 1u);
    EXPECT_EQ(scripts[0]->text, plain_script);
    for (const test::XmlElement* text : test::elements(svg, "text"))
      EXPECT_FALSE(text->attributes.contains("onload"));
  }
  const std::string dot = to_dot(graph, layer_facts(graph));
  // Outside of quotes there is nothing of the names.
  std::string outside;
  bool quoted = false;
  for (size_t i = 0; i < dot.size(); ++i) {
    if (quoted && dot[i] == '\\')
      ++i;
    else if (dot[i] == '"')
      quoted = !quoted;
    else if (!quoted)
      outside += dot[i];
  }
  EXPECT_FALSE(quoted);
  EXPECT_EQ(outside.find("evil"), std::string::npos);
  EXPECT_EQ(outside.find("script"), std::string::npos);
}

// Groups woven into each other have no order; their boxes stand alone.
TEST(ModelPicture, GroupsThatReadEachOtherAreTakenApart) {
  ops::Graph graph;
  graph.image = {.n = 1, .c = 3, .h = 8, .w = 8};
  const ops::Conv2d conv{.out_channels = 3, .padding = 1};
  const int a1 = graph.add("a.one", conv, {kImage});
  const int b1 = graph.add("b.one", conv, {a1});
  const int a2 = graph.add("a.two", conv, {b1});
  graph.add("b.two", conv, {a2});
  const Drawn drawn(graph);
  EXPECT_EQ(drawn.picture.children.size(), 4u);
  expect_apart(drawn.picture);
  expect_all_lines(drawn);
}

// Every layer reads all before it, as in a dense block.
TEST(ModelPicture, DenseConnectionsAreAllDrawn) {
  ops::Graph graph;
  graph.image = {.n = 1, .c = 4, .h = 8, .w = 8};
  std::vector<int> all = {
      graph.add("stem", ops::Conv2d{.out_channels = 4, .padding = 1}, {kImage})};
  for (int i = 0; i < 30; ++i) {
    const std::string name = fmt::format("dense.layer{}", i);
    const int cat = graph.add(name + ".cat", ops::Concat{}, all);
    all.push_back(graph.add(name + ".conv", ops::Conv2d{.out_channels = 4, .padding = 1}, {cat}));
  }
  for (const Fold fold : {Fold::kNo, Fold::kYes}) {
    const Drawn drawn(graph, fold);
    expect_apart(drawn.picture);
    expect_all_lines(drawn);
  }
}

TEST(ModelPicture, LargeGraphsAreFoldedAndTakeLittle) {
  const std::clock_t start = std::clock();
  const Drawn drawn(make_model("cifar_resnet1202", {}), Fold::kAuto);
  EXPECT_LT(drawn.svg().size(), 100'000u);

  ops::Graph wide;
  wide.image = {.n = 1, .c = 1, .h = 4, .w = 4};
  std::vector<int> all;
  for (int i = 0; i < 4000; ++i)
    all.push_back(wide.add(fmt::format("r{}", i), ops::Relu{}, {kImage}));
  wide.add("cat", ops::Concat{}, all);
  expect_apart(Drawn(wide).picture);
  // No speed is asserted, but that it is not quadratic in what a file may say: minutes would be.
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 60);

  for (int i = 0; i < 2000; ++i) wide.add(fmt::format("s{}", i), ops::Relu{}, {0});
  try {
    const Drawn too_many(wide, Fold::kYes);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_NE(std::string(e.what()).find("6001 boxes"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("--format dot"), std::string::npos) << e.what();
  }
}

TEST(ModelPicture, NumbersAreShort) {
  EXPECT_EQ(compact(0), "0");
  EXPECT_EQ(compact(999), "999");
  EXPECT_EQ(compact(9408), "9.41 k");
  EXPECT_EQ(compact(999999), "1 M");
  EXPECT_EQ(compact(25557032), "25.6 M");
  EXPECT_EQ(compact(int64_t{7} << 60), "8.07 E");
}

}  // namespace
}  // namespace convoy::trainer
