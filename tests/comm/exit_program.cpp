// exit_program MODE: a job that ends as MODE says; exit_test starts it under mpirun.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <thread>

#include "comm/gradient_reducer.h"
#include "comm/handshake.h"
#include "ops/core/error.h"

using convoy::Error;
using convoy::ExitCode;
using namespace convoy::comm;

namespace {

void run(Communicator& world, std::string_view mode) {
  const bool odd = world.rank() == world.size() - 1;
  if (mode == "abort") {
    if (odd) world.abort(65, "the odd rank gives up");
    world.barrier();
  } else if (mode == "one throws") {
    if (odd) throw Error(ExitCode::kIo, "the odd rank cannot read");
    world.barrier();
  } else if (mode.starts_with("one throws at the end")) {
    if (odd) throw Error(ExitCode::kIo, "the odd rank cannot write");
  } else if (mode == "all throw") {
    throw Error(ExitCode::kBadJob, "the job file is bad");
  } else if (mode == "handshake") {
    handshake(world, {{"version", odd ? "2" : "1"}});
  } else if (mode == "throws while summing") {
    // The others never contribute: this rank leaves while its exchange is under way.
    std::vector<float> data(1 << 20, 1.0f);
    GradientReducer reducer(world, world.size(), {{0, data.size()}});
    reducer.begin_step();
    if (!odd) reducer.wait(0);
    reducer.contribute(world.rank(), 0, data.data(), true);
    throw Error(ExitCode::kFault, "the odd rank fails while it sums");
  } else if (mode == "late") {
    // An orderly end waits for the slowest rank.
    if (odd) std::this_thread::sleep_for(std::chrono::seconds(3));
    std::fprintf(stderr, "rank %d is done\n", world.rank());
  } else if (mode != "done") {
    throw Error(ExitCode::kUsage, "no such mode");
  }
}

}  // namespace

int main(int, char** argv) {
  std::unique_ptr<Communicator> world;
  try {
    world = make_communicator();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  const std::string_view mode = argv[1];
  int code = 0;
  std::string message;
  try {
    run(*world, mode);
  } catch (const Error& error) {
    code = static_cast<int>(error.code());
    message = error.what();
  }
  code = world->finish(code, message);
  if (mode != "one throws at the end, and all say how they leave") return code;
  // Zero, for mpirun would end the ranks that have not spoken yet.
  std::fprintf(stderr, "a rank leaves with %d\n", code);
  return 0;
}
