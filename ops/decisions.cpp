#include "ops/decisions.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "ops/core/log.h"

namespace convoy {
namespace {

constexpr std::string_view kIs = " = ";

int64_t parse_number(std::string_view text, const std::string& whole) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    fail(ExitCode::kBadData, "\"{}\" is no choice of an engine: expected as in 62:2=8,13=1",
         printable(whole, 100));
  return value;
}

}  // namespace

std::string to_text(const Choice& choice) {
  if (choice.engine == Choice::kNone) return "none";
  if (choice.engine == Choice::kElsewhere) return "elsewhere";
  std::string text = std::to_string(choice.engine);
  for (size_t i = 0; i < choice.knobs.size(); ++i)
    text +=
        fmt::format("{}{}={}", i == 0 ? ":" : ",", choice.knobs[i].first, choice.knobs[i].second);
  return text;
}

Choice parse_choice(const std::string& text) {
  if (text == "none") return {};
  if (text == "elsewhere") return {.engine = Choice::kElsewhere, .knobs = {}};
  const size_t colon = text.find(':');
  Choice choice{.engine = parse_number(std::string_view(text).substr(0, colon), text), .knobs = {}};
  for (size_t begin = colon; begin != std::string::npos;) {
    const size_t end = text.find(',', ++begin);
    const std::string_view knob = std::string_view(text).substr(begin, end - begin);
    const size_t equals = std::min(knob.find('='), knob.size());
    choice.knobs.emplace_back(parse_number(knob.substr(0, equals), text),
                              parse_number(knob.substr(std::min(equals + 1, knob.size())), text));
    begin = end;
  }
  return choice;
}

std::string to_text(const Choices& choices) {
  std::string lines;
  for (const auto& [name, choice] : choices)
    lines += fmt::format("{}{}{}\n", name, kIs, to_text(choice));
  return lines;
}

Choices parse_choices(const std::string& text) {
  Choices choices;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t is = line.rfind(kIs);
    if (is == std::string::npos || is == 0)
      fail(ExitCode::kBadData,
           "\"{}\" is no choice of an engine: expected \"what is computed = 62\"",
           printable(line, 100));
    choices[line.substr(0, is)] = parse_choice(line.substr(is + kIs.size()));
  }
  return choices;
}

void Decisions::prescribe(const std::string& text, Refused refused) {
  for (auto& [name, choice] : parse_choices(text)) prescribed_[name] = {choice, refused};
}

const Choice* Decisions::prescribed(const std::string& name) const {
  const auto found = prescribed_.find(name);
  return found == prescribed_.end() ? nullptr : &found->second.choice;
}

void Decisions::refuse(const std::string& name, const std::string& library,
                       const std::string& why) {
  const auto found = prescribed_.find(name);
  const Choice& choice = found->second.choice;
  const std::string what =
      choice.engine == Choice::kElsewhere
          ? fmt::format("{} was to leave {} to something else, as was chosen before: {}", library,
                        name, why)
          : fmt::format("{} refuses engine {}, which was chosen before, for {}: {}", library,
                        printable(to_text(choice), 100), name, why);
  if (found->second.refused == Refused::kStop) throw PlanRefused(ExitCode::kBadJob, what);
  log::warning("{}; another one is taken", what);
  prescribed_.erase(found);
}

}  // namespace convoy
