// Networks as text from outside: whatever they say, one named error of exit code 78 in little time.
#include <gtest/gtest.h>

#include <ctime>
#include <sstream>

#include "ops/core/error.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"
#include "trainer/job/graph_text.h"
#include "trainer/job/job.h"
#include "trainer/models/models.h"
#include "trainer/pictures/model_drawing.h"
#include "trainer/pictures/model_facts.h"

namespace convoy::trainer {
namespace {

// Reads and counts, as `convoy model show` does; the error's text.
std::string error_of(const std::string& text) {
  try {
    const ops::Graph graph = parse_graph(text, "net.txtpb");
    const std::vector<LayerFacts> facts = layer_facts(graph);
    (void)total(facts);
    (void)layout_of(graph);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob) << e.what();
    return e.what();
  }
  return "";
}

std::string network(const std::string& nodes, const std::string& image = "3 8 8") {
  std::istringstream in(image);
  std::string c, h, w;
  in >> c >> h >> w;
  return "name: 'g' input_channels: " + c + " input_height: " + h + " input_width: " + w + "\n" +
         nodes;
}

void expect_says(const std::string& text, const std::string& words) {
  const std::string error = error_of(text);
  EXPECT_NE(error.find(words), std::string::npos) << "\"" << error << "\" should say: " << words;
}

TEST(HostileGraph, CyclesAndForwardReferences) {
  expect_says(
      network("node { name: 'a' input: 'b' relu {} } node { name: 'b' input: 'a' relu {} }"),
      "node \"a\": input \"b\" is neither \"input\" nor an earlier node");
  expect_says(network("node { name: 'a' input: 'a' relu {} }"),
              "node \"a\": input \"a\" is neither");
  expect_says(network("node { name: 'input' input: 'input' relu {} }"), "the name is taken");
}

TEST(HostileGraph, UnknownOperatorsAndFields) {
  expect_says(network("node { name: 'a' input: 'input' attention { heads: 8 } }"), "attention");
  expect_says(network("node { name: 'a' input: 'input' relu { slope: 1 } }"),
              ": slope: unknown field");
  expect_says(network("node { name: 'a' input: 'input' conv3d { } }"),
              ": conv3d: unknown field; the nearest is conv2d");
  expect_says(network("node { " + std::string(1 << 20, 'x') + ": 1 }"), "x: unknown field");
  expect_says(network("node { name: 'a' input: 'input' conv2d { out_channels: -1 } }"),
              "net.txtpb:2:");
  expect_says(network("node { name: 'a' input: 'input' conv2d { out_channels: 5000000000 } }"),
              "net.txtpb:2:");
  expect_says(network("node { name: 'a' input: 'input' relu {} add {} }"), "net.txtpb:2:");
  expect_says(network("node { name: 'a' input: 'input' }"), "no op");
}

TEST(HostileGraph, ShapesThatDoNotFit) {
  const std::string conv =
      "node { name: 'c' input: 'input' conv2d { out_channels: 4 padding: 1 } }";
  expect_says(network(conv + "node { name: 's' input: 'c' input: 'input' add {} }"),
              "Add \"s\": inputs of different shapes: [1, 4, 8, 8] and [1, 3, 8, 8]");
  expect_says(network(conv + "node { name: 'p' input: 'c' max_pool { kernel: 15 padding: 0 } }"),
              "MaxPool \"p\": a 15-pixel window does not fit into 8 pixels");
  expect_says(network("node { name: 'c' input: 'input' conv2d { out_channels: 4 groups: 2 } }"),
              "do not divide into 2 groups");
  expect_says(network("node { name: 'c' input: 'input' conv2d { out_channels: 4 stride: 0 } }"),
              "stride 0");
  expect_says(network("node { name: 'c' conv2d { out_channels: 4 } }"), "takes 1 input(s), got 0");
  expect_says(network("node { name: 'c' concat {} }"), "takes at least one input");
  expect_says(network(""), "has no nodes");
  expect_says(network(conv, "0 8 8"), "is empty");
}

TEST(HostileGraph, NamesThatAreDoubledOrEmpty) {
  expect_says(
      network("node { name: 'a' input: 'input' relu {} } node { name: 'a' input: 'a' relu {} }"),
      "node \"a\": the name is taken");
  expect_says(network("node { name: '' input: 'input' relu {} }"), "which is empty");
  // An error is one printable line, however the name looks.
  const std::string error = error_of(network("node { name: '\\n\\033[31m' input: 'x' relu {} }"));
  EXPECT_EQ(error.find('\n'), std::string::npos);
  EXPECT_EQ(error.find('\033'), std::string::npos);
}

// Sizes whose products leave 64 bits (the undefined-behaviour sanitizer sees one that does).
TEST(HostileGraph, AbsurdSizes) {
  expect_says(
      network("node { name: 'r' input: 'input' relu {} }", "4294967295 4294967295 4294967295"),
      "images of [1, 4294967295, 4294967295, 4294967295] have more than");
  expect_says(network("node { name: 'r' input: 'input' relu {} }", "16777216 16777216 16777216"),
              "have more than");
  expect_says(
      network("node { name: 'c' input: 'input' conv2d { out_channels: 4294967295 kernel: 1 } }",
              "4294967295 64 1"),
      "beyond any computer");
  expect_says(network("node { name: 'c' input: 'input' conv2d { out_channels: 1 kernel: 4294967295 "
                      "padding: 4294967295 } }"),
              "kernel 4294967295 must not be above");
  expect_says(network("node { name: 'c' input: 'input' conv2d { out_channels: 16777216 kernel: 512 "
                      "padding: 256 } } ",
                      "16777216 1 1"),
              "beyond any computer");
  expect_says(network("node { name: 'c' input: 'input' conv2d { out_channels: 1048576 kernel: 1 } }"
                      "node { name: 'd' input: 'c' conv2d { out_channels: 1048576 kernel: 1 } }",
                      "1 65536 65536"),
              "more than 2^44 elements");
  // Large, but countable.
  EXPECT_EQ(
      error_of(network("node { name: 'c' input: 'input' conv2d { out_channels: 65536 kernel: 3 "
                       "padding: 1 } }",
                       "65536 512 512")),
      "");
  expect_says(network("node { name: 'l' input: 'input' linear { out_features: 4294967295 } }",
                      "16777216 64 64"),
              "beyond any computer");
  expect_says(
      network("node { name: 's' input: 'input' subsample { stride: 1 out_channels: 4294967295 } }",
              "1 131072 131072"),
      "more than 2^44 elements");
  std::string squares = "node { name: 'n0' input: 'input' concat {} }";
  for (int i = 1; i < 60; ++i)
    squares +=
        fmt::format("node {{ name: 'n{0}' input: 'n{1}' input: 'n{1}' concat {{}} }}", i, i - 1);
  expect_says(network(squares), "more than 2^44 elements");

  // Sums of what alone may be.
  const auto repeated = [](const std::string& input, int n) {
    std::string inputs;
    for (int i = 0; i < n; ++i) inputs += fmt::format("'{}',", input);
    inputs.pop_back();
    return "input: [" + inputs + "]";
  };
  expect_says(network("node { name: 'a' " + repeated("input", 4096) + " concat {} }" +
                          "node { name: 'b' " + repeated("a", 1'000'000) + " concat {} }",
                      "4294967295 1 1"),
              "more than");
  std::string convolutions;
  for (int i = 0; i < 5000; ++i)
    convolutions +=
        fmt::format("node {{ name: 'c{}' input: '{}' conv2d {{ out_channels: 4096 kernel: 1 }} }}",
                    i, i == 0 ? "input" : fmt::format("c{}", i - 1));
  expect_says(network(convolutions, "4096 16384 8192"), "beyond any computer");
}

TEST(HostileGraph, ValuesThatNoFloatHolds) {
  const auto with = [](const char* spec) {
    return network(fmt::format("node {{ name: 'n' input: 'input' {} }}", spec));
  };
  expect_says(with("local_response_norm { k: 1e-6 beta: 6.5 }"), "k^-beta is 1");
  expect_says(with("adaptive_avg_pool { height: 4000000000 width: 1 }"), "must lie in 1 ... 4096");
}

TEST(HostileGraph, AMillionNodesAreRefused) {
  std::string text = network("");
  for (int i = 0; i < 1'000'000; ++i)
    text += fmt::format("node {{ name: 'n{}' input: '{}' relu {{}} }}\n", i,
                        i == 0 ? "input" : fmt::format("n{}", i - 1));
  const test::TempFolder dir;
  dir.write("million.txtpb", text);
  try {
    load_graph(dir.path("million.txtpb"));
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadJob);
    EXPECT_NE(std::string(e.what()).find("more than 983040 bytes"), std::string::npos) << e.what();
  }
  // In little room, as no file that is read has.
  std::string dense = network(""), wrong = dense;
  for (int i = 0; dense.size() < (size_t{4} << 20) - 64; ++i)
    dense += fmt::format("node{{name:'{:x}'input:'input'relu{{}}}}", i);
  while (wrong.size() < (size_t{4} << 20) - 64) wrong += "node{name:'a'}";
  const std::clock_t start = std::clock();
  expect_says(dense, "nodes, more than 32768");
  expect_says(wrong, "net.txtpb: ... and more");
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC,
            test::kSanitized ? 200 : 20);
}

// The largest networks that load_graph() takes are read again as they are written, and fit into a
// job; with names that take most room there.
TEST(HostileGraph, WhatIsReadCanBeWrittenAndTrained) {
  const test::TempFolder dir;
  const auto file_of = [&](int nodes) {
    std::string text = network("", "1 4 4"), last = "input";
    for (int i = 0; i < nodes; ++i) {
      const std::string name = fmt::format("\\'\\n{}", i);
      text += fmt::format("node{{name:'{}'input:'{}'relu{{}}}}", name, last);
      last = name;
    }
    return dir.write("net.txtpb", text);
  };
  const auto refusal = [&](int nodes) -> std::string {
    try {
      load_graph(file_of(nodes));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadJob);
      return e.what();
    }
    return "";
  };
  int taken = 1, refused = 18'000;
  EXPECT_NE(refusal(refused).find(" bytes as a job holds it; a network has at most 983040"),
            std::string::npos)
      << refusal(refused);
  while (refused - taken > 1) {
    const int middle = (taken + refused) / 2;
    (refusal(middle).empty() ? taken : refused) = middle;
  }
  const std::string written = to_text(load_graph(file_of(taken)));
  EXPECT_GT(written.size(), kMaxGraphBytes / 2);
  EXPECT_EQ(to_text(load_graph(dir.write("written.txtpb", written))), written);
  const std::string job = dir.write("job", "data { path: 'd' }");
  const std::string text =
      to_text(load_job(job, {"model.name=" + dir.path("written.txtpb")}, "cpu"));
  EXPECT_EQ(parse_job(text, "job", {}, "").model.graph, written);
}

TEST(HostileGraph, TheLargestOfTheListIsRead) {
  const test::TempFolder dir;
  const std::string text = to_text(make_model("cifar_resnet1202", {}));
  EXPECT_EQ(to_text(load_graph(dir.write("net.txtpb", text))), text);
}

TEST(HostileGraph, AsManyNodesAsMayBeAreShown) {
  std::string text = network("", "1 4 4");
  for (int i = 0; i < 32768; ++i)
    text += fmt::format("node {{ name: 'n{}' input: '{}' relu {{}} }}\n", i,
                        i == 0 ? "input" : fmt::format("n{}", i - 1));
  const ops::Graph graph = parse_graph(text, "net.txtpb");
  const std::vector<LayerFacts> facts = layer_facts(graph);
  EXPECT_EQ(facts.size(), 32768u);
  EXPECT_GT(to_dot(graph, facts).size(), 100'000u);
}

}  // namespace
}  // namespace convoy::trainer
