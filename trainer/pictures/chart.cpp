#include "trainer/pictures/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "trainer/pictures/svg.h"

namespace convoy::trainer {
namespace {

using svg::escaped;
using svg::number;

// Apart for eyes that see fewer colours, too; dark enough on white.
constexpr std::array<const char*, 8> kColours = {"#c8433f", "#2f6db3", "#3b8a3e", "#b07d00",
                                                 "#7d4fa8", "#1b8a83", "#8a5a2b", "#6b7280"};

constexpr double kPlotWidth = 400, kPlotHeight = 290;
constexpr double kLeft = 58, kTop = 84, kBottom = 62, kGap = 34;
constexpr double kLabelSize = 11.5, kLabelStep = 15;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void add(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  bool empty() const { return low > high; }
};

bool drawable(const ChartPanel& panel, double y) {
  return std::isfinite(y) && (!panel.log_y || y > 0);
}

// 1, 2 or 5 times a power of ten: about `count` of them in the range.
double tick_step(const Range& range, int count) {
  const double rough = (range.high - range.low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= rough * 0.999) return factor * power;
  return 10 * power;
}

std::string tick_text(double v) {
  if (v != 0 && (std::abs(v) >= 1e6 || std::abs(v) < 1e-3)) return fmt::format("{:.3g}", v);
  if (std::abs(v) >= 10000 && std::fmod(v, 1000) == 0) return fmt::format("{:g}k", v / 1000);
  return fmt::format("{:g}", v);
}

// "1e-4" as 10 with a small -4.
std::string power_text(int exponent) {
  return fmt::format("10<tspan dy=\"-4\" font-size=\"8\">{}</tspan>", exponent);
}

class Chart {
 public:
  explicit Chart(const std::vector<ChartPanel>& panels) : panels_(panels) {
    Range all;
    for (const ChartPanel& panel : panels)
      for (const ChartLine& line : panel.lines)
        for (const auto& [x, y] : line.points)
          if (drawable(panel, y)) all.add(panel.log_y ? std::log10(y) : y);
    if (all.empty()) all = {0, 1};
    if (!panels.empty() && panels[0].log_y) {
      all = {std::floor(all.low), std::ceil(all.high)};
      if (all.high <= all.low) all.high = all.low + 1;
    } else {
      all.low = std::min(0.0, all.low);
    }
    for (const ChartPanel& panel : panels) {
      if (panel.y_min) all.low = *panel.y_min;
      if (panel.y_max) all.high = *panel.y_max;
    }
    if (all.high <= all.low) all.high = all.low + 1;
    if (panels.empty() || !panels[0].log_y) {
      const double step = tick_step(all, 6);
      all.high = step * std::ceil(all.high / step - 1e-9);
    }
    y_ = all;
    for (const ChartPanel& panel : panels)
      for (const ChartLine& line : panel.lines)
        label_width_ = std::max(label_width_, svg::text_width(line.label, kLabelSize, true));
    label_width_ = std::min(label_width_ + 14, 220.0);
  }

  std::string run(const std::string& title, const std::string& note) {
    const double panel_width = kLeft + kPlotWidth + label_width_ + kGap;
    const double width = panel_width * static_cast<double>(std::max<size_t>(1, panels_.size()));
    const double height = kTop + kPlotHeight + kBottom;
    out_ = fmt::format(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
        "{1}\" font-family=\"{2}\">\n<title>{3}</title>\n<style>\n"
        "text{{fill:#1f2937;font-size:11px}} .t{{font-size:17px;font-weight:600}} "
        ".p{{font-size:13px;font-weight:600}} .a{{fill:#4b5563}} .m{{fill:#6b7280}}\n"
        ".grid{{stroke:#e5e7eb;stroke-width:1}} .axis{{stroke:#9aa5b1;stroke-width:1;fill:none}}\n"
        ".thin{{fill:none;stroke-width:1;stroke-opacity:0.65;stroke-linecap:round}} "
        ".bold{{fill:none;stroke-width:2.4;stroke-linejoin:round;stroke-linecap:round}}\n"
        "</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        number(width), number(height), escaped(svg::kFonts), escaped(title));
    text(kLeft - 30, 30, "t", svg::fitted(title, 17, width - 60, true));
    text(kLeft - 30, 48, "m", svg::fitted(note, 11, width - 60));
    for (size_t p = 0; p < panels_.size(); ++p)
      panel(panels_[p], panel_width * static_cast<double>(p) + kLeft, p);
    out_ += "</svg>\n";
    return std::move(out_);
  }

 private:
  void text(double x, double y, const char* style, const std::string& words,
            const char* anchor = "start") {
    raw_text(x, y, style, escaped(words), anchor);
  }
  void raw_text(double x, double y, const char* style, const std::string& words,
                const char* anchor) {
    out_ += fmt::format("<text x=\"{}\" y=\"{}\" class=\"{}\" text-anchor=\"{}\">{}</text>\n",
                        number(x), number(y), style, anchor, words);
  }
  void line(double x0, double y0, double x1, double y1, const char* style) {
    out_ += fmt::format("<path class=\"{}\" d=\"M{} {}L{} {}\"/>\n", style, number(x0), number(y0),
                        number(x1), number(y1));
  }

  double y_of(const ChartPanel& panel, double y) const {
    const double v = panel.log_y ? std::log10(y) : y;
    return kTop + kPlotHeight * (y_.high - v) / (y_.high - y_.low);
  }

  void panel(const ChartPanel& panel, double left, size_t index) {
    Range x;
    for (const ChartLine& l : panel.lines)
      for (const auto& point : l.points) x.add(point.first);
    if (x.empty()) x = {0, 1};
    if (x.low > 0 && x.low < 0.2 * x.high) x.low = 0;
    if (x.high <= x.low) x.high = x.low + 1;
    const auto x_of = [&](double v) { return left + kPlotWidth * (v - x.low) / (x.high - x.low); };

    text(left, kTop - 12, "p", panel.title);
    y_ticks(panel, left);
    const double step = tick_step(x, 6);
    for (double v = std::ceil(x.low / step) * step; v <= x.high + step * 1e-6; v += step) {
      const double at = x_of(v);
      line(at, kTop + kPlotHeight, at, kTop + kPlotHeight + 4, "axis");
      text(at, kTop + kPlotHeight + 17, "a", tick_text(v), "middle");
    }
    out_ += fmt::format("<path class=\"axis\" d=\"M{0} {1}V{2}H{3}\"/>\n", number(left),
                        number(kTop), number(kTop + kPlotHeight), number(left + kPlotWidth));
    text(left + kPlotWidth / 2, kTop + kPlotHeight + 38, "a", panel.x_label, "middle");

    out_ += fmt::format(
        "<clipPath id=\"clip{}\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath>\n"
        "<g clip-path=\"url(#clip{})\">\n",
        index, number(left), number(kTop - 2), number(kPlotWidth + 2), number(kPlotHeight + 4),
        index);
    for (const bool bold : {false, true})
      for (const ChartLine& l : panel.lines)
        if (l.bold == bold) polyline(panel, l, x_of);
    out_ += "</g>\n";
    labels(panel, left + kPlotWidth);
  }

  void y_ticks(const ChartPanel& panel, double left) {
    if (panel.log_y) {
      const int stride = std::max(1, static_cast<int>((y_.high - y_.low) / 7));
      for (int e = static_cast<int>(y_.low); e <= static_cast<int>(y_.high); e += stride) {
        const double at = y_of(panel, std::pow(10, e));
        line(left, at, left + kPlotWidth, at, "grid");
        raw_text(left - 8, at + 4, "a", power_text(e), "end");
      }
    } else {
      const double step = tick_step(y_, 6);
      for (double v = std::ceil(y_.low / step) * step; v <= y_.high + step * 1e-6; v += step) {
        const double at = y_of(panel, v);
        line(left, at, left + kPlotWidth, at, "grid");
        text(left - 8, at + 4, "a", tick_text(std::abs(v) < step * 1e-6 ? 0 : v), "end");
      }
    }
    out_ += fmt::format(
        "<text transform=\"translate({} {}) rotate(-90)\" class=\"a\" "
        "text-anchor=\"middle\">{}</text>\n",
        number(left - 42), number(kTop + kPlotHeight / 2), escaped(panel.y_label));
  }

  static const char* colour(const ChartLine& l) {
    return kColours[static_cast<size_t>(l.colour) % kColours.size()];
  }

  void polyline(const ChartPanel& panel, const ChartLine& l, const auto& x_of) {
    std::string path;
    bool pen_down = false;
    for (const auto& [x, y] : l.points) {
      if (!drawable(panel, y)) {
        pen_down = false;
        continue;
      }
      // A line of no length is a dot: a point alone is seen, too.
      const std::string at = fmt::format("{} {}", number(x_of(x)), number(y_of(panel, y)));
      path += fmt::format("{}L{}", pen_down ? std::string() : "M" + at, at);
      pen_down = true;
    }
    if (path.empty()) return;
    out_ += fmt::format("<path class=\"{}\" stroke=\"{}\" d=\"{}\"/>\n", l.bold ? "bold" : "thin",
                        colour(l), path);
  }

  // At the ends of the lines, moved apart where they would lie on each other.
  void labels(const ChartPanel& panel, double right) {
    struct Label {
      const ChartLine* line;
      double y;
    };
    std::vector<Label> list;
    for (const ChartLine& l : panel.lines) {
      if (l.label.empty()) continue;
      const auto last = std::find_if(l.points.rbegin(), l.points.rend(), [&](const auto& point) {
        return drawable(panel, point.second);
      });
      if (last == l.points.rend()) continue;
      list.push_back({&l, std::clamp(y_of(panel, last->second), kTop, kTop + kPlotHeight)});
    }
    std::stable_sort(list.begin(), list.end(),
                     [](const Label& a, const Label& b) { return a.y < b.y; });
    for (size_t i = 1; i < list.size(); ++i)
      list[i].y = std::max(list[i].y, list[i - 1].y + kLabelStep);
    double most = kTop + kPlotHeight;
    for (size_t i = list.size(); i-- > 0;) {
      list[i].y = std::min(list[i].y, most);
      most = list[i].y - kLabelStep;
    }
    for (const Label& l : list)
      out_ += fmt::format(
          "<text x=\"{}\" y=\"{}\" style=\"fill:{};font-size:{}px;font-weight:600\">{}</text>\n",
          number(right + 7), number(l.y + 4), colour(*l.line), kLabelSize,
          escaped(svg::fitted(l.line->label, kLabelSize, label_width_, true)));
  }

  const std::vector<ChartPanel>& panels_;
  Range y_;
  double label_width_ = 0;
  std::string out_;
};

}  // namespace

std::string chart_svg(const std::string& title, const std::string& note,
                      const std::vector<ChartPanel>& panels) {
  return Chart(panels).run(title, note);
}

}  // namespace convoy::trainer
