// The nearest of some names, for error messages about one that does not exist.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace convoy::trainer {

// Insertions, deletions and substitutions that turn a into b (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// The first of the names at the least distance; "" if there are none.
std::string nearest(std::string_view name, const std::vector<std::string>& names);

}  // namespace convoy::trainer
