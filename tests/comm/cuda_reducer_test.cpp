// What goes wrong, and what must not wait for what, when sums lie on GPUs: on the emulated GPU,
// whose NCCL loses peers when it is told to.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "comm/nccl_channel.h"
#include "comm/reducer.h"
#include "ops/core/cuda_handle.h"
#include "ops/core/error.h"
#include "ops/device.h"
#include "tests/support/emulated_gpu/emulated_gpu.h"
#include "tests/support/mpi_main.h"

namespace convoy::comm {
namespace {

using convoy::testing::world;

constexpr size_t kFloats = 1000;

class CudaReducer : public ::testing::Test {
 protected:
  std::unique_ptr<Reducer> make(Transport transport, int buckets = 1) {
    std::vector<Range> ranges;
    for (int i = 0; i < buckets; ++i)
      ranges.push_back({kFloats * static_cast<size_t>(i), kFloats * static_cast<size_t>(i + 1)});
    return make_reducer(world(), world().size(), ranges, {.buffers = 1, .transport = transport},
                        device->queue());
  }
  cudaStream_t queue() const { return static_cast<cudaStream_t>(device->queue()); }
  // This rank's worker contributes 1 + rank everywhere.
  void contribute(Reducer& reducer, int bucket = 0) {
    float* data = reducer.memory(0) + kFloats * static_cast<size_t>(bucket);
    const std::vector<float> values(kFloats, 1.0f + static_cast<float>(world().rank()));
    device->upload(data, values.data(), kFloats * sizeof(float));
    reducer.contribute(world().rank(), bucket, data, true);
  }
  void expect_sum(std::span<const float> sum) {
    std::vector<float> values(sum.size());
    device->download(values.data(), sum.data(), sum.size_bytes());
    const auto n = static_cast<float>(world().size());
    EXPECT_EQ(values, std::vector<float>(kFloats, n * (n + 1) / 2));
  }

  std::unique_ptr<ops::Device> device = ops::make_device("cuda", 1);
};

// The message of the Error that body throws.
template <typename Body>
std::string error_of(ExitCode code, Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "nothing was thrown";
}

TEST_F(CudaReducer, NcclWhereEveryRankHasAGpuOfItsOwn) {
  if (world().size() == 1) GTEST_SKIP() << "for several ranks";
  EXPECT_EQ(make(Transport::kAuto)->schedule(), ScheduleKind::kAllToAll);
  setenv("CONVOY_EMULATED_GPU_SHARED", "1", 1);
  EXPECT_EQ(make(Transport::kAuto)->schedule(), ScheduleKind::kShared);  // the host's memory
  EXPECT_EQ(error_of(ExitCode::kUsage, [&] { make(Transport::kNccl); }),
            fmt::format("NCCL needs a GPU for every rank, but these {} ranks have 1: start fewer "
                        "ranks on a host, or let the sums go through host memory",
                        world().size()));
  unsetenv("CONVOY_EMULATED_GPU_SHARED");
}

// The queue is held up: contributions and, with NCCL, sums are enqueued all the same.
TEST_F(CudaReducer, NothingWaitsForTheQueueButItsSums) {
  const std::unique_ptr<Reducer> reducer = make(Transport::kNccl, 3);
  for (int step = 0; step < 3; ++step) {
    std::atomic<bool> open = false;
    emulated_gpu::enqueue_polled(queue(), [&] { return open.load(); });
    reducer->begin_step();
    for (int b = 0; b < 3; ++b) contribute(*reducer, b);
    std::vector<std::span<const float>> sums;
    for (int b = 0; b < 3; ++b) sums.push_back(reducer->wait(b));
    open = true;
    for (const std::span<const float> sum : sums) expect_sum(sum);
  }
  EXPECT_GT(reducer->waited_seconds(), 0.0);  // the queue, in the steps before the last
}

// Ranks look at sums in orders of their own and meet elsewhere between.
TEST_F(CudaReducer, RanksMayReadInAnyOrder) {
  for (const Transport transport : {Transport::kStaged, Transport::kNccl}) {
    const std::unique_ptr<Reducer> reducer = make(transport, 3);
    for (int step = 0; step < 6; ++step) {
      reducer->begin_step();
      for (int b = 0; b < 3; ++b) contribute(*reducer, b);
      for (int i = 0; i < 3; ++i) {
        if (world().rank() != 0 || i > 0) expect_sum(reducer->wait((i + world().rank()) % 3));
        world().barrier();
      }
      expect_sum(reducer->wait(0));
    }
  }
}

// Ranks without workers, too; the host runs ahead and looks at the end.
TEST_F(CudaReducer, TheNextStepSpoilsNoSumThatIsStillRead) {
  constexpr size_t kBytes = kFloats * sizeof(float);
  for (const Transport transport : {Transport::kStaged, Transport::kNccl}) {
    const std::unique_ptr<Reducer> reducer =
        make_reducer(world(), 1, {{0, kFloats}}, {.buffers = 1, .transport = transport}, queue());
    std::vector<ops::DeviceMemory> seen;
    for (int step = 0; step < 3; ++step) {
      reducer->begin_step();
      if (reducer->hosted().size() > 0) {
        const std::vector<float> values(kFloats, 1.0f + static_cast<float>(step));
        device->upload(reducer->memory(0), values.data(), kBytes);
        reducer->contribute(0, 0, reducer->memory(0), true);
      }
      seen.push_back(device->allocate(kBytes));
      device->accumulate(seen.back().data.get(), reducer->wait(0).data(), kFloats, DType::kFloat32);
    }
    for (size_t step = 0; step < seen.size(); ++step) {
      std::vector<float> values(kFloats);
      device->download(values.data(), seen[step].data.get(), kBytes);
      EXPECT_EQ(values, std::vector<float>(kFloats, 1.0f + static_cast<float>(step)));
    }
  }
}

TEST_F(CudaReducer, ALostPeerEndsTheWait) {
  if (world().size() == 1) GTEST_SKIP() << "for several ranks";
  std::unique_ptr<Reducer> reducer = make(Transport::kNccl);
  reducer->begin_step();
  const bool odd = world().rank() == world().size() - 1;
  if (!odd) {
    contribute(*reducer);
    reducer->wait(0);
  }
  world().barrier();
  if (odd) {
    reducer.reset();
  } else {
    device->wait();  // comes back because the transfers are aborted
    const std::string message = error_of(ExitCode::kRecoverable, [&] { reducer->confirm(); });
    EXPECT_EQ(message.find(fmt::format("NCCL on rank {} of {}: bucket 0, round 2 of 2: remote "
                                       "process exited",
                                       world().rank(), world().size())),
              0u)
        << message;
    // Everything afterwards says the same.
    EXPECT_EQ(error_of(ExitCode::kRecoverable, [&] { reducer->wait(0); }), message);
    EXPECT_EQ(error_of(ExitCode::kRecoverable, [&] { reducer->begin_step(); }), message);
  }
  world().barrier();
}

// As when an error unwinds the stack: a peer that does not come is given up.
TEST_F(CudaReducer, AReducerMayEndWhileItsSumsAreUnderWay) {
  std::unique_ptr<Reducer> reducer = make(Transport::kNccl);
  reducer->begin_step();
  if (world().rank() != world().size() - 1) {
    contribute(*reducer);
    reducer->wait(0);
    reducer.reset();
    device->wait();
  }
  world().barrier();
}

// NCCL says so although this rank's transfers may be over.
TEST_F(CudaReducer, AnErrorThatNcclReportsIsThrown) {
  if (world().size() == 1) GTEST_SKIP() << "for several ranks";
  const std::unique_ptr<Reducer> reducer = make(Transport::kNccl);
  reducer->begin_step();
  contribute(*reducer);
  expect_sum(reducer->wait(0));
  reducer->confirm();
  world().barrier();
  emulated_gpu::break_nccl(true);
  error_of(ExitCode::kRecoverable, [&] { reducer->confirm(); });
  EXPECT_NE(error_of(ExitCode::kRecoverable, [&] { reducer->begin_step(); }).find("NCCL on rank"),
            std::string::npos);
  world().barrier();
  emulated_gpu::break_nccl(false);
}

TEST_F(CudaReducer, RanksThatDoNotConnectAreNotWaitedFor) {
  if (world().size() == 1) GTEST_SKIP() << "for several ranks";
  if (world().rank() == 0) {
    const std::string message = error_of(
        ExitCode::kRecoverable, [] { NcclChannel(world(), std::chrono::milliseconds(1000)); });
    EXPECT_NE(message.find("NCCL_SOCKET_IFNAME"), std::string::npos) << message;
    EXPECT_NE(message.find("not over after 1 s"), std::string::npos) << message;
  } else {
    std::vector<std::byte> id;
    world().broadcast(id, 0);  // and no more
  }
  world().barrier();
}

// The thread that waits for the copies has failed: who waits for the sum hears it.
TEST_F(CudaReducer, AnErrorOfTheCopiesReachesWhoWaits) {
  if (world().size() == 1) GTEST_SKIP() << "for several ranks";
  const std::unique_ptr<Reducer> reducer = make(Transport::kStaged);
  std::atomic<bool> open = false;
  emulated_gpu::enqueue_polled(queue(), [&] { return open.load(); });
  reducer->begin_step();
  contribute(*reducer);
  emulated_gpu::fail_next_call(cudaErrorIllegalAddress);
  open = true;
  while (emulated_gpu::fails_next_call()) std::this_thread::yield();
  const std::string message = error_of(ExitCode::kFault, [&] { reducer->wait(0); });
  EXPECT_NE(message.find("cudaErrorIllegalAddress"), std::string::npos) << message;
  EXPECT_EQ(error_of(ExitCode::kFault, [&] { reducer->begin_step(); }), message);
  world().barrier();
}

}  // namespace
}  // namespace convoy::comm
