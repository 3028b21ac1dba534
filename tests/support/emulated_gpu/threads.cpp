#include "tests/support/emulated_gpu/threads.h"

#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/emulated_gpu/emulated_gpu.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace convoy::emulated_gpu {
namespace {

using boost::context::fiber;

// A thread of the GPU: a fiber that runs one body after the other.
struct Thread {
  fiber inside;        // where it stands, while others run
  fiber outside;       // who resumed it, while it runs
  bool ended = true;   // its body
  bool begun = false;  // begin_kernel()
  unsigned index = 0;
};

thread_local Thread* running = nullptr;

void expect_begun(const Thread& thread) {
  if (thread.begun) return;
  std::fprintf(
      stderr,
      "emulated GPU: a kernel does not call begin_kernel() (ops/core/cuda_kernel.h) as its "
      "first statement: thread %u of block %u of %u has not. On a GPU it would start "
      "before the kernel that it follows has ended\n",
      thread.index, blockIdx.x, gridDim.x);
  std::abort();
}

class Block {
 public:
  void run(int threads, unsigned seed, const std::function<void()>& body) {
    body_ = &body;
    while (threads_.size() < static_cast<size_t>(threads)) add_thread();
    const auto n = static_cast<unsigned>(threads);
    for (unsigned i = 0; i < n; ++i) threads_[i]->ended = threads_[i]->begun = false;
    // A different first thread, and every other time backwards: no kernel may rely on the order.
    for (unsigned left = n, round = seed; left > 0; ++round) {
      left = 0;
      for (unsigned k = 0; k < n; ++k) {
        const unsigned at = (k + round * 31) % n;
        Thread& thread = *threads_[round % 2 == 0 ? at : n - 1 - at];
        if (thread.ended) continue;
        resume(thread);
        left += !thread.ended;
      }
    }
  }

 private:
  void add_thread() {
    auto thread = std::make_unique<Thread>();
    thread->index = static_cast<unsigned>(threads_.size());
    Thread* self = thread.get();
    thread->inside = fiber([this, self](fiber&& caller) {
      self->outside = std::move(caller);
      while (true) {
        (*body_)();
        expect_begun(*self);
        self->ended = true;
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
  const std::function<void()>* body_ = nullptr;
};

}  // namespace

void run_block(int threads, unsigned seed, const std::function<void()>& body) {
  static thread_local Block block;
  block.run(threads, seed, body);
}

void begin_kernel() {
  running->begun = true;
}

}  // namespace convoy::emulated_gpu

void __syncthreads() {
  convoy::emulated_gpu::Thread* self = convoy::emulated_gpu::running;
  convoy::emulated_gpu::expect_begun(*self);
  self->outside = std::move(self->outside).resume();
}
