// Why a run goes back to its last checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace convoy::trainer {

// Thrown on all ranks alike, between two steps: the state is not to be trusted, or not worth
// keeping, and the run goes on from its last checkpoint.
struct RollBack {
  std::string why;
  std::optional<uint64_t> pass_over;  // the steps from the checkpoint to this one
};

}  // namespace convoy::trainer
