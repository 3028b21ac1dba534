// Line charts as SVG, panels side by side: thin lines and bold ones, their names at their ends.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace convoy::trainer {

struct ChartLine {
  std::string label;  // at its right end; "": none
  int colour = 0;     // lines of one thing share a colour
  bool bold = false;
  std::vector<std::pair<double, double>> points;  // x rising; what is not finite is left out
};

struct ChartPanel {
  std::string title, x_label, y_label;
  bool log_y = false;  // values not above 0 are left out
  std::vector<ChartLine> lines;
  // Else as the lines have it. A line that leaves the range is cut off at it.
  std::optional<double> y_min, y_max;
};

// One range of y for all panels. The same bytes for the same lines.
std::string chart_svg(const std::string& title, const std::string& note,
                      const std::vector<ChartPanel>& panels);

}  // namespace convoy::trainer
