// One step of training on one rank: its workers forward and backward on lanes, gradients reduced
// while backward goes on, one update. Knows no files, no schedule, no clock.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "comm/reducer.h"
#include "ops/digester.h"
#include "ops/network.h"
#include "ops/optim/optimizer.h"
#include "trainer/base/fault.h"
#include "trainer/engine/lanes.h"
#include "trainer/engine/layer_statistics.h"
#include "trainer/engine/loss_scale.h"
#include "trainer/engine/plans.h"

namespace convoy::trainer {

// Told by a step where it is, on the thread that calls it; empty functions are not called.
struct StepHooks {
  std::function<void()> compute;           // works, and waits for no other rank
  std::function<void(int bucket)> reduce;  // waits for the sum of this bucket
};

struct EngineConfig {
  std::string device = "cpu";
  int gpu = 0;      // see ops::make_device
  int workers = 1;  // W of the job
  int64_t batch_per_worker = 32;
  int threads_per_worker = 1;
  int lanes = 1;  // workers that run at once on this rank
  DType type = DType::kFloat32;
  bool tf32 = false;        // fp32 products may round their factors to TF32
  bool scale_loss = false;  // FP16 (loss_scale.h)
  ops::ImageInput input;    // for batch_per_worker images
  double label_smoothing = 0.0;
  ops::BatchMixing mixing;
  ops::OptimizerConfig optimizer;
  comm::ReductionOrder reduction = comm::ReductionOrder::kExact;
  double bucket_mib = 4.0;
  uint64_t seed = 1;
  bool training = true;  // false: evaluate() alone will be called
  bool fold = true;      // see ops::NetworkConfig
  bool profile = false;  // see ops::NetworkConfig
  bool record = true;    // see ops::NetworkConfig
  bool aside = true;     // likewise
  bool merge = true;     // likewise
  // Names of parameters that are frozen at first (ops/freezing.h; Engine::freeze changes it), and
  // what the optimizer's numbers are multiplied by, of those where that is not 1.
  std::set<std::string> frozen = {};
  std::map<std::string, ops::ParameterFactors> factors = {};
  StepHooks hooks;
  // What the engine will compute later, so that all of its plans are decided when it is made: with
  // these parameters frozen, and evaluate() of batches like this.
  std::vector<std::set<std::string>> frozen_later = {};
  std::optional<ops::ImageInput> evaluation = {};
  PlanConfig plans;
};

// How many workers of `hosted` run at once on this rank: on its CPUs all of them if the cores
// suffice, on a GPU one after the other.
int lanes_for(const std::string& device, int hosted, int cpus, int threads_per_worker);

class Engine {
 public:
  // Collective. Parameters start as their specs say, running statistics at mean 0 and variance 1.
  // Throws PlanRefused (EngineConfig::plans).
  Engine(comm::Communicator& communicator, const ops::Graph& graph, const EngineConfig& config);
  ~Engine();

  const ops::ParameterLayout& layout() const { return layout_; }
  comm::WorkerRange hosted() const { return reducer_->hosted(); }
  int lanes() const { return lanes_.count(); }

  // What a checkpoint holds: flat, laid out as layout() says; no moving average: ema is empty.
  struct State {
    std::span<float> parameters, running, momentum, ema;

    std::array<std::span<float>, 4> all() const { return {parameters, running, momentum, ema}; }
  };
  // In host memory, as it is now, until the next call or step.
  State state();
  // What was changed in state()'s memory becomes the state.
  void put_state();
  // As at the start of a run.
  void reset();
  // Collective, between two steps: from now on exactly these parameters are frozen. The state
  // stays; plan, networks and buffers are made anew. Nothing where they are so already.
  void freeze(const std::set<std::string>& frozen);
  const std::set<std::string>& frozen() const { return config_.frozen; }
  // Elements of the parameters that are trained; layout() counts all.
  size_t trained_floats() const { return layout_.gradient_floats; }
  // What belongs to the run beside its state (Device::decisions); rank 0's counts.
  std::string plans() const;
  bool has_ema() const { return !optimizer_->ema().empty(); }
  // Belongs to the state where scale_loss is set.
  bool scales_loss() const { return config_.scale_loss; }
  LossScale& loss_scale() { return loss_scale_; }
  const LossScale& loss_scale() const { return loss_scale_; }

  struct Images {
    const uint8_t* pixels;  // [batch_per_worker, H, W, C]
    const int32_t* labels;
  };
  // Where batches come from. Item i is a worker in training, a slice in evaluation; it is acquired
  // and released by one lane, which holds one at a time. stop: a lane has failed; whoever waits in
  // acquire must be given this error.
  struct Source {
    std::function<Images(uint64_t item)> acquire;
    std::function<void(uint64_t item)> release;
    std::function<void(const std::exception_ptr&)> stop = [](const std::exception_ptr&) {};
    // In training, where a GPU may read ahead: the pixels of the item as they will be acquired in
    // the step after this one; null where they are not ready.
    std::function<const uint8_t*(uint64_t item)> next = {};
  };
  // What ranks want to agree on: a flag raised on a rank that hosts workers is seen by all at the
  // end of that step.
  struct Control {
    bool stop = false;
    bool save = false;
    bool left_out = false;  // this rank's update of the step before changed nothing
  };
  struct Result {
    double loss = 0;  // mean over the samples of the step
    double top1 = 0;  // share of them
    double gradient_norm = 0;
    bool updated = true;    // false: loss or gradient were not finite, and nothing was changed
    bool diverged = false;  // not finite, and no loss scale helps: what now is the caller's to say
    Control control;        // of all ranks: stop and save
    int left_out = 0;       // ranks that raised that flag
  };
  // Collective: compute(), then update(). Throws Error (kFault) where the step diverged.
  Result step(uint64_t step, double learning_rate, const Control& control, const Source& source);
  // Collective. Forward and backward of this rank's workers. `digested`: the worker whose
  // contribution is digested by its host; -1: none.
  void compute(uint64_t step, const Control& control, const Source& source, int digested = -1);
  // Collective; of the last compute(). Left out, the step is as if it had never been. `layers`:
  // filled in on the ranks that ask, the same on any of them; it changes nothing. `source`: of the
  // next step, too; what it has ready is read until this returns.
  Result update(double learning_rate, LayerStatistics* layers = nullptr,
                const Source* source = nullptr);

  // For comparisons of one worker of a step that is computed again, between compute() and update().
  // The digests of what the digested worker contributed: batch-norm statistics, loss, then the
  // gradient of each parameter. Empty on ranks that do not host it.
  std::vector<uint64_t> contribution();
  // The same, computed now on this rank, which must host a worker, by the lane-th of its lanes. The
  // source is asked for that worker.
  std::vector<uint64_t> compute_again(uint64_t step, int worker, int lane, const Source& source);
  std::vector<std::string> contribution_names() const;

  // 64-bit digests of each tensor of the state, in the order of its names: parameters, running
  // statistics, momentum, moving average.
  std::vector<uint64_t> state_digests();
  std::vector<std::string> state_names() const;

  // About a step that diverged, the same on all ranks: loss, norm, and the parameters whose summed
  // gradients are not finite.
  std::string about_divergence(uint64_t step, const Result& result);
  static constexpr const char* kDivergenceRemedy =
      "lower optimizer.learning_rate, lengthen the warm-up or set optimizer.clip_norm (the last "
      "checkpoint is from before)";
  // This rank's workers whose loss was not finite in the last compute() (none on a GPU: its host
  // does not look).
  std::vector<int> losses_not_finite() const;

  // Host memory from which compute() and evaluate() will be given images (ops::Device::pin).
  std::shared_ptr<void> pin(void* memory, size_t bytes) const;

  // Tests: changes the state now, or in the next step the gradient of this rank's first worker, or
  // its copy of the sum.
  void apply(const Fault& fault);

  enum class Weights { kTrained, kAverage };
  // Told by a lane of each slice that it has computed, before the slice is released: its logits
  // [batch, classes]. Several lanes at once, each for its own slice.
  using Logits = std::function<void(uint64_t slice, std::span<const float> logits)>;
  // Loss and counts of `slices` slices that this rank evaluates. Images of another size than the
  // network's: it becomes fully convolutional (ops/fully_convolutional.h).
  std::vector<ops::LossResult> evaluate(uint64_t slices, const ops::ImageInput& input,
                                        Weights weights, const Source& source,
                                        const Logits& logits = {});

  // Host memory that evaluate() takes for slices of this shape, their images and weights apart.
  uint64_t evaluation_bytes(uint64_t slices, const Shape& input) const;

  // False where a weight or a running statistic is infinite or not a number.
  bool state_is_finite();

  // Seconds lanes and the caller waited for the reduction, since construction.
  double reduce_wait_seconds() const { return waited_before_ + reducer_->waited_seconds(); }
  // Seconds since construction or freeze(): of the pieces of training (or of evaluation, where only
  // that was done), the mean over the lanes; of packing weights; of the update.
  ops::NetworkTimes times() const;
  const ops::Graph& running_graph() const;  // whose calls those are; once there are some
  double prepare_seconds() const { return prepare_seconds_; }
  double update_seconds() const { return update_seconds_; }
  // Seconds from the end of backward on this rank's last lane until all sums were here, since
  // construction: what the reduction did not hide behind backward, and what other ranks were late.
  double exposed_seconds() const { return exposed_seconds_; }
  double redundancy() const { return reducer_->redundancy(); }
  // Bytes of arenas, flat buffers and the reducer's memory. Not counted on a CPU: packed weights,
  // for both directions, of 3x3 convolutions four times as large as the parameters, and once more
  // the sums of their gradients.
  size_t memory_bytes() const;

 private:
  struct Lane;

  void plan();
  void decide();
  void build();
  std::vector<size_t> bucket_ends() const;
  ops::NetworkConfig training_config() const;
  ops::NetworkConfig evaluation_config(const ops::ImageInput& input) const;
  ops::Graph evaluation_graph(const Shape& input) const;
  std::unique_ptr<ops::Optimizer> make_optimizer();
  void say_compute() const {
    if (config_.hooks.compute) config_.hooks.compute();
  }
  void say_reduce(int bucket) const {
    if (config_.hooks.reduce) config_.hooks.reduce(bucket);
  }
  void spoil_sum(const Fault& fault);
  // Of the step whose sums are here, before its update. head: sums of the batch-norm statistics.
  LayerStatistics layer_statistics(const float* head);
  void add_weights(LayerStatistics& layers, std::span<const float> parameters);
  void add_responses(LayerStatistics& layers, std::span<const float> parameters,
                     const float* head) const;
  // Packs the weights of a network of lane 0, which those of the other lanes share.
  void prepare(std::unique_ptr<ops::Network> Lane::*network);
  void run_lanes(const Source& source, const std::function<void(int)>& body);
  void train_lane(int lane, const ops::StepInfo& info, const Control& control,
                  const Source& source);
  void forward(Lane& lane, const ops::StepInfo& step, const Source& source, float* flat);
  void send_ahead(const Source& source);
  void backward(Lane& lane, const ops::StepInfo& step, bool keep);
  // Of a flat buffer [statistics, extras, gradients].
  std::vector<ops::DigestRange> contribution_ranges(const float* flat) const;
  // Of bucket `bucket`, among contribution_ranges().
  std::pair<size_t, size_t> contribution_of(size_t bucket) const;

  EngineConfig config_;
  comm::Communicator& communicator_;
  ops::Graph graph_, fused_;
  ops::ParameterLayout layout_;
  size_t extras_begin_ = 0, head_floats_ = 0;  // bucket 0: statistics, then the extras
  std::vector<comm::Range> buckets_;
  std::unique_ptr<comm::Reducer> reducer_;
  std::vector<int> bucket_of_;           // of each parameter
  std::vector<const float*> gradients_;  // of each parameter, after the reduction
  int digested_ = -1;                    // worker of this step
  uint64_t step_ = 0;                    // of the last compute()
  // The step whose first hosted worker's images are on the GPU already.
  std::optional<uint64_t> sent_for_;
  std::optional<Fault> gradient_fault_, sum_fault_;  // of the next step
  std::unique_ptr<ops::DeviceFloats> wrong_sum_;     // of a parameter, where sum_fault_ said so
  LossScale loss_scale_;
  double prepare_seconds_ = 0, update_seconds_ = 0;
  double exposed_seconds_ = 0, waited_before_ = 0;  // before: of reducers that are gone
  std::vector<std::unique_ptr<Lane>> lane_state_;
  // On the device of lane 0.
  std::unique_ptr<ops::DeviceFloats> parameters_, running_;
  std::unique_ptr<ops::Optimizer> optimizer_;
  std::unique_ptr<ops::Digester> state_digester_;  // of all that it holds; made when first needed
  Lanes lanes_;  // last: threads stop before what they use is gone
};

}  // namespace convoy::trainer
