// For LD_PRELOAD: read() of the file that CONVOY_TEST_STUCK names never returns on rank 1, as on a
// file server that has died.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

extern "C" ssize_t read(int fd, void* buffer, size_t bytes) {
  using Read = ssize_t (*)(int, void*, size_t);
  static const auto real = reinterpret_cast<Read>(dlsym(RTLD_NEXT, "read"));
  static const char* const stuck = std::getenv("CONVOY_TEST_STUCK");
  static const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (stuck && rank && std::strcmp(rank, "1") == 0) {
    char path[4096];
    const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
    if (n > 0 && std::string(path, static_cast<size_t>(n)) == stuck)
      for (;;) pause();
  }
  return real(fd, buffer, bytes);
}
