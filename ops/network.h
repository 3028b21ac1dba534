// A graph on a device: ops made for fixed shapes, one arena, forward and backward.
//
//   Network net(device, graph, {.batch = 32});
//   net.bind({parameters, running, gradients, statistics});
//   each step:  net.prepare();                       // the parameters have changed
//               net.forward(pixels, step);  net.loss(labels, scale);
//               net.backward(step, [&](size_t ready) { ... });
//
// Belongs to one thread, the one that made the device. All tensors lie in the arena: a step
// allocates none.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ops/device.h"
#include "ops/graph.h"
#include "ops/memory_plan.h"
#include "ops/pass_plan.h"

namespace convoy::ops {

struct NetworkConfig {
  int64_t batch = 1;
  DType type = DType::kFloat32;  // of activations and their gradients
  bool tf32 = false;             // see OpConfig
  bool training = true;
  bool fold = true;   // inference: batch norms become part of convolutions (off: to see its worth)
  bool merge = true;  // training: merge_batch_norms(), where the device does
  // Pixels to activations; none: forward_activations() alone is used.
  std::optional<ImageInput> input;
  double label_smoothing = 0.0;
  // Inference of a part of a network, in its buffers (layout_within()); none: of a network of its
  // own. Read by the constructor alone.
  const ParameterLayout* whole = nullptr;
  int64_t slice_bytes = 0;  // 0: what the device says (tests)
  bool profile = false;     // wait for the device behind each call, so that times() are its work's
  // Hand over what is the same in every step as a whole, where the device can (Recording). Not
  // with `profile`.
  bool record = false;
  // Gradients of convolutions' weights are computed beside what follows them (NodeMemory::aside),
  // where the device can. Not with `profile`.
  bool aside = true;
  // Ascending numbers of floats of the gradients: backward() tells of those alone, so that what is
  // between two of them can be one recording. Empty: of all that it can tell.
  std::vector<size_t> stops = {};
};

// When buffers live, in moments: 0 the input, then each call of the forward segments, the loss,
// each call of the backward segments (ops/pass_plan.h). A batch lives from the first call of a
// segment to the last of one; a slice, from call to call.
struct NetworkMemory {
  std::vector<Lifetime> buffers;
  // Per buffer: holds one slice, because it is written and read in one segment; else the batch.
  std::vector<bool> one_slice;
  // Buffer of each value (0: the image, i + 1: node i), of each gradient a node receives and gives,
  // and of what it saves; -1: none.
  std::vector<int> value;
  // Per value: in the order in which backward writes them, but a compact one last.
  std::vector<std::vector<int>> dy;
  std::vector<std::vector<int>> dx;  // per node and input
  std::vector<int> saved;
  int dlogits = -1;
  std::vector<int> auxiliary_dlogits;  // per auxiliary classifier; -1: not wanted
  // Per node: its backward() may leave work aside, behind a join with what is there. So what it
  // reads lives until the next of these nodes goes backward.
  std::vector<bool> aside;
};
// The buffers of a (fused) graph; scratch memory, which a device decides, is not among them.
// four_channels: the image has kFourChannels in memory.
NetworkMemory network_memory(const Graph& graph, const PassPlan& passes, int64_t batch, DType type,
                             bool training, bool aside = false, bool four_channels = false);
// The arena of a network of this graph (not fused yet) with nothing aside, nothing merged and the
// image as it is, before there is one. A pure function.
MemoryPlan planned_arena(const Graph& graph, int64_t batch, DType type, bool training,
                         int64_t slice_bytes);

// Lets the device decide (Device::decide) what a network of these would make it decide. Takes no
// memory on it. Throws as Network's constructor.
void decide(Device& device, const Graph& graph, const NetworkConfig& config);

// Seconds spent since a network was made. On a GPU, without `profile`, of enqueueing alone, and of
// what is recorded only until it is.
struct NetworkTimes {
  double input = 0, loss = 0;
  std::vector<std::pair<Call, double>> calls;  // in the order of the step
};

class Network {
 public:
  // Fuses the graph and takes the memory. Throws Error (kBadJob) naming the node that does not fit
  // or that the device cannot run.
  Network(Device& device, const Graph& graph, const NetworkConfig& config);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // As it runs: fused; for training merged, for inference without auxiliary classifiers and with
  // batch norms folded.
  const Graph& graph() const { return graph_; }
  const ParameterLayout& layout() const { return layout_; }  // of the fused graph
  size_t arena_bytes() const { return arena_.bytes; }

  // Flat buffers on the device, laid out as layout() says; the caller keeps them alive. Training
  // needs all four, inference parameters and running. Frozen parameters have no gradients, frozen
  // batch norms no statistics of the batch.
  struct Buffers {
    const float* parameters = nullptr;
    const float* running = nullptr;
    float* gradients = nullptr;
    float* statistics = nullptr;  // this batch's means and unbiased variances

    bool operator==(const Buffers&) const = default;
  };
  void bind(const Buffers& buffers);

  // The parameters have changed or, for inference, the running statistics. On a CPU several threads
  // may share the work, each its part, and meet before forward().
  void prepare(int part = 0, int parts = 1);
  // From now on `other`, a network of the same graph and configuration on another lane, is prepared
  // in place of this one. It must outlive this one's last step.
  void share_weights(const Network& other);
  // What the next forward() is for, before it is called, from whatever thread calls nothing else at
  // that moment. pixels: uint8 [batch, H, W, C]; they stay as they are until Device::inputs_read().
  void send(const uint8_t* pixels) { input_->send(pixels); }
  // pixels: as in send(); null: they were sent. labels of loss() stay as long.
  void forward(const uint8_t* pixels, const StepInfo& step, const BatchMix& mix = {});
  // x: activations of the network's type [batch, H, W, C], in host memory, copied (tests).
  void forward_activations(const void* x, const StepInfo& step);
  // labels [batch]; gradient_scale: what 1 / samples of the step is. Training: fills dlogits.
  // head: see Device::loss. loss_scale: times this, too, are all gradients. label_share:
  // BatchMix's. Auxiliary classifiers add to the gradients, not to head and loss_result(): where
  // the loss of one is not finite, its gradients are not either.
  void loss(const int32_t* labels, double gradient_scale, float* head = nullptr,
            double loss_scale = 1.0, double label_share = 1.0);
  // Of the last loss(); waits.
  LossResult loss_result() const;
  // ready(n): the first n floats of the gradients are final; called after each segment that has
  // finished any, or reached one of NetworkConfig::stops.
  void backward(const StepInfo& step, const std::function<void(size_t)>& ready);

  // On the device: [batch, classes] of the last forward, until backward; fp32 where the last node
  // is linear, else the network's type.
  TensorView logits() const;

  const NetworkTimes& times() const { return times_; }

 private:
  // Segments that run without a word to the caller between them.
  struct Piece {
    std::span<const Segment> segments;  // of PassPlan::backward
    size_t first_time = 0;              // of its calls, in NetworkTimes::calls
    size_t ready = 0;                   // floats of the gradients that are final behind it
  };
  // What is recorded with some buffers, whose addresses are part of it.
  struct Recordings {
    Buffers buffers;
    std::unique_ptr<Recording> preparing, forward;
    std::vector<std::unique_ptr<Recording>> backward;  // per piece
  };

  void plan_backward();
  Recordings* recordings_with(const Buffers& buffers);
  // Through `recording`, if there is one.
  static void run(Recording* recording, const StepInfo* step, const std::function<void()>& work);
  void run_forward(const StepInfo& step);
  // first_time: of the first call, in NetworkTimes::calls.
  void run(std::span<const Segment> segments, const StepInfo& step, size_t first_time);
  void run(const Segment& segment, const StepInfo& step, size_t first_time);
  void run(const Call& call, size_t slice, const StepInfo& step);
  void add_extra_dy(size_t node, size_t slice);
  TensorView output_of(size_t node) const;
  // Where slice `slice` of node `node` lies in a buffer whose samples are of this shape.
  void* at(int buffer, const Shape& shape, DType type, size_t node, size_t slice) const;
  void* at(int buffer) const;

  Device& device_;
  NetworkConfig config_;
  Graph graph_;
  ParameterLayout layout_;
  // The node of graph_ that has what layout_ says of a node; kNobody: inference needs it not.
  std::vector<size_t> node_of_;
  std::vector<Shape> shapes_;
  bool four_channels_;  // of the image in memory (Device::wants_four_channels)
  PassPlan passes_;
  NetworkMemory memory_;
  MemoryPlan plan_;
  std::unique_ptr<ImageInputOp> input_;
  std::vector<std::unique_ptr<Op>> ops_;
  DeviceMemory arena_;
  DeviceMemory loss_result_;   // of the last node, and behind it one for the auxiliary ones
  float* unwanted_ = nullptr;  // in the arena: gradients that nobody reads are written there
  std::vector<std::vector<NodeMemory>> nodes_;  // per node and slice
  // Per node and slice: gradients of its output that it cannot add itself, to be added to dy[0].
  std::vector<std::vector<std::vector<void*>>> extra_dy_;
  std::vector<Piece> backward_;
  std::list<Recordings> recordings_;  // a few: callers come back to the same buffers
  Recordings* recorded_ = nullptr;    // with those that are bound; null: nothing is
  NetworkTimes times_;
  std::vector<std::string> traces_;  // of the same calls: "layer1.0.conv1 forward"
};

}  // namespace convoy::ops
