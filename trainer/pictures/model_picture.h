// A network as a picture: which rectangles there are, where they stand, and how the lines between
// them run. Layered from top to bottom by a layout of our own; trainer/pictures/model_drawing.*
// writes it as SVG.
//
// A box is an operator with what follows it at once (batch norm, ReLU, ...). Boxes whose names
// share a prefix ("layer1.0") make a group with a frame, groups nest ("layer1"). A group whose
// parts follow each other is a column; one with branches (a shortcut, a gate, an inception module)
// has them side by side, and what skips parts of its own column curves beside it. Lines cross a
// frame only at the middle of its top and its bottom.
#pragma once

#include <string>
#include <vector>

#include "trainer/pictures/model_facts.h"

namespace convoy::trainer {

// What colours a box.
enum class BoxClass {
  kConv,
  kLinear,
  kNorm,
  kActivation,
  kPool,
  kAdd,
  kConcat,
  kGate,
  kDropout,
  kOther
};
inline constexpr int kBoxClasses = 10;

// Of children of one group; -1: what comes into the group, or what goes out of it.
struct PictureEdge {
  int from = -1, to = -1;
  bool beside = false;     // curves beside the column
  bool into_side = false;  // comes from another lane into the side of an addition
  std::string path;        // SVG path data in the group's coordinates
};

struct PictureChip {
  std::string text;
  BoxClass box_class;
};

struct PictureItem {
  enum class Kind { kBox, kJoin, kFolded, kGroup };
  Kind kind = Kind::kBox;
  std::string name;  // a group's prefix, a box's first node
  std::string label, note;
  std::vector<PictureChip> chips;  // a box: what follows its first node; folded: what is in it
  BoxClass box_class = BoxClass::kOther;
  std::vector<size_t> nodes;  // of the graph
  int64_t parameters = 0;
  int repeats = 1;      // folded: as many alike, one behind the other
  bool column = false;  // a group: its children follow each other
  double x = 0, y = 0;  // of the upper left corner, in the group's coordinates
  double width = 0, height = 0;
  double axis = 0;    // from x: where lines come in and go out
  std::string shape;  // of what goes out: "64 x 56 x 56"
  std::vector<PictureItem> children;
  std::vector<PictureEdge> edges;
  std::vector<PictureItem> closed;  // a group but the root: the box that it can be folded to
};

enum class Fold { kAuto, kYes, kNo };

// Folded: each block (a group without groups in it) is one box, and blocks alike that follow each
// other are one; kAuto: more than 150 boxes are. Throws Error (kBadJob) where more than 5000 would
// be drawn even so.
PictureItem make_picture(const ops::Graph& graph, const std::vector<LayerFacts>& facts, Fold fold);

// Of an operator as ops::kind_of() names it.
BoxClass class_of(const std::string& kind);
// "7x7 conv, 64, /2".
std::string label_of(const ops::OpSpec& op, const Shape& y);
// "9.4 k", "2.36 M".
std::string compact(int64_t value);

}  // namespace convoy::trainer
