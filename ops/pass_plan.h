// In which order the nodes of a graph are called in one step, and on how many samples at once.
//
// Only batch norm must see a whole batch before any of it can go on (gathers()). Between two such
// points the batch goes through all calls of a segment slice by slice, so that what one node writes
// is still in the cache when the next one reads it:
//
//   forward segment:   normalise, convolve, gather the next batch norm's statistics
//   backward segment:  batch norm's dx, the convolution's dw and dx, gather the next batch norm's
//
// A pure function of the graph and the batch: the order of all sums, and with it every bit, belongs
// to the job.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/graph.h"

namespace convoy::ops {

struct Call {
  enum class Kind { kGatherForward, kForward, kGatherBackward, kBackward };
  Kind kind;
  size_t node;
};

// Calls that each slice goes through before the next slice does.
struct Segment {
  std::vector<Call> calls;
};

struct PassPlan {
  std::vector<Segment> forward, backward;
  // Samples of one slice, per node; divides the batch. The same for all nodes of a segment.
  std::vector<int64_t> slice;
};

// True for nodes that must see the whole batch first.
bool gathers(const OpSpec& spec, bool training);
// The inputs that such a node gathers.
std::span<const int> gathered_inputs(const Node& node);

// type: of activations. slice_bytes: what the largest tensor of a slice may take, as the device
// says. Throws as infer_shapes() does.
PassPlan plan_passes(const Graph& graph, int64_t batch, DType type, bool training,
                     int64_t slice_bytes);

// What a call does, for comparison with what the machine could do.
struct Work {
  double flops = 0;  // two per multiply-accumulate
  double bytes = 0;  // that its tensors hold, each read or written once; the image its own channels
};
// For the whole batch.
Work work_of(const Graph& graph, const Call& call, int64_t batch, DType type, bool training);

}  // namespace convoy::ops
