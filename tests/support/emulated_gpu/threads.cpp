#include "tests/support/emulated_gpu/threads.h"

#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/emulated_gpu/emulated_gpu.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace convoy::emulated_gpu {
namespace {

using boost::context::fiber;

constexpr unsigned kWarp = 32;

enum class State : uint8_t { kRuns, kWaitsForBlock, kWaitsForWarp, kEnded };

// A thread of the GPU: a fiber that runs one body after the other.
struct Thread {
  fiber inside;   // where it stands, while others run
  fiber outside;  // who resumed it, while it runs
  State state = State::kEnded;
  unsigned index = 0;
  unsigned meetings = 0;  // of its warp
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool is_there;
  };
  std::vector<Copy> copies;  // that it has not waited for
};

thread_local Thread* running = nullptr;

class Block {
 public:
  void run(int threads, unsigned seed, const std::function<void()>& body) {
    body_ = &body;
    while (threads_.size() < static_cast<size_t>(threads)) add_thread();
    const auto n = static_cast<unsigned>(threads);
    for (unsigned i = 0; i < n; ++i) threads_[i]->state = State::kRuns;
    // A different first thread, and every other time backwards: no kernel may rely on the order.
    for (unsigned round = seed; true; ++round) {
      for (unsigned k = 0; k < n; ++k) {
        const unsigned at = (k + round * 31) % n;
        Thread& thread = *threads_[round % 2 == 0 ? at : n - 1 - at];
        if (thread.state == State::kRuns) resume(thread);
      }
      if (!release(n)) return;
    }
  }
  // What the threads of the running one's warp have put down, all of them.
  const void* meet_warp(const void* own, size_t bytes) {
    Thread& self = *running;
    if (bytes > kMostOfAWarp) std::abort();
    // Who meets again may do so while others still read of the last time.
    char* all = warps_[self.index / kWarp].put_down[self.meetings++ % 2];
    std::memcpy(all + self.index % kWarp * bytes, own, bytes);
    wait(State::kWaitsForWarp);
    return all;
  }
  static void wait(State state) {
    Thread* self = running;
    self->state = state;
    self->outside = std::move(self->outside).resume();
  }

 private:
  static constexpr size_t kMostOfAWarp = 64;
  struct Warp {
    char put_down[2][kWarp * kMostOfAWarp];
  };

  // No thread runs: those that have met go on. False: all have ended.
  bool release(unsigned n) {
    bool any = false, waits = false, warps_wait = false;
    for (unsigned begin = 0; begin < n; begin += kWarp) {
      const unsigned end = begin + kWarp < n ? begin + kWarp : n;
      unsigned met = 0;
      for (unsigned i = begin; i < end; ++i) {
        met += threads_[i]->state == State::kWaitsForWarp;
        waits = waits || threads_[i]->state == State::kWaitsForBlock;
      }
      warps_wait = warps_wait || met > 0;
      if (met < kWarp) continue;
      for (unsigned i = begin; i < end; ++i) threads_[i]->state = State::kRuns;
      any = true;
    }
    if (any) return true;
    if (warps_wait) {
      std::fprintf(stderr, "emulated GPU: some threads of a warp do not come where others wait\n");
      std::abort();
    }
    if (!waits) return false;
    for (unsigned i = 0; i < n; ++i)
      if (threads_[i]->state == State::kWaitsForBlock) threads_[i]->state = State::kRuns;
    return true;
  }
  void add_thread() {
    if (threads_.size() % kWarp == 0) warps_.emplace_back();
    auto thread = std::make_unique<Thread>();
    thread->index = static_cast<unsigned>(threads_.size());
    Thread* self = thread.get();
    thread->inside = fiber([this, self](fiber&& caller) {
      self->outside = std::move(caller);
      while (true) {
        (*body_)();
        self->copies.clear();
        self->state = State::kEnded;
        self->outside = std::move(self->outside).resume();
      }
      return fiber();
    });
    threads_.push_back(std::move(thread));
  }
  void resume(Thread& thread) {
    running = &thread;
    threadIdx = {thread.index, 0, 0};
    thread.inside = std::move(thread.inside).resume();
    running = nullptr;
  }

  std::vector<std::unique_ptr<Thread>> threads_;
  std::deque<Warp> warps_;
  const std::function<void()>* body_ = nullptr;
};

thread_local Block block;

}  // namespace

void run_block(int threads, unsigned seed, const std::function<void()>& body) {
  block.run(threads, seed, body);
}

const void* meet_warp(const void* own, size_t bytes) {
  return block.meet_warp(own, bytes);
}

void copy_later(void* to, const void* from, size_t bytes, bool is_there) {
  running->copies.push_back({to, from, bytes, is_there});
}

void wait_for_copies() {
  for (const Thread::Copy& copy : running->copies)
    copy.is_there ? std::memcpy(copy.to, copy.from, copy.bytes)
                  : std::memset(copy.to, 0, copy.bytes);
  running->copies.clear();
}

}  // namespace convoy::emulated_gpu

void __syncthreads() {
  convoy::emulated_gpu::Block::wait(convoy::emulated_gpu::State::kWaitsForBlock);
}
