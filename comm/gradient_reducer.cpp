#include "comm/gradient_reducer.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>

#include "comm/arithmetic.h"
#include "comm/shared_exchange.h"
#include "comm/shared_memory.h"
#include "comm/worker_map.h"
#include "ops/core/cache_line.h"
#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"
#include "ops/core/tensor.h"

namespace convoy::comm {
namespace {

// More ranks of one host would need more slots than there is cache: they send.
constexpr int kMostRanksSharing = 8;

// Buffers of one size that are lent and come back; grows when none is free.
class BufferPool {
 public:
  explicit BufferPool(size_t bytes) : bytes_(bytes) {}

  AlignedBuffer take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      ++made_;
      free_.reserve(made_);  // so that give() never allocates
      return AlignedBuffer(bytes_);
    }
    AlignedBuffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void give(AlignedBuffer buffer) {
    if (!buffer.data()) return;
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(buffer));
  }
  size_t total_bytes() const {
    const std::lock_guard lock(mutex_);
    return made_ * bytes_;
  }

 private:
  const size_t bytes_;
  mutable std::mutex mutex_;
  std::vector<AlignedBuffer> free_;
  size_t made_ = 0;
};

// The value of a tree node on this rank.
struct Value {
  float* data = nullptr;
  bool writable = false;
  AlignedBuffer buffer;  // holds `data` unless the contributor does
};

// A value that waits for its sibling, or for the exchange.
struct Held {
  WorkerRange node;  // empty: nothing is held
  Value value;
};

}  // namespace

size_t most_floats(std::span<const Range> ranges) {
  size_t most = 0;
  for (const Range& range : ranges) {
    if (range.end <= range.begin)
      fail(ExitCode::kFault, "gradient bucket [{}, {}) is empty", range.begin, range.end);
    most = std::max(most, range.size());
  }
  return most;
}

size_t last_float(std::span<const Range> ranges) {
  size_t last = 0;
  for (const Range& range : ranges) last = std::max(last, range.end);
  return last;
}

struct GradientReducer::Impl {
  struct Bucket;

  Impl(Communicator& communicator_in, int workers_in, std::vector<Range> ranges,
       const ReducerOptions& options);
  ~Impl();
  std::unique_ptr<SharedMemory> open_shared(const std::vector<Range>& ranges,
                                            const ReducerOptions& options) const;

  Bucket& bucket_at(int index);
  void begin_step();
  void contribute(WorkerRange node, int bucket, float* data, bool keep);
  std::span<const float> wait(int bucket);

  Communicator& communicator;
  const int workers;
  const bool fast;
  const std::vector<WorkerRange> map;
  const WorkerRange hosted;
  const std::vector<WorkerRange> nodes;  // the largest of `hosted`: what the exchange starts from
  BufferPool pool;
  const size_t flat_floats;              // of a buffer that is lent
  const size_t most_buffers;             // that a rank lends
  std::unique_ptr<SharedMemory> shared;  // of kShared: buckets' pieces, then each rank's buffers
  std::vector<float*> flats;             // the buffers of this rank
  std::vector<AlignedBuffer> lent;       // where there is none
  const ScheduleKind kind;
  const Plan plan;
  std::vector<std::unique_ptr<Bucket>> buckets;
  std::atomic<int64_t> waited_ns = 0;
  std::atomic<size_t> bytes_sent = 0;
};

// A bucket gathers this rank's nodes, and is then the exchange that sums them over the ranks.
//
// Where values lie: a node is found by its first worker. The sum of two children takes the place of
// the left one, so at any time at most one node per first worker exists. The root alone goes to
// `result`, which is the memory of this rank's first node (or a buffer where it hosts none): what
// lay there has been sent, or summed, before.
struct GradientReducer::Impl::Bucket final : Exchange {
  enum class Phase { kIdle, kGathering, kExchanging, kDone };

  Bucket(Impl& reducer_in, Range range_in, int index_in, std::unique_ptr<Lane> lane_in)
      : reducer(reducer_in),
        floats(range_in.size()),
        index(index_in),
        lane(std::move(lane_in)),
        held(static_cast<size_t>(reducer.hosted.size())),
        contributed(held.size()),
        places(static_cast<size_t>(reducer.workers)) {
    // Scratch for all that is received before it is summed.
    size_t total = 0;
    const auto each_received = [&](auto use) {
      if (reducer.shared) return;
      for (const Round& each : reducer.plan.rounds)
        for (const Transfer& transfer : each.receives)
          if (transfer.node != root()) use(transfer);
    };
    each_received(
        [&](const Transfer& t) { total += round_up(end_of(t) - begin_of(t), kCacheLineFloats); });
    scratch = AlignedBuffer(total * sizeof(float));
    float* at = scratch.as<float>();
    each_received([&](const Transfer& t) {
      places[static_cast<size_t>(t.node.begin)] = {at, begin_of(t)};
      at += round_up(end_of(t) - begin_of(t), kCacheLineFloats);
    });
    if (reducer.nodes.empty()) {
      own_result = AlignedBuffer(floats * sizeof(float));
      result = own_result.as<float>();
    }
  }

  WorkerRange root() const { return {0, reducer.workers}; }
  template <typename Chunks>
  size_t begin_of(const Chunks& chunks) const {
    return chunk_begin(floats, reducer.plan.chunks, chunks.first);
  }
  template <typename Chunks>
  size_t end_of(const Chunks& chunks) const {
    return chunk_begin(floats, reducer.plan.chunks, chunks.last);
  }
  Held& held_at(int first_worker) {
    return held[static_cast<size_t>(first_worker - reducer.hosted.begin)];
  }
  // Float `offset` of a node's value.
  float* place_of(WorkerRange node, size_t offset) const {
    if (node == root()) return result + offset;
    const Place& place = places[static_cast<size_t>(node.begin)];
    return place.data + (offset - place.origin);
  }

  void begin_step();
  bool is_whole(WorkerRange node) const;
  bool gather(WorkerRange node, Value value);
  void launch();

  // Moves what goes through memory on, on the thread that waits, as long as that is worth spinning.
  void help();

  // On the communication thread.
  Progress advance() override;
  void fail(std::exception_ptr what) override { end(std::move(what)); }
  void begin_round(const Round& round);
  void count_sent(const Round& round);
  void end(std::exception_ptr what);

  struct Place {
    float* data = nullptr;
    size_t origin = 0;  // the float of the bucket that lies at `data`
  };

  Impl& reducer;
  const size_t floats;
  const int index;
  const std::unique_ptr<Lane> lane;              // where there are transfers
  std::optional<SharedExchange> through_memory;  // where there are none

  std::mutex advancing;  // held while `through_memory` moves on; before `mutex`
  std::mutex mutex;
  std::condition_variable done;
  Phase phase = Phase::kIdle;
  // The communicator has this exchange on its list. A thread that helped may have ended it already:
  // then the communication thread sees so when it next looks, or finds the next one.
  bool listed = false;
  std::vector<Held> held;         // by first worker, from hosted.begin
  std::vector<bool> contributed;  // by worker, from hosted.begin
  size_t missing = 0;             // nodes of the rank that are not whole yet
  std::exception_ptr error;

  std::vector<Place> places;  // by first worker
  AlignedBuffer scratch, own_result;
  float* result = nullptr;
  size_t round = 0;
  bool round_begun = false;
};

void GradientReducer::Impl::Bucket::begin_step() {
  std::unique_lock lock(mutex);
  if (phase == Phase::kExchanging) {
    lock.unlock();
    reducer.wait(index);
    lock.lock();
  }
  if (phase == Phase::kGathering)
    convoy::fail(ExitCode::kFault,
                 "begin_step: bucket {} of the last step misses workers hosted here", index);
  for (Held& h : held) {
    reducer.pool.give(std::move(h.value.buffer));
    h = {};
  }
  std::fill(contributed.begin(), contributed.end(), false);
  missing = reducer.nodes.size();
  error = nullptr;
  phase = Phase::kGathering;
}

bool GradientReducer::Impl::Bucket::is_whole(WorkerRange node) const {
  return std::find(reducer.nodes.begin(), reducer.nodes.end(), node) != reducer.nodes.end();
}

// Carries the value up the tree as far as its siblings are here, and leaves it there. True when
// this made the rank's last node whole.
bool GradientReducer::Impl::Bucket::gather(WorkerRange node, Value value) {
  for (;;) {
    Value other;
    WorkerRange sibling;
    {
      const std::lock_guard lock(mutex);
      const bool whole = is_whole(node);
      if (!whole) {
        sibling = sibling_of(node, reducer.workers);
        Held& waiting = held_at(sibling.begin);
        if (waiting.node == sibling) {
          other = std::move(waiting.value);
          waiting = {};
        }
      }
      if (!other.data && value.writable) {
        held_at(node.begin) = {node, std::move(value)};
        return whole && --missing == 0;
      }
    }
    if (!other.data) {
      // Nothing to add it to: copy it, and look again, since the sibling may have come meanwhile.
      AlignedBuffer copy = reducer.pool.take();
      std::memcpy(copy.data(), value.data, floats * sizeof(float));
      value = {copy.as<float>(), true, std::move(copy)};
      continue;
    }
    // Left or right makes no difference to a sum of two, but only memory of ours may be written.
    if (!value.writable) std::swap(value, other);
    add(value.data, value.data, other.data, floats);
    reducer.pool.give(std::move(other.buffer));
    node = parent_of(node, reducer.workers);
  }
}

// All nodes of the rank are whole.
void GradientReducer::Impl::Bucket::launch() {
  if (!reducer.nodes.empty()) {
    result = held_at(reducer.nodes.front().begin).value.data;
    for (const WorkerRange& node : reducer.nodes)
      places[static_cast<size_t>(node.begin)] = {held_at(node.begin).value.data, 0};
    if (reducer.fast)
      for (size_t i = 1; i < reducer.nodes.size(); ++i)
        add(result, result, places[static_cast<size_t>(reducer.nodes[i].begin)].data, floats);
  } else if (reducer.fast) {
    std::fill_n(result, floats, 0.0f);
  }
  round = 0;
  round_begun = false;
  if (through_memory) {
    std::vector<float*> values;
    for (const WorkerRange& node : reducer.nodes)
      values.push_back(places[static_cast<size_t>(node.begin)].data);
    through_memory->begin(values, result);
    for (const Round& each : reducer.plan.rounds) count_sent(each);
  }
  bool is_new;
  {
    const std::lock_guard lock(mutex);
    phase = Phase::kExchanging;
    is_new = !std::exchange(listed, true);
  }
  if (is_new) reducer.communicator.start(*this);
}

void GradientReducer::Impl::Bucket::count_sent(const Round& now) {
  size_t sent = 0;
  for (const Transfer& t : now.sends) sent += end_of(t) - begin_of(t);
  reducer.bytes_sent += sent * sizeof(float);
}

void GradientReducer::Impl::Bucket::begin_round(const Round& now) {
  for (const Transfer& t : now.receives)
    lane->receive(t.peer, place_of(t.node, begin_of(t)), end_of(t) - begin_of(t));
  for (const Transfer& t : now.sends)
    lane->send(t.peer, place_of(t.node, begin_of(t)), end_of(t) - begin_of(t));
  count_sent(now);
}

Progress GradientReducer::Impl::Bucket::advance() {
  if (through_memory) {
    // Not held up by a thread that helps: there are calls and other buckets to look after.
    const std::unique_lock moving(advancing, std::try_to_lock);
    if (!moving) return Progress::kNone;
    {
      const std::lock_guard lock(mutex);
      if (phase != Phase::kExchanging) {
        listed = false;
        done.notify_all();
        return Progress::kOver;
      }
    }
    const Progress made = through_memory->advance();
    if (made == Progress::kOver) end(nullptr);
    return made;
  }
  const std::vector<Round>& rounds = reducer.plan.rounds;
  for (const size_t count = reducer.fast ? 1 : rounds.size(); round < count; ++round) {
    if (!round_begun) {
      if (reducer.fast) {
        lane->all_reduce_sum(result, floats);
      } else {
        begin_round(rounds[round]);
      }
      round_begun = true;
    }
    if (!lane->finished()) return Progress::kNone;
    round_begun = false;
    if (reducer.fast) continue;
    for (const Sum& sum : rounds[round].sums) {
      const int split = split_of(sum.node);
      const size_t begin = begin_of(sum);
      add(place_of(sum.node, begin), place_of({sum.node.begin, split}, begin),
          place_of({split, sum.node.end}, begin), end_of(sum) - begin);
    }
  }
  end(nullptr);
  return Progress::kOver;
}

void GradientReducer::Impl::Bucket::help() {
  constexpr std::chrono::milliseconds kLongest{100};
  constexpr int kPolls = 64;  // before others get the processor
  for (const auto start = Clock::now(); Clock::now() - start < kLongest; sched_yield())
    for (int i = 0; i < kPolls; ++i) {
      const std::unique_lock moving(advancing, std::try_to_lock);
      if (!moving) continue;
      {
        const std::lock_guard lock(mutex);
        if (phase != Phase::kExchanging) return;
      }
      if (through_memory->advance() != Progress::kOver) continue;
      const std::lock_guard lock(mutex);
      phase = Phase::kDone;
      done.notify_all();
      return;
    }
}

void GradientReducer::Impl::Bucket::end(std::exception_ptr what) {
  const std::lock_guard lock(mutex);
  error = std::move(what);
  phase = Phase::kDone;
  listed = false;
  done.notify_all();  // under the lock: the reducer may be destroyed as soon as it is free
}

GradientReducer::Impl::Impl(Communicator& communicator_in, int workers_in,
                            std::vector<Range> ranges, const ReducerOptions& options)
    : communicator(communicator_in),
      workers(workers_in),
      fast(options.order == ReductionOrder::kFast),
      map(map_workers(workers, communicator.size())),
      hosted(map[static_cast<size_t>(communicator.rank())]),
      nodes(nodes_of(hosted, workers)),
      pool(most_floats(ranges) * sizeof(float)),
      flat_floats(round_up(last_float(ranges), kCacheLineFloats)),
      most_buffers(static_cast<size_t>(communicator.all_reduce_max(options.buffers))),
      shared(open_shared(ranges, options)),
      kind(options.schedule.value_or(shared ? ScheduleKind::kShared : choose_schedule(map))),
      plan(fast ? Plan{} : make_plan(map, communicator.rank(), kind)) {
  if (kind == ScheduleKind::kShared && !shared && communicator.size() > 1)
    fail(ExitCode::kFault, "these ranks cannot share memory");
  std::vector<std::unique_ptr<Lane>> lanes(ranges.size());
  if (!shared) lanes = communicator.open_lanes(static_cast<int>(ranges.size()));
  size_t at = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    buckets.push_back(
        std::make_unique<Bucket>(*this, ranges[i], static_cast<int>(i), std::move(lanes[i])));
    if (!shared) continue;
    buckets.back()->through_memory.emplace(map, communicator.rank(), ranges[i].size(), *shared,
                                           shared->data() + at);
    at += SharedExchange::Layout(map, ranges[i].size()).bytes;
  }
  const auto mine = static_cast<size_t>(communicator.rank()) * most_buffers;
  for (size_t i = 0; i < static_cast<size_t>(options.buffers); ++i) {
    if (!shared) lent.emplace_back(flat_floats * sizeof(float));
    flats.push_back(shared
                        ? reinterpret_cast<float*>(shared->data() + at) + (mine + i) * flat_floats
                        : lent.back().as<float>());
  }
}

std::unique_ptr<SharedMemory> GradientReducer::Impl::open_shared(
    const std::vector<Range>& ranges, const ReducerOptions& options) const {
  const bool wanted = options.schedule ? *options.schedule == ScheduleKind::kShared
                                       : communicator.size() <= kMostRanksSharing;
  if (fast || !wanted) return nullptr;
  size_t bytes = 0;
  for (const Range& range : ranges) bytes += SharedExchange::Layout(map, range.size()).bytes;
  bytes += static_cast<size_t>(communicator.size()) * most_buffers * flat_floats * sizeof(float);
  return SharedMemory::open(communicator, bytes);
}

GradientReducer::Impl::~Impl() {
  for (const std::unique_ptr<Bucket>& bucket : buckets) {
    {
      std::unique_lock lock(bucket->mutex);
      if (bucket->phase != Bucket::Phase::kExchanging) {
        bucket->done.wait(lock, [&] { return !bucket->listed; });
        lock.unlock();
        const std::lock_guard gone(bucket->advancing);
        continue;
      }
    }
    try {
      communicator.drop(*bucket);
    } catch (const std::exception& error) {
      log::error("dropping the sum of bucket {}: {}", bucket->index, error.what());
    }
  }
}

GradientReducer::Impl::Bucket& GradientReducer::Impl::bucket_at(int index) {
  if (index < 0 || static_cast<size_t>(index) >= buckets.size())
    fail(ExitCode::kFault, "gradient bucket {} of {}", index, buckets.size());
  return *buckets[static_cast<size_t>(index)];
}

void GradientReducer::Impl::begin_step() {
  for (const std::unique_ptr<Bucket>& bucket : buckets) bucket->begin_step();
  if (nodes.empty())
    for (const std::unique_ptr<Bucket>& bucket : buckets) bucket->launch();
}

void GradientReducer::Impl::contribute(WorkerRange node, int index, float* data, bool keep) {
  Bucket& bucket = bucket_at(index);
  if (node.begin < hosted.begin || node.end > hosted.end)
    fail(ExitCode::kFault, "worker {} contributes bucket {}, but this rank hosts workers [{}, {})",
         node.begin, index, hosted.begin, hosted.end);
  {
    const std::lock_guard lock(bucket.mutex);
    for (int worker = node.begin; worker < node.end; ++worker) {
      const size_t local = static_cast<size_t>(worker - hosted.begin);
      if (bucket.phase == Bucket::Phase::kIdle || bucket.contributed[local])
        fail(ExitCode::kFault, "worker {} contributes bucket {} {}", worker, index,
             bucket.contributed[local] ? "twice in a step" : "before begin_step");
      bucket.contributed[local] = true;
    }
  }
  if (bucket.gather(node, {data, keep, {}})) bucket.launch();
}

std::span<const float> GradientReducer::Impl::wait(int index) {
  Bucket& bucket = bucket_at(index);
  std::unique_lock lock(bucket.mutex);
  if (bucket.phase == Bucket::Phase::kIdle)
    fail(ExitCode::kFault, "wait for bucket {} before begin_step", index);
  if (bucket.phase != Bucket::Phase::kDone) {
    const auto start = Clock::now();
    if (bucket.through_memory && bucket.phase == Bucket::Phase::kExchanging) {
      lock.unlock();
      bucket.help();
      lock.lock();
    }
    if (bucket.phase != Bucket::Phase::kDone) {
      communicator.enter_wait();
      bucket.done.wait(lock, [&] { return bucket.phase == Bucket::Phase::kDone; });
      communicator.leave_wait();
    }
    waited_ns += std::chrono::nanoseconds(Clock::now() - start).count();
  }
  if (bucket.error) std::rethrow_exception(bucket.error);
  return {bucket.result, bucket.floats};
}

GradientReducer::GradientReducer(Communicator& communicator, int workers,
                                 std::vector<Range> buckets, const ReducerOptions& options)
    : impl_(std::make_unique<Impl>(communicator, workers, std::move(buckets), options)) {}
GradientReducer::~GradientReducer() = default;

float* GradientReducer::memory(int buffer) {
  return impl_->flats.at(static_cast<size_t>(buffer));
}
WorkerRange GradientReducer::hosted() const {
  return impl_->hosted;
}
void GradientReducer::begin_step() {
  impl_->begin_step();
}
void GradientReducer::contribute(int worker, int bucket, float* data, bool keep) {
  impl_->contribute({worker, worker + 1}, bucket, data, keep);
}
void GradientReducer::contribute(WorkerRange node, int bucket, float* data, bool keep) {
  impl_->contribute(node, bucket, data, keep);
}
std::span<const float> GradientReducer::wait(int bucket) {
  return impl_->wait(bucket);
}
double GradientReducer::waited_seconds() const {
  return static_cast<double>(impl_->waited_ns) * 1e-9;
}
size_t GradientReducer::bytes_sent() const {
  return impl_->bytes_sent;
}
ScheduleKind GradientReducer::schedule() const {
  return impl_->kind;
}
double GradientReducer::redundancy() const {
  return impl_->fast ? 1.0 : comm::redundancy(impl_->map, impl_->kind);
}
size_t GradientReducer::buffer_bytes() const {
  size_t bytes = impl_->pool.total_bytes();
  if (impl_->shared)
    bytes += impl_->shared->size() / static_cast<size_t>(impl_->communicator.size());
  for (const AlignedBuffer& buffer : impl_->lent) bytes += buffer.size();
  for (const std::unique_ptr<Impl::Bucket>& bucket : impl_->buckets)
    bytes += bucket->scratch.size() + bucket->own_result.size();
  return bytes;
}

}  // namespace convoy::comm
