#include "ops/core/error.h"

#include <cerrno>
#include <cstring>

namespace convoy {

std::string errno_text() {
  char buffer[256];
  return strerror_r(errno, buffer, sizeof buffer);
}

namespace {

// The length of the UTF-8 sequence at text[i], 0 where there is none.
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xC2 && lead < 0xE0 ? 2
                        : lead >= 0xE0 && lead < 0xF0 ? 3
                        : lead >= 0xF0 && lead < 0xF5 ? 4
                                                      : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k)
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  return length;
}

}  // namespace

std::string printable(std::string_view text, size_t max) {
  if (text.size() > max && max > 8)
    return printable(text.substr(0, max / 2), max) + "..." +
           printable(text.substr(text.size() - max / 2), max);
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const size_t length = utf8_length(text, i);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c < 0x20 || c == 0x7f || length == 0 ||
               (length == 2 && c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0)) {
      out += fmt::format("\\x{:02x}", c);
      ++i;
      continue;
    } else {
      out += text.substr(i, length);
      i += length;
      continue;
    }
    ++i;
  }
  return out;
}

}  // namespace convoy
