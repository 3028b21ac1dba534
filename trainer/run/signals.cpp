#include "trainer/run/signals.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <initializer_list>

namespace convoy::trainer {
namespace {

volatile std::sig_atomic_t stop_flag = 0;

extern "C" void raise_stop_flag(int) {
  stop_flag = 1;
}

}  // namespace

void prepare_process() {
  for (const int signal : {SIGPIPE, SIGXFSZ}) ::signal(signal, SIG_IGN);
  int fd = 0;
  do {
    fd = ::open("/dev/null", O_RDWR);  // the lowest number that is free
  } while (fd >= 0 && fd <= 2);
  if (fd > 2) ::close(fd);
}

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
