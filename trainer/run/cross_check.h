// One worker of a step computed twice, on two ranks where there are two: what it contributes is the
// same to the bit (law 1), or a rank computes wrongly without knowing it. Replicas do not show
// that: all ranks sum the same wrong gradient.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "comm/worker_map.h"
#include "data_loader/loader.h"
#include "trainer/engine/engine.h"

namespace convoy::trainer {

class CrossCheck {
 public:
  // Makes that one worker's batch of a step; `loader` as for Loader, first_step = step.
  using MakeLoader = std::function<std::unique_ptr<data::Loader>(uint64_t step, int worker)>;

  // every: steps between checks; 0: none. The watchdog hears what is read.
  CrossCheck(comm::Communicator& communicator, comm::Watchdog& watchdog, Engine& engine,
             int workers, uint32_t every, MakeLoader make_loader);

  // The worker that is computed twice in this step, each in its turn; -1: none.
  int worker_of(uint64_t step) const;
  // Collective, between Engine::compute(..., worker_of(step)) and update(). Computes that worker
  // again on another rank and, where that differs, once more: on a third rank, or with two ranks on
  // both. Returns a line naming the rank that is outvoted, the same on all ranks.
  std::optional<std::string> check(uint64_t step);

 private:
  struct Attempt {
    int rank = 0, lane = 0;
  };
  // The first is the contribution itself.
  std::vector<Attempt> first_two(uint64_t step, int worker) const;
  std::vector<Attempt> more(const std::vector<Attempt>& first) const;
  std::vector<uint64_t> compute(uint64_t step, int worker, const Attempt& attempt);

  comm::Communicator& communicator_;
  comm::Watchdog& watchdog_;
  Engine& engine_;
  const int workers_;
  const uint32_t every_;
  const MakeLoader make_loader_;
  std::vector<comm::WorkerRange> map_;
  std::vector<int> computing_;  // ranks that host workers
};

}  // namespace convoy::trainer
