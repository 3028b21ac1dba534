// The exact sum: bits equal to the tree evaluated directly, on any number of ranks, with
// contributions from several threads in random order; in host memory and on GPUs, whose sums go
// through host memory or by NCCL.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "comm/reducer.h"
#include "ops/core/error.h"
#include "ops/core/random.h"
#include "ops/device.h"
#include "tests/support/mpi_main.h"

namespace convoy::comm {
namespace {

using convoy::testing::world;

// Magnitudes from 2^-20 to 2^20 and both signs: almost every other order of a sum gives other bits.
float gradient(int step, int worker, size_t at) {
  const Random4 words =
      random4(5, Purpose::kSyntheticData,
              (static_cast<uint64_t>(step) << 32) | static_cast<uint64_t>(worker), at);
  const float sign = (words[2] & 1) ? 1.0f : -1.0f;
  return sign * std::ldexp(1.0f + uniform_float(words[0]), static_cast<int>(words[1] % 41) - 20);
}

std::vector<float> gradients(int step, int worker, Range range) {
  std::vector<float> out(range.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = gradient(step, worker, range.begin + i);
  return out;
}

// The definition: neighbours in pairs, level by level; who has no neighbour passes.
std::vector<float> tree_sum(int step, int workers, Range range) {
  std::vector<std::vector<float>> values;
  for (int w = 0; w < workers; ++w) values.push_back(gradients(step, w, range));
  while (values.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i < values.size(); i += 2) {
      if (i + 1 < values.size())
        for (size_t k = 0; k < range.size(); ++k) values[i][k] += values[i + 1][k];
      next.push_back(std::move(values[i]));
    }
    values = std::move(next);
  }
  return values[0];
}

size_t different_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return SIZE_MAX;
  size_t different = 0;
  for (size_t i = 0; i < a.size(); ++i)
    different += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  return different;
}

struct Kind {
  const char* name;
  const char* device;
  Transport transport;
};

std::vector<Kind> kinds() {
  std::vector<Kind> all = {{"host", "cpu", Transport::kAuto}};
  try {
    ops::make_device("cuda", 1);
    all.push_back({"staged", "cuda", Transport::kStaged});
    all.push_back({"nccl", "cuda", Transport::kNccl});
  } catch (const Error&) {
  }
  return all;
}

enum class Keep { kAlways, kNever, kMixed };

const std::vector<Range> kBuckets = {{0, 1}, {1, 16}, {16, 1016}, {1016, 5115}, {5115, 25000}};

class GradientReducer : public ::testing::TestWithParam<Kind> {
 protected:
  // Floats on the device, used again and again so that nothing waits for a GPU that frees. Test
  // threads share the device, which does not allow that by itself.
  class Floats {
   public:
    Floats() = default;
    Floats(GradientReducer& test, const std::vector<float>& values)
        : test_(&test), size_(values.size()) {
      const std::lock_guard lock(test.device_mutex_);
      auto found = test.free_.extract(values.size());
      memory_ =
          found ? std::move(found.mapped()) : test.device().allocate(values.size() * sizeof(float));
      test.device().upload(memory_.data.get(), values.data(), memory_.bytes);
    }
    Floats(Floats&&) = default;
    Floats& operator=(Floats&&) = default;
    ~Floats() {
      if (!memory_.data) return;
      const std::lock_guard lock(test_->device_mutex_);
      test_->free_.emplace(size_, std::move(memory_));
    }

    float* data() const { return static_cast<float*>(memory_.data.get()); }
    void fill(float value) {
      const std::lock_guard lock(test_->device_mutex_);
      test_->device().upload(data(), std::vector<float>(size_, value).data(), memory_.bytes);
    }

   private:
    GradientReducer* test_ = nullptr;
    size_t size_ = 0;
    ops::DeviceMemory memory_;
  };

  void SetUp() override {
    device_ = ops::make_device(GetParam().device, 1);
    try {
      make(1, {{0, 1}});
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUsage) throw;
      GTEST_SKIP() << "SKIPPED: " << error.what();  // ranks share a real GPU
    }
  }

  ops::Device& device() { return *device_; }
  bool is_nccl() const { return GetParam().transport == Transport::kNccl; }
  std::unique_ptr<Reducer> make(int workers, const std::vector<Range>& buckets,
                                ReducerOptions options = {}) {
    options.transport = GetParam().transport;
    return make_reducer(world(), workers, buckets, options, device().queue());
  }
  Floats put(const std::vector<float>& values) { return Floats(*this, values); }
  std::vector<float> get(const float* data, size_t floats) {
    const std::lock_guard lock(device_mutex_);
    std::vector<float> values(floats);
    device().download(values.data(), data, floats * sizeof(float));
    return values;
  }
  std::vector<float> get(std::span<const float> data) { return get(data.data(), data.size()); }

  std::vector<Floats> contribute_all(Reducer& reducer, int step, const std::vector<Range>& buckets,
                                     Keep keep);
  void expect_exact(int workers, Keep keep, const ReducerOptions& options = {});

 private:
  std::unique_ptr<ops::Device> device_;
  std::mutex device_mutex_;
  std::multimap<size_t, ops::DeviceMemory> free_;
};

INSTANTIATE_TEST_SUITE_P(All, GradientReducer, ::testing::ValuesIn(kinds()),
                         [](const auto& test) { return std::string(test.param.name); });

// Contributes all buckets of the hosted workers from three threads in an order of this rank's own.
// The returned memory is what was given with keep.
std::vector<GradientReducer::Floats> GradientReducer::contribute_all(
    Reducer& reducer, int step, const std::vector<Range>& buckets, Keep keep) {
  const WorkerRange hosted = reducer.hosted();
  std::vector<std::pair<int, int>> work;
  for (int b = 0; b < static_cast<int>(buckets.size()); ++b)
    for (int w = hosted.begin; w < hosted.end; ++w) work.emplace_back(w, b);
  std::shuffle(work.begin(), work.end(),
               std::mt19937(static_cast<unsigned>(100 * step + world().rank())));
  std::vector<Floats> kept(work.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (size_t i = t; i < work.size(); i += 3) {
        const auto [worker, bucket] = work[i];
        const std::vector<float> values =
            gradients(step, worker, buckets[static_cast<size_t>(bucket)]);
        Floats data = put(values);
        if (keep == Keep::kAlways || (keep == Keep::kMixed && (worker + bucket) % 2 == 0)) {
          kept[i] = std::move(data);
          reducer.contribute(worker, bucket, kept[i].data(), true);
        } else {
          reducer.contribute(worker, bucket, data.data(), false);
          EXPECT_EQ(different_bits(get(data.data(), values.size()), values), 0u)
              << "memory that is not kept was written";
          data.fill(1e30f);  // taken: this must not be seen
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  return kept;
}

void GradientReducer::expect_exact(int workers, Keep keep, const ReducerOptions& options) {
  SCOPED_TRACE(::testing::Message() << workers << " workers on " << world().size()
                                    << " ranks, keep " << static_cast<int>(keep));
  const std::unique_ptr<Reducer> reducer = make(workers, kBuckets, options);
  for (int step = 0; step < 2; ++step) {
    reducer->begin_step();
    const std::vector<Floats> kept = contribute_all(*reducer, step, kBuckets, keep);
    for (size_t b : {3u, 0u, 4u, 2u, 1u})
      EXPECT_EQ(different_bits(get(reducer->wait(static_cast<int>(b))),
                               tree_sum(step, workers, kBuckets[b])),
                0u)
          << "bucket " << b << " step " << step;
    // A sum stays until the next step.
    EXPECT_EQ(different_bits(get(reducer->wait(0)), tree_sum(step, workers, kBuckets[0])), 0u);
    reducer->confirm();
  }
}

TEST_P(GradientReducer, SumsAreTheTreesBits) {
  for (int workers = 1; workers <= 9; ++workers)
    for (Keep keep : {Keep::kAlways, Keep::kNever, Keep::kMixed}) expect_exact(workers, keep);
}

TEST_P(GradientReducer, EveryScheduleGivesTheSameBits) {
  for (int workers : {1, 2, 4, 7, 8, 16}) {
    std::vector<WorkerRange> map;
    for (const Keep keep : {Keep::kNever, Keep::kMixed, Keep::kAlways})
      expect_exact(workers, keep, {.schedule = ScheduleKind::kAllToAll});
    if (world().size() > 1 && !is_nccl())
      expect_exact(workers, Keep::kMixed, {.schedule = ScheduleKind::kShared});
    const int ranks = world().size();
    const bool aligned = workers >= ranks && std::has_single_bit(static_cast<unsigned>(ranks)) &&
                         (workers % ranks == 0 || (workers == 7 && ranks < 8));
    if (aligned) {
      expect_exact(workers, Keep::kMixed, {.schedule = ScheduleKind::kHalving});
    } else {
      EXPECT_THROW(make(workers, kBuckets, {.schedule = ScheduleKind::kHalving}), Error);
    }
  }
}

// Lanes flush denormals, other threads may not: who adds must not matter.
TEST_P(GradientReducer, DenormalsVanishWhoeverAdds) {
  const std::unique_ptr<Reducer> reducer = make(4, {{0, 64}});
  reducer->begin_step();
  for (int w = reducer->hosted().begin; w < reducer->hosted().end; ++w) {
    const Floats denormal = put(std::vector<float>(64, 1e-40f));
    reducer->contribute(w, 0, denormal.data(), false);
  }
  for (const float sum : get(reducer->wait(0))) EXPECT_EQ(std::bit_cast<uint32_t>(sum), 0u);
}

// A message is cut at 16 MiB: 40 MiB on two ranks go as halves of 20.
TEST_P(GradientReducer, LargeBucketsAreCutAndPutTogether) {
  if (world().size() != 2) GTEST_SKIP() << "for two ranks";
  const size_t floats = (size_t{10} << 20) + 3;
  const auto value = [](int worker, size_t i) {
    return static_cast<float>((i * 7919 + 13) % 10007 + worker);
  };
  const ReducerOptions all[] = {{.schedule = ScheduleKind::kShared},
                                {.schedule = ScheduleKind::kAllToAll},
                                {.order = ReductionOrder::kFast, .schedule = {}}};
  for (const ReducerOptions& options : all) {
    if (options.schedule == ScheduleKind::kShared && is_nccl()) continue;
    const std::unique_ptr<Reducer> reducer = make(2, {{0, floats}}, options);
    reducer->begin_step();
    std::vector<float> values(floats);
    for (size_t i = 0; i < floats; ++i) values[i] = value(world().rank(), i);
    const Floats data = put(values);
    reducer->contribute(world().rank(), 0, data.data(), true);
    const std::vector<float> sum = get(reducer->wait(0));
    size_t wrong = 0;
    for (size_t i = 0; i < floats; ++i) wrong += sum[i] != value(0, i) + value(1, i);
    EXPECT_EQ(wrong, 0u);
  }
}

// Memory of the reducer and memory of the caller's, on all ranks or on some; buckets of many
// blocks.
TEST_P(GradientReducer, MemoryOfItsOwnGivesTheSameBits) {
  EXPECT_THROW(make(1, {{0, 8}})->memory(0), std::out_of_range);
  const std::vector<Range> buckets = {{0, 100007}, {100007, 100100}, {100100, 150000}};
  const int ranks = world().size();
  for (const int workers : {1, ranks, 2 * ranks + 1})
    for (const int lenders : {0, 1, ranks}) {  // ranks that contribute from the reducer's memory
      SCOPED_TRACE(::testing::Message() << workers << " workers, " << lenders << " lenders");
      // Ranks with more lanes lend more.
      const std::unique_ptr<Reducer> reducer =
          make(workers, buckets,
               {.schedule = {}, .buffers = 2 + world().rank(), .register_buffers = true});
      EXPECT_EQ(reducer->schedule(),
                ranks > 1 && !is_nccl() ? ScheduleKind::kShared : ScheduleKind::kAllToAll);
      const WorkerRange hosted = reducer->hosted();
      for (int step = 0; step < 3; ++step) {
        reducer->begin_step();
        std::vector<Floats> own(static_cast<size_t>(hosted.size()));
        for (int w = hosted.begin; w < hosted.end; ++w) {
          // As lanes do: the last two workers stay where they are.
          const bool keep = w + 2 >= hosted.end;
          const bool lent = keep && world().rank() < lenders;
          Floats& mine = own[static_cast<size_t>(w - hosted.begin)];
          mine = put(std::vector<float>(buckets.back().end));
          float* const flat = lent ? reducer->memory(w % 2) : mine.data();
          for (size_t b = 0; b < buckets.size(); ++b) {
            const std::vector<float> values = gradients(step, w, buckets[b]);
            device().upload(flat + buckets[b].begin, values.data(), values.size() * sizeof(float));
            reducer->contribute(w, static_cast<int>(b), flat + buckets[b].begin, keep);
          }
        }
        for (const int b : {2, 0, 1}) {
          const Range range = buckets[static_cast<size_t>(b)];
          EXPECT_EQ(different_bits(get(reducer->wait(b)), tree_sum(step, workers, range)), 0u)
              << "bucket " << b << " step " << step;
        }
      }
    }
}

TEST_P(GradientReducer, FastIsCloseToTheSumInDouble) {
  for (int workers : {1, 4, 8}) {
    const std::unique_ptr<Reducer> reducer =
        make(workers, kBuckets, {.order = ReductionOrder::kFast, .schedule = {}});
    for (int step = 0; step < 2; ++step) {
      reducer->begin_step();
      const auto kept = contribute_all(*reducer, step, kBuckets, Keep::kMixed);
      for (size_t b = 0; b < kBuckets.size(); ++b) {
        const std::vector<float> sum = get(reducer->wait(static_cast<int>(b)));
        double worst = 0;
        for (size_t i = 0; i < kBuckets[b].size(); ++i) {
          double exact = 0, magnitude = 0;
          for (int w = 0; w < workers; ++w) {
            const double g = gradient(step, w, kBuckets[b].begin + i);
            exact += g;
            magnitude += std::fabs(g);
          }
          worst = std::max(worst, std::fabs(sum[i] - exact) / magnitude);
        }
        // At most workers - 1 roundings of half an ulp each.
        EXPECT_LE(worst, workers * 0x1p-24) << "bucket " << b;
      }
    }
  }
}

// Two steps and two reducers at once: nothing mixes.
TEST_P(GradientReducer, ReducersDoNotMix) {
  const std::vector<Range> buckets = {{0, 3000}, {3000, 3100}};
  const std::unique_ptr<Reducer> first = make(4, buckets), second = make(3, buckets);
  for (int step = 0; step < 5; ++step) {
    first->begin_step();
    second->begin_step();
    // On GPUs all ranks must use them in one order.
    const bool odd = (step + (device().queue() ? 0 : world().rank())) % 2;
    const auto kept1 = contribute_all(odd ? *second : *first, step, buckets, Keep::kNever);
    const auto kept2 = contribute_all(odd ? *first : *second, step, buckets, Keep::kNever);
    for (int b : {0, 1}) {
      const Range range = buckets[static_cast<size_t>(b)];
      EXPECT_EQ(different_bits(get(first->wait(b)), tree_sum(step, 4, range)), 0u);
      EXPECT_EQ(different_bits(get(second->wait(b)), tree_sum(step, 3, range)), 0u);
    }
  }
}

// A step whose sums nobody waits for is finished by the next begin_step.
TEST_P(GradientReducer, UnreadSumsAreFinishedByTheNextStep) {
  const std::vector<Range> buckets = {{0, 100000}};
  const std::unique_ptr<Reducer> reducer = make(4, buckets);
  for (int step = 0; step < 4; ++step) {
    reducer->begin_step();
    contribute_all(*reducer, step, buckets, Keep::kNever);
    if (step < 3) continue;
    EXPECT_EQ(different_bits(get(reducer->wait(0)), tree_sum(step, 4, buckets[0])), 0u);
  }
}

// In order of workers, a rank holds at most one buffer per level and the one that is the sum.
TEST_P(GradientReducer, MemoryIsTakenInTheFirstStepAndStaysSmall) {
  const std::vector<Range> buckets = {{0, 5000}};
  const int workers = 64;
  const std::unique_ptr<Reducer> reducer = make(workers, buckets);
  const size_t exchange = reducer->buffer_bytes();
  size_t after_first = 0;
  for (int step = 0; step < 3; ++step) {
    reducer->begin_step();
    for (int w = reducer->hosted().begin; w < reducer->hosted().end; ++w)
      reducer->contribute(w, 0, put(gradients(step, w, buckets[0])).data(), false);
    EXPECT_EQ(different_bits(get(reducer->wait(0)), tree_sum(step, workers, buckets[0])), 0u);
    if (step == 0) after_first = reducer->buffer_bytes();
    EXPECT_EQ(reducer->buffer_bytes(), after_first);
  }
  // Uneven ranges (3 or 5 ranks) end as up to 2 log2(64 / R) nodes, which all wait for the
  // exchange.
  const size_t most = world().size() == 1 ? 6 : 10;
  EXPECT_LE(after_first - exchange, most * 5000 * sizeof(float));

  // What is kept needs no buffer at all.
  const std::unique_ptr<Reducer> keeping = make(workers, buckets);
  keeping->begin_step();
  const auto kept = contribute_all(*keeping, 0, buckets, Keep::kAlways);
  EXPECT_EQ(different_bits(get(keeping->wait(0)), tree_sum(0, workers, buckets[0])), 0u);
  EXPECT_EQ(keeping->buffer_bytes(), exchange);
}

TEST_P(GradientReducer, CountsWhatItSends) {
  const int workers = 8;
  const std::vector<Range> buckets = {{0, 3200}};
  const std::unique_ptr<Reducer> reducer = make(workers, buckets);
  reducer->begin_step();
  contribute_all(*reducer, 0, buckets, Keep::kNever);
  reducer->wait(0);
  EXPECT_GE(reducer->waited_seconds(), 0.0);
  int64_t bytes = static_cast<int64_t>(reducer->bytes_sent());
  world().all_reduce_sum({&bytes, 1});
  const double ring = 2.0 * (world().size() - 1) * 3200 * sizeof(float);
  if (world().size() == 1) {
    EXPECT_EQ(bytes, 0);
    EXPECT_EQ(reducer->redundancy(), 1.0);
  } else {
    // Chunks are rounded to 16 floats.
    EXPECT_NEAR(static_cast<double>(bytes) / ring, reducer->redundancy(), 0.05);
  }
}

TEST_P(GradientReducer, MistakesAreNamed) {
  EXPECT_THROW(make(4, {{5, 5}}), Error);
  const std::unique_ptr<Reducer> reducer = make(world().size(), {{0, 8}});
  const Floats data = put(std::vector<float>(8, 1.0f));
  const int mine = world().rank();
  EXPECT_THROW(reducer->contribute(mine, 0, data.data(), false), Error);  // before begin_step
  EXPECT_THROW(reducer->wait(0), Error);
  reducer->begin_step();
  EXPECT_THROW(reducer->begin_step(), Error);  // bucket 0 misses this worker
  EXPECT_THROW(reducer->contribute(world().size(), 0, data.data(), false), Error);
  EXPECT_THROW(reducer->contribute(mine, 1, data.data(), false), Error);
  reducer->contribute(mine, 0, data.data(), false);
  try {
    reducer->contribute(mine, 0, data.data(), false);
    ADD_FAILURE() << "a second contribution was taken";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              fmt::format("worker {} contributes bucket 0 twice in a step", mine));
  }
  EXPECT_EQ(get(reducer->wait(0))[7], static_cast<float>(world().size()));
}

}  // namespace
}  // namespace convoy::comm
