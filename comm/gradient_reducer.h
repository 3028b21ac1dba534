// Sums gradients over all workers of the job, bucket by bucket, while backward goes on. With the
// exact order the result has the same bits on any number of ranks, whatever thread finishes first:
// the sum is a fixed binary tree over the workers (reduction_tree.h).
//
//   GradientReducer reducer(communicator, workers, buckets);
//   each step:  reducer.begin_step();
//               reducer.contribute(worker, bucket, gradients, keep);   // any thread, any order
//               std::span<const float> sum = reducer.wait(bucket);
//
// A bucket's exchange starts when every worker hosted here has contributed it. One reducer belongs
// to one flat buffer; several may live at once.
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

struct ReducerOptions {
  ReductionOrder order = ReductionOrder::kExact;
  // How exact sums travel; left out: kShared where that can be, else choose_schedule's. No result
  // depends on it.
  std::optional<ScheduleKind> schedule;
  // Flat buffers that memory() lends; each rank may want another number.
  int buffers = 0;
};

class GradientReducer {
 public:
  // Collective: all ranks construct reducers in the same order with the same arguments. All memory
  // for the exchange is taken here; memory for contributions that are not kept, in the first step.
  // Throws Error (kFault) when an argument makes no sense.
  GradientReducer(Communicator& communicator, int workers, std::vector<Range> buckets,
                  const ReducerOptions& options = {});
  // Not while another thread is in here. If a sum is still under way (an error unwinds the stack),
  // the communicator can only be aborted afterwards.
  ~GradientReducer();

  // A flat buffer of as many floats as the buckets have, zeroed, this reducer's: what is
  // contributed from there (the bucket at its place in it) and kept travels without a copy where
  // ranks share memory.
  float* memory(int buffer);

  // The workers hosted by this rank.
  WorkerRange hosted() const;

  // Starts the next step; every bucket of the last one must have been contributed. Waits for those
  // still under way. Spans from wait() and memory given with keep are the caller's again.
  void begin_step();

  // Worker `worker`, hosted here, has finished bucket `bucket`; data points to the floats of that
  // bucket alone. keep: the memory stays valid until the next begin_step and is used as scratch, so
  // nothing is copied. Else it is only read, and taken before this returns.
  // Thread-safe. Throws Error (kFault) for a worker of another rank and for a second contribution.
  void contribute(int worker, int bucket, float* data, bool keep);

  // Blocks until the sum over all workers is here; valid until the next begin_step. Every worker of
  // this rank must contribute the bucket, from other threads if not before. Thread-safe. Throws
  // what went wrong in the exchange.
  std::span<const float> wait(int bucket);

  // Since construction: seconds that callers were blocked in wait(), summed over threads, and bytes
  // this rank has sent, or handed over in shared memory (kFast: 0, the library does not say).
  double waited_seconds() const;
  size_t bytes_sent() const;
  // How exact sums travel.
  ScheduleKind schedule() const;
  // Floats that all ranks send, against a ring all-reduce (schedule.h); kFast: 1.
  double redundancy() const;
  // Memory the reducer holds now, its part of what is shared included.
  size_t buffer_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::comm
