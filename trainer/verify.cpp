// convoy verify: is a checkpoint, or every checkpoint of a run, whole?
#include <iostream>
#include <nlohmann/json.hpp>

#include "ops/core/error.h"
#include "trainer/checkpoint.h"
#include "trainer/commands.h"

namespace convoy::trainer {

namespace po = boost::program_options;

int verify_command(const Arguments& arguments) {
  std::string dir;
  bool json = false;
  po::options_description options("Options");
  options.add_options()("dir", po::value(&dir)->required(), "a checkpoint, or a run")(
      "json", po::bool_switch(&json), "one JSON object on standard output");
  const auto values = parse_options(arguments, options, "verify DIR [OPTIONS]",
                                    "Recomputes every length and checksum. The digest is a SHA-256 "
                                    "over weights, optimizer state and\n"
                                    "batch-norm state: two runs that print the same one have the "
                                    "same bits. Of a run all checkpoints\n"
                                    "are checked, and the newest one's digest is printed.\n",
                                    "dir");
  if (!values) return 0;

  const std::vector<std::string> folders = checkpoints_at(dir);
  VerifiedCheckpoint newest;
  for (const std::string& folder : folders) newest = verify_checkpoint(folder);
  if (json) {
    const nlohmann::ordered_json out = {{"checkpoint", folders.back()},
                                        {"step", newest.facts.step},
                                        {"digest", newest.digest},
                                        {"bytes", newest.bytes},
                                        {"checkpoints", folders.size()},
                                        {"job_digest", newest.facts.job_digest},
                                        {"dataset_digest", newest.facts.dataset_digest}};
    std::cout << out.dump(2) << std::endl;
  } else {
    std::cout << fmt::format("{}: whole ({} checkpoint(s) checked)\nstep {}\ndigest {}\n",
                             printable(folders.back()), folders.size(), newest.facts.step,
                             newest.digest);
  }
  return 0;
}

}  // namespace convoy::trainer
