// Tells the thread sanitizer what it cannot see: GCC's libgomp starts and joins the threads of a
// parallel region by futexes of its own, so that every access in a region would look like a race
// with what came before and after it. Part of the preset `tsan` only. Enough for parallel static
// loops; a barrier, critical section or task inside a region would need its own function here.
#include <dlfcn.h>

extern "C" {
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}

namespace {

using Body = void (*)(void*);

struct Region {
  Body body;
  void* data;
  char begin = 0, end = 0;
};

void run_member(void* at) {
  Region& region = *static_cast<Region*>(at);
  __tsan_acquire(&region.begin);
  region.body(region.data);
  __tsan_release(&region.end);
}

}  // namespace

// In place of libgomp's: an executable's symbols come first, for oneDNN too.
extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  static const auto libgomp = reinterpret_cast<void (*)(Body, void*, unsigned, unsigned)>(
      dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region.begin);
  libgomp(run_member, &region, threads, flags);
  __tsan_acquire(&region.end);
}
