#include "trainer/pictures/run_plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file.h"
#include "trainer/pictures/chart.h"
#include "trainer/records/gradient_log.h"
#include "trainer/records/metrics.h"

namespace convoy::trainer {
namespace {

using nlohmann::json;
using Points = std::vector<std::pair<double, double>>;

constexpr size_t kMostPoints = 150;  // of a training curve

struct Errors {
  Points training, test;  // step, percent
};

Errors errors_of(const std::string& run) {
  expect_folder(run);
  const std::string path = (std::filesystem::path(run) / "metrics.jsonl").string();
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    fail(ExitCode::kBadData, "{}: no such file; is {} the folder of a run?", printable(path),
         printable(run));
  Errors out;
  for_each_line(path, [&](const json& line) {
    if (!line.contains("step") || !line["step"].is_number()) return;
    const double step = line["step"];
    const auto add = [&](const char* key, Points& points) {
      if (line.contains(key) && line[key].is_number())
        points.emplace_back(step, 100 * (1 - line[key].get<double>()));
    };
    add("train_top1", out.training);
    add("top1", out.test);
  });
  if (!out.test.empty()) return out;
  if (out.training.size() < 2)
    fail(ExitCode::kBadData,
         "{}: holds no evaluation and {} line(s) of training, which make no curve: nothing to draw",
         printable(path), out.training.size());
  log::warning("{}: holds no evaluation: training error alone is drawn", printable(path));
  return out;
}

// Means of points that follow each other.
Points thinned(const Points& points) {
  const size_t of_each = (points.size() + kMostPoints - 1) / kMostPoints;
  if (of_each <= 1) return points;
  Points out;
  for (size_t i = 0; i < points.size(); i += of_each) {
    const size_t end = std::min(points.size(), i + of_each);
    double y = 0;
    for (size_t k = i; k < end; ++k) y += points[k].second;
    out.emplace_back(points[end - 1].first, y / static_cast<double>(end - i));
  }
  return out;
}

std::vector<ChartPanel> empty_panels(const PlotOptions& options) {
  std::vector<ChartPanel> panels;
  for (const std::string& title : options.panels) panels.push_back({.title = title});
  if (panels.empty()) panels.emplace_back();
  return panels;
}

// The panel of run i, and its place among the lines there.
std::pair<size_t, int> place(size_t i, size_t runs, size_t panels) {
  const size_t each = (runs + panels - 1) / panels;
  return {i / each, static_cast<int>(i % each)};
}

// Above it are the first steps alone, which would press all the rest together.
double error_limit(const std::vector<Errors>& all) {
  double most = 0;
  for (const Errors& e : all)
    for (const Points* points : {&e.training, &e.test}) {
      if (points->empty()) continue;
      const double begin = 0.15 * points->back().first;
      for (const auto& [step, y] : *points)
        if (step >= begin || points->size() < 4) most = std::max(most, y);
    }
  return std::clamp(1.1 * most, 1.0, 100.0);
}

const GradientRecord& chosen(const std::vector<GradientRecord>& records,
                             const std::optional<uint64_t>& step) {
  if (!step) return records.back();
  const auto distance = [&](const GradientRecord& r) {
    return r.step > *step ? r.step - *step : *step - r.step;
  };
  return *std::min_element(records.begin(), records.end(),
                           [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
}

Points by_layer(const std::vector<double>& values) {
  Points points;
  for (size_t i = 0; i < values.size(); ++i)
    points.emplace_back(static_cast<double>(i + 1), values[i]);
  return points;
}

// "5", or "5 and 15" where the runs' records are not of one step.
std::string steps_text(const std::set<uint64_t>& steps) {
  return fmt::format("{}", fmt::join(steps, " and "));
}

}  // namespace

std::string plot_errors(const std::vector<PlottedRun>& runs, const PlotOptions& options) {
  std::vector<ChartPanel> panels = empty_panels(options);
  std::vector<Errors> all;
  for (size_t i = 0; i < runs.size(); ++i) {
    all.push_back(errors_of(runs[i].folder));
    const auto [panel, colour] = place(i, runs.size(), panels.size());
    const bool tested = !all.back().test.empty();
    panels[panel].lines.push_back(
        {tested ? "" : runs[i].label, colour, false, thinned(all.back().training)});
    if (tested) panels[panel].lines.push_back({runs[i].label, colour, true, all.back().test});
  }
  for (ChartPanel& panel : panels) {
    panel.x_label = "steps";
    panel.y_label = "error (%)";
    panel.y_min = 0;
    panel.y_max = error_limit(all);
  }
  return chart_svg(options.title.empty() ? "Training and test error" : options.title,
                   "Thin: training error (augmented images). Bold: test error.", panels);
}

std::string plot_gradients(const std::vector<PlottedRun>& runs, const PlotOptions& options) {
  std::vector<ChartPanel> panels(2);
  std::set<uint64_t> steps[2];
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::vector<GradientRecord> records = read_gradients(runs[i].folder);
    const GradientRecord* shown[] = {&records.front(), &chosen(records, options.step)};
    for (size_t p = 0; p < 2; ++p) {
      steps[p].insert(shown[p]->step);
      panels[p].title = "step " + steps_text(steps[p]);
      panels[p].lines.push_back(
          {runs[i].label, static_cast<int>(i), true, by_layer(shown[p]->layers.gradient_norm)});
    }
  }
  for (ChartPanel& panel : panels) {
    panel.x_label = "layer, from the input to the classifier";
    panel.y_label = "L2 norm of the weight gradient";
    panel.log_y = true;
  }
  return chart_svg(
      options.title.empty() ? "Gradients layer by layer" : options.title,
      "Of the loss with respect to the weights of each convolution and the classifier, "
      "as the optimizer gets it.",
      panels);
}

std::string plot_responses(const std::vector<PlottedRun>& runs, const PlotOptions& options) {
  std::vector<ChartPanel> panels(2);
  std::set<uint64_t> steps;
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::vector<GradientRecord> records = read_gradients(runs[i].folder);
    const GradientRecord& record = chosen(records, options.step);
    std::vector<double> values = record.layers.response_std;
    if (values.empty())
      fail(ExitCode::kBadData,
           "{}: this network has no batch norms, whose responses are what is drawn",
           printable(runs[i].folder));
    steps.insert(record.step);
    panels[0].lines.push_back({runs[i].label, static_cast<int>(i), true, by_layer(values)});
    std::erase_if(values, [](double value) { return !std::isfinite(value); });
    std::sort(values.begin(), values.end(), std::greater<>());
    panels[1].lines.push_back({runs[i].label, static_cast<int>(i), true, by_layer(values)});
  }
  panels[0].title = "in the order of the layers";
  panels[1].title = "by size";
  for (ChartPanel& panel : panels) {
    panel.x_label = "batch norm";
    panel.y_label = "standard deviation";
  }
  return chart_svg(options.title.empty() ? "Layer responses" : options.title,
                   fmt::format("Of what each batch norm gives, before the addition or ReLU behind "
                               "it, at step {} (He et al. 2015, figure 7).",
                               steps_text(steps)),
                   panels);
}

}  // namespace convoy::trainer
