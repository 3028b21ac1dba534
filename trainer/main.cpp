// convoy: the table of subcommands, and the one place where errors end.
#include <cstdio>
#include <iostream>

#include "ops/core/error.h"
#include "trainer/base/text.h"
#include "trainer/base/version.h"
#include "trainer/commands/commands.h"
#include "trainer/job/limits.h"
#include "trainer/run/signals.h"

namespace {

using namespace convoy;
using namespace convoy::trainer;

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Arguments&);
  // What it prints is what it is for: not all written is an error. Training goes on all the same.
  bool prints = true;
};

constexpr Command kCommands[] = {
    {"train", "train a network as a job file says", train_command, false},
    {"eval", "evaluate a checkpoint, or several together, on a validation set", eval_command},
    {"predict", "say what is on images, by a checkpoint", predict_command},
    {"pack", "pack an image folder into tar shards", pack_command},
    {"verify", "prove that a checkpoint, a run or a dataset is whole", verify_command},
    {"import", "make a checkpoint of weights from elsewhere", import_command},
    {"export", "write the weights of a checkpoint as safetensors or ONNX", export_command},
    {"report", "show the lives of a run, and where its time went", report_command},
    {"data", "show the very images that a step is fed", data_command},
    {"model", "list the models, show one as a table", model_command},
    {"bench", "measure what this machine reaches", bench_command},
};

void print_usage() {
  std::cout << "Usage: convoy COMMAND [OPTIONS]\n\nCommands:\n";
  for (const Command& c : kCommands) std::cout << fmt::format("  {:<8} {}\n", c.name, c.summary);
  std::cout << "\nconvoy COMMAND --help shows a command's options; convoy --version the version.\n"
               "Exit codes: 0 done, 64 usage, 65 bad data, 70 fault or corruption, 74 I/O, "
               "75 run me again, 78 bad job file.\n";
}

void expect_written() {
  if (!std::cout.flush()) fail(ExitCode::kIo, "standard output: not all of it could be written");
}

int run(const Arguments& arguments) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h" ||
      arguments[0] == "help") {
    print_usage();
    return static_cast<int>(arguments.empty() ? ExitCode::kUsage : ExitCode::kDone);
  }
  if (arguments[0] == "--version") {
    std::cout << "convoy " << kVersion << "\n";
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& c : kCommands) {
    if (arguments[0] == c.name) {
      const int exit_code = c.run({arguments.begin() + 1, arguments.end()});
      if (c.prints && exit_code == 0) expect_written();
      return exit_code;
    }
    names.emplace_back(c.name);
  }
  fail(ExitCode::kUsage, "no command \"{}\"; the nearest is \"{}\" (convoy --help shows all)",
       printable(arguments[0]), nearest(arguments[0], names));
}

}  // namespace

int main(int argc, char** argv) {
  prepare_process();
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    const Error error = as_error(e);
    std::fprintf(stderr, "convoy: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
