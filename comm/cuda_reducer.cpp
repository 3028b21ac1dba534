#include "comm/cuda_reducer.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "comm/cuda_arithmetic.h"
#include "comm/gradient_reducer.h"
#include "comm/nccl_channel.h"
#include "comm/worker_map.h"
#include "ops/core/cache_line.h"
#include "ops/core/clock.h"
#include "ops/core/cuda_handle.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

// How long a reducer that ends waits for sums under way before it gives its peers up.
constexpr std::chrono::seconds kGrace{5};

size_t bytes_of(size_t floats) {
  return floats * sizeof(float);
}

cuda::Event make_event_with(unsigned flags) {
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreateWithFlags(&event, flags));
  return cuda::Event(event);
}

// Host and GPU of every rank, told apart.
std::string gpu_name(const Communicator& communicator) {
  int gpu = 0;
  char bus_id[32] = "";
  cuda::check(cudaGetDevice(&gpu));
  cuda::check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, gpu));
  return communicator.host() + " " + bus_id;
}

Transport choose(Communicator& communicator, Transport wanted) {
  const std::vector<std::string> gpus = communicator.all_gather(gpu_name(communicator));
  const auto count = std::set<std::string>(gpus.begin(), gpus.end()).size();
  if (wanted == Transport::kNccl && count < gpus.size())
    fail(ExitCode::kUsage,
         "NCCL needs a GPU for every rank, but these {} ranks have {}: start fewer ranks on a "
         "host, or let the sums go through host memory",
         gpus.size(), count);
  if (wanted != Transport::kAuto) return wanted;
  if (count == gpus.size()) return Transport::kNccl;
  static std::once_flag said;
  if (communicator.rank() == 0)
    std::call_once(said, [&] {
      log::warning(
          "these {} ranks share {} GPU(s), so that their sums go through host memory and each has "
          "a part of a GPU; start one rank for each GPU",
          gpus.size(), count);
    });
  return Transport::kStaged;
}

struct Setting {
  Communicator& communicator;
  const int workers;
  const bool fast;
  const std::vector<WorkerRange> map;
  const WorkerRange hosted;
  const std::vector<WorkerRange> nodes;  // the largest of `hosted`: what the exchange starts from
  const std::vector<Range> ranges;
};

// How the nodes of all ranks become the root on all. Called with the reducer's lock held, unless
// another word is said; `stream` is that of the exchange.
class DeviceExchange {
 public:
  virtual ~DeviceExchange() = default;
  // All of the last step is begun. What it gave and took is the caller's again.
  virtual void begin_step() {}
  // When the stream comes here: this rank's nodes lie at `nodes`, as scratch; the root goes to
  // `result`, which is the first node's place, where there is one.
  virtual void begin(int bucket, const std::vector<float*>& nodes, float* result) = 0;
  // Without the lock, once after begin() in a step: enqueues on the queue what the stream does not
  // do.
  virtual void finish(int /*bucket*/, float* /*result*/) {}
  virtual void check() {}
  virtual void abort() {}
  virtual ScheduleKind schedule() const = 0;
  virtual double redundancy() const = 0;
  virtual size_t bytes_sent() const { return 0; }
  virtual size_t buffer_bytes() const { return 0; }
};

// One rank: its only node is the root.
class NoExchange final : public DeviceExchange {
 public:
  void begin(int, const std::vector<float*>&, float*) override {}
  ScheduleKind schedule() const override { return ScheduleKind::kAllToAll; }
  double redundancy() const override { return 1.0; }
};

// The plan of schedule.h, as GradientReducer follows it: what a round receives lies in scratch, the
// sum of two children takes the place of the left one, the root alone goes to the result.
class NcclExchange final : public DeviceExchange {
 public:
  NcclExchange(const Setting& setting, const ReducerOptions& options, cudaStream_t stream)
      : setting_(setting),
        stream_(stream),
        kind_(kind_of(setting, options)),
        plan_(setting.fast ? Plan{} : make_plan(setting.map, setting.communicator.rank(), kind_)),
        channel_(setting.communicator) {
    for (const Range& range : setting.ranges) {
      Bucket& bucket = buckets_.emplace_back();
      bucket.floats = range.size();
      bucket.places.resize(static_cast<size_t>(setting.workers));
      size_t total = 0;
      const auto each_received = [&](auto use) {
        for (const Round& round : plan_.rounds)
          for (const Transfer& t : round.receives)
            if (t.node != root()) use(t, round_up(size_of(bucket, t), kCacheLineFloats));
      };
      each_received([&](const Transfer&, size_t floats) { total += floats; });
      bucket.scratch = cuda::allocate_device(bytes_of(total));
      scratch_bytes_ += bytes_of(total);
      auto* at = static_cast<float*>(bucket.scratch.get());
      each_received([&](const Transfer& t, size_t floats) {
        bucket.places[static_cast<size_t>(t.node.begin)] = {at, begin_of(bucket, t)};
        at += floats;
      });
    }
    connect();
  }

  NcclChannel& channel() { return channel_; }

  void begin(int index, const std::vector<float*>& nodes, float* result) override {
    Bucket& bucket = buckets_[static_cast<size_t>(index)];
    bucket.result = result;
    for (size_t i = 0; i < nodes.size(); ++i)
      bucket.places[static_cast<size_t>(setting_.nodes[i].begin)] = {nodes[i], 0};
    if (setting_.fast) {
      for (size_t i = 1; i < nodes.size(); ++i)
        add(result, result, nodes[i], bucket.floats, stream_);
      if (nodes.empty()) cuda::check(cudaMemsetAsync(result, 0, bytes_of(bucket.floats), stream_));
      channel_.all_reduce_sum(result, bucket.floats, stream_,
                              fmt::format("the sum of bucket {}", index));
      return;
    }
    for (size_t r = 0; r < plan_.rounds.size(); ++r) {
      const Round& round = plan_.rounds[r];
      channel_.exchange(
          messages(bucket, round.sends), messages(bucket, round.receives), stream_,
          fmt::format("bucket {}, round {} of {}", index, r + 1, plan_.rounds.size()));
      for (const Transfer& t : round.sends) bytes_sent_ += bytes_of(size_of(bucket, t));
      for (const Sum& sum : round.sums) {
        const int split = split_of(sum.node);
        const size_t begin = begin_of(bucket, sum);
        add(place_of(bucket, sum.node, begin), place_of(bucket, {sum.node.begin, split}, begin),
            place_of(bucket, {split, sum.node.end}, begin), size_of(bucket, sum), stream_);
      }
    }
  }
  void check() override { channel_.check(); }
  void abort() override { channel_.abort("sums on the GPUs were given up after an earlier error"); }
  ScheduleKind schedule() const override { return kind_; }
  double redundancy() const override {
    return setting_.fast ? 1.0 : comm::redundancy(setting_.map, kind_);
  }
  size_t bytes_sent() const override { return bytes_sent_; }
  size_t buffer_bytes() const override { return scratch_bytes_; }

 private:
  struct Place {
    float* data = nullptr;
    size_t origin = 0;  // the float of the bucket that lies at `data`
  };
  struct Bucket {
    size_t floats = 0;
    std::vector<Place> places;  // by first worker
    cuda::DeviceBuffer scratch;
    float* result = nullptr;
  };

  // NCCL connects two ranks when both first send, and the host waits for that. Here all are
  // present; in the first step some may be late.
  void connect() {
    std::set<int> peers;
    for (const Round& round : plan_.rounds)
      for (const std::vector<Transfer>* transfers : {&round.sends, &round.receives})
        for (const Transfer& t : *transfers) peers.insert(t.peer);
    const cuda::DeviceBuffer memory = cuda::allocate_device(bytes_of(2 * peers.size()));
    auto* at = static_cast<float*>(memory.get());
    std::vector<NcclChannel::Message> sends, receives;
    for (const int peer : peers) {
      sends.push_back({peer, at++, 1});
      receives.push_back({peer, at++, 1});
    }
    channel_.exchange(sends, receives, stream_, "the first words");
    cuda::synchronize(stream_);
    channel_.check();
  }
  static ScheduleKind kind_of(const Setting& setting, const ReducerOptions& options) {
    if (options.schedule == ScheduleKind::kShared)
      fail(ExitCode::kFault, "GPUs share no memory: NCCL sends");
    return options.schedule.value_or(choose_schedule(setting.map));
  }
  WorkerRange root() const { return {0, setting_.workers}; }
  template <typename Chunks>
  size_t begin_of(const Bucket& bucket, const Chunks& chunks) const {
    return chunk_begin(bucket.floats, plan_.chunks, chunks.first);
  }
  template <typename Chunks>
  size_t size_of(const Bucket& bucket, const Chunks& chunks) const {
    return chunk_begin(bucket.floats, plan_.chunks, chunks.last) - begin_of(bucket, chunks);
  }
  // Float `offset` of a node's value.
  float* place_of(const Bucket& bucket, WorkerRange node, size_t offset) const {
    if (node == root()) return bucket.result + offset;
    const Place& place = bucket.places[static_cast<size_t>(node.begin)];
    return place.data + (offset - place.origin);
  }
  std::vector<NcclChannel::Message> messages(const Bucket& bucket,
                                             const std::vector<Transfer>& transfers) const {
    std::vector<NcclChannel::Message> all;
    for (const Transfer& t : transfers)
      all.push_back({t.peer, place_of(bucket, t.node, begin_of(bucket, t)), size_of(bucket, t)});
    return all;
  }

  const Setting& setting_;
  const cudaStream_t stream_;
  const ScheduleKind kind_;
  const Plan plan_;
  std::vector<Bucket> buckets_;
  size_t scratch_bytes_ = 0, bytes_sent_ = 0;
  NcclChannel channel_;  // ends before the memory that it knows
};

// Through pinned memory of the host and a GradientReducer.
class StagedExchange final : public DeviceExchange {
 public:
  StagedExchange(const Setting& setting, const ReducerOptions& options, cudaStream_t stream,
                 cudaStream_t queue)
      : setting_(setting),
        stream_(stream),
        queue_(queue),
        copied_back_(cuda::make_event()),
        on_host_(setting.communicator, setting.workers, setting.ranges,
                 {.order = options.order, .schedule = options.schedule}) {
    cuda::check(cudaGetDevice(&gpu_));
    for (const Range& range : setting.ranges) {
      Bucket& bucket = buckets_.emplace_back();
      bucket.floats = range.size();
      for (size_t i = 0; i < setting.nodes.size(); ++i)
        bucket.nodes.push_back(cuda::allocate_pinned(bytes_of(range.size())));
      // Who waits for it sleeps: the loader needs the CPU.
      bucket.copied = make_event_with(cudaEventDisableTiming | cudaEventBlockingSync);
    }
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }

  void begin_step() override {
    {
      std::unique_lock lock(mutex_);
      handed_over_.wait(lock, [&] { return error_ || copying_.empty(); });
      rethrow();
      for (Bucket& bucket : buckets_) bucket.handed_over = setting_.nodes.empty();
    }
    // The last step's have read what the host's reducer now takes again.
    cuda::synchronize(copied_back_);
    on_host_.begin_step();
  }
  void begin(int index, const std::vector<float*>& nodes, float*) override {
    if (nodes.empty()) return;  // the host's reducer has begun by itself
    Bucket& bucket = buckets_[static_cast<size_t>(index)];
    for (size_t i = 0; i < nodes.size(); ++i)
      cuda::check(cudaMemcpyAsync(bucket.nodes[i].get(), nodes[i], bytes_of(bucket.floats),
                                  cudaMemcpyDeviceToHost, stream_));
    cuda::record(bucket.copied, stream_);
    const std::lock_guard lock(mutex_);
    copying_.push_back(index);
    wake_.notify_one();
  }
  void finish(int index, float* result) override {
    Bucket& bucket = buckets_[static_cast<size_t>(index)];
    {
      std::unique_lock lock(mutex_);
      handed_over_.wait(lock, [&] { return error_ || bucket.handed_over; });
      rethrow();
    }
    const std::span<const float> sum = on_host_.wait(index);
    cuda::check(
        cudaMemcpyAsync(result, sum.data(), sum.size_bytes(), cudaMemcpyHostToDevice, queue_));
    const std::lock_guard lock(mutex_);
    cuda::record(copied_back_, queue_);
  }
  ScheduleKind schedule() const override { return on_host_.schedule(); }
  double redundancy() const override { return on_host_.redundancy(); }
  size_t bytes_sent() const override { return on_host_.bytes_sent(); }
  size_t buffer_bytes() const override {
    size_t bytes = on_host_.buffer_bytes();
    for (const Bucket& bucket : buckets_) bytes += bucket.nodes.size() * bytes_of(bucket.floats);
    return bytes;
  }

 private:
  struct Bucket {
    size_t floats = 0;
    std::vector<cuda::PinnedBuffer> nodes;
    cuda::Event copied;
    bool handed_over = false;  // to the host's reducer
  };

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  // The thread: waits for copies to the host, in their order, and hands them over.
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [&] { return !copying_.empty(); }) && !stop.stop_requested()) {
      const int index = copying_.front();
      Bucket& bucket = buckets_[static_cast<size_t>(index)];
      lock.unlock();
      std::exception_ptr error;
      try {
        cuda::check(cudaSetDevice(gpu_));
        cuda::synchronize(bucket.copied);
        for (size_t i = 0; i < bucket.nodes.size(); ++i)
          on_host_.contribute(setting_.nodes[i], index, static_cast<float*>(bucket.nodes[i].get()),
                              true);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      copying_.pop_front();
      bucket.handed_over = !error;
      if (error) error_ = error;
      handed_over_.notify_all();
    }
  }

  const Setting& setting_;
  const cudaStream_t stream_, queue_;
  const cuda::Event copied_back_;
  int gpu_ = 0;
  std::vector<Bucket> buckets_;
  GradientReducer on_host_;  // ends before the memory it was given
  std::mutex mutex_;
  std::condition_variable_any wake_, handed_over_;
  std::deque<int> copying_;
  std::exception_ptr error_;
  std::jthread thread_;
};

class CudaReducer final : public Reducer {
 public:
  CudaReducer(Communicator& communicator, int workers, std::vector<Range> ranges,
              const ReducerOptions& options, cudaStream_t queue);
  ~CudaReducer() override;

  float* memory(int buffer) override {
    return static_cast<float*>(flats_.at(static_cast<size_t>(buffer)).get());
  }
  WorkerRange hosted() const override { return setting_.hosted; }
  void begin_step() override;
  void contribute(int worker, int bucket, float* data, bool keep) override;
  std::span<const float> wait(int bucket) override;
  void confirm() override { exchange_->check(); }
  double waited_seconds() const override;
  size_t bytes_sent() const override;
  ScheduleKind schedule() const override { return exchange_->schedule(); }
  double redundancy() const override { return exchange_->redundancy(); }
  size_t buffer_bytes() const override;

 private:
  // The value of a tree node.
  struct Value {
    float* data = nullptr;
    bool writable = false;
    cuda::DeviceBuffer buffer;  // holds `data` unless the contributor does
  };
  // A value that waits for its sibling, or for the exchange.
  struct Held {
    WorkerRange node;  // empty: nothing is held
    Value value;
  };
  enum class Phase { kIdle, kGathering, kExchanging, kFinishing, kDone };
  struct Bucket {
    size_t floats = 0;
    Phase phase = Phase::kIdle;
    std::vector<Held> held;         // by first worker, from hosted.begin
    std::vector<bool> contributed;  // by worker, from hosted.begin
    size_t missing = 0;             // nodes of the rank that are not whole yet
    cuda::DeviceBuffer own_result;  // where this rank hosts no worker
    float* result = nullptr;
    cuda::Event whole;             // the rank's nodes are final on the queue
    cuda::Event over;              // the sum is here, on the stream of the exchange
    cuda::Event stopped, goes_on;  // the queue in wait(); with times
    bool timed = false;
  };

  Bucket& bucket_at(int index);
  Held& held_at(Bucket& bucket, int first_worker) const {
    return bucket.held[static_cast<size_t>(first_worker - setting_.hosted.begin)];
  }
  bool is_whole(WorkerRange node) const {
    return std::find(setting_.nodes.begin(), setting_.nodes.end(), node) != setting_.nodes.end();
  }
  void use_gpu() const { cuda::check(cudaSetDevice(gpu_)); }
  void gather(Bucket& bucket, WorkerRange node, Value value);
  void begin_exchanges();
  void count_waited(Bucket& bucket);
  cuda::DeviceBuffer take_buffer();
  void give(cuda::DeviceBuffer buffer) {
    if (buffer) free_.push_back(std::move(buffer));
  }
  void finish_all();
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  const Setting setting_;
  const cudaStream_t queue_;
  const int gpu_;
  const size_t flat_floats_, most_floats_;

  mutable std::mutex mutex_;  // of all below
  std::condition_variable begun_;
  std::vector<cuda::DeviceBuffer> flats_;
  // Of most_floats_ each; in the order of the queue, so one that is free may still be read.
  std::vector<cuda::DeviceBuffer> free_;
  size_t buffers_made_ = 0;
  std::vector<Bucket> buckets_;
  size_t next_ = 0;  // bucket to exchange
  double waited_seconds_ = 0;
  std::exception_ptr error_;  // of an exchange; nothing goes on after it
  cuda::Stream stream_;
  std::unique_ptr<DeviceExchange> exchange_;
};

std::unique_ptr<DeviceExchange> make_exchange(const Setting& setting, const ReducerOptions& options,
                                              std::span<const cuda::DeviceBuffer> flats,
                                              size_t flat_floats, cudaStream_t stream,
                                              cudaStream_t queue) {
  if (setting.communicator.size() == 1) return std::make_unique<NoExchange>();
  if (choose(setting.communicator, options.transport) == Transport::kStaged)
    return std::make_unique<StagedExchange>(setting, options, stream, queue);
  auto exchange = std::make_unique<NcclExchange>(setting, options, stream);
  if (options.register_buffers)
    for (const cuda::DeviceBuffer& flat : flats)
      exchange->channel().add_memory(static_cast<float*>(flat.get()), flat_floats);
  return exchange;
}

Setting make_setting(Communicator& communicator, int workers, std::vector<Range> ranges,
                     ReductionOrder order) {
  const std::vector<WorkerRange> map = map_workers(workers, communicator.size());
  const WorkerRange hosted = map[static_cast<size_t>(communicator.rank())];
  return {communicator,
          workers,
          order == ReductionOrder::kFast,
          map,
          hosted,
          nodes_of(hosted, workers),
          std::move(ranges)};
}

// Makes it the calling thread's.
int use_gpu_of(cudaStream_t queue) {
  int gpu = 0;
  cuda::check(cudaStreamGetDevice(queue, &gpu));
  cuda::check(cudaSetDevice(gpu));
  return gpu;
}

CudaReducer::CudaReducer(Communicator& communicator, int workers, std::vector<Range> ranges,
                         const ReducerOptions& options, cudaStream_t queue)
    : setting_(make_setting(communicator, workers, std::move(ranges), options.order)),
      queue_(queue),
      gpu_(use_gpu_of(queue)),
      flat_floats_(round_up(last_float(setting_.ranges), kCacheLineFloats)),
      most_floats_(most_floats(setting_.ranges)),
      stream_(cuda::make_stream(cuda::Priority::kHigh)) {
  const auto hosted = static_cast<size_t>(setting_.hosted.size());
  for (const Range& range : setting_.ranges) {
    Bucket& bucket = buckets_.emplace_back();
    bucket.floats = range.size();
    bucket.held.resize(hosted);
    bucket.contributed.resize(hosted);
    if (hosted == 0) bucket.own_result = cuda::allocate_device(bytes_of(range.size()));
    bucket.whole = cuda::make_event();
    bucket.over = cuda::make_event();
    bucket.stopped = make_event_with(cudaEventDefault);
    bucket.goes_on = make_event_with(cudaEventDefault);
  }
  for (int i = 0; i < options.buffers; ++i)
    flats_.push_back(cuda::allocate_device(bytes_of(flat_floats_)));
  exchange_ = make_exchange(setting_, options, flats_, flat_floats_, stream_.get(), queue_);
}

// Waits until all that was begun is over on the GPU: peers may still need what this rank sends.
void CudaReducer::finish_all() {
  const auto start = Clock::now();
  for (const Bucket& bucket : buckets_)
    while (bucket.phase >= Phase::kExchanging) {
      const cudaError_t state = cudaEventQuery(bucket.over.get());
      if (state == cudaSuccess) break;
      if (state != cudaErrorNotReady) cuda::check(state);
      exchange_->check();
      if (Clock::now() - start > kGrace)
        fail(ExitCode::kRecoverable, "sums were still under way when their reducer ended");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

CudaReducer::~CudaReducer() {
  try {
    use_gpu();
    finish_all();
    // An error has ended the step here: the other ranks wait for sums that will never come.
    for (const Bucket& bucket : buckets_)
      if (bucket.phase == Phase::kGathering)
        fail(ExitCode::kRecoverable, "a step was given up before all gradients were there");
  } catch (const std::exception& error) {
    log::debug("{}", error.what());
    exchange_->abort();
  }
}

CudaReducer::Bucket& CudaReducer::bucket_at(int index) {
  if (index < 0 || static_cast<size_t>(index) >= buckets_.size())
    fail(ExitCode::kFault, "gradient bucket {} of {}", index, buckets_.size());
  return buckets_[static_cast<size_t>(index)];
}

cuda::DeviceBuffer CudaReducer::take_buffer() {
  if (free_.empty()) {
    ++buffers_made_;
    free_.reserve(buffers_made_);
    return cuda::allocate_device(bytes_of(most_floats_));
  }
  cuda::DeviceBuffer buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

void CudaReducer::count_waited(Bucket& bucket) {
  if (!std::exchange(bucket.timed, false)) return;
  float milliseconds = 0;
  // Not ready where the host runs ahead of the queue by a step: then it does not count.
  if (cudaEventElapsedTime(&milliseconds, bucket.stopped.get(), bucket.goes_on.get()) ==
      cudaSuccess)
    waited_seconds_ += 1e-3 * static_cast<double>(milliseconds);
}

void CudaReducer::begin_step() {
  use_gpu();
  const std::lock_guard lock(mutex_);
  rethrow();
  exchange_->check();
  for (size_t i = 0; i < buckets_.size(); ++i)
    if (buckets_[i].phase == Phase::kGathering)
      fail(ExitCode::kFault, "begin_step: bucket {} of the last step misses workers hosted here",
           i);
  for (Bucket& bucket : buckets_) {
    count_waited(bucket);
    if (bucket.phase != Phase::kIdle) cuda::wait(queue_, bucket.over);
    for (Held& held : bucket.held) {
      give(std::move(held.value.buffer));
      held = {};
    }
    std::fill(bucket.contributed.begin(), bucket.contributed.end(), false);
    bucket.missing = setting_.nodes.size();
    bucket.phase = Phase::kGathering;
  }
  next_ = 0;
  exchange_->begin_step();
  if (!setting_.nodes.empty()) return;
  // What this rank contributes nothing to goes at once, when the queue has read the last sums.
  for (Bucket& bucket : buckets_) cuda::record(bucket.whole, queue_);
  begin_exchanges();
}

// Carries the value up the tree as far as its siblings are here, and leaves it there.
void CudaReducer::gather(Bucket& bucket, WorkerRange node, Value value) {
  for (; !is_whole(node); node = parent_of(node, setting_.workers)) {
    const WorkerRange sibling = sibling_of(node, setting_.workers);
    Held& waiting = held_at(bucket, sibling.begin);
    if (waiting.node != sibling) break;
    Value other = std::exchange(waiting, {}).value;
    // Left or right makes no difference to a sum of two, but only memory of ours may be written.
    if (!value.writable) std::swap(value, other);
    add(value.data, value.data, other.data, bucket.floats, queue_);
    give(std::move(other.buffer));
  }
  if (!value.writable) {
    cuda::DeviceBuffer copy = take_buffer();
    auto* data = static_cast<float*>(copy.get());
    cuda::check(cudaMemcpyAsync(data, value.data, bytes_of(bucket.floats), cudaMemcpyDeviceToDevice,
                                queue_));
    value = {data, true, std::move(copy)};
  }
  held_at(bucket, node.begin) = {node, std::move(value)};
  if (is_whole(node) && --bucket.missing == 0) cuda::record(bucket.whole, queue_);
}

// In order of buckets, as far as they are whole.
void CudaReducer::begin_exchanges() try {
  for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
    Bucket& bucket = buckets_[next_];
    std::vector<float*> nodes;
    for (const WorkerRange& node : setting_.nodes)
      nodes.push_back(held_at(bucket, node.begin).value.data);
    bucket.result = nodes.empty() ? static_cast<float*>(bucket.own_result.get()) : nodes.front();
    cuda::wait(stream_.get(), bucket.whole);
    exchange_->begin(static_cast<int>(next_), nodes, bucket.result);
    cuda::record(bucket.over, stream_.get());
    bucket.phase = Phase::kExchanging;
    begun_.notify_all();
  }
} catch (...) {
  error_ = std::current_exception();
  begun_.notify_all();
  throw;
}

void CudaReducer::contribute(int worker, int index, float* data, bool keep) {
  use_gpu();
  const std::lock_guard lock(mutex_);
  Bucket& bucket = bucket_at(index);
  const WorkerRange hosted = setting_.hosted;
  if (worker < hosted.begin || worker >= hosted.end)
    fail(ExitCode::kFault, "worker {} contributes bucket {}, but this rank hosts workers [{}, {})",
         worker, index, hosted.begin, hosted.end);
  const auto local = static_cast<size_t>(worker - hosted.begin);
  if (bucket.phase == Phase::kIdle || bucket.contributed[local])
    fail(ExitCode::kFault, "worker {} contributes bucket {} {}", worker, index,
         bucket.contributed[local] ? "twice in a step" : "before begin_step");
  bucket.contributed[local] = true;
  gather(bucket, {worker, worker + 1}, {data, keep, {}});
  begin_exchanges();
}

std::span<const float> CudaReducer::wait(int index) {
  use_gpu();
  std::unique_lock lock(mutex_);
  Bucket& bucket = bucket_at(index);
  if (bucket.phase == Phase::kIdle)
    fail(ExitCode::kFault, "wait for bucket {} before begin_step", index);
  begun_.wait(lock, [&] { return error_ || bucket.phase != Phase::kGathering; });
  rethrow();
  if (bucket.phase == Phase::kExchanging) {
    bucket.phase = Phase::kFinishing;
    try {
      cuda::record(bucket.stopped, queue_);
      lock.unlock();
      exchange_->finish(index, bucket.result);
      lock.lock();
      cuda::wait(queue_, bucket.over);
      cuda::record(bucket.goes_on, queue_);
      bucket.timed = true;
    } catch (...) {
      if (!lock) lock.lock();
      error_ = std::current_exception();
    }
    bucket.phase = Phase::kDone;
    begun_.notify_all();
  }
  begun_.wait(lock, [&] { return error_ || bucket.phase == Phase::kDone; });
  rethrow();
  exchange_->check();
  return {bucket.result, bucket.floats};
}

double CudaReducer::waited_seconds() const {
  const std::lock_guard lock(mutex_);
  return waited_seconds_;
}
size_t CudaReducer::bytes_sent() const {
  const std::lock_guard lock(mutex_);
  return exchange_->bytes_sent();
}
size_t CudaReducer::buffer_bytes() const {
  const std::lock_guard lock(mutex_);
  size_t bytes = buffers_made_ * bytes_of(most_floats_) + flats_.size() * bytes_of(flat_floats_) +
                 exchange_->buffer_bytes();
  for (const Bucket& bucket : buckets_)
    if (bucket.own_result) bytes += bytes_of(bucket.floats);
  return bytes;
}

}  // namespace

std::unique_ptr<Reducer> make_cuda_reducer(Communicator& communicator, int workers,
                                           std::vector<Range> buckets,
                                           const ReducerOptions& options, void* queue) {
  return std::make_unique<CudaReducer>(communicator, workers, std::move(buckets), options,
                                       static_cast<cudaStream_t>(queue));
}

}  // namespace convoy::comm
