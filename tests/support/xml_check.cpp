#include "tests/support/xml_check.h"

#include <cstdint>
#include <stdexcept>

namespace convoy::test {
namespace {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) { check_characters(); }

  XmlElement run() {
    if (take("<?xml")) {
      const size_t end = text_.find("?>", at_);
      if (end == std::string_view::npos) fail("an open declaration");
      at_ = end + 2;
    }
    skip_blanks();
    XmlElement root = element();
    skip_blanks();
    if (at_ != text_.size()) fail("something behind the root");
    return root;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(what + " at byte " + std::to_string(at_) + ": " +
                             std::string(text_.substr(at_, 40)));
  }

  // UTF-8 of characters that XML 1.0 has.
  void check_characters() {
    for (at_ = 0; at_ < text_.size();) {
      const auto first = static_cast<uint8_t>(text_[at_]);
      const size_t length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
      if (first >= 0x80 && (first < 0xc2 || first > 0xf4)) fail("a byte that begins no character");
      uint32_t code = length == 1 ? first : first & (0xffu >> (length + 1));
      for (size_t i = 1; i < length; ++i) {
        if (at_ + i >= text_.size() || (static_cast<uint8_t>(text_[at_ + i]) & 0xc0u) != 0x80u)
          fail("half a character");
        code = code << 6 | (static_cast<uint8_t>(text_[at_ + i]) & 0x3fu);
      }
      const bool known = code == 9 || code == 10 || code == 13 ||
                         (code >= 0x20 && code <= 0xd7ff) || (code >= 0xe000 && code <= 0xfffd) ||
                         (code >= 0x10000 && code <= 0x10ffff);
      if (!known || (length == 3 && code < 0x800) || (length == 4 && code < 0x10000))
        fail("no character of XML");
      at_ += length;
    }
    at_ = 0;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view words) {
    if (!text_.substr(at_).starts_with(words)) return false;
    at_ += words.size();
    return true;
  }
  void expect(std::string_view words) {
    if (!take(words)) fail("expected " + std::string(words));
  }
  void skip_blanks() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t') ++at_;
  }

  std::string name() {
    const auto is_part = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '-' || c == ':' || c == '_';
    };
    std::string out;
    while (is_part(peek())) out += text_[at_++];
    if (out.empty() || (out[0] >= '0' && out[0] <= '9') || out[0] == '-') fail("no name");
    return out;
  }

  std::string reference() {
    expect("&");
    const size_t end = text_.find(';', at_);
    if (end == std::string_view::npos || end - at_ > 8) fail("an open entity");
    const std::string_view entity = text_.substr(at_, end - at_);
    at_ = end + 1;
    for (const auto& [known, c] : {std::pair<std::string_view, const char*>{"lt", "<"},
                                   {"gt", ">"},
                                   {"amp", "&"},
                                   {"quot", "\""},
                                   {"apos", "'"},
                                   {"#39", "'"}})
      if (entity == known) return c;
    fail("an unknown entity");
  }

  XmlElement element() {
    expect("<");
    XmlElement out;
    out.name = name();
    if (++depth_ > 200) fail("too deep");
    for (;;) {
      const size_t before = at_;
      skip_blanks();
      if (take("/>")) break;
      if (take(">")) {
        content(out);
        break;
      }
      if (at_ == before) fail("attributes need a blank");
      const std::string key = name();
      expect("=\"");
      std::string value;
      while (peek() != '"') {
        if (at_ >= text_.size() || peek() == '<') fail("an open attribute");
        if (peek() == '&')
          value += reference();
        else
          value += text_[at_++];
      }
      ++at_;
      if (!out.attributes.emplace(key, value).second) fail("attribute " + key + " twice");
    }
    --depth_;
    return out;
  }

  void content(XmlElement& out) {
    for (;;) {
      if (at_ >= text_.size()) fail("element " + out.name + " is open");
      if (take("</")) {
        if (name() != out.name) fail("another element is closed than " + out.name);
        expect(">");
        return;
      }
      if (peek() == '<')
        out.children.push_back(element());
      else if (peek() == '&')
        out.text += reference();
      else if (text_.substr(at_).starts_with("]]>"))
        fail("]]>");
      else
        out.text += text_[at_++];
    }
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

void gather(const XmlElement& root, std::string_view name, std::vector<const XmlElement*>& out) {
  if (root.name == name) out.push_back(&root);
  for (const XmlElement& child : root.children) gather(child, name, out);
}

}  // namespace

XmlElement parse_xml(std::string_view text) {
  return Reader(text).run();
}

std::vector<const XmlElement*> elements(const XmlElement& root, std::string_view name) {
  std::vector<const XmlElement*> out;
  gather(root, name, out);
  return out;
}

}  // namespace convoy::test
