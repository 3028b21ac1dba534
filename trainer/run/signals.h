// Signals and descriptors of the process. A polite request to stop: SIGINT, SIGTERM, SIGUSR1 and
// SIGUSR2 raise a flag that the train loop reads. (mpirun forwards USR1 and USR2 and waits; INT and
// TERM to mpirun leave ranks a second.)
#pragma once

namespace convoy::trainer {

// For every command, before anything else: a closed pipe or a file at its size limit is an error of
// the write, not the end of the process; and standard descriptors that are closed lead to
// /dev/null, so that no file of ours is opened in their place and printed into.
void prepare_process();

void install_stop_signals();
bool stop_requested();

}  // namespace convoy::trainer
