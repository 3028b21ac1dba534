// A strict reader of XML 1.0 as far as our pictures use it: one element with elements in it,
// attributes in double quotes, text, the five named entities and numbered ones; no DTD, no CDATA,
// no comments.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace convoy::test {

struct XmlElement {
  std::string name, text;  // text directly in it
  std::map<std::string, std::string> attributes;
  std::vector<XmlElement> children;
};

// Throws std::runtime_error that says what is wrong and where.
XmlElement parse_xml(std::string_view text);

// All elements of a name, in the order of the file, `root` included.
std::vector<const XmlElement*> elements(const XmlElement& root, std::string_view name);

}  // namespace convoy::test
