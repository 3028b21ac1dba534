// The reducer of gradients in host memory. A bucket's exchange starts when every worker hosted here
// has contributed it.
#pragma once

#include "comm/reducer.h"

namespace convoy::comm {

// Of the largest bucket. Throws Error (kFault) for an empty one.
size_t most_floats(std::span<const Range> buckets);
// Where the last one ends.
size_t last_float(std::span<const Range> buckets);

class GradientReducer final : public Reducer {
 public:
  // As make_reducer.
  GradientReducer(Communicator& communicator, int workers, std::vector<Range> buckets,
                  const ReducerOptions& options = {});
  // Not while another thread is in here. If a sum is still under way (an error unwinds the stack),
  // the communicator can only be aborted afterwards.
  ~GradientReducer() override;

  float* memory(int buffer) override;
  WorkerRange hosted() const override;
  void begin_step() override;
  void contribute(int worker, int bucket, float* data, bool keep) override;
  // The same for all workers of a node of the tree, hosted here, which the caller has summed.
  void contribute(WorkerRange node, int bucket, float* data, bool keep);
  std::span<const float> wait(int bucket) override;
  void confirm() override {}  // wait() has
  double waited_seconds() const override;
  size_t bytes_sent() const override;
  ScheduleKind schedule() const override;
  double redundancy() const override;
  size_t buffer_bytes() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convoy::comm
