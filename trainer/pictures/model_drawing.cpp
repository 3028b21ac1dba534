#include "trainer/pictures/model_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "trainer/pictures/svg.h"

namespace convoy::trainer {
namespace {

using Kind = PictureItem::Kind;
using svg::escaped;
using svg::number;

constexpr double kMargin = 28;

struct Look {
  const char* name;
  const char* line;
  const char* fill;
};
// In the order of BoxClass. Lines are dark enough for text, fills light enough to write on.
constexpr std::array<Look, kBoxClasses> kLooks = {{
    {"convolution", "#2f6db3", "#e4eefa"},
    {"linear", "#8a5a2b", "#f7ecdf"},
    {"normalisation", "#1b8a83", "#dcf3f1"},
    {"activation", "#b07d00", "#fdf3d3"},
    {"pooling", "#3b8a3e", "#e2f3e2"},
    {"addition", "#c8433f", "#fce4e2"},
    {"concatenation", "#7d4fa8", "#efe6f8"},
    {"product", "#c2468f", "#fbe4f1"},
    {"dropout", "#6b7280", "#eceef1"},
    {"other", "#4b5563", "#f3f4f6"},
}};

const Look& look(BoxClass c) {
  return kLooks[static_cast<size_t>(c)];
}

class SvgWriter {
 public:
  SvgWriter(const ops::Graph& graph, const std::vector<LayerFacts>& facts)
      : graph_(graph), facts_(facts) {}

  std::string run(const PictureItem& root) {
    const std::vector<BoxClass> used = classes(root);
    const double width = std::max(root.width, 460.0) + 2 * kMargin;
    const double legend_height = legend(used, width);
    const double top = 76 + legend_height;
    const double height = top + root.height + kMargin;
    std::string body = std::exchange(out_, "");
    head(width, height);
    out_ += body;
    const double left = (width - root.width) / 2;
    out_ += fmt::format("<g transform=\"translate({} {})\">\n", number(left), number(top));
    const Shape& image = graph_.image;
    text(root.axis + 7, 12, "s",
         fmt::format("{} \xC3\x97 {} \xC3\x97 {}", image.c, image.h, image.w));
    inside(root, true);
    out_ += fmt::format("</g>\n<script>{}</script>\n</svg>\n", escaped(kScript));
    return std::move(out_);
  }

 private:
  // A click on the title of a group in a column folds it, on the box opens it again: what is below
  // moves, frames around it grow or shrink. Without scripts the picture stands as it is drawn.
  static constexpr const char* kScript = R"(
(function () {
  var svg = document.documentElement;
  function number(e, name) { return parseFloat(e.getAttribute(name)); }
  function part(item, name) {
    return Array.prototype.find.call(item.children, function (c) {
      return c.getAttribute('class') === name; });
  }
  function shift(item, by) {
    for (var e = item.nextElementSibling; e; e = e.nextElementSibling)
      if (e.getAttribute('class') === 'i') {
        var at = e.getAttribute('transform').match(/[-0-9.]+/g);
        e.setAttribute('transform', 'translate(' + at[0] + ' ' + (parseFloat(at[1]) + by) + ')');
      }
    var open = item.parentNode, frame = open.children[0];
    if (open.getAttribute('class') === 'open') {
      frame.setAttribute('height', number(frame, 'height') + by);
      return shift(open.parentNode, by);
    }
    var height = number(svg, 'height') + by;
    svg.setAttribute('height', height);
    svg.setAttribute('viewBox', '0 0 ' + svg.getAttribute('width') + ' ' + height);
  }
  Array.prototype.forEach.call(document.querySelectorAll('g.i'), function (item) {
    var open = part(item, 'open'), shut = part(item, 'shut');
    for (var e = item; e !== svg; e = e.parentNode)  // all around it must be columns
      if (e.getAttribute('class') === null) { if (e.parentNode !== svg) return; }
    if (!open || !shut) return;
    function flip(event) {
      event.stopPropagation();
      var by = number(shut, 'data-h') - number(open.children[0], 'height');
      var folds = open.getAttribute('display') !== 'none';
      open.setAttribute('display', folds ? 'none' : 'inline');
      shut.setAttribute('display', folds ? 'inline' : 'none');
      shift(item, folds ? by : -by);
    }
    [shut, open.children[0], open.children[1]].forEach(function (e) {
      e.style.cursor = 'pointer';
      e.addEventListener('click', flip);
    });
  });
})();
)";

  static void gather(const PictureItem& item, std::vector<bool>& used) {
    if (item.kind == Kind::kBox || item.kind == Kind::kJoin)
      used[static_cast<size_t>(item.box_class)] = true;
    for (const PictureChip& chip : item.chips) used[static_cast<size_t>(chip.box_class)] = true;
    for (const PictureItem& child : item.children) gather(child, used);
  }
  static std::vector<BoxClass> classes(const PictureItem& root) {
    std::vector<bool> used(kBoxClasses, false);
    gather(root, used);
    std::vector<BoxClass> out;
    for (int c = 0; c < kBoxClasses; ++c)
      if (used[static_cast<size_t>(c)]) out.push_back(static_cast<BoxClass>(c));
    return out;
  }

  void head(double width, double height) {
    const ModelTotals all = total(facts_), auxiliary = auxiliary_total(graph_);
    const std::string name = graph_.name.empty() ? "network" : graph_.name;
    out_ += fmt::format(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
        "{1}\" font-family=\"{2}\">\n<title>{3}</title>\n<style>\n"
        "text{{fill:#1f2937}} .t{{font-size:22px;font-weight:600}} "
        ".u{{font-size:12px;fill:#6b7280}}\n"
        ".l{{font-size:13px;font-weight:600}} .n{{font-size:10.5px;fill:#6b7280}} "
        ".s{{font-size:10px;fill:#6b7280}} .c{{font-size:10px}}\n"
        ".f{{font-size:12px;font-weight:600;fill:#374151}} .e{{fill:none;stroke:#7b8794;"
        "stroke-width:1.4}} .k{{fill:none;stroke:#c8433f;stroke-width:1.8}}\n"
        ".g{{fill:#6b7280;fill-opacity:0.05;stroke:#9aa5b1;stroke-width:1}}\n",
        number(width), number(height), escaped(svg::kFonts), escaped(name));
    for (int c = 0; c < kBoxClasses; ++c) {
      const Look& l = kLooks[static_cast<size_t>(c)];
      out_ += fmt::format(".b{}{{fill:{};stroke:{};stroke-width:1.2}} .h{}{{fill:{}}}\n", c, l.fill,
                          l.line, c, l.line);
    }
    out_ +=
        "</style>\n<defs>\n"
        "<marker id=\"a\" markerWidth=\"8\" markerHeight=\"8\" refX=\"6.5\" refY=\"3.5\" "
        "orient=\"auto\" markerUnits=\"userSpaceOnUse\"><path d=\"M0 0L7 3.5L0 7z\" "
        "fill=\"#7b8794\"/></marker>\n"
        "<marker id=\"r\" markerWidth=\"8\" markerHeight=\"8\" refX=\"6.5\" refY=\"3.5\" "
        "orient=\"auto\" markerUnits=\"userSpaceOnUse\"><path d=\"M0 0L7 3.5L0 7z\" "
        "fill=\"#c8433f\"/></marker>\n</defs>\n"
        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
    text(kMargin, 40, "t", svg::fitted(name, 22, width - 2 * kMargin, true));
    const Shape& image = graph_.image;
    text(kMargin, 60, "u",
         svg::fitted(
             fmt::format("input {} \xC3\x97 {} \xC3\x97 {}  \xC2\xB7  {} parameters  \xC2\xB7  {} "
                         "multiply-adds{}",
                         image.c, image.h, image.w, grouped(all.parameters - auxiliary.parameters),
                         compact(all.macs - auxiliary.macs),
                         graph_.auxiliary.empty() ? ""
                                                  : fmt::format("  \xC2\xB7  auxiliary: {} more",
                                                                grouped(auxiliary.parameters))),
             12, width - 2 * kMargin));
  }

  // Swatches in rows; returns their height.
  double legend(const std::vector<BoxClass>& used, double width) {
    double x = kMargin, y = 80;
    for (const BoxClass c : used) {
      const double need = svg::text_width(look(c).name, 10.5) + 34;
      if (x > kMargin && x + need > width - kMargin) {
        x = kMargin;
        y += 18;
      }
      out_ += fmt::format(
          "<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"11\" rx=\"3\" class=\"b{}\"/>\n",
          number(x), number(y - 9.5), static_cast<int>(c));
      text(x + 19, y, "n", look(c).name);
      x += need;
    }
    return used.empty() ? 0 : y - 62;
  }

  void text(double x, double y, const char* style, const std::string& words,
            const char* anchor = nullptr) {
    out_ += fmt::format("<text x=\"{}\" y=\"{}\" class=\"{}\"{}>{}</text>\n", number(x), number(y),
                        style, anchor ? fmt::format(" text-anchor=\"{}\"", anchor) : std::string(),
                        escaped(words));
  }

  void line(const PictureItem& group, const PictureEdge& edge, const std::string& move = "") {
    const bool ends_here =
        edge.to >= 0 && group.children[static_cast<size_t>(edge.to)].kind != Kind::kGroup;
    const bool shortcut = edge.beside || edge.into_side;
    out_ +=
        fmt::format("<path class=\"{}\" d=\"{}\"{}{}/>\n", shortcut ? "k" : "e", edge.path, move,
                    !ends_here ? ""
                    : shortcut ? " marker-end=\"url(#r)\""
                               : " marker-end=\"url(#a)\"");
  }

  // The shape of what a child gives, beside the line that leaves it.
  void shape_label(const PictureItem& child, bool left, const std::string& move = "") {
    out_ += fmt::format("<text x=\"{}\" y=\"{}\" class=\"s\"{}{}>{}</text>\n",
                        number(child.x + child.axis + (left ? -7 : 7)),
                        number(child.y + child.height + 14), left ? " text-anchor=\"end\"" : "",
                        move, escaped(child.shape));
  }

  // A group's lines, then its children.
  void inside(const PictureItem& group, bool is_root) {
    if (group.column) return column(group, is_root);
    // Left of the line where others leave to the right at once.
    std::vector<bool> left(group.children.size(), false), labelled(group.children.size(), false);
    for (const PictureEdge& edge : group.edges) {
      line(group, edge);
      if (edge.from < 0) continue;
      const auto from = static_cast<size_t>(edge.from);
      labelled[from] = labelled[from] || edge.to >= 0 || is_root;
      left[from] = left[from] || edge.beside;
    }
    for (size_t c = 0; c < group.children.size(); ++c) {
      if (labelled[c]) shape_label(group.children[c], left[c]);
      item(group.children[c]);
    }
  }

  // Each child moves together with the line that comes into it, so that the script can shift what
  // is below a group that is folded.
  void column(const PictureItem& group, bool is_root) {
    for (size_t c = 0; c <= group.children.size(); ++c) {
      const bool end = c == group.children.size();
      const double x = end ? 0 : group.children[c].x, y = end ? 0 : group.children[c].y;
      const std::string back =
          fmt::format(" transform=\"translate({} {})\"", number(-x), number(-y));
      out_ += fmt::format("<g class=\"i\" transform=\"translate({} {})\">\n", number(x), number(y));
      for (const PictureEdge& edge : group.edges)
        if (end ? edge.to < 0 : edge.to == static_cast<int>(c)) line(group, edge, back);
      // What leaves a frame is told outside of it.
      if (c > 0 && (!end || is_root)) shape_label(group.children[c - 1], false, back);
      if (!end) content(group.children[c]);
      out_ += "</g>\n";
    }
  }

  void item(const PictureItem& item) {
    out_ += fmt::format("<g transform=\"translate({} {})\">\n", number(item.x), number(item.y));
    content(item);
    out_ += "</g>\n";
  }

  void content(const PictureItem& item) {
    switch (item.kind) {
      case Kind::kGroup:
        return frame(item);
      case Kind::kBox:
        return box(item);
      case Kind::kJoin:
        return junction(item);
      case Kind::kFolded:
        return folded(item);
    }
  }

  void rect(double x, double y, double w, double h, double r, const std::string& style) {
    out_ +=
        fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"{}\" class=\"{}\"/>\n",
                    number(x), number(y), number(w), number(h), number(r), style);
  }

  void frame(const PictureItem& item) {
    out_ += "<g class=\"open\">\n";
    rect(0, 0, item.width, item.height, 10, "g");
    text(12, 18, "f", svg::fitted(item.label, 12, item.axis - 20, true));
    text(12, 32, "n", fmt::format("{} parameters", compact(item.parameters)));
    inside(item, false);
    out_ += "</g>\n";
    for (const PictureItem& closed : item.closed) {
      out_ +=
          fmt::format("<g class=\"shut\" display=\"none\" data-h=\"{}\">\n", number(closed.height));
      folded(closed);
      out_ += "</g>\n";
    }
  }

  static std::string style(const char* kind, BoxClass c) {
    return fmt::format("{}{}", kind, static_cast<int>(c));
  }

  // Right-aligned at `right`; returns where they begin.
  double chips(const std::vector<PictureChip>& list, double right, double middle) {
    for (size_t i = list.size(); i-- > 0;) {
      const PictureChip& chip = list[i];
      const double width = svg::text_width(chip.text, 10) + 12;
      rect(right - width, middle - 8, width, 16, 8, style("b", chip.box_class));
      text(right - width / 2, middle + 3.5, "c", chip.text, "middle");
      right -= width + 4;
    }
    return right;
  }

  void box(const PictureItem& item) {
    tooltip(item);
    rect(0, 0, item.width, item.height, 7, style("b", item.box_class));
    const double right = chips(item.chips, item.width - 8, 14);
    text(11, 18.5, "l", svg::fitted(item.label, 13, right - 14, true));
    const std::string count = item.parameters > 0 ? compact(item.parameters) : "";
    const double count_width = svg::text_width(count, 10.5);
    text(11, 35, "n", svg::fitted(item.note, 10.5, item.width - 30 - count_width));
    if (!count.empty()) text(item.width - 10, 35, "n", count, "end");
  }

  // An addition or a product: a circle, with what follows behind it.
  void junction(const PictureItem& item) {
    tooltip(item);
    const double middle = item.height / 2;
    out_ += fmt::format("<circle cx=\"17\" cy=\"{}\" r=\"{}\" class=\"{}\"/>\n", number(middle),
                        number(middle), style("b", item.box_class));
    const char* cross = item.label == "+" ? "M10.5 13H23.5M17 6.5V19.5" : "M12 8L22 18M22 8L12 18";
    out_ += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", cross,
                        look(item.box_class).line);
    chips(item.chips, item.width - 2, middle);
  }

  void folded(const PictureItem& item) {
    tooltip(item);
    for (int behind = std::min(item.repeats - 1, 2); behind > 0; --behind)
      rect(4.0 * behind, 4.0 * behind, item.width, item.height, 8, "b9");
    rect(0, 0, item.width, item.height, 8, "b9");
    std::string count = compact(item.parameters);
    if (item.repeats > 1) count = fmt::format("{} \xC3\x97, {} in all", item.repeats, count);
    const double count_width = svg::text_width(count, 10.5);
    text(11, 18, "l", svg::fitted(item.label, 13, item.width - 34 - count_width, true));
    text(item.width - 10, 18, "n", count, "end");
    text(11, 34, "n", svg::fitted(item.note, 10.5, item.width - 20));
    // What is in it, box by box.
    double x = 11;
    for (const PictureChip& chip : item.chips) {
      if (x + 12 > item.width - 10) break;
      rect(x, 43, 9, 7, 2, style("b", chip.box_class));
      x += 12;
    }
  }

  void tooltip(const PictureItem& item) {
    constexpr size_t kShown = 24;
    std::string lines;
    for (size_t i = 0; i < item.nodes.size() && i < kShown; ++i) {
      const LayerFacts& f = facts_[item.nodes[i]];
      lines += fmt::format("{}{}: {} -> {}", i == 0 ? "" : "\n", svg::fitted(f.name, 10, 600),
                           f.kind, fmt::format("{}, {}, {}", f.y.c, f.y.h, f.y.w));
      if (!f.arithmetic.empty()) lines += fmt::format("\n    size {}", f.arithmetic);
      if (!f.formula.empty())
        lines += fmt::format("\n    parameters {} = {}", f.formula, grouped(f.parameters));
      if (f.macs > 0) lines += fmt::format("\n    multiply-adds {}", grouped(f.macs));
      lines += fmt::format("\n    sees {} pixels, {} apart", grouped(f.field.size), f.field.jump);
    }
    if (item.nodes.size() > kShown)
      lines += fmt::format("\n... and {} more", item.nodes.size() - kShown);
    out_ += fmt::format("<title>{}</title>\n", escaped(lines));
  }

  const ops::Graph& graph_;
  const std::vector<LayerFacts>& facts_;
  std::string out_;
};

// In double quotes of DOT: backslashes, quotes and line ends are escaped.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : svg::valid(text)) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out + "\"";
}

}  // namespace

std::string to_svg(const ops::Graph& graph, const std::vector<LayerFacts>& facts,
                   const PictureItem& picture) {
  return SvgWriter(graph, facts).run(picture);
}

std::string to_dot(const ops::Graph& graph, const std::vector<LayerFacts>& facts) {
  std::string out = fmt::format(
      "digraph {} {{\n  rankdir=TB; fontname=\"Helvetica\"; node [shape=box, "
      "style=\"rounded,filled\", "
      "fontname=\"Helvetica\", fontsize=11]; edge [fontname=\"Helvetica\", fontsize=9, "
      "color=\"#7b8794\", fontcolor=\"#6b7280\"];\n  image [label={}, shape=plaintext, "
      "style=\"\"];\n",
      quoted(graph.name),
      quoted(fmt::format("{} x {} x {}", graph.image.c, graph.image.h, graph.image.w)));
  std::vector<std::pair<std::string, std::vector<size_t>>> clusters;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const std::string& name = graph.nodes[i].name;
    const size_t dot = name.rfind('.');
    const std::string prefix = dot == std::string::npos ? "" : name.substr(0, dot);
    if (clusters.empty() || clusters.back().first != prefix) clusters.push_back({prefix, {}});
    clusters.back().second.push_back(i);
  }
  for (size_t c = 0; c < clusters.size(); ++c) {
    const auto& [prefix, nodes] = clusters[c];
    const bool framed = !prefix.empty() && nodes.size() > 1;
    if (framed)
      out += fmt::format(
          "  subgraph cluster_{} {{ label={}; labeljust=l; color=\"#9aa5b1\"; "
          "style=rounded;\n",
          c, quoted(prefix));
    for (const size_t i : nodes) {
      const Look& l = look(class_of(facts[i].kind));
      const std::string count = facts[i].parameters > 0
                                    ? fmt::format("\n{} parameters", grouped(facts[i].parameters))
                                    : "";
      out += fmt::format(
          "  {}n{} [label={}, color=\"{}\", fillcolor=\"{}\"];\n", framed ? "  " : "", i,
          quoted(label_of(graph.nodes[i].op, facts[i].y) + "\n" + graph.nodes[i].name + count),
          l.line, l.fill);
    }
    if (framed) out += "  }\n";
  }
  for (size_t i = 0; i < graph.nodes.size(); ++i)
    for (const int input : graph.nodes[i].inputs) {
      if (input == ops::kImage) {
        out += fmt::format("  image -> n{};\n", i);
        continue;
      }
      const Shape& y = facts[static_cast<size_t>(input)].y;
      out += fmt::format("  n{} -> n{} [label=\"{} x {} x {}\"];\n", input, i, y.c, y.h, y.w);
    }
  return out + "}\n";
}

}  // namespace convoy::trainer
