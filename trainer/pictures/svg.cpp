#include "trainer/pictures/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace convoy::trainer::svg {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the character that begins at `at`; 0 where no UTF-8 character of XML 1.0 does.
size_t character(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : uint8_t{0};
  };
  const uint32_t first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : first == '\t' || first == '\n';
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (length == 0 || first > 0xf4) return 0;
  uint32_t code = first & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0u) != 0x80u) return 0;
    code = code << 6 | (byte(i) & 0x3fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  const bool no_character = code > 0x10ffff || (code & 0xfffe) == 0xfffe || code < 0xa0;
  return code < kLeast[length] || surrogate || no_character ? 0 : length;
}

// In units of the font's size.
double advance(char c) {
  constexpr std::string_view kNarrow = "ijl.,:;|!'", kSlim = "ftrI()[]/- ", kWide = "mwMW@%";
  if (kNarrow.find(c) != std::string_view::npos) return 0.29;
  if (kSlim.find(c) != std::string_view::npos) return 0.39;
  if (kWide.find(c) != std::string_view::npos) return 0.95;
  if (c >= 'A' && c <= 'Z') return 0.7;
  return 0.62;
}

}  // namespace

std::string valid(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t length = character(text, i);
    out += length == 0 ? kReplacement : text.substr(i, length);
    i += std::max<size_t>(length, 1);
  }
  return out;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : valid(text)) switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  return out;
}

std::string number(double value) {
  const double tenths = std::round(value * 10);
  if (!(std::abs(tenths) < 1e15)) return "0";
  const auto whole = static_cast<int64_t>(tenths);
  const int64_t magnitude = std::abs(whole);
  std::string text = std::to_string(magnitude / 10);
  if (magnitude % 10 != 0) text += fmt::format(".{}", magnitude % 10);
  return whole < 0 ? "-" + text : text;
}

double text_width(std::string_view text, double size, bool bold) {
  double width = 0;
  for (const char c : text)
    if ((static_cast<uint8_t>(c) & 0xc0u) != 0x80u) width += advance(c);
  return width * size * (bold ? 1.1 : 1.0);
}

std::string fitted(std::string_view text, double size, double width, bool bold) {
  if (text_width(text, size, bold) <= width) return std::string(text);
  // Where characters begin, so that none is cut.
  std::vector<size_t> begins;
  for (size_t i = 0; i < text.size(); ++i)
    if ((static_cast<uint8_t>(text[i]) & 0xc0u) != 0x80u) begins.push_back(i);
  begins.push_back(text.size());
  const std::string ellipsis = "\xE2\x80\xA6";
  // The longest that fits, by halves: `kept` characters, the greater part from the front.
  size_t low = 0, high = begins.size() - 1;
  const auto cut = [&](size_t kept) {
    const size_t front = (kept + 1) / 2, back = kept - front;
    return std::string(text.substr(0, begins[front])) + ellipsis +
           std::string(text.substr(begins[begins.size() - 1 - back]));
  };
  while (low + 1 < high) {
    const size_t middle = (low + high) / 2;
    (text_width(cut(middle), size, bold) <= width ? low : high) = middle;
  }
  return cut(low);
}

}  // namespace convoy::trainer::svg
