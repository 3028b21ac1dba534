#include "trainer/job/command_line.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "comm/launch.h"
#include "trainer/job/limits.h"

namespace convoy::trainer {

namespace po = boost::program_options;

namespace {

// Boost reads "-1" as the largest unsigned number.
void refuse_negative(const po::parsed_options& parsed, const po::options_description& options) {
  for (const po::option& option : parsed.options) {
    const auto* known = options.find_nothrow(option.string_key, false);
    if (!known) continue;
    const po::value_semantic* type = known->semantic().get();
    if (!dynamic_cast<const po::typed_value<uint64_t>*>(type) &&
        !dynamic_cast<const po::typed_value<uint32_t>*>(type))
      continue;
    for (const std::string& value : option.value)
      if (value.starts_with('-'))
        fail(ExitCode::kUsage, "--{} {}: must not be negative", option.string_key,
             printable(value));
  }
}

}  // namespace

std::optional<po::variables_map> parse_options(const Arguments& arguments,
                                               const po::options_description& options,
                                               const std::string& usage, const std::string& notes,
                                               const char* positional) {
  po::options_description all("Options");
  all.add(options);
  all.add_options()("help,h", "print this and leave");
  po::positional_options_description positions;
  std::istringstream names(positional ? positional : "");
  for (std::string name; names >> name;) {
    const bool any_number = name.ends_with("...");
    positions.add(any_number ? name.substr(0, name.size() - 3).c_str() : name.c_str(),
                  any_number ? -1 : 1);
  }
  po::variables_map values;
  try {
    const po::parsed_options parsed =
        po::command_line_parser(arguments).options(all).positional(positions).run();
    refuse_negative(parsed, all);
    po::store(parsed, values);
    if (values.count("help") > 0) {
      std::cout << "Usage: convoy " << usage << "\n\n" << all;
      if (!notes.empty()) std::cout << "\n" << notes;
      std::cout << std::flush;
      return std::nullopt;
    }
    po::notify(values);
  } catch (const po::error& e) {
    const std::string command = usage.substr(0, usage.find(" -"));
    fail(ExitCode::kUsage, "{} (convoy {} --help shows all options)", printable(e.what()),
         command.substr(0, command.find(" [")));
  }
  return values;
}

bool given(const po::variables_map& values, const char* name) {
  return values.count(name) > 0 && !values[name].defaulted();
}

void refuse_given(const po::variables_map& values, std::initializer_list<const char*> names,
                  const std::string& what) {
  for (const char* name : names)
    if (given(values, name)) fail(ExitCode::kUsage, "--{} is for {}", name, what);
}

void expect_end(const char* option, const std::string& path, const std::vector<std::string>& ends) {
  const auto is_end = [&](const std::string& end) { return path.ends_with(end); };
  if (!path.empty() && std::ranges::none_of(ends, is_end))
    fail(ExitCode::kUsage, "{} {}: must end in {}", option, printable(path),
         fmt::join(ends, " or "));
}

int run_on_ranks(const std::function<int(comm::Communicator&, OwnedWatchdog&)>& body) {
  const comm::Launch launch = comm::detect_launch();
  comm::leave_with_launcher(launch);
  expect_limits(std::max(1, launch.ranks));
  const std::unique_ptr<comm::Communicator> communicator = [] {
    const comm::StartAlarm alarm;
    return comm::make_communicator();
  }();
  OwnedWatchdog watchdog;  // until all have met at the end
  int exit_code = 0;
  std::string message;
  try {
    exit_code = body(*communicator, watchdog);
  } catch (const std::exception& e) {
    const Error error = as_error(e);
    exit_code = static_cast<int>(error.code());
    message = error.what();
  }
  if (watchdog) watchdog->enter(comm::Phase::kLeave, 0);
  // Where the other ranks have not failed alike, rank 0 learns why this one has: it keeps the book
  // of lives.
  return communicator->finish(exit_code, message, [&] {
    if (watchdog) watchdog->verdict(static_cast<ExitCode>(exit_code), message);
  });
}

int refuse_on_ranks(const Error& error) {
  if (comm::detect_launch().launcher.empty()) throw;
  return run_on_ranks([&](comm::Communicator&, OwnedWatchdog&) -> int { throw error; });
}

Shape parse_image(const std::string& text) {
  Shape shape = {.n = 1, .c = 0, .h = 0, .w = 0};
  int used = 0;
  if (std::sscanf(text.c_str(), "%ldx%ldx%ld%n", &shape.c, &shape.h, &shape.w, &used) != 3 ||
      text.size() != static_cast<size_t>(used) || shape.c <= 0 || shape.h <= 0 || shape.w <= 0 ||
      shape.c > 4096 || shape.h > 65536 || shape.w > 65536)
    fail(ExitCode::kUsage,
         "\"{}\" is not an image size; write channels x height x width, e.g. 3x224x224",
         printable(text));
  return shape;
}

DType parse_precision(const std::string& text) {
  if (text == "fp32") return DType::kFloat32;
  if (text == "bf16") return DType::kBfloat16;
  if (text == "fp16") return DType::kFloat16;
  fail(ExitCode::kUsage, "--precision {}: there are fp32, bf16 and fp16", printable(text));
}

}  // namespace convoy::trainer
