// Sums gradients over all workers of the job, bucket by bucket, while backward goes on. With the
// exact order the result has the same bits on any number of ranks, whatever thread finishes first:
// the sum is a fixed binary tree over the workers (reduction_tree.h).
//
//   auto reducer = make_reducer(communicator, workers, buckets, options, device.queue());
//   each step:  reducer->begin_step();
//               reducer->contribute(worker, bucket, gradients, keep);   // any thread, any order
//               std::span<const float> sum = reducer->wait(bucket);
//               reducer->confirm();   // when the host has seen the end of the step
//
// One reducer belongs to one flat buffer; several may live at once.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/reduction_tree.h"
#include "comm/schedule.h"

namespace convoy::comm {

// Floats [begin, end) of the flat buffer.
struct Range {
  size_t begin = 0, end = 0;

  size_t size() const { return end - begin; }
};

enum class ReductionOrder {
  kExact,  // the tree: bits depend on the workers alone
  kFast,   // the tree over the workers of a rank, then the library's all-reduce: on the ranks, too
};

// How sums travel from GPU to GPU. No result depends on it.
enum class Transport {
  kAuto,    // kNccl where every rank has a GPU of its own, else kStaged
  kNccl,    // from GPU to GPU
  kStaged,  // through host memory: for ranks that share a GPU, or that NCCL does not connect
};

struct ReducerOptions {
  ReductionOrder order = ReductionOrder::kExact;
  // How exact sums travel; left out: kShared where that can be, else choose_schedule's. No result
  // depends on it.
  std::optional<ScheduleKind> schedule;
  // Flat buffers that memory() lends; each rank may want another number.
  int buffers = 0;
  // Of GPUs only.
  Transport transport = Transport::kAuto;
  // Tells NCCL of the flat buffers, which some networks then read without a copy. Off, because
  // registered buffers have given wrong sums in captured graphs (NVIDIA/nccl issue 1924).
  bool register_buffers = false;
};

// Gradients and sums lie in the host's memory or in a GPU's. On a GPU everything is in the order of
// its queue: "has finished" and "is here" mean "is enqueued", nothing but what is said to block
// does. Calls throw Error (kFault) for what makes no sense.
class Reducer {
 public:
  virtual ~Reducer() = default;

  // A flat buffer of as many floats as the buckets have, zeroed, this reducer's: what is
  // contributed from there (the bucket at its place in it) and kept travels without a copy where
  // ranks share memory.
  virtual float* memory(int buffer) = 0;

  // The workers hosted by this rank.
  virtual WorkerRange hosted() const = 0;

  // Starts the next step; every bucket of the last one must have been contributed. Waits for those
  // still under way. Spans from wait() and memory given with keep are the caller's again.
  virtual void begin_step() = 0;

  // Worker `worker`, hosted here, has finished bucket `bucket`; data points to the floats of that
  // bucket alone. keep: the memory stays valid until the next begin_step and is used as scratch, so
  // nothing is copied. Else it is only read, and taken before this returns.
  // Thread-safe. Throws Error (kFault) for a worker of another rank and for a second contribution.
  virtual void contribute(int worker, int bucket, float* data, bool keep) = 0;

  // Blocks until the sum over all workers is here; valid until the next begin_step. Every worker of
  // this rank must contribute the bucket, from other threads if not before. Thread-safe. Throws
  // what went wrong in the exchange.
  virtual std::span<const float> wait(int bucket) = 0;

  // Call it when the host has waited for the queue, before a step's result counts: throws what went
  // wrong in its sums behind the host's back. Thread-safe.
  virtual void confirm() = 0;

  // Since construction: seconds that callers were blocked in wait(), summed over threads (on a GPU:
  // that its queue stood still there, up to the last step), and bytes this rank has sent, or handed
  // over in shared memory (kFast: 0, the library does not say).
  virtual double waited_seconds() const = 0;
  virtual size_t bytes_sent() const = 0;
  // How exact sums travel between hosts or GPUs.
  virtual ScheduleKind schedule() const = 0;
  // Floats that all ranks send, against a ring all-reduce (schedule.h); kFast: 1.
  virtual double redundancy() const = 0;
  // Memory the reducer holds now, its part of what is shared included.
  virtual size_t buffer_bytes() const = 0;
};

// Collective: all ranks construct reducers in the same order with the same arguments. queue: null
// where gradients lie in host memory; else the cudaStream_t on which they are computed
// (ops::Device::queue()), whose GPU becomes the calling thread's. All memory for the exchange is
// taken here; memory for contributions that are not kept, in the first step. Throws Error (kFault)
// when an argument makes no sense.
std::unique_ptr<Reducer> make_reducer(Communicator& communicator, int workers,
                                      std::vector<Range> buckets, const ReducerOptions& options,
                                      void* queue);

}  // namespace convoy::comm
