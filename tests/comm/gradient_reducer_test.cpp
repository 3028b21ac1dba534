// The exact sum: bits equal to the tree evaluated directly, on any number of ranks, with
// contributions from several threads in random order.
#include "comm/gradient_reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <thread>

#include "ops/core/error.h"
#include "ops/core/random.h"
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

enum class Keep { kAlways, kNever, kMixed };

// Contributes all buckets of the hosted workers from three threads in an order of this rank's own.
// The returned memory is what was given with keep.
std::vector<std::vector<float>> contribute_all(GradientReducer& reducer, int step,
                                               const std::vector<Range>& buckets, Keep keep) {
  const WorkerRange hosted = reducer.hosted();
  std::vector<std::pair<int, int>> work;
  for (int b = 0; b < static_cast<int>(buckets.size()); ++b)
    for (int w = hosted.begin; w < hosted.end; ++w) work.emplace_back(w, b);
  std::shuffle(work.begin(), work.end(),
               std::mt19937(static_cast<unsigned>(100 * step + world().rank())));
  std::vector<std::vector<float>> kept(work.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (size_t i = t; i < work.size(); i += 3) {
        const auto [worker, bucket] = work[i];
        std::vector<float> data = gradients(step, worker, buckets[static_cast<size_t>(bucket)]);
        if (keep == Keep::kAlways || (keep == Keep::kMixed && (worker + bucket) % 2 == 0)) {
          kept[i] = std::move(data);
          reducer.contribute(worker, bucket, kept[i].data(), true);
        } else {
          const std::vector<float> before = data;
          reducer.contribute(worker, bucket, data.data(), false);
          EXPECT_EQ(different_bits(data, before), 0u) << "memory that is not kept was written";
          std::fill(data.begin(), data.end(), 1e30f);  // taken: this must not be seen
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  return kept;
}

const std::vector<Range> kBuckets = {{0, 1}, {1, 16}, {16, 1016}, {1016, 5115}, {5115, 25000}};

void expect_exact(int workers, Keep keep, const ReducerOptions& options = {}) {
  SCOPED_TRACE(::testing::Message() << workers << " workers on " << world().size()
                                    << " ranks, keep " << static_cast<int>(keep));
  GradientReducer reducer(world(), workers, kBuckets, options);
  for (int step = 0; step < 2; ++step) {
    reducer.begin_step();
    const std::vector<std::vector<float>> kept = contribute_all(reducer, step, kBuckets, keep);
    for (size_t b : {3u, 0u, 4u, 2u, 1u})
      EXPECT_EQ(
          different_bits(reducer.wait(static_cast<int>(b)), tree_sum(step, workers, kBuckets[b])),
          0u)
          << "bucket " << b << " step " << step;
    // A sum stays until the next step.
    EXPECT_EQ(different_bits(reducer.wait(0), tree_sum(step, workers, kBuckets[0])), 0u);
  }
}

TEST(GradientReducer, SumsAreTheTreesBits) {
  for (int workers : {1, 3, 4, 7, 8})
    for (Keep keep : {Keep::kAlways, Keep::kNever, Keep::kMixed}) expect_exact(workers, keep);
}

TEST(GradientReducer, EveryScheduleGivesTheSameBits) {
  for (int workers : {1, 2, 4, 7, 8, 16}) {
    std::vector<WorkerRange> map;
    for (const Keep keep : {Keep::kNever, Keep::kMixed, Keep::kAlways})
      expect_exact(workers, keep, {.schedule = ScheduleKind::kAllToAll});
    if (world().size() > 1)
      expect_exact(workers, Keep::kMixed, {.schedule = ScheduleKind::kShared});
    const int ranks = world().size();
    const bool aligned = workers >= ranks && std::has_single_bit(static_cast<unsigned>(ranks)) &&
                         (workers % ranks == 0 || (workers == 7 && ranks < 8));
    if (aligned) {
      expect_exact(workers, Keep::kMixed, {.schedule = ScheduleKind::kHalving});
    } else {
      EXPECT_THROW(
          GradientReducer(world(), workers, kBuckets, {.schedule = ScheduleKind::kHalving}), Error);
    }
  }
}

// Lanes flush denormals, other threads may not: who adds must not matter.
TEST(GradientReducer, DenormalsVanishWhoeverAdds) {
  GradientReducer reducer(world(), 4, {{0, 64}});
  reducer.begin_step();
  for (int w = reducer.hosted().begin; w < reducer.hosted().end; ++w) {
    std::vector<float> denormal(64, 1e-40f);
    reducer.contribute(w, 0, denormal.data(), false);
  }
  for (const float sum : reducer.wait(0)) EXPECT_EQ(std::bit_cast<uint32_t>(sum), 0u);
}

// A message is cut at 16 MiB: 40 MiB on two ranks go as halves of 20.
TEST(GradientReducer, LargeBucketsAreCutAndPutTogether) {
  if (world().size() != 2) GTEST_SKIP() << "for two ranks";
  const size_t floats = (size_t{10} << 20) + 3;
  const auto value = [](int worker, size_t i) {
    return static_cast<float>((i * 7919 + 13) % 10007 + worker);
  };
  const ReducerOptions all[] = {{.schedule = ScheduleKind::kShared},
                                {.schedule = ScheduleKind::kAllToAll},
                                {.order = ReductionOrder::kFast, .schedule = {}}};
  for (const ReducerOptions& options : all) {
    GradientReducer reducer(world(), 2, {{0, floats}}, options);
    reducer.begin_step();
    std::vector<float> data(floats);
    for (size_t i = 0; i < floats; ++i) data[i] = value(world().rank(), i);
    reducer.contribute(world().rank(), 0, data.data(), true);
    const std::span<const float> sum = reducer.wait(0);
    size_t wrong = 0;
    for (size_t i = 0; i < floats; ++i) wrong += sum[i] != value(0, i) + value(1, i);
    EXPECT_EQ(wrong, 0u);
  }
}

// Memory of the reducer and memory of the caller's, on all ranks or on some; buckets of many
// blocks.
TEST(GradientReducer, MemoryOfItsOwnGivesTheSameBits) {
  EXPECT_THROW(GradientReducer(world(), 1, {{0, 8}}).memory(0), std::out_of_range);
  const std::vector<Range> buckets = {{0, 100007}, {100007, 100100}, {100100, 150000}};
  const int ranks = world().size();
  for (const int workers : {1, ranks, 2 * ranks + 1})
    for (const int lenders : {0, 1, ranks}) {  // ranks that contribute from the reducer's memory
      SCOPED_TRACE(::testing::Message() << workers << " workers, " << lenders << " lenders");
      // Ranks with more lanes lend more.
      GradientReducer reducer(world(), workers, buckets,
                              {.schedule = {}, .buffers = 2 + world().rank()});
      EXPECT_EQ(reducer.schedule(), ranks > 1 ? ScheduleKind::kShared : ScheduleKind::kAllToAll);
      const WorkerRange hosted = reducer.hosted();
      for (int step = 0; step < 3; ++step) {
        reducer.begin_step();
        std::vector<std::vector<float>> own(static_cast<size_t>(hosted.size()));
        for (int w = hosted.begin; w < hosted.end; ++w) {
          // As lanes do: the last two workers stay where they are.
          const bool keep = w + 2 >= hosted.end;
          const bool lent = keep && world().rank() < lenders;
          std::vector<float>& mine = own[static_cast<size_t>(w - hosted.begin)];
          mine.resize(buckets.back().end);
          float* const flat = lent ? reducer.memory(w % 2) : mine.data();
          for (size_t b = 0; b < buckets.size(); ++b) {
            const std::vector<float> values = gradients(step, w, buckets[b]);
            std::copy(values.begin(), values.end(), flat + buckets[b].begin);
            reducer.contribute(w, static_cast<int>(b), flat + buckets[b].begin, keep);
          }
        }
        for (const int b : {2, 0, 1}) {
          const Range range = buckets[static_cast<size_t>(b)];
          EXPECT_EQ(different_bits(reducer.wait(b), tree_sum(step, workers, range)), 0u)
              << "bucket " << b << " step " << step;
        }
      }
    }
}

TEST(GradientReducer, FastIsCloseToTheSumInDouble) {
  for (int workers : {1, 4, 8}) {
    GradientReducer reducer(world(), workers, kBuckets,
                            {.order = ReductionOrder::kFast, .schedule = {}});
    for (int step = 0; step < 2; ++step) {
      reducer.begin_step();
      const auto kept = contribute_all(reducer, step, kBuckets, Keep::kMixed);
      for (size_t b = 0; b < kBuckets.size(); ++b) {
        const std::span<const float> sum = reducer.wait(static_cast<int>(b));
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
TEST(GradientReducer, ReducersDoNotMix) {
  const std::vector<Range> buckets = {{0, 3000}, {3000, 3100}};
  GradientReducer first(world(), 4, buckets), second(world(), 3, buckets);
  for (int step = 0; step < 5; ++step) {
    first.begin_step();
    second.begin_step();
    const bool odd = (step + world().rank()) % 2;
    const auto kept1 = contribute_all(odd ? second : first, step, buckets, Keep::kNever);
    const auto kept2 = contribute_all(odd ? first : second, step, buckets, Keep::kNever);
    for (int b : {0, 1}) {
      const Range range = buckets[static_cast<size_t>(b)];
      EXPECT_EQ(different_bits(first.wait(b), tree_sum(step, 4, range)), 0u);
      EXPECT_EQ(different_bits(second.wait(b), tree_sum(step, 3, range)), 0u);
    }
  }
}

// A step whose sums nobody waits for is finished by the next begin_step.
TEST(GradientReducer, UnreadSumsAreFinishedByTheNextStep) {
  const std::vector<Range> buckets = {{0, 100000}};
  GradientReducer reducer(world(), 4, buckets);
  for (int step = 0; step < 4; ++step) {
    reducer.begin_step();
    contribute_all(reducer, step, buckets, Keep::kNever);
    if (step < 3) continue;
    EXPECT_EQ(different_bits(reducer.wait(0), tree_sum(step, 4, buckets[0])), 0u);
  }
}

// In order of workers, a rank holds at most one buffer per level and the one that is the sum.
TEST(GradientReducer, MemoryIsTakenInTheFirstStepAndStaysSmall) {
  const std::vector<Range> buckets = {{0, 5000}};
  const int workers = 64;
  GradientReducer reducer(world(), workers, buckets);
  const size_t exchange = reducer.buffer_bytes();
  size_t after_first = 0;
  for (int step = 0; step < 3; ++step) {
    reducer.begin_step();
    for (int w = reducer.hosted().begin; w < reducer.hosted().end; ++w)
      reducer.contribute(w, 0, gradients(step, w, buckets[0]).data(), false);
    EXPECT_EQ(different_bits(reducer.wait(0), tree_sum(step, workers, buckets[0])), 0u);
    if (step == 0) after_first = reducer.buffer_bytes();
    EXPECT_EQ(reducer.buffer_bytes(), after_first);
  }
  // Uneven ranges (3 or 5 ranks) end as up to 2 log2(64 / R) nodes, which all wait for the
  // exchange.
  const size_t most = world().size() == 1 ? 6 : 10;
  EXPECT_LE(after_first - exchange, most * 5000 * sizeof(float));

  // What is kept needs no buffer at all.
  GradientReducer keeping(world(), workers, buckets);
  keeping.begin_step();
  const auto kept = contribute_all(keeping, 0, buckets, Keep::kAlways);
  EXPECT_EQ(different_bits(keeping.wait(0), tree_sum(0, workers, buckets[0])), 0u);
  EXPECT_EQ(keeping.buffer_bytes(), exchange);
}

TEST(GradientReducer, CountsWhatItSends) {
  const int workers = 8;
  const std::vector<Range> buckets = {{0, 3200}};
  GradientReducer reducer(world(), workers, buckets);
  reducer.begin_step();
  contribute_all(reducer, 0, buckets, Keep::kNever);
  reducer.wait(0);
  EXPECT_GE(reducer.waited_seconds(), 0.0);
  int64_t bytes = static_cast<int64_t>(reducer.bytes_sent());
  world().all_reduce_sum({&bytes, 1});
  const double ring = 2.0 * (world().size() - 1) * 3200 * sizeof(float);
  if (world().size() == 1) {
    EXPECT_EQ(bytes, 0);
    EXPECT_EQ(reducer.redundancy(), 1.0);
  } else {
    // Chunks are rounded to 16 floats.
    EXPECT_NEAR(static_cast<double>(bytes) / ring, reducer.redundancy(), 0.05);
  }
}

TEST(GradientReducer, MistakesAreNamed) {
  EXPECT_THROW(GradientReducer(world(), 4, {{5, 5}}), Error);
  GradientReducer reducer(world(), world().size(), {{0, 8}});
  std::vector<float> data(8, 1.0f);
  const int mine = world().rank();
  EXPECT_THROW(reducer.contribute(mine, 0, data.data(), false), Error);  // before begin_step
  EXPECT_THROW(reducer.wait(0), Error);
  reducer.begin_step();
  EXPECT_THROW(reducer.begin_step(), Error);  // bucket 0 misses this worker
  EXPECT_THROW(reducer.contribute(world().size(), 0, data.data(), false), Error);
  EXPECT_THROW(reducer.contribute(mine, 1, data.data(), false), Error);
  reducer.contribute(mine, 0, data.data(), false);
  try {
    reducer.contribute(mine, 0, data.data(), false);
    ADD_FAILURE() << "a second contribution was taken";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              fmt::format("worker {} contributes bucket 0 twice in a step", mine));
  }
  EXPECT_EQ(reducer.wait(0)[7], static_cast<float>(world().size()));
}

}  // namespace
}  // namespace convoy::comm
