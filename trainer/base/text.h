// Small pieces of text that several files print: nearest names, durations, sizes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace convoy::trainer {

// Insertions, deletions and substitutions that turn a into b (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// The first of the names at the least distance; "" if there are none.
std::string nearest(std::string_view name, const std::vector<std::string>& names);

// "0:52", "12:03", "3:04:05": hours, minutes, seconds.
std::string duration(double seconds);

// "97.5 MiB".
std::string mebibytes(double bytes);

}  // namespace convoy::trainer
