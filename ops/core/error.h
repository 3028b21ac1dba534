// The one exception type, and the exit codes a job script can act on.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace convoy {

// What a process returns (README, "Exit codes").
enum class ExitCode : int {
  kDone = 0,
  kUsage = 64,        // the command line makes no sense
  kBadData = 65,      // a dataset or a file of weights is wrong
  kFault = 70,        // a fault of ours, or corruption
  kIo = 74,           // the operating system refused to read or write: not there, no room, ...
  kRecoverable = 75,  // saved, or the last checkpoint stands: run the same command again
  kBadJob = 78,       // the job file is wrong
};

// Stops the run. The message is one line: what, which, the values, the remedy.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// throw Error with a formatted message: fail(ExitCode::kBadData, "{}: label {} ...", file, label).
template <typename... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

// The text of errno, for messages about files: fail(kIo, "{}: {}", path, errno_text()).
std::string errno_text();

// A name from outside as it may stand in a message of one line: control characters, quotes and
// bytes that are not UTF-8 are escaped (\n, \x1b), and more than `max` bytes are cut in the middle.
std::string printable(std::string_view text, size_t max = 300);

}  // namespace convoy
