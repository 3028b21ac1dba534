// For LD_PRELOAD: what another machine would have of its own. Its wall clock is ahead by as many
// seconds as the file CONVOY_TEST_CLOCK.<host name> says at that moment (none: 0); and with
// CONVOY_TEST_NO_FLOCK its file system does not carry flock to others, as NFS without a lock
// daemon.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace {

time_t seconds_ahead() {
  const char* prefix = std::getenv("CONVOY_TEST_CLOCK");
  char host[256] = "";
  if (!prefix || gethostname(host, sizeof host - 1) != 0) return 0;
  const int fd = open((std::string(prefix) + "." + host).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[32] = "";
  const ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  return n > 0 ? std::atoll(text) : 0;
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* time) {
  using Get = int (*)(clockid_t, timespec*);
  static const auto real = reinterpret_cast<Get>(dlsym(RTLD_NEXT, "clock_gettime"));
  const int failed = real(clock, time);
  if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    time->tv_sec += seconds_ahead();
  return failed;
}

extern "C" int gettimeofday(timeval* time, void*) {
  timespec now{};
  const int failed = clock_gettime(CLOCK_REALTIME, &now);
  if (failed == 0) *time = {now.tv_sec, now.tv_nsec / 1000};
  return failed;
}

extern "C" time_t time(time_t* out) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

extern "C" int flock(int fd, int operation) {
  using Lock = int (*)(int, int);
  static const auto real = reinterpret_cast<Lock>(dlsym(RTLD_NEXT, "flock"));
  return std::getenv("CONVOY_TEST_NO_FLOCK") ? 0 : real(fd, operation);
}
