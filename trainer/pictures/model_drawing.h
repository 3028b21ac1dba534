// A network's picture as files: SVG that any browser shows offline, and Graphviz's DOT.
#pragma once

#include <string>

#include "trainer/pictures/model_picture.h"

namespace convoy::trainer {

// The same bytes for the same picture. Details of a box (its nodes, sizes, work) are tooltips.
// Names from outside are escaped.
std::string to_svg(const ops::Graph& graph, const std::vector<LayerFacts>& facts,
                   const PictureItem& picture);

// A node for each operator, in clusters by the prefixes of their names.
std::string to_dot(const ops::Graph& graph, const std::vector<LayerFacts>& facts);

}  // namespace convoy::trainer
