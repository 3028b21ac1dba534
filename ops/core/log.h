// One line per event on standard error: "12:34:56 rank 2: message". Standard output belongs to
// results (--json), so nothing is logged there.
#pragma once

#include <fmt/format.h>

#include <string>

namespace convoy::log {

enum class Level { kDebug, kInfo, kWarning, kError };

// Names this process in every line; -1 (the default): no rank is printed.
void set_rank(int rank);
int rank();

// Messages below this level are dropped. Default kInfo; CONVOY_LOG=debug|info|warning|error.
void set_level(Level level);

// Where log lines go instead of standard error, e.g. around a live progress line. The sink is
// called under the log's lock, a whole line without its newline at a time. nullptr restores the
// default.
void set_sink(void (*sink)(Level, const std::string& line));

// Thread-safe; a line is one write(2). Never throws: a closed standard error is ignored.
void write(Level level, const std::string& message);

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace convoy::log
