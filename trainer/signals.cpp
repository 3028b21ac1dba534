#include "trainer/signals.h"

#include <csignal>
#include <initializer_list>

namespace convoy::trainer {
namespace {

volatile std::sig_atomic_t stop_flag = 0;

extern "C" void raise_stop_flag(int) {
  stop_flag = 1;
}

}  // namespace

void install_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = raise_stop_flag;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
}

bool stop_requested() {
  return stop_flag != 0;
}

}  // namespace convoy::trainer
