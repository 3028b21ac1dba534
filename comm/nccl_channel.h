// A line between the GPUs of all ranks, by NCCL. Nobody waits for a lost peer: a thread of the
// channel asks NCCL for what went wrong behind the host's back and then aborts, which ends what is
// enqueued; every later call throws it. Only what is built with CUDA includes this.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "comm/communicator.h"

namespace convoy::comm {

class NcclChannel {
 public:
  struct Message {
    int peer = 0;
    float* data = nullptr;
    size_t floats = 0;
  };

  // Collective, for the calling thread's current GPU; every rank needs one of its own.
  // Throws Error (kRecoverable) when the ranks are not connected after `deadline`.
  explicit NcclChannel(Communicator& communicator,
                       std::chrono::milliseconds deadline = std::chrono::minutes(5));
  // When nothing is enqueued any more; else abort() first.
  ~NcclChannel();

  // Memory that messages will often lie in; until the channel ends.
  void add_memory(float* data, size_t floats);

  // Enqueues all messages as one; those between two ranks match in their order. All ranks enqueue
  // the same exchanges and sums in the same order. `what` is named when they fail.
  void exchange(std::span<const Message> sends, std::span<const Message> receives,
                cudaStream_t stream, const std::string& what);
  // In place, over all ranks, in the library's own order: bits depend on the number of ranks.
  void all_reduce_sum(float* data, size_t floats, cudaStream_t stream, const std::string& what);

  // Throws Error (kRecoverable) when a transfer has failed or was aborted. Any thread.
  void check();
  // Ends what is enqueued. Any thread.
  void abort(const std::string& why);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::comm
