#include "comm/communicator.h"

#include "comm/launch.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::comm {

// One per *_communicator.cpp.
std::unique_ptr<Communicator> make_local_communicator();
std::unique_ptr<Communicator> make_mpi_communicator();

namespace {

struct Backend {
  std::string_view name;
  std::unique_ptr<Communicator> (*make)();
};

constexpr Backend kBackends[] = {
    {"local", make_local_communicator},
    {"mpi", make_mpi_communicator},
};

}  // namespace

std::unique_ptr<Communicator> make_communicator(std::string_view name) {
  for (const Backend& backend : kBackends)
    if (backend.name == name) {
      std::unique_ptr<Communicator> communicator = backend.make();
      if (communicator->size() > 1) log::set_rank(communicator->rank());
      return communicator;
    }
  std::string names;
  for (const Backend& backend : kBackends)
    names += (names.empty() ? "" : ", ") + std::string(backend.name);
  fail(ExitCode::kUsage, "no communicator is named \"{}\"; there are: {}", printable(name), names);
}

std::unique_ptr<Communicator> make_communicator() {
  const Launch launch = detect_launch();
  std::unique_ptr<Communicator> communicator = make_communicator(communicator_for(launch));
  check_world(launch, communicator->size());
  return communicator;
}

}  // namespace convoy::comm
