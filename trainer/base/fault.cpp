#include "trainer/base/fault.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <thread>
#include <utility>

#include "ops/core/error.h"
#include "ops/core/log.h"
#include "trainer/base/file_calls.h"
#include "trainer/base/text.h"

namespace convoy::trainer {
namespace {

template <typename Value>
using Names = std::vector<std::pair<const char*, Value>>;

const Names<FaultKind> kKinds = {{"kill", FaultKind::kKill},       {"stop", FaultKind::kStop},
                                 {"throw", FaultKind::kThrow},     {"hang", FaultKind::kHang},
                                 {"slow", FaultKind::kSlow},       {"nan", FaultKind::kNan},
                                 {"bitflip", FaultKind::kBitflip}, {"enospc", FaultKind::kEnospc},
                                 {"eio", FaultKind::kEio},         {"short", FaultKind::kShort}};
const Names<FaultPoint> kPoints = {
    {"start", FaultPoint::kStart},     {"input", FaultPoint::kInput},
    {"compute", FaultPoint::kCompute}, {"reduce", FaultPoint::kReduce},
    {"save", FaultPoint::kSave},       {"evaluate", FaultPoint::kEvaluate}};
const Names<FaultTarget> kTargets = {
    {"weights", FaultTarget::kWeights},   {"momentum", FaultTarget::kMomentum},
    {"running", FaultTarget::kRunning},   {"ema", FaultTarget::kEma},
    {"gradient", FaultTarget::kGradient}, {"sum", FaultTarget::kSum},
    {"plateau", FaultTarget::kPlateau},   {"skips", FaultTarget::kSkips}};

template <typename Value>
Value named(const Names<Value>& names, const std::string& key, const std::string& text) {
  std::vector<std::string> known;
  for (const auto& [name, value] : names) {
    if (text == name) return value;
    known.emplace_back(name);
  }
  fail(ExitCode::kUsage, "--fault: {}={}: the nearest is \"{}\"", key, printable(text),
       nearest(text, known));
}

template <typename Value>
Value number(const std::string& key, const std::string& text, double most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0 && value <= most))
    fail(ExitCode::kUsage, "--fault: {}={}: must be a number from 0 to {}", key, printable(text),
         most);
  return static_cast<Value>(value);
}

bool strikes(const Fault& fault) {
  return fault.kind != FaultKind::kNan && fault.kind != FaultKind::kBitflip;
}

void strike(const Fault& fault, uint64_t step) {
  if (fault.kind != FaultKind::kSlow) log::warning("fault at step {}", step);
  switch (fault.kind) {
    case FaultKind::kKill:
      ::raise(SIGKILL);
      break;
    case FaultKind::kStop:
      ::raise(SIGSTOP);
      break;
    case FaultKind::kThrow:
      throw std::runtime_error(fmt::format("a fault was asked for at step {}", step));
    case FaultKind::kHang:
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    case FaultKind::kSlow:
      std::this_thread::sleep_for(std::chrono::duration<double>(fault.seconds));
      break;
    case FaultKind::kEnospc:
    case FaultKind::kEio:
    case FaultKind::kShort:
      inject_file_fault({.error = fault.kind == FaultKind::kEnospc ? ENOSPC
                                  : fault.kind == FaultKind::kEio  ? EIO
                                                                   : 0,
                         .call = fault.call,
                         .count = fault.count});
      break;
    case FaultKind::kNan:
    case FaultKind::kBitflip:
      break;
  }
}

}  // namespace

Fault parse_fault(const std::string& text) {
  constexpr double kMost = 1e15;
  Fault fault;
  bool has_kind = false;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
    if (key == "kind") {
      fault.kind = named(kKinds, key, value);
      has_kind = true;
    } else if (key == "rank") {
      fault.rank = number<int>(key, value, 1e6);
    } else if (key == "step") {
      fault.step = number<uint64_t>(key, value, kMost);
    } else if (key == "at") {
      fault.at = named(kPoints, key, value);
    } else if (key == "seconds") {
      fault.seconds = number<double>(key, value, 1e6);
    } else if (key == "what") {
      fault.what = named(kTargets, key, value);
    } else if (key == "index") {
      fault.index = number<uint64_t>(key, value, kMost);
    } else if (key == "bit") {
      fault.bit = number<int>(key, value, 31);
    } else if (key == "call") {
      fault.call = std::max(uint64_t{1}, number<uint64_t>(key, value, kMost));
    } else if (key == "count") {
      fault.count = number<uint64_t>(key, value, kMost);
    } else {
      fail(ExitCode::kUsage, "--fault: no key \"{}\"; the nearest is \"{}\"", printable(key),
           nearest(key, {"kind", "rank", "step", "at", "seconds", "what", "index", "bit", "call",
                         "count"}));
    }
  }
  if (!has_kind) fail(ExitCode::kUsage, "--fault \"{}\": no kind=", printable(text));
  return fault;
}

Faults::Faults(const std::vector<std::string>& texts) {
  if (texts.empty()) return;
#ifndef CONVOY_FAULTS
  fail(ExitCode::kUsage, "--fault: this build has no faults (CMake's CONVOY_FAULTS is off)");
#endif
  const char* allowed = std::getenv("CONVOY_ALLOW_FAULTS");
  if (!allowed || std::string_view(allowed) != "1")
    fail(ExitCode::kUsage,
         "--fault breaks a run on purpose; set CONVOY_ALLOW_FAULTS=1 to allow it");
  for (const std::string& text : texts) {
    const Fault fault = parse_fault(text);
    armed_.emplace_back(fault, fault.kind == FaultKind::kSlow ? fault.count : 1);
  }
}

void Faults::at(FaultPoint point, uint64_t step) {
  for (Armed& armed : armed_) {
    const Fault& fault = armed.fault;
    const bool due = fault.kind == FaultKind::kSlow ? step >= fault.step : step == fault.step;
    if (fault.rank != rank_ || fault.at != point || !due || !strikes(fault)) continue;
    uint64_t left = armed.left;
    while (left > 0 && !armed.left.compare_exchange_weak(left, left - 1)) {
    }
    if (left > 0) strike(fault, step);
  }
}

const Fault* Faults::change(uint64_t step) {
  for (Armed& armed : armed_)
    if (armed.fault.rank == rank_ && armed.fault.step == step && !strikes(armed.fault) &&
        armed.left.exchange(0) > 0)
      return &armed.fault;
  return nullptr;
}

}  // namespace convoy::trainer
