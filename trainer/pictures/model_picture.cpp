#include "trainer/pictures/model_picture.h"

#include <algorithm>
#include <map>
#include <queue>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "ops/core/error.h"
#include "trainer/pictures/svg.h"

namespace convoy::trainer {
namespace {

constexpr size_t kMostUnfolded = 150;  // boxes, where nobody says
constexpr size_t kMostDrawn = 5000;
constexpr size_t kMostFlattened = 40;  // boxes of one block with branches
constexpr size_t kMostLevels = 8;      // of names: a.b.c

// Sizes in pixels.
constexpr double kLabelSize = 13, kNoteSize = 10.5, kChipSize = 10;
constexpr double kBoxHeight = 44, kJoinHeight = 26, kFoldedHeight = 58;
constexpr double kMinWidth = 150, kMaxWidth = 250;
constexpr double kRowGap = 30, kLaneGap = 26;
constexpr double kLabelRoom =
    16;  // more where lines go to another lane: below the shapes beside them
constexpr double kTitleSize = 12, kFrameSide = 16, kFrameTop = 40, kFrameBottom = 14;
constexpr double kFoldedWidth = 330;
constexpr double kNoteMargins = 20;             // beside a folded box's note
constexpr const char* kMore = " \xE2\x80\xA6";  // ...

using Kind = PictureItem::Kind;

// ---- Boxes: operators with what follows them at once ----

struct Boxes {
  std::vector<std::vector<size_t>> nodes;  // of each box
  std::vector<int> box_of;                 // of each node
  std::vector<std::vector<int>> inputs;    // of each box: boxes, or -1 for the image; each once
  std::vector<std::vector<int>> readers;   // of each box
  int last = 0;                            // that of the last node

  // Somebody outside of a group reads it, or it is what the network gives; `inside`: a box is of
  // the group.
  bool goes_out(int box, const auto& inside) const {
    const std::vector<int>& by = readers[static_cast<size_t>(box)];
    return box == last || std::any_of(by.begin(), by.end(), [&](int r) { return !inside(r); });
  }
};

std::string prefix_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

// "layer1.0.bn1" belongs to "layer1.0.conv1", and "conv1.relu" to "conv1".
bool belong_together(const std::string& first, const std::string& follower) {
  const std::string prefix = prefix_of(follower);
  return prefix == prefix_of(first) || prefix == first;
}

bool follows(BoxClass c) {
  return c == BoxClass::kNorm || c == BoxClass::kActivation || c == BoxClass::kDropout;
}

Boxes boxes_of(const ops::Graph& graph, const std::vector<LayerFacts>& facts) {
  const size_t n = graph.nodes.size();
  std::vector<int> readers(n, 0);
  for (const ops::Node& node : graph.nodes)
    for (const int input : node.inputs)
      if (input != ops::kImage) ++readers[static_cast<size_t>(input)];
  Boxes boxes;
  boxes.box_of.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const std::vector<int>& inputs = graph.nodes[i].inputs;
    const bool may_follow = inputs.size() == 1 && inputs[0] != ops::kImage &&
                            readers[static_cast<size_t>(inputs[0])] == 1 &&
                            follows(class_of(facts[i].kind));
    if (may_follow) {
      const auto before = static_cast<size_t>(inputs[0]);
      auto& box = boxes.nodes[static_cast<size_t>(boxes.box_of[before])];
      if (box.back() == before && box.size() < 4 &&
          belong_together(graph.nodes[box[0]].name, graph.nodes[i].name)) {
        boxes.box_of[i] = boxes.box_of[before];
        box.push_back(i);
        continue;
      }
    }
    boxes.box_of[i] = static_cast<int>(boxes.nodes.size());
    boxes.nodes.push_back({i});
  }
  boxes.last = boxes.box_of.back();
  boxes.inputs.resize(boxes.nodes.size());
  boxes.readers.resize(boxes.nodes.size());
  for (size_t b = 0; b < boxes.nodes.size(); ++b) {
    std::set<int> seen;
    for (const int input : graph.nodes[boxes.nodes[b][0]].inputs) {
      const int from = input == ops::kImage ? -1 : boxes.box_of[static_cast<size_t>(input)];
      if (!seen.insert(from).second) continue;
      boxes.inputs[b].push_back(from);
      if (from >= 0) boxes.readers[static_cast<size_t>(from)].push_back(static_cast<int>(b));
    }
  }
  return boxes;
}

// ---- The tree of groups ----

struct Tree {
  std::string name;
  std::vector<int> boxes;  // all below
  std::vector<Tree> children;
  std::vector<std::pair<int, int>> edges;  // of children; -1: from outside, to outside
  bool column = false;

  bool leaf() const { return children.empty(); }
};

class TreeBuilder {
 public:
  TreeBuilder(const ops::Graph& graph, const Boxes& boxes)
      : boxes_(boxes), child_of_(boxes.nodes.size(), -1) {
    std::unordered_set<std::string> groups;
    for (const auto& nodes : boxes.nodes) {
      std::string prefix = prefix_of(graph.nodes[nodes[0]].name);
      for (size_t level = 0; level < kMostLevels && groups.insert(prefix).second; ++level)
        prefix = prefix_of(prefix);
    }
    for (const auto& nodes : boxes.nodes) {
      // A concatenation "inception3a" belongs to the group whose name it has.
      const std::string& name = graph.nodes[nodes[0]].name;
      paths_.push_back(path_of(groups.contains(name) ? name + "." : name));
    }
  }

  Tree run() {
    std::vector<int> all(boxes_.nodes.size());
    for (size_t b = 0; b < all.size(); ++b) all[b] = static_cast<int>(b);
    Tree root = group("", 0, std::move(all));
    if (root.leaf()) root = parent_of({root});
    // A frame around everything, with two levels below it, would only be in the way.
    const auto too_deep = [](const Tree& child) { return depth(child) > 2; };
    while (std::any_of(root.children.begin(), root.children.end(), too_deep)) {
      std::vector<Tree> children;
      for (Tree& child : root.children) {
        if (too_deep(child))
          std::move(child.children.begin(), child.children.end(), std::back_inserter(children));
        else
          children.push_back(std::move(child));
      }
      root = parent_of(std::move(children));
    }
    root.name.clear();
    return root;
  }

 private:
  // "layer1.0.conv1": layer1, 0.
  static std::vector<std::string> path_of(const std::string& name) {
    std::vector<std::string> path;
    for (size_t begin = 0; path.size() < kMostLevels;) {
      const size_t dot = name.find('.', begin);
      if (dot == std::string::npos) break;
      path.push_back(name.substr(begin, dot - begin));
      begin = dot + 1;
    }
    return path;
  }

  static int depth(const Tree& tree) {
    if (tree.leaf()) return 0;
    int most = 0;
    if (tree.column)
      for (const Tree& child : tree.children) most = std::max(most, depth(child));
    return most + 1;
  }

  Tree leaf(int box) const { return {.name = "", .boxes = {box}}; }

  // Boxes that share `level` names.
  Tree group(const std::string& name, size_t level, std::vector<int> boxes) {
    if (boxes.size() == 1) return leaf(boxes[0]);
    std::vector<std::pair<std::string, std::vector<int>>> parts;
    std::unordered_map<std::string, size_t> part_of;
    for (const int box : boxes) {
      const auto& path = paths_[static_cast<size_t>(box)];
      if (path.size() <= level) {
        parts.push_back({"", {box}});
        continue;
      }
      const auto [found, is_new] = part_of.emplace(path[level], parts.size());
      if (is_new) parts.push_back({path[level], {}});
      parts[found->second].second.push_back(box);
    }
    std::vector<Tree> children;
    for (auto& [part, inside] : parts) {
      if (part.empty() && inside.size() == 1)
        children.push_back(leaf(inside[0]));
      else
        children.push_back(group(name.empty() ? part : fmt::format("{}.{}", name, part), level + 1,
                                 std::move(inside)));
    }
    if (children.size() == 1) return std::move(children[0]);
    Tree tree = parent_of(std::move(children));
    tree.name = name;
    return tree;
  }

  // Brings children into an order in which lines go down. Groups that are woven into each other
  // have none: then their boxes stand alone.
  Tree parent_of(std::vector<Tree> children) {
    Tree tree;
    for (const Tree& child : children)
      tree.boxes.insert(tree.boxes.end(), child.boxes.begin(), child.boxes.end());
    std::sort(tree.boxes.begin(), tree.boxes.end());
    if (!sort(children)) {
      children.clear();
      for (const int box : tree.boxes) children.push_back(leaf(box));
    }
    tree.children = std::move(children);
    tree.edges = edges_of(tree.children);
    tree.column = is_column(tree);
    return tree;
  }

  std::vector<std::pair<int, int>> edges_of(const std::vector<Tree>& children) {
    const auto mark = [&](bool on) {
      for (size_t c = 0; c < children.size(); ++c)
        for (const int box : children[c].boxes)
          child_of_[static_cast<size_t>(box)] = on ? static_cast<int>(c) : -1;
    };
    mark(true);
    std::set<std::pair<int, int>> seen;
    std::vector<std::pair<int, int>> edges;
    const auto add = [&](int from, int to) {
      if (from != to && seen.insert({from, to}).second) edges.emplace_back(from, to);
    };
    for (size_t c = 0; c < children.size(); ++c)
      for (const int box : children[c].boxes)
        for (const int input : boxes_.inputs[static_cast<size_t>(box)])
          add(input < 0 ? -1 : child_of_[static_cast<size_t>(input)], static_cast<int>(c));
    const auto inside = [&](int box) { return child_of_[static_cast<size_t>(box)] >= 0; };
    for (size_t c = 0; c < children.size(); ++c)
      for (const int box : children[c].boxes)
        if (boxes_.goes_out(box, inside)) add(static_cast<int>(c), -1);
    mark(false);
    return edges;
  }

  // False where there is a cycle.
  bool sort(std::vector<Tree>& children) {
    const auto edges = edges_of(children);
    std::vector<std::vector<int>> readers(children.size());
    std::vector<int> waits(children.size(), 0);
    for (const auto& [from, to] : edges)
      if (from >= 0 && to >= 0) {
        readers[static_cast<size_t>(from)].push_back(to);
        ++waits[static_cast<size_t>(to)];
      }
    std::priority_queue<int, std::vector<int>, std::greater<>> ready;
    for (size_t c = 0; c < children.size(); ++c)
      if (waits[c] == 0) ready.push(static_cast<int>(c));
    std::vector<Tree> sorted;
    while (!ready.empty()) {
      const auto c = static_cast<size_t>(ready.top());
      ready.pop();
      sorted.push_back(std::move(children[c]));
      for (const int reader : readers[c])
        if (--waits[static_cast<size_t>(reader)] == 0) ready.push(reader);
    }
    const bool whole = sorted.size() == children.size();
    if (whole) children = std::move(sorted);
    return whole;
  }

  static bool is_column(const Tree& tree) {
    const int last = static_cast<int>(tree.children.size()) - 1;
    return std::all_of(tree.edges.begin(), tree.edges.end(), [&](const auto& edge) {
      return edge.second < 0 ? edge.first == last : edge.first == edge.second - 1;
    });
  }

  const Boxes& boxes_;
  std::vector<std::vector<std::string>> paths_;
  std::vector<int> child_of_;  // of each box, while edges are counted; else -1
};

// ---- Layout of one group ----

std::string join(const std::string& a, const std::string& b) {
  return a.empty() ? b : a + " " + b;
}

// Pieces of path data.
std::string move_to(double x, double y) {
  return fmt::format("M{} {}", svg::number(x), svg::number(y));
}
std::string line_to(double x, double y) {
  return fmt::format("L{} {}", svg::number(x), svg::number(y));
}
// From (x0, y0) down and over to (x1, y1).
std::string swing(double x0, double y0, double x1, double y1) {
  if (x0 == x1) return line_to(x1, y1);
  const double half = (y0 + y1) / 2;
  return fmt::format("C{} {} {} {} {} {}", svg::number(x0), svg::number(half), svg::number(x1),
                     svg::number(half), svg::number(x1), svg::number(y1));
}

// What a frame keeps free.
struct Margins {
  double top, side, bottom;
  double title;  // left of the axis, at the top
};

// Children one below the other on one axis.
void lay_out_column(PictureItem& group, const Margins& m) {
  double left = 0, right = 0;
  for (const PictureItem& child : group.children) {
    left = std::max(left, child.axis);
    right = std::max(right, child.width - child.axis);
  }
  group.axis = std::max(m.side + left, m.title);
  group.width = group.axis + right + m.side;
  double y = m.top;
  for (PictureItem& child : group.children) {
    child.x = group.axis - child.axis;
    child.y = y;
    y += child.height + kRowGap;
  }
  group.height = y - kRowGap + m.bottom;
  for (PictureEdge& edge : group.edges) {
    const double y0 = edge.from < 0 ? 0
                                    : group.children[static_cast<size_t>(edge.from)].y +
                                          group.children[static_cast<size_t>(edge.from)].height;
    const double y1 = edge.to < 0 ? group.height : group.children[static_cast<size_t>(edge.to)].y;
    edge.path = join(move_to(group.axis, y0), line_to(group.axis, y1));
  }
}

// Children in rows by the longest way from the top, and in lanes: a child stands below its first
// input where nobody else does, else in a lane of its own.
class Layered {
 public:
  explicit Layered(PictureItem& group)
      : group_(group), row_(group.children.size()), lane_(group.children.size(), -1) {}

  void run(const Margins& margins) {
    find_rows();
    find_lanes();
    choose_ways();
    place(margins);
    for (size_t e = 0; e < group_.edges.size(); ++e) draw(group_.edges[e], ways_[e]);
  }

 private:
  enum class Way { kStraight, kSourceLane, kTargetLane, kBeside };

  size_t count() const { return group_.children.size(); }
  static size_t at(int index) { return static_cast<size_t>(index); }

  // Children come in an order in which lines go down. Row 0 is the top of the frame.
  void find_rows() {
    std::vector<std::vector<int>> inputs(count());
    for (const PictureEdge& edge : group_.edges)
      if (edge.to >= 0) inputs[at(edge.to)].push_back(edge.from);
    for (size_t c = 0; c < count(); ++c) {
      row_[c] = 1;
      for (const int input : inputs[c])
        if (input >= 0) row_[c] = std::max(row_[c], row_[at(input)] + 1);
      rows_ = std::max(rows_, row_[c]);
    }
    inputs_ = std::move(inputs);
  }

  struct Span {
    int first, last, owner;
  };
  bool is_free(size_t lane, int first, int last) const {
    return lane >= lanes_.size() ||
           std::none_of(lanes_[lane].begin(), lanes_[lane].end(),
                        [&](const Span& span) { return span.first <= last && first <= span.last; });
  }

  void find_lanes() {
    // Until where what a child gives must get down its lane.
    std::vector<int> reach = row_;
    for (const PictureEdge& edge : group_.edges)
      if (edge.from >= 0)
        reach[at(edge.from)] =
            std::max(reach[at(edge.from)], edge.to < 0 ? rows_ : row_[at(edge.to)] - 1);
    std::vector<bool> taken_over(count(), false);
    for (size_t c = 0; c < count(); ++c) {
      for (const int input : inputs_[c]) {
        if (lane_[c] >= 0 || input < 0 || taken_over[at(input)]) continue;
        const auto lane = at(lane_[at(input)]);
        Span& span = *std::find_if(lanes_[lane].begin(), lanes_[lane].end(),
                                   [&](const Span& s) { return s.owner == input; });
        const int last = span.last;
        span.last = row_[at(input)];
        if (is_free(lane, row_[at(input)] + 1, std::max(row_[c], reach[c]))) {
          span.last = std::min(last, row_[c] - 1);
          taken_over[at(input)] = true;
          lane_[c] = static_cast<int>(lane);
        } else {
          span.last = last;
        }
      }
      if (lane_[c] < 0) {
        int above = 0;
        for (const int input : inputs_[c])
          if (input >= 0) above = std::max(above, row_[at(input)]);
        size_t lane = 0;
        while (!is_free(lane, above + 1, reach[c])) ++lane;
        lane_[c] = static_cast<int>(lane);
      }
      if (at(lane_[c]) >= lanes_.size()) lanes_.resize(at(lane_[c]) + 1);
      lanes_[at(lane_[c])].push_back({row_[c], reach[c], static_cast<int>(c)});
    }
    standing_.resize(lanes_.size());
    for (size_t c = 0; c < count(); ++c) standing_[at(lane_[c])].insert(row_[c]);
  }

  // Nobody stands in the lane between the rows.
  bool is_clear(int lane, int above, int below) const {
    const std::set<int>& rows = standing_[at(lane)];
    const auto next = rows.upper_bound(above);
    return next == rows.end() || *next >= below;
  }

  void choose_ways() {
    for (PictureEdge& edge : group_.edges) {
      const int from_row = edge.from < 0 ? 0 : row_[at(edge.from)];
      const int to_row = edge.to < 0 ? rows_ + 1 : row_[at(edge.to)];
      Way way = Way::kBeside;
      if (to_row == from_row + 1)
        way = Way::kStraight;
      else if (edge.from >= 0 && is_clear(lane_[at(edge.from)], from_row, to_row))
        way = Way::kSourceLane;
      else if (edge.to >= 0 && is_clear(lane_[at(edge.to)], from_row, to_row))
        way = Way::kTargetLane;
      edge.beside = way == Way::kBeside;
      ways_.push_back(way);
      edge.into_side = comes_from_the_side(ways_.size() - 1);
    }
  }

  // Into the side of an addition, as what skips the column.
  bool comes_from_the_side(size_t e) const {
    const PictureEdge& edge = group_.edges[e];
    return ways_[e] == Way::kSourceLane && edge.to >= 0 &&
           group_.children[at(edge.to)].kind == Kind::kJoin &&
           lane_[at(edge.from)] > lane_[at(edge.to)];
  }

  // How far a line swings out beside the column: the further the more it skips.
  double bulge(const PictureEdge& edge) const {
    const int from_row = edge.from < 0 ? 0 : row_[at(edge.from)];
    const int to_row = edge.to < 0 ? rows_ + 1 : row_[at(edge.to)];
    return 10 + 9 * static_cast<double>(std::min(to_row - from_row - 1, 12));
  }
  int beside_lane(const PictureEdge& edge) const {
    return edge.to >= 0 ? lane_[at(edge.to)] : edge.from >= 0 ? lane_[at(edge.from)] : 0;
  }

  void place(const Margins& m) {
    // Lanes: half of what is widest left of their middle, and right of it room for what swings.
    std::vector<double> left(lanes_.size(), 0), right(lanes_.size(), 0);
    for (size_t c = 0; c < count(); ++c) {
      const PictureItem& child = group_.children[c];
      left[at(lane_[c])] = std::max(left[at(lane_[c])], child.axis);
      right[at(lane_[c])] = std::max(right[at(lane_[c])], child.width - child.axis);
    }
    edge_of_lane_ = right;
    for (const PictureEdge& edge : group_.edges)
      if (edge.beside) {
        const auto lane = at(beside_lane(edge));
        right[lane] = std::max(right[lane], edge_of_lane_[lane] + bulge(edge));
      }
    double x = m.side;
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      middle_.push_back(x + left[lane]);
      x = middle_.back() + right[lane] + kLaneGap;
    }
    group_.width = x - kLaneGap + m.side;

    // Where three branches or more meet, all stands around their middle.
    std::vector<std::set<int>> meeting(count());
    for (const PictureEdge& edge : group_.edges)
      if (edge.to >= 0 && edge.from >= 0) meeting[at(edge.to)].insert(lane_[at(edge.from)]);
    const auto is_middle = [&](size_t c) { return meeting[c].size() >= 3; };
    bool around_middle = false;
    for (size_t c = 0; c < count(); ++c) around_middle = around_middle || is_middle(c);
    group_.axis = around_middle ? group_.width / 2 : middle_[0];
    const double shift = std::max(0.0, m.title - group_.axis);
    group_.axis += shift;
    group_.width += shift;
    for (double& middle : middle_) middle += shift;

    std::vector<double> gaps(static_cast<size_t>(rows_) + 1, kRowGap);
    for (size_t e = 0; e < ways_.size(); ++e) {
      const PictureEdge& edge = group_.edges[e];
      if (edge.from < 0 || edge.to < 0 || edge.beside || comes_from_the_side(e)) continue;
      if (lane_[at(edge.from)] == lane_[at(edge.to)] && !is_middle(at(edge.to))) continue;
      const int row = ways_[e] == Way::kTargetLane ? row_[at(edge.from)] : row_[at(edge.to)] - 1;
      gaps[at(row)] = kRowGap + kLabelRoom;
    }
    std::vector<double> heights(static_cast<size_t>(rows_) + 1, 0), tops(heights.size() + 1, m.top);
    for (size_t c = 0; c < count(); ++c)
      heights[at(row_[c])] = std::max(heights[at(row_[c])], group_.children[c].height);
    for (int row = 1; row <= rows_; ++row)
      tops[at(row) + 1] = tops[at(row)] + heights[at(row)] + gaps[at(row)];
    group_.height = tops[at(rows_) + 1] - gaps[at(rows_)] + m.bottom;
    gap_ = gaps;

    std::vector<int> in_row(heights.size(), 0);
    for (size_t c = 0; c < count(); ++c) ++in_row[at(row_[c])];
    for (size_t c = 0; c < count(); ++c) {
      PictureItem& child = group_.children[c];
      const bool middle = around_middle && is_middle(c) && in_row[at(row_[c])] == 1;
      child.x = (middle ? group_.axis : middle_[at(lane_[c])]) - child.axis;
      child.y = tops[at(row_[c])];
    }
    row_bottom_.assign(heights.size(), 0);
    for (int row = 1; row <= rows_; ++row) row_bottom_[at(row)] = tops[at(row)] + heights[at(row)];
  }

  void draw(PictureEdge& edge, Way way) const {
    const PictureItem* from = edge.from < 0 ? nullptr : &group_.children[at(edge.from)];
    const PictureItem* to = edge.to < 0 ? nullptr : &group_.children[at(edge.to)];
    const double x0 = from ? from->x + from->axis : group_.axis;
    const double y0 = from ? from->y + from->height : 0;
    const double x1 = to ? to->x + to->axis : group_.axis;
    const double y1 = to ? to->y : group_.height;
    const int from_row = edge.from < 0 ? 0 : row_[at(edge.from)];
    const double leave = from ? row_bottom_[at(from_row)] : 0;
    const double gap = to ? kRowGap : std::min(kRowGap, group_.height - y0);
    switch (way) {
      case Way::kStraight:
        edge.path = move_to(x0, y0);
        if (from && x0 != x1) edge.path += line_to(x0, std::max(y0, y1 - gap));
        edge.path += swing(x0, from ? std::max(y0, y1 - gap) : y0, x1, y1);
        return;
      case Way::kSourceLane:
        if (edge.into_side) {
          const double side = y1 + to->height / 2;
          edge.path = move_to(x0, y0) + line_to(x0, side - 16) +
                      fmt::format("C{} {} {} {} {} {}", svg::number(x0), svg::number(side - 5),
                                  svg::number(x0 - 5), svg::number(side), svg::number(x0 - 16),
                                  svg::number(side)) +
                      line_to(to->x + to->width, side);
          return;
        }
        edge.path = move_to(x0, y0) + line_to(x0, y1 - gap) + swing(x0, y1 - gap, x1, y1);
        return;
      case Way::kTargetLane: {
        const double below = from ? leave + gap_[at(from_row)] : kRowGap;
        edge.path = move_to(x0, y0);
        if (from) edge.path += line_to(x0, below - kRowGap);
        edge.path += swing(x0, below - kRowGap, x1, below) + line_to(x1, y1);
        return;
      }
      case Way::kBeside: {
        const auto lane = at(beside_lane(edge));
        const double out = middle_[lane] + edge_of_lane_[lane] + bulge(edge);
        // Out of the trunk below the source, and into the target from its right.
        const double start = y0 + 6;
        const double end = to ? to->y + to->height / 2 : group_.height - 4;
        const double into = to ? to->x + to->width : group_.axis;
        const double bend = std::min({26.0, (end - start) / 2});
        edge.path = move_to(x0, y0) + line_to(x0, start) +
                    fmt::format("C{} {} {} {} {} {}", svg::number(x0),
                                svg::number(start + bend / 2), svg::number(out), svg::number(start),
                                svg::number(out), svg::number(start + bend)) +
                    line_to(out, end - bend) +
                    fmt::format("C{} {} {} {} {} {}", svg::number(out), svg::number(end - bend / 3),
                                svg::number(out - bend / 3), svg::number(end), svg::number(into),
                                svg::number(end));
        return;
      }
    }
  }

  PictureItem& group_;
  std::vector<int> row_, lane_;
  int rows_ = 0;
  std::vector<std::vector<int>> inputs_;
  std::vector<std::vector<Span>> lanes_;  // rows that are taken, lines on their way included
  std::vector<std::set<int>> standing_;   // rows of each lane in which a child stands
  std::vector<Way> ways_;
  std::vector<double> middle_, edge_of_lane_, row_bottom_, gap_;
};

// ---- From the tree to items ----

class Painter {
 public:
  Painter(const ops::Graph& graph, const std::vector<LayerFacts>& facts, const Boxes& boxes,
          bool fold)
      : graph_(graph), facts_(facts), boxes_(boxes), fold_(fold) {
    box_width_ = kMinWidth;
    for (size_t b = 0; b < boxes.nodes.size(); ++b) {
      const PictureItem item = box(static_cast<int>(b), "");
      if (item.kind == Kind::kBox)
        box_width_ = std::max(box_width_, std::min(kMaxWidth, wanted_width(item)));
    }
  }

  PictureItem run(const Tree& root) {
    if (const size_t drawn = drawn_boxes(root, true); drawn > kMostDrawn)
      fail(ExitCode::kBadJob,
           "network \"{}\": a picture of {} boxes shows nothing (at most {}); use --format dot, or "
           "give its nodes names with common prefixes (\"block1.conv1\"), and --fold, which draws "
           "them as one",
           printable(graph_.name), drawn, kMostDrawn);
    return group(root, "", true);
  }

 private:
  static double chips_width(const std::vector<PictureChip>& chips) {
    double width = 0;
    for (const PictureChip& chip : chips) width += svg::text_width(chip.text, kChipSize) + 16;
    return width;
  }
  double wanted_width(const PictureItem& item) const {
    const double first = svg::text_width(item.label, kLabelSize, true) + chips_width(item.chips);
    return std::max(first + 10, svg::text_width(item.note, kNoteSize) + 60) + 24;
  }

  // The name as it stands inside a frame that has said the beginning.
  static std::string inside(const std::string& name, const std::string& frame) {
    return !frame.empty() && name.size() > frame.size() + 1 && name.starts_with(frame) &&
                   name[frame.size()] == '.'
               ? name.substr(frame.size() + 1)
               : name;
  }

  // Likewise of a group; a bare number takes the last word of the frame with it: "layer1.0".
  static std::string short_name(const std::string& name, const std::string& frame) {
    const std::string rest = inside(name, frame);
    const bool number =
        std::all_of(rest.begin(), rest.end(), [](char c) { return c >= '0' && c <= '9'; });
    return number ? inside(name, prefix_of(frame)) : rest;
  }

  static std::string shape_text(const Shape& y) {
    return y.h == 1 && y.w == 1 ? std::to_string(y.c)
                                : fmt::format("{} \xC3\x97 {} \xC3\x97 {}", y.c, y.h, y.w);
  }

  PictureItem box(int b, const std::string& frame) const {
    const std::vector<size_t>& nodes = boxes_.nodes[static_cast<size_t>(b)];
    const LayerFacts& first = facts_[nodes[0]];
    PictureItem item{.name = first.name, .nodes = nodes};
    item.box_class = class_of(first.kind);
    item.label = label_of(graph_.nodes[nodes[0]].op, first.y);
    const bool is_join = first.kind == "Add" || first.kind == "Multiply";
    item.kind = is_join ? Kind::kJoin : Kind::kBox;
    for (size_t i = 0; i < nodes.size(); ++i) {
      const LayerFacts& fact = facts_[nodes[i]];
      item.parameters += fact.parameters;
      const std::string name = inside(fact.name, frame);
      item.note +=
          i == 0 ? name : " \xC2\xB7 " + inside(name, prefix_of(inside(first.name, frame)));
      if (i > 0)
        item.chips.push_back({chip_text(graph_.nodes[nodes[i]].op, fact), class_of(fact.kind)});
    }
    item.shape = shape_text(facts_[nodes.back()].y);
    item.height = is_join ? kJoinHeight : kBoxHeight;
    item.width = is_join ? 34 + chips_width(item.chips) : box_width_;
    item.axis = is_join ? 17 : item.width / 2;
    return item;
  }

  static std::string chip_text(const ops::OpSpec& op, const LayerFacts& fact) {
    if (std::holds_alternative<ops::BatchNorm>(op)) return "BN";
    if (std::holds_alternative<ops::LocalResponseNorm>(op)) return "LRN";
    return label_of(op, fact.y);
  }

  static bool is_block(const Tree& tree) {
    return !tree.leaf() &&
           (!tree.column || std::none_of(tree.children.begin(), tree.children.end(),
                                         [](const Tree& child) { return !child.leaf(); }));
  }

  size_t drawn_boxes(const Tree& tree, bool is_root) const {
    if (tree.leaf() || (fold_ && !is_root && is_block(tree))) return 1;
    if (!is_root && !tree.column)
      return tree.boxes.size() <= kMostFlattened ? tree.boxes.size() : tree.children.size();
    size_t sum = 0;
    for (const Tree& child : tree.children) sum += drawn_boxes(child, false);
    return sum;
  }

  PictureItem item_of(const Tree& tree, const std::string& frame) {
    if (tree.leaf()) return box(tree.boxes[0], frame);
    if (fold_ && is_block(tree)) return folded(tree, frame, folded_width());
    return group(tree, frame, false);
  }

  double folded_width() const { return std::max(box_width_, kFoldedWidth); }
  PictureItem folded(const Tree& tree, const std::string& frame, double width) {
    PictureItem item{.kind = Kind::kFolded, .name = tree.name};
    item.label = short_name(tree.name, frame);
    std::vector<std::string> layers;
    for (const int b : tree.boxes) {
      const PictureItem part = box(b, tree.name);
      item.nodes.insert(item.nodes.end(), part.nodes.begin(), part.nodes.end());
      item.parameters += part.parameters;
      item.shape = part.shape;
      if (part.box_class != BoxClass::kConv && part.box_class != BoxClass::kLinear) continue;
      layers.push_back(part.label);
    }
    item.note = note_of(layers, width - kNoteMargins);
    for (const int b : tree.boxes) {
      const PictureItem part = box(b, "");
      item.chips.push_back({"", part.box_class});
    }
    item.height = kFoldedHeight;
    item.width = width;
    item.axis = item.width / 2;
    return item;
  }

  // The first layers, as many whole ones as fit into `width`, at most four.
  static std::string note_of(const std::vector<std::string>& layers, double width) {
    constexpr size_t kMost = 4;
    std::string note;
    for (size_t i = 0; i < layers.size(); ++i) {
      const std::string next = note + (i == 0 ? "" : " \xC2\xB7 ") + layers[i];
      const bool last = i + 1 == layers.size();
      const double wanted = svg::text_width(last ? next : next + kMore, kNoteSize);
      if (i == kMost || (i > 0 && wanted > width)) return note + kMore;
      note = next;
    }
    return note;
  }

  // What a folded block does, whatever its names and the number of channels that come in: alike
  // are the blocks of a stage, and the layers of a dense block.
  std::string signature(const PictureItem& item) const {
    std::string text;
    for (const size_t node : item.nodes) {
      const LayerFacts& f = facts_[node];
      text += f.kind == "Concat" ? f.kind : label_of(graph_.nodes[node].op, f.y);
      for (const int input : graph_.nodes[node].inputs)
        text += fmt::format(" {}", input < 0 ? -1 : static_cast<int>(node) - input);
      text += ";";
    }
    return text;
  }

  static constexpr const char* kDash = " \xE2\x80\x93 ";

  // Characters that both begin with, up to their last digits: of "layer3.1" and "layer3.12" seven.
  static size_t common_words(const std::string& a, const std::string& b) {
    size_t same = 0;
    while (same < a.size() && same < b.size() && a[same] == b[same]) ++same;
    while (same > 0 && a[same - 1] >= '0' && a[same - 1] <= '9') --same;
    return same;
  }

  // Folded blocks alike that follow each other become one; its shape is the last one's.
  void gather_repeats(PictureItem& group) const {
    std::vector<PictureItem> kept;
    std::string last;
    for (PictureItem& child : group.children) {
      const std::string now = child.kind == Kind::kFolded ? signature(child) : "";
      if (!now.empty() && now == last) {
        PictureItem& run = kept.back();
        ++run.repeats;
        run.shape = child.shape;
        run.parameters += child.parameters;
        run.nodes.insert(run.nodes.end(), child.nodes.begin(), child.nodes.end());
        const std::string first = run.label.substr(0, run.label.find(kDash));
        run.label = first + kDash + child.label.substr(common_words(first, child.label));
      } else {
        kept.push_back(std::move(child));
      }
      last = now;
    }
    if (kept.size() == group.children.size()) {
      group.children = std::move(kept);
      return;
    }
    group.children = std::move(kept);
    const auto count = static_cast<int>(group.children.size());
    group.edges = {{-1, 0}};
    for (int c = 0; c < count; ++c) group.edges.push_back({c, c + 1 < count ? c + 1 : -1});
  }

  PictureItem group(const Tree& tree, const std::string& frame, bool is_root) {
    PictureItem item{.kind = Kind::kGroup, .name = tree.name};
    item.label = short_name(tree.name, frame);
    item.column = tree.column;
    const bool flat = !is_root && !tree.column && tree.boxes.size() <= kMostFlattened;
    if (flat) {
      flatten(tree, item);
    } else {
      for (const Tree& child : tree.children) {
        const bool as_one = !is_root && !tree.column && !child.leaf();
        item.children.push_back(as_one ? folded(child, tree.name, folded_width())
                                       : item_of(child, tree.name));
      }
      for (const auto& [from, to] : tree.edges) item.edges.push_back({from, to});
    }
    for (const int b : tree.boxes)
      for (const size_t node : boxes_.nodes[static_cast<size_t>(b)]) {
        item.nodes.push_back(node);
        item.parameters += facts_[node].parameters;
      }
    if (item.column && fold_) gather_repeats(item);
    for (const PictureEdge& edge : item.edges)
      if (edge.to < 0 && edge.from >= 0)
        item.shape = item.children[static_cast<size_t>(edge.from)].shape;
    // A frame says its name and its parameters left of the axis.
    const double title = std::max(
        svg::text_width(svg::fitted(item.label, kTitleSize, kMaxWidth, true), kTitleSize, true),
        svg::text_width(compact(item.parameters) + " parameters", kNoteSize));
    const Margins margins =
        is_root ? Margins{22, 0, 22, 0} : Margins{kFrameTop, kFrameSide, kFrameBottom, title + 24};
    if (item.column)
      lay_out_column(item, margins);
    else
      Layered(item).run(margins);
    if (!is_root) {
      PictureItem closed = folded(tree, frame, item.width);
      closed.axis = item.axis;
      item.closed.push_back(std::move(closed));
    }
    return item;
  }

  void flatten(const Tree& tree, PictureItem& item) {
    std::unordered_map<int, int> child_of;
    for (const int b : tree.boxes) {
      child_of.emplace(b, static_cast<int>(item.children.size()));
      item.children.push_back(box(b, tree.name));
    }
    for (const int b : tree.boxes) {
      const int to = child_of[b];
      std::set<int> seen;
      for (const int input : boxes_.inputs[static_cast<size_t>(b)]) {
        const auto found = child_of.find(input);
        const int from = found == child_of.end() ? -1 : found->second;
        if (seen.insert(from).second) item.edges.push_back({from, to});
      }
      if (boxes_.goes_out(b, [&](int other) { return child_of.contains(other); }))
        item.edges.push_back({to, -1});
    }
  }

  const ops::Graph& graph_;
  const std::vector<LayerFacts>& facts_;
  const Boxes& boxes_;
  const bool fold_;
  double box_width_;
};

}  // namespace

BoxClass class_of(const std::string& kind) {
  static const std::map<std::string, BoxClass> classes = {
      {"Conv2d", BoxClass::kConv},        {"Linear", BoxClass::kLinear},
      {"BatchNorm", BoxClass::kNorm},     {"LocalResponseNorm", BoxClass::kNorm},
      {"ReLU", BoxClass::kActivation},    {"Sigmoid", BoxClass::kActivation},
      {"MaxPool", BoxClass::kPool},       {"AvgPool", BoxClass::kPool},
      {"GlobalAvgPool", BoxClass::kPool}, {"AdaptiveAvgPool", BoxClass::kPool},
      {"Subsample", BoxClass::kPool},     {"Add", BoxClass::kAdd},
      {"Concat", BoxClass::kConcat},      {"Multiply", BoxClass::kGate},
      {"Dropout", BoxClass::kDropout},
  };
  const auto found = classes.find(kind);
  return found == classes.end() ? BoxClass::kOther : found->second;
}

namespace {

struct LabelOf {
  const Shape& y;

  static std::string window(int64_t kernel) { return fmt::format("{0}\xC3\x97{0}", kernel); }
  static std::string stride(int64_t s) { return s > 1 ? fmt::format(", /{}", s) : ""; }

  std::string operator()(const ops::Conv2d& s) const {
    return fmt::format("{} conv, {}{}{}", window(s.kernel), s.out_channels, stride(s.stride),
                       s.groups > 1 ? fmt::format(", {} groups", s.groups) : "");
  }
  std::string operator()(const ops::MaxPool& s) const {
    return fmt::format("{} max pool{}", window(s.kernel), stride(s.stride));
  }
  std::string operator()(const ops::AvgPool& s) const {
    return fmt::format("{} average pool{}", window(s.kernel), stride(s.stride));
  }
  std::string operator()(const ops::GlobalAvgPool&) const { return "global average pool"; }
  std::string operator()(const ops::Subsample& s) const {
    return fmt::format("subsample, {}{}", s.out_channels, stride(s.stride));
  }
  std::string operator()(const ops::Linear& s) const {
    return fmt::format("linear, {}", s.out_features);
  }
  std::string operator()(const ops::Add&) const { return "+"; }
  std::string operator()(const ops::Concat&) const { return fmt::format("concat, {}", y.c); }
  std::string operator()(const ops::Dropout& s) const { return fmt::format("dropout {}", s.rate); }
  std::string operator()(const ops::AdaptiveAvgPool& s) const {
    return fmt::format("average pool to {}\xC3\x97{}", s.h, s.w);
  }
  std::string operator()(const ops::LocalResponseNorm&) const { return "local response norm"; }
  std::string operator()(const ops::Sigmoid& s) const {
    return s.complement ? "1 - sigmoid" : "sigmoid";
  }
  std::string operator()(const ops::Multiply&) const { return "\xC3\x97"; }
  std::string operator()(const ops::BatchNorm&) const { return "batch norm"; }
  template <typename Other>
  std::string operator()(const Other& s) const {
    return ops::kind_of(s);
  }
};

}  // namespace

std::string label_of(const ops::OpSpec& op, const Shape& y) {
  return std::visit(LabelOf{y}, op);
}

std::string compact(int64_t value) {
  if (value < 1000) return std::to_string(value);
  constexpr const char* kUnits[] = {"k", "M", "G", "T", "P", "E"};
  auto scaled = static_cast<double>(value) / 1000;
  size_t unit = 0;
  for (; scaled >= 999.5; scaled /= 1000) ++unit;
  return fmt::format("{:.3g} {}", scaled, kUnits[unit]);
}

PictureItem make_picture(const ops::Graph& graph, const std::vector<LayerFacts>& facts, Fold fold) {
  const Boxes boxes = boxes_of(graph, facts);
  const bool folds =
      fold == Fold::kYes || (fold == Fold::kAuto && boxes.nodes.size() > kMostUnfolded);
  const Tree tree = TreeBuilder(graph, boxes).run();
  return Painter(graph, facts, boxes, folds).run(tree);
}

}  // namespace convoy::trainer
