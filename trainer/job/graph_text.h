// Networks as text: proto/graph.proto in text format, to and from ops::Graph.
#pragma once

#include <string>
#include <string_view>

#include "ops/graph.h"

namespace convoy::trainer {

std::string to_text(const ops::Graph& graph);

// Throws one Error (kBadJob) with a line for every mistake, each with source:line:column or the
// node's name. Shapes are checked by infer_shapes, not here.
ops::Graph parse_graph(std::string_view text, const std::string& source);
// The same from a file of at most 4 MiB; one that cannot be read is kBadJob as well.
ops::Graph load_graph(const std::string& path);

}  // namespace convoy::trainer
