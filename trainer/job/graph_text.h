// Networks as text: proto/graph.proto in text format, to and from ops::Graph.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "ops/graph.h"

namespace convoy::trainer {

std::string to_text(const ops::Graph& graph);

// Throws one Error (kBadJob) with a line for every mistake, each with source:line:column or the
// node's name. Shapes are checked by infer_shapes, not here.
ops::Graph parse_graph(std::string_view text, const std::string& source);

// Of a file of a network, and of its text as a job holds it, where quotes and ends of lines are
// escaped: what can be shown can be trained (a job has at most 1 MiB), and what to_text() gives of
// it can be read. cifar_resnet1202 has 570 kB.
constexpr size_t kMaxGraphBytes = size_t{960} << 10;

// parse_graph() of a file, with its shapes checked. Throws Error: kIo where it cannot be read,
// kBadJob for all else.
ops::Graph load_graph(const std::string& path);

}  // namespace convoy::trainer
