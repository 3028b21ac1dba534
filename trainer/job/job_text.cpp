#include "trainer/job/job_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "ops/core/error.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::io::Tokenizer;

std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

void visit_below(const Message& group, const std::string& prefix, const FieldVisitor& visit) {
  for (int i = 0; i < group.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = group.GetDescriptor()->field(i);
    const std::string key = join(prefix, field->name());
    visit(key, group, field);
    if (!field->message_type()) continue;
    const auto* reflection = group.GetReflection();
    // Of a list the fields of an empty element.
    visit_below(field->is_repeated()
                    ? *reflection->GetMessageFactory()->GetPrototype(field->message_type())
                    : reflection->GetMessage(group, field),
                key, visit);
  }
}

// The nearest key, by its whole path or, one edit dearer, by its last word alone ("learning_rate"
// at the top of the file).
std::string unknown_key(const Message& job, std::string_view key) {
  key = key.substr(0, 100);  // the cost is a product of lengths, and the key comes from outside
  const auto last = [](std::string_view path) { return path.substr(path.rfind('.') + 1); };
  // No distance is less than the difference in length.
  const auto least = [](std::string_view a, std::string_view b) {
    return std::max(a.size(), b.size()) - std::min(a.size(), b.size());
  };
  std::string best;
  size_t best_distance = std::numeric_limits<size_t>::max();
  for_each_field(job, [&](const std::string& candidate, const Message&, const FieldDescriptor*) {
    if (std::min(least(key, candidate), least(last(key), last(candidate)) + 1) >= best_distance)
      return;
    const size_t distance =
        std::min(edit_distance(key, candidate), edit_distance(last(key), last(candidate)) + 1);
    if (distance >= best_distance) return;
    best_distance = distance;
    best = candidate;
  });
  return "unknown key; the nearest is " + best;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

// ---- One value ----

// As written: in the file a text stands in quotes and nothing else does, on the command line
// nobody quotes.
struct Value {
  enum class Kind { kBare, kQuoted, kCommandLine };
  Kind kind;
  std::string text;
};

template <typename T>
bool parse_number(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

// Sets (or appends to) a field; returns what is wrong, empty when all is well.
std::string set_value(Message& message, const FieldDescriptor* field, const Value& value) {
  const auto* reflection = message.GetReflection();
  const bool quoted = value.kind == Value::Kind::kQuoted;
  const std::string shown =
      quoted ? fmt::format("the text \"{}\"", printable(value.text)) : printable(value.text);
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      if (value.kind == Value::Kind::kBare)
        return fmt::format("expects a text in quotes, not {}", shown);
      if (value.text.find('\0') != std::string::npos) return "holds a zero byte";
      if (field->is_repeated())
        reflection->AddString(&message, field, value.text);
      else
        reflection->SetString(&message, field, value.text);
      return "";
    case FieldDescriptor::CPPTYPE_BOOL: {
      const std::string word = quoted ? "" : lower(value.text);
      if (word != "true" && word != "false" && word != "1" && word != "0")
        return fmt::format("expects true or false, not {}", shown);
      reflection->SetBool(&message, field, word == "true" || word == "1");
      return "";
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      std::string known;
      for (int i = 0; i < field->enum_type()->value_count(); ++i) {
        const auto* candidate = field->enum_type()->value(i);
        if (!quoted && lower(candidate->name()) == lower(value.text)) {
          reflection->SetEnum(&message, field, candidate);
          return "";
        }
        known += (i ? ", " : "") + candidate->name();
      }
      return fmt::format("expects one of {}, not {}", known, shown);
    }
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64: {
      const bool wide = field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64;
      const uint64_t most =
          wide ? std::numeric_limits<uint64_t>::max() : std::numeric_limits<uint32_t>::max();
      uint64_t number = 0;
      if (quoted || !parse_number(value.text, number) || number > most)
        return fmt::format("expects a whole number from 0 to {}, not {}", most, shown);
      if (field->is_repeated())
        reflection->AddUInt32(&message, field, static_cast<uint32_t>(number));
      else if (wide)
        reflection->SetUInt64(&message, field, number);
      else
        reflection->SetUInt32(&message, field, static_cast<uint32_t>(number));
      return "";
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double number = 0;
      if (quoted || !parse_number(value.text, number) || !std::isfinite(number))
        return fmt::format("expects a finite number, not {}", shown);
      number += 0.0;  // -0 is 0
      if (field->is_repeated())
        reflection->AddDouble(&message, field, number);
      else
        reflection->SetDouble(&message, field, number);
      return "";
    }
    default:
      fail(ExitCode::kFault, "job.proto: field {} has a type that job_text.cpp does not read",
           field->full_name());
  }
}

// ---- The file ----

// Reads protobuf's text format. google::protobuf::TextFormat stops at the first value that is
// wrong; this walks on to the end, so that every mistake is named, and stops only where the text
// itself cannot be followed (a bracket or a colon is missing).
class TextReader : google::protobuf::io::ErrorCollector {
 public:
  TextReader(std::string_view text, Message& job, Mistakes& mistakes)
      : job_(job),
        mistakes_(mistakes),
        stream_(text.data(), static_cast<int>(text.size())),
        tokens_(&stream_, this) {
    tokens_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokens_.set_allow_f_after_float(true);
  }

  void read() {
    tokens_.Next();
    try {
      read_fields(job_, "", "");
    } catch (const Unreadable&) {
      mistakes_.unreadable();
    }
  }

 private:
  struct Unreadable {};

  void AddError(int line, int column, const std::string& message) override {
    mistakes_.add(mistakes_.at(line, column), "", message);
    mistakes_.unreadable();
  }

  const Tokenizer::Token& token() { return tokens_.current(); }
  bool at_end() { return token().type == Tokenizer::TYPE_END; }
  std::string here() { return mistakes_.at(token().line, token().column); }
  bool is(std::string_view symbol) {
    return token().type == Tokenizer::TYPE_SYMBOL && token().text == symbol;
  }
  bool take(std::string_view symbol) {
    if (!is(symbol)) return false;
    tokens_.Next();
    return true;
  }
  std::string found() {
    if (at_end()) return "the end of the file";
    return fmt::format("\"{}\"", printable(token().text, 60));
  }
  [[noreturn]] void unreadable(const std::string& expected) {
    mistakes_.add(here(), "", fmt::format("expected {}, found {}", expected, found()));
    throw Unreadable{};
  }

  // Fields up to `closing` ("" is the end of the file). The depth is that of the schema.
  void read_fields(Message& message, const std::string& prefix, std::string_view closing) {
    std::map<std::string, int> seen;
    while (closing.empty() ? !at_end() : !is(closing)) {
      if (token().type != Tokenizer::TYPE_IDENTIFIER)
        unreadable(closing.empty() ? "a key" : fmt::format("a key or \"{}\"", closing));
      const std::string name = token().text, key = join(prefix, name), where = here();
      const int line = token().line;
      const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
      tokens_.Next();
      const bool colon = take(":");
      const bool group = is("{") || is("<");
      if (!colon && !group) unreadable(fmt::format("\":\" or \"{{\" after {}", printable(key)));
      if (!field) {
        // To look for the nearest key of each of a million would take minutes.
        mistakes_.add(where, key, mistakes_.full() ? "unknown key" : unknown_key(job_, key));
        skip_value();
      } else if (const auto [first, fresh] = seen.try_emplace(name, line);
                 !fresh && !field->is_repeated()) {
        mistakes_.add(where, key,
                      fmt::format("set a second time; the first is in line {}", first->second + 1));
        skip_value();
      } else if (field->message_type()) {
        mistakes_.remember(key, where);
        if (group) {
          const std::string end = is("{") ? "}" : ">";
          tokens_.Next();
          const auto* reflection = message.GetReflection();
          read_fields(field->is_repeated() ? *reflection->AddMessage(&message, field)
                                           : *reflection->MutableMessage(&message, field),
                      key, end);
          tokens_.Next();
        } else {
          mistakes_.add(where, key, fmt::format("is a group of fields: {} {{ ... }}", name));
          skip_value();
        }
      } else if (group) {
        mistakes_.add(where, key, fmt::format("is one value, not a group: {}: ...", name));
        skip_value();
      } else {
        mistakes_.remember(key, where);
        read_values(message, field, key);
      }
      if (!take(",")) take(";");
    }
  }

  void read_values(Message& message, const FieldDescriptor* field, const std::string& key) {
    if (field->is_repeated() && take("[")) {
      if (take("]")) return;
      do read_value(message, field, key);
      while (take(","));
      if (!take("]")) unreadable("\",\" or \"]\"");
    } else if (is("[")) {
      mistakes_.add(here(), key, "is one value, not a list");
      skip_value();
    } else {
      read_value(message, field, key);
    }
  }

  void read_value(Message& message, const FieldDescriptor* field, const std::string& key) {
    const std::string where = here();
    const std::string wrong = set_value(message, field, take_value());
    if (!wrong.empty()) mistakes_.add(where, key, wrong);
  }

  Value take_value() {
    const bool negative = take("-");
    Value value{Value::Kind::kBare, token().text};
    if (token().type == Tokenizer::TYPE_STRING && !negative) {
      value = {Value::Kind::kQuoted, ""};
      for (; token().type == Tokenizer::TYPE_STRING; tokens_.Next())  // adjacent strings are one
        Tokenizer::ParseStringAppend(token().text, &value.text);
      return value;
    }
    if (token().type == Tokenizer::TYPE_INTEGER) {  // decimal, 0x hexadecimal or 0 octal
      uint64_t number = 0;
      if (Tokenizer::ParseInteger(token().text, std::numeric_limits<uint64_t>::max(), &number))
        value.text = std::to_string(number);
    } else if (token().type == Tokenizer::TYPE_FLOAT) {
      if (value.text.back() == 'f' || value.text.back() == 'F') value.text.pop_back();
    } else if (token().type != Tokenizer::TYPE_IDENTIFIER) {
      unreadable("a value");
    }
    if (negative) value.text.insert(value.text.begin(), '-');
    tokens_.Next();
    return value;
  }

  // Steps over the value of a key that cannot be used: a list, a group however deep, or one value.
  void skip_value() {
    if (!is("{") && !is("<") && !is("[")) {
      take_value();
      return;
    }
    size_t depth = 0;
    do {
      if (at_end()) unreadable("a closing bracket");
      if (is("{") || is("<") || is("[")) ++depth;
      if (is("}") || is(">") || is("]")) --depth;
      tokens_.Next();
    } while (depth > 0);
  }

  Message& job_;
  Mistakes& mistakes_;
  google::protobuf::io::ArrayInputStream stream_;
  Tokenizer tokens_;
};

}  // namespace

void for_each_field(const Message& message, const FieldVisitor& visit) {
  visit_below(message, "", visit);
}

void read_job_text(std::string_view text, Message& job, Mistakes& mistakes) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark
  TextReader(text, job, mistakes).read();
}

void apply_set(const std::string& set, Message& job, Mistakes& mistakes) {
  const size_t equals = set.find('=');
  const std::string key = set.substr(0, equals);
  if (equals == std::string::npos || key.empty()) {
    mistakes.add(Mistakes::kSet, set, "expects key=value, e.g. optimizer.learning_rate=0.1");
    return;
  }
  Message* message = &job;
  const FieldDescriptor* field = nullptr;
  for (size_t begin = 0; begin <= key.size();) {
    const size_t end = std::min(key.find('.', begin), key.size());
    if (field && field->is_repeated() && field->message_type()) {
      mistakes.add(Mistakes::kSet, key,
                   "is a list of groups of fields: write it into the job file");
      return;
    }
    if (field) {
      message = field->message_type() ? message->GetReflection()->MutableMessage(message, field)
                                      : nullptr;
    }
    field = message ? message->GetDescriptor()->FindFieldByName(key.substr(begin, end - begin))
                    : nullptr;
    if (!field) {
      mistakes.add(Mistakes::kSet, key, unknown_key(job, key));
      return;
    }
    begin = end + 1;
  }
  if (field->message_type() && field->is_repeated()) {
    mistakes.add(Mistakes::kSet, key, "is a list of groups of fields: write it into the job file");
    return;
  }
  if (field->message_type()) {
    mistakes.add(Mistakes::kSet, key,
                 "is a group of fields; set one of them, e.g. " + key + "." +
                     field->message_type()->field(0)->name());
    return;
  }
  mistakes.remember(key, Mistakes::kSet);
  const std::string value = set.substr(equals + 1);
  std::vector<std::string> elements = {value};
  if (field->is_repeated()) {
    message->GetReflection()->ClearField(message, field);
    elements.clear();
    for (size_t begin = 0; !value.empty() && begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      elements.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  for (const std::string& element : elements) {
    const std::string wrong = set_value(*message, field, {Value::Kind::kCommandLine, element});
    if (!wrong.empty()) mistakes.add(Mistakes::kSet, key, wrong);
  }
}

}  // namespace convoy::trainer
