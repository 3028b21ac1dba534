// A polite request to stop: SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 raise a flag that the train loop
// reads. (mpirun forwards USR1 and USR2 and waits; INT and TERM to mpirun leave ranks a second.)
#pragma once

namespace convoy::trainer {

void install_stop_signals();
bool stop_requested();

}  // namespace convoy::trainer
