// What a device's libraries compute with, where they offer several ways whose bits differ: recorded
// as text, so that all ranks of a run, and all its lives, use the same.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/core/error.h"

namespace convoy {

// An engine (or algorithm) of a library and how its knobs are set.
struct Choice {
  int64_t engine = kNone;
  std::vector<std::pair<int64_t, int64_t>> knobs;  // type and value

  static constexpr int64_t kNone = -1;       // the library has no engine for it
  static constexpr int64_t kElsewhere = -2;  // something else than the library computes it
  bool operator==(const Choice&) const = default;
};
// "62:2=8,13=1", "0" without knobs, "none", "elsewhere"
std::string to_text(const Choice& choice);
// Throws Error (kBadData) if it is not what to_text() writes.
Choice parse_choice(const std::string& text);

// By the name of what is computed.
using Choices = std::map<std::string, Choice>;
// A line "NAME = CHOICE" for each, in the order of the names.
std::string to_text(const Choices& choices);
// Throws Error (kBadData) for what is no such line.
Choices parse_choices(const std::string& text);

// A library does not do (any more) what was prescribed (kBadJob).
class PlanRefused : public Error {
 public:
  using Error::Error;
};

// What happens then: PlanRefused is thrown, or a warning is logged and the library chooses anew.
enum class Refused { kStop, kReplace };

// What is to be chosen, and what was. For the thread of its device.
class Decisions {
 public:
  // From now on these are followed; what was prescribed before and is not among them stays. Throws
  // as parse_choices(), and changes nothing then.
  void prescribe(const std::string& text, Refused refused = Refused::kStop);
  // Valid until the next call of another member.
  const Choice* prescribed(const std::string& name) const;
  // `library` ("cuDNN 9.19.0") refuses what is prescribed, because of `why`. Throws PlanRefused, or
  // forgets it with a warning.
  void refuse(const std::string& name, const std::string& library, const std::string& why);

  void decide(const std::string& name, const Choice& choice) { decided_[name] = choice; }
  // What was decided, as to_text() writes it.
  std::string text() const { return to_text(decided_); }

 private:
  struct Prescribed {
    Choice choice;
    Refused refused;
  };
  std::map<std::string, Prescribed> prescribed_;
  Choices decided_;
};

// Where kernels that a library compiles are kept for other processes on such a machine, by a line
// that says what for and by what. Any thread may read; neither throws.
struct KernelStore {
  std::function<std::string(const std::string& name)> read;  // "" where it has none
  std::function<void(const std::string& name, const std::string& kernel)> write;
};

}  // namespace convoy
