// What the subcommands share: options with a complete --help, and the end of a run on several
// ranks.
#pragma once

#include <boost/program_options.hpp>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "ops/core/error.h"
#include "trainer/models/models.h"

namespace convoy::trainer {

using Arguments = std::vector<std::string>;

// Parsed options, or nothing after --help was printed (then return 0).
// `usage`: the line behind "Usage: convoy". `notes`: printed below the options. `positional`: the
// options that may stand without their names, with blanks between; the last may be "name...": as
// many as there are. Throws Error (kUsage).
std::optional<boost::program_options::variables_map> parse_options(
    const Arguments& arguments, const boost::program_options::options_description& options,
    const std::string& usage, const std::string& notes, const char* positional = nullptr);

// Was it on the command line?
bool given(const boost::program_options::variables_map& values, const char* name);
// Throws Error (kUsage) where one of these was given: `what` it is for.
void refuse_given(const boost::program_options::variables_map& values,
                  std::initializer_list<const char*> names, const std::string& what);

// A file that a command draws or counts anew is called by what it is, so that it replaces its own
// kind alone. Throws Error (kUsage) where `path` (of `option`; empty: none) has no such end.
void expect_end(const char* option, const std::string& path, const std::vector<std::string>& ends);

// Runs body on all ranks of this process's job and ends them together: an Error of body becomes one
// line and its exit code. Returns what main() must return at once.
// A watchdog that body makes watches over the end as well.
using OwnedWatchdog = std::unique_ptr<comm::Watchdog>;
int run_on_ranks(const std::function<int(comm::Communicator&, OwnedWatchdog&)>& body);

// Called where the options were refused, in the handler: the ranks of a launcher meet only to say
// so once and end together; without one the error goes on.
int refuse_on_ranks(const Error& error);

// A subcommand on all ranks. `parse`: its options, or nothing after --help. `body`: int of a
// communicator, a place for a watchdog if it makes one, and the options.
template <typename Options, typename Body>
int run_on_ranks(const Arguments& arguments, std::optional<Options> (*parse)(const Arguments&),
                 const Body& body) {
  std::optional<Options> options;
  try {
    options = parse(arguments);
  } catch (const Error& error) {
    return refuse_on_ranks(error);
  }
  if (!options) return 0;
  return run_on_ranks([&](comm::Communicator& communicator, OwnedWatchdog& watchdog) {
    if constexpr (std::is_invocable_v<Body, comm::Communicator&, OwnedWatchdog&, const Options&>)
      return body(communicator, watchdog, *options);
    else
      return body(communicator, *options);
  });
}

// "CxHxW", e.g. 3x224x224. Throws Error (kUsage).
Shape parse_image(const std::string& text);

// --precision: "fp32", "bf16" or "fp16". Throws Error (kUsage).
DType parse_precision(const std::string& text);

}  // namespace convoy::trainer
