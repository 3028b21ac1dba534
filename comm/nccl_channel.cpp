#include "comm/nccl_channel.h"

#include <nccl.h>

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "ops/core/clock.h"
#include "ops/core/error.h"
#include "ops/core/log.h"

namespace convoy::comm {
namespace {

using std::chrono::milliseconds;

// How often the thread asks; how long a call may go on in the background: where two ranks first
// talk, until both are there.
constexpr milliseconds kWatchEvery{100}, kCallTime{300000}, kGoodbyeTime{10000};

}  // namespace

struct NcclChannel::Impl {
  Impl(int rank_in, int ranks_in) : rank(rank_in), ranks(ranks_in) {}

  // All with the lock held. NCCL does not block (blocking = 0): what a call began is over when the
  // communicator's state is no longer ncclInProgress, and only then the next may come.
  [[noreturn]] void fail(ncclResult_t result, const std::string& what) {
    if (!error) {
      std::string said = comm ? ncclGetLastError(comm) : "";
      if (!said.empty()) said = " (" + said + ")";
      error = std::make_exception_ptr(
          Error(ExitCode::kRecoverable,
                fmt::format("NCCL on rank {} of {}: {}: {}{}; start the same command again, with "
                            "NCCL_DEBUG=WARN to see more",
                            rank, ranks, what, ncclGetErrorString(result), said)));
    }
    end();
    std::rethrow_exception(error);
  }
  void end() {
    // The handle is gone whatever this says.
    if (ncclComm_t ended = std::exchange(comm, nullptr)) ncclCommAbort(ended);
  }
  void settle(ncclResult_t result, const std::string& what, milliseconds deadline = kCallTime) {
    if (result != ncclSuccess && result != ncclInProgress) fail(result, what);
    const auto end = Clock::now() + deadline;
    for (;;) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
      if (asked != ncclSuccess) fail(asked, what);
      if (state == ncclSuccess) return;
      if (state != ncclInProgress) fail(state, what);
      if (Clock::now() > end)
        fail(ncclInProgress, fmt::format("{}: not over after {} s", what, deadline.count() / 1000));
      std::this_thread::yield();
    }
  }
  void check() {
    if (error) std::rethrow_exception(error);
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    if (asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress) fail(state, doing);
  }

  // The thread: until the channel ends or something is wrong.
  void watch(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, stop, kWatchEvery, [] { return false; }) &&
           !stop.stop_requested() && comm) {
      try {
        check();
      } catch (const Error& lost) {
        log::error("{}", lost.what());
      }
    }
  }

  const int rank, ranks;
  std::mutex mutex;
  ncclComm_t comm = nullptr;  // null once it was aborted
  std::vector<void*> registered;
  std::exception_ptr error;
  std::string doing = "nothing was begun";  // last enqueued
  std::condition_variable_any wake;
  std::jthread watcher;
};

NcclChannel::NcclChannel(Communicator& communicator, milliseconds deadline)
    : impl_(std::make_unique<Impl>(communicator.rank(), communicator.size())) {
  // Without the id, nobody tries.
  ncclUniqueId id{};
  std::vector<std::byte> bytes;
  ncclResult_t made = ncclSuccess;
  if (impl_->rank == 0) {
    made = ncclGetUniqueId(&id);
    if (made == ncclSuccess) bytes.resize(sizeof id);
    std::memcpy(bytes.data(), &id, bytes.size());
  }
  communicator.broadcast(bytes, 0);
  const std::lock_guard lock(impl_->mutex);
  if (bytes.size() != sizeof id) impl_->fail(made, "rank 0 makes no id (ncclGetUniqueId)");
  std::memcpy(&id, bytes.data(), sizeof id);

  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t begun =
      ncclCommInitRankConfig(&impl_->comm, impl_->ranks, id, impl_->rank, &config);
  impl_->settle(begun,
                fmt::format("connecting to the other GPUs from {} (NCCL_SOCKET_IFNAME names the "
                            "network)",
                            communicator.host()),
                deadline);
  impl_->watcher =
      std::jthread([impl = impl_.get()](const std::stop_token& stop) { impl->watch(stop); });
}

NcclChannel::~NcclChannel() {
  impl_->watcher = {};  // stopped and joined
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->comm) return;
  try {
    for (void* handle : impl_->registered) ncclCommDeregister(impl_->comm, handle);
    impl_->settle(ncclCommFinalize(impl_->comm), "saying good-bye", kGoodbyeTime);
    ncclCommDestroy(impl_->comm);
  } catch (const std::exception& failed) {
    log::error("{}", failed.what());
  }
}

void NcclChannel::add_memory(float* data, size_t floats) {
  const std::lock_guard lock(impl_->mutex);
  impl_->check();
  void* handle = nullptr;
  impl_->settle(ncclCommRegister(impl_->comm, data, floats * sizeof(float), &handle),
                "registering memory");
  impl_->registered.push_back(handle);
}

void NcclChannel::exchange(std::span<const Message> sends, std::span<const Message> receives,
                           cudaStream_t stream, const std::string& what) {
  const std::lock_guard lock(impl_->mutex);
  impl_->check();
  impl_->doing = what;
  ncclResult_t result = ncclGroupStart();
  const auto call = [&](auto which, const Message& m) {
    if (result != ncclSuccess || m.floats == 0) return;
    result = which(m.data, m.floats, ncclFloat32, m.peer, impl_->comm, stream);
    if (result == ncclInProgress) result = ncclSuccess;
  };
  for (const Message& m : receives) call(ncclRecv, m);
  for (const Message& m : sends) call(ncclSend, m);
  const ncclResult_t ended = ncclGroupEnd();
  impl_->settle(result == ncclSuccess ? ended : result, what);
}

void NcclChannel::all_reduce_sum(float* data, size_t floats, cudaStream_t stream,
                                 const std::string& what) {
  const std::lock_guard lock(impl_->mutex);
  impl_->check();
  impl_->doing = what;
  impl_->settle(ncclAllReduce(data, data, floats, ncclFloat32, ncclSum, impl_->comm, stream), what);
}

void NcclChannel::check() {
  const std::lock_guard lock(impl_->mutex);
  impl_->check();
}

void NcclChannel::abort(const std::string& why) {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->error) impl_->error = std::make_exception_ptr(Error(ExitCode::kRecoverable, why));
  impl_->end();
}

}  // namespace convoy::comm
