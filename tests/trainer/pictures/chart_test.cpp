// Charts, and figures of what runs have written.
#include "trainer/pictures/chart.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "tests/support/temp_folder.h"
#include "tests/support/xml_check.h"
#include "trainer/pictures/run_plots.h"
#include "trainer/pictures/svg.h"
#include "trainer/records/gradient_log.h"

namespace convoy::trainer {
namespace {

using test::elements;
using test::parse_xml;
using test::TempFolder;
using test::XmlElement;

std::vector<const XmlElement*> lines_of(const XmlElement& svg, const std::string& style) {
  std::vector<const XmlElement*> out;
  for (const XmlElement* path : elements(svg, "path"))
    if (path->attributes.contains("class") && path->attributes.at("class") == style)
      out.push_back(path);
  return out;
}

std::vector<std::string> texts(const XmlElement& svg) {
  std::vector<std::string> out;
  for (const XmlElement* text : elements(svg, "text")) out.push_back(text->text);
  return out;
}

bool says(const XmlElement& svg, const std::string& words) {
  const auto all = texts(svg);
  return std::find(all.begin(), all.end(), words) != all.end();
}

TEST(Svg, NumbersAreShortAndTheSameEverywhere) {
  EXPECT_EQ(svg::number(0), "0");
  EXPECT_EQ(svg::number(-0.04), "0");
  EXPECT_EQ(svg::number(12.25), "12.3");
  EXPECT_EQ(svg::number(-7.5), "-7.5");
  EXPECT_EQ(svg::number(100), "100");
  EXPECT_EQ(svg::number(std::numeric_limits<double>::quiet_NaN()), "0");
  EXPECT_EQ(svg::number(1e300), "0");
}

TEST(Svg, TextIsEscapedAndFits) {
  EXPECT_EQ(svg::escaped("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(svg::escaped("\x01\xff\xc3\xa9\xed\xa0\x80"),
            "\xEF\xBF\xBD\xEF\xBF\xBD\xc3\xa9\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  const std::string words = "a long name that does not fit at all";
  const std::string cut = svg::fitted(words, 10, 80);
  EXPECT_LE(svg::text_width(cut, 10), 80);
  EXPECT_TRUE(cut.starts_with("a lo") && cut.ends_with("all")) << cut;
  EXPECT_EQ(svg::fitted(words, 10, 1000), words);
  EXPECT_EQ(svg::fitted("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", 10, 14), "\xc3\xa9\xE2\x80\xA6");
}

TEST(Chart, DrawsEveryLineAndItsName) {
  ChartPanel panel{.title = "left", .x_label = "steps", .y_label = "error (%)"};
  panel.lines = {{"", 0, false, {{0, 50}, {1000, 10}}},
                 {"plain <20>", 0, true, {{0, 60}, {1000, 12}}},
                 {"plain 56", 1, true, {{0, 60}, {1000, 12.2}}}};
  const std::string text = chart_svg("A title", "A note", {panel, panel});
  EXPECT_EQ(text, chart_svg("A title", "A note", {panel, panel}));
  const XmlElement svg = parse_xml(text);
  EXPECT_EQ(lines_of(svg, "thin").size(), 2u);
  EXPECT_EQ(lines_of(svg, "bold").size(), 4u);
  for (const char* words : {"A title", "A note", "left", "steps", "error (%)", "plain <20>", "60"})
    EXPECT_TRUE(says(svg, words)) << words;
  // Names that would lie on each other are moved apart.
  std::vector<double> at;
  for (const XmlElement* t : elements(svg, "text"))
    if (t->text.starts_with("plain")) at.push_back(std::stod(t->attributes.at("y")));
  ASSERT_EQ(at.size(), 4u);
  EXPECT_GE(std::abs(at[0] - at[1]), 14.9);
}

TEST(Chart, LogarithmsLeaveOutWhatHasNone) {
  const ChartPanel panel{
      .log_y = true,
      .lines = {{"a", 0, true, {{1, 1e-3}, {2, 0}, {3, NAN}, {4, 1e2}, {5, -1}, {6, 1}}}}};
  const XmlElement svg = parse_xml(chart_svg("t", "", {panel}));
  const auto lines = lines_of(svg, "bold");
  ASSERT_EQ(lines.size(), 1u);
  // Three pieces of one point each.
  const std::string& path = lines[0]->attributes.at("d");
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 3);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'L'), 3);
}

TEST(Chart, NothingToDrawIsAnEmptyChart) {
  EXPECT_EQ(parse_xml(chart_svg("t", "", {})).name, "svg");
  EXPECT_EQ(parse_xml(chart_svg("t", "", {ChartPanel{}})).name, "svg");
  const ChartPanel flat{.lines = {{"flat", 0, true, {{5, 3}}}, {"none", 1, true, {{1, NAN}}}}};
  EXPECT_EQ(parse_xml(chart_svg("t", "", {flat})).name, "svg");
}

// ---- Figures of runs ----

GradientRecord record(uint64_t step, double scale, bool with_batch_norms = true) {
  GradientRecord r{.step = step, .epoch = 0.5};
  r.layers.weights = {"conv1.weight", "fc.weight"};
  r.layers.gradient_norm = {scale, 10 * scale};
  r.layers.gradient_rms = r.layers.weight_norm = r.layers.weight_rms = {1, 2};
  if (with_batch_norms) {
    r.layers.batch_norms = {"bn1", "bn2"};
    r.layers.response_std = {scale, 2 * scale};
  }
  return r;
}

class RunPlots : public testing::Test {
 protected:
  RunPlots() {
    for (const char* run : {"a", "b"}) {
      std::filesystem::create_directories(dir_.path(run));
      std::string metrics;
      for (int step = 10; step <= 3000; step += 10)
        metrics += fmt::format("{{\"step\":{},\"train_top1\":{}}}\n", step, step / 4000.0);
      metrics += "{\"step\":1500,\"top1\":0.5}\n{\"step\":3000,\"top1\":0.75}\ntorn";
      dir_.write(std::string(run) + "/metrics.jsonl", metrics);
      GradientLog log(dir_.path(run), 0);
      for (const uint64_t step : {1, 100, 200})
        log.write(record(step, 0.1 * static_cast<double>(step)));
    }
  }
  std::vector<PlottedRun> runs() const {
    return {{dir_.path("a"), "net a"}, {dir_.path("b"), "net b"}};
  }
  TempFolder dir_;
};

TEST_F(RunPlots, ErrorsInPanels) {
  const XmlElement svg = parse_xml(plot_errors(runs(), {.panels = {"plain", "residual"}}));
  EXPECT_EQ(lines_of(svg, "thin").size(), 2u);
  ASSERT_EQ(lines_of(svg, "bold").size(), 2u);
  for (const char* words : {"plain", "residual", "net a", "net b", "error (%)"})
    EXPECT_TRUE(says(svg, words)) << words;
  // 300 points of training are thinned to no more than 150.
  const std::string& path = lines_of(svg, "thin")[0]->attributes.at("d");
  EXPECT_EQ(std::count(path.begin(), path.end(), 'L'), 150);
  EXPECT_EQ(lines_of(parse_xml(plot_errors(runs(), {})), "bold").size(), 2u);
}

TEST_F(RunPlots, ErrorsOfTrainingAloneAreDrawnAndSaid) {
  static std::string said;
  said.clear();
  log::set_sink([](log::Level, const std::string& line) { said += line; });
  dir_.write("a/metrics.jsonl",
             "{\"step\":1,\"train_top1\":0.5}\n{\"step\":2,\"train_top1\":0.6}\n");
  const XmlElement svg = parse_xml(plot_errors({{dir_.path("a"), "net a"}}, {}));
  EXPECT_EQ(lines_of(svg, "thin").size(), 1u);
  EXPECT_TRUE(says(svg, "net a"));
  log::set_sink(nullptr);
  EXPECT_NE(said.find("holds no evaluation: training error alone is drawn"), std::string::npos);
}

TEST_F(RunPlots, GradientsOfTheFirstAndTheChosenStep) {
  const XmlElement last = parse_xml(plot_gradients(runs(), {}));
  EXPECT_TRUE(says(last, "step 1"));
  EXPECT_TRUE(says(last, "step 200"));
  EXPECT_EQ(lines_of(last, "bold").size(), 4u);
  EXPECT_TRUE(says(parse_xml(plot_gradients(runs(), {.step = 120})), "step 100"));
}

TEST_F(RunPlots, ResponsesInOrderAndBySize) {
  const XmlElement svg = parse_xml(plot_responses(runs(), {}));
  const auto lines = lines_of(svg, "bold");
  ASSERT_EQ(lines.size(), 4u);
  // The second is the larger: it stands higher, and comes first by size.
  const auto rises = [](const XmlElement& line) {
    const std::string& path = line.attributes.at("d");
    double x = 0, first = 0, last = 0;
    EXPECT_EQ(std::sscanf(path.c_str(), "M%lf %lf", &x, &first), 2);
    EXPECT_EQ(std::sscanf(path.c_str() + path.rfind('L'), "L%lf %lf", &x, &last), 2);
    return last < first;
  };
  EXPECT_TRUE(rises(*lines[0]));
  EXPECT_FALSE(rises(*lines[2]));
}

// Of a run that diverged: no order with what is no number, and no curve of it by size.
TEST_F(RunPlots, WhatIsNotFiniteIsLeftOutBySize) {
  std::filesystem::create_directories(dir_.path("odd"));
  GradientRecord odd = record(7, 1);
  odd.layers.response_std.clear();
  odd.layers.batch_norms.clear();
  for (int i = 0; i < 40; ++i) {
    odd.layers.batch_norms.push_back(fmt::format("bn{}", i));
    odd.layers.response_std.push_back(i % 2 == 0 ? NAN : 1 + i % 7);
  }
  GradientLog(dir_.path("odd"), 0).write(odd);
  const XmlElement svg =
      parse_xml(plot_responses({{dir_.path("odd"), "odd"}, {dir_.path("a"), "net a"}}, {}));
  const auto note = [](const std::string& text) {
    return text.find("at step 7 and 200 (") != std::string::npos;
  };
  EXPECT_EQ(std::ranges::count_if(texts(svg), note), 1);
  const std::string path = lines_of(svg, "bold")[2]->attributes.at("d");
  double before = 0;
  size_t lines = 0;
  for (size_t at = path.find('L'); at < path.size(); at = path.find('L', at + 1), ++lines) {
    double x = 0, y = 0;
    ASSERT_EQ(std::sscanf(path.c_str() + at + 1, "%lf %lf", &x, &y), 2) << path;
    EXPECT_GE(y, before);  // down the page
    before = y;
  }
  EXPECT_EQ(lines, static_cast<size_t>(std::count(path.begin(), path.end(), 'L')));
  EXPECT_NEAR(static_cast<double>(lines), 20, 1);  // none of the twenty that are no numbers
}

TEST_F(RunPlots, WhatIsMissingIsNamed) {
  const auto message = [](const auto& draw) -> std::string {
    try {
      draw();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadData);
      return e.what();
    }
    return "";
  };
  const std::vector<PlottedRun> nothing = {{dir_.path("none"), "x"}};
  std::filesystem::create_directories(dir_.path("none"));
  EXPECT_NE(message([&] { plot_errors(nothing, {}); }).find("none/metrics.jsonl"),
            std::string::npos);
  EXPECT_NE(message([&] { plot_gradients(nothing, {}); }).find("--log-gradients"),
            std::string::npos);
  dir_.write("none/metrics.jsonl",
             "{\"step\":1,\"train_top1\":0.5}\n{\"step\":1,\"event\":\"end\"}\n");
  EXPECT_NE(message([&] {
              plot_errors(nothing, {});
            }).find("holds no evaluation and 1 line(s) of training"),
            std::string::npos);
  dir_.write("none/metrics.jsonl", "{\"step\":1,\"train_top1\":0.5}\nrubbish\n");
  EXPECT_NE(
      message([&] { plot_errors(nothing, {}); }).find("metrics.jsonl: line 2: is no JSON object"),
      std::string::npos);
  std::filesystem::create_directories(dir_.path("bare"));
  GradientLog(dir_.path("bare"), 0).write(record(1, 1, false));
  EXPECT_NE(message([&] {
              plot_responses({{dir_.path("bare"), "x"}}, {});
            }).find("no batch norms"),
            std::string::npos);
}

}  // namespace
}  // namespace convoy::trainer
