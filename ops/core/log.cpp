#include "ops/core/log.h"

#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <mutex>
#include <string_view>

namespace convoy::log {
namespace {

Level level_from_environment() {
  const char* text = std::getenv("CONVOY_LOG");
  const std::string_view name = text ? text : "info";
  if (name == "debug") return Level::kDebug;
  if (name == "warning") return Level::kWarning;
  if (name == "error") return Level::kError;
  return Level::kInfo;
}

struct State {
  std::mutex mutex;
  int rank = -1;
  Level level = level_from_environment();
  void (*sink)(Level, const std::string&) = nullptr;
};

// The process's log: the one piece of global state, because a process has one standard error.
State& state() {
  static State instance;
  return instance;
}

const char* prefix(Level level) {
  switch (level) {
    case Level::kDebug:
      return "debug: ";
    case Level::kInfo:
      return "";
    case Level::kWarning:
      return "warning: ";
    case Level::kError:
      return "error: ";
  }
  return "";
}

}  // namespace

void set_rank(int rank) {
  const std::lock_guard lock(state().mutex);
  state().rank = rank;
}

int rank() {
  const std::lock_guard lock(state().mutex);
  return state().rank;
}

void set_level(Level level) {
  const std::lock_guard lock(state().mutex);
  state().level = level;
}

void set_sink(void (*sink)(Level, const std::string&)) {
  const std::lock_guard lock(state().mutex);
  state().sink = sink;
}

void write(Level level, const std::string& message) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (level < s.level) return;
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char clock[16];
  std::strftime(clock, sizeof clock, "%H:%M:%S", &local);
  std::string line = clock;
  if (s.rank >= 0) line += fmt::format(" rank {}", s.rank);
  line += ": ";
  line += prefix(level);
  line += message;
  if (s.sink) {
    s.sink(level, line);
    return;
  }
  line += '\n';
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace convoy::log
