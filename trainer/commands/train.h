// convoy train: the loop of a run. A run is a folder (--out); starting and resuming are one
// command.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "trainer/run/train_options.h"

namespace convoy::trainer {

// Collective. Makes the watchdog, whose life goes on to the end of the communicator. Returns 0
// (done, or stop_after_steps reached) or 75 (stopped by a signal, saved).
int train(comm::Communicator& communicator, std::unique_ptr<comm::Watchdog>& watchdog,
          const TrainOptions& options);

}  // namespace convoy::trainer
