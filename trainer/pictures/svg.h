// The little of SVG 1.1 that our pictures need: numbers, escaped text, how wide a text will be.
#pragma once

#include <string>
#include <string_view>

namespace convoy::trainer::svg {

// Sans-serif fonts that every system has one of.
inline constexpr const char* kFonts =
    "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', "
    "sans-serif";

// Text between tags or in an attribute: <, >, &, quotes escaped; characters that XML 1.0 does not
// know (control characters, bytes that are not UTF-8) become U+FFFD.
std::string escaped(std::string_view text);

// The same without the escapes.
std::string valid(std::string_view text);

// At most one decimal, without a trailing zero: the same on every machine.
std::string number(double value);

// About as wide as the wider of the usual fonts (DejaVu Sans) draws it at `size` pixels.
double text_width(std::string_view text, double size, bool bold = false);
// The text, cut in the middle with an ellipsis where it would be wider than that.
std::string fitted(std::string_view text, double size, double width, bool bold = false);

}  // namespace convoy::trainer::svg
