#include "comm/handshake.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "ops/core/error.h"

namespace convoy::comm {
namespace {

// "5:hello": any bytes, one after the other.
void pack(std::string& out, const std::string& text) {
  out += fmt::format("{}:", text.size());
  out += text;
}

std::string unpack(std::string_view& in) {
  size_t bytes = 0;
  const char* const end = in.data() + in.size();
  const auto [colon, error] = std::from_chars(in.data(), end, bytes);
  if (error != std::errc() || colon == end || *colon != ':' ||
      bytes > static_cast<size_t>(end - colon - 1))
    fail(ExitCode::kFault, "the handshake of another rank cannot be read: do all run one version?");
  std::string text(colon + 1, bytes);
  in.remove_prefix(static_cast<size_t>(colon + 1 - in.data()) + bytes);
  return text;
}

std::optional<std::string> value_of(const Facts& facts, const std::string& key) {
  for (const auto& [name, value] : facts)
    if (name == key) return value;
  return std::nullopt;
}

std::string quoted(const std::optional<std::string>& value) {
  return value ? fmt::format("\"{}\"", printable(*value, 100)) : "nothing";
}

}  // namespace

std::string disagreement(const std::vector<Facts>& facts, const std::vector<std::string>& hosts) {
  std::vector<std::string> keys;
  for (const Facts& rank : facts)
    for (const auto& fact : rank)
      if (std::find(keys.begin(), keys.end(), fact.first) == keys.end()) keys.push_back(fact.first);

  constexpr size_t kShown = 8;
  std::string text;
  size_t differences = 0;
  for (const std::string& key : keys) {
    // The value that most ranks have, and the first rank that has it.
    std::vector<std::pair<std::optional<std::string>, size_t>> values;  // value, how many
    for (const Facts& rank : facts) {
      const std::optional<std::string> value = value_of(rank, key);
      const auto known = std::find_if(values.begin(), values.end(),
                                      [&](const auto& entry) { return entry.first == value; });
      if (known == values.end()) {
        values.emplace_back(value, 1);
      } else {
        ++known->second;
      }
    }
    const auto majority =
        std::max_element(values.begin(), values.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    size_t example = 0;
    while (value_of(facts[example], key) != majority->first) ++example;

    for (size_t rank = 0; rank < facts.size(); ++rank) {
      const std::optional<std::string> value = value_of(facts[rank], key);
      if (value == majority->first) continue;
      if (++differences > kShown) continue;
      text +=
          fmt::format("{}rank {} ({}) has {} {} where rank {} ({}) has {}",
                      text.empty() ? "" : "; ", rank, printable(hosts[rank]), printable(key),
                      quoted(value), example, printable(hosts[example]), quoted(majority->first));
    }
  }
  if (differences == 0) return "";
  if (differences > kShown) text += fmt::format("; and {} more", differences - kShown);
  return "the ranks do not run the same thing: " + text +
         "; start all with the same program, job and data";
}

void handshake(Communicator& communicator, const Facts& facts) {
  std::string packed;
  for (const auto& [key, value] : facts) {
    pack(packed, key);
    pack(packed, value);
  }
  std::vector<Facts> all;
  for (const std::string& text : communicator.all_gather(packed)) {
    std::string_view in = text;
    Facts& theirs = all.emplace_back();
    while (!in.empty()) {
      std::string key = unpack(in);
      theirs.emplace_back(std::move(key), unpack(in));
    }
  }
  const std::string error = disagreement(all, communicator.hosts());
  if (!error.empty()) throw Error(ExitCode::kFault, error);
}

}  // namespace convoy::comm
