// NCCL's calls that we use, between processes of one host: sockets instead of wires. As strict as
// the manual: communicators do not block (ncclInProgress until it was polled away), a transfer
// waits for its partner, who a lost peer is says ncclCommGetAsyncError, and only an abort ends what
// waits for it.
#include <fcntl.h>
#include <nccl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/emulated_gpu/emulated_gpu.h"

namespace convoy::emulated_gpu {
namespace {

std::atomic<bool> broken = false;

struct Hello {
  int rank = 0;
  char gpu[64] = "";
};

// What a communicator is; its transfers share it.
struct State {
  int rank = 0, ranks = 0;
  std::vector<int> sockets;  // by rank
  std::atomic<ncclResult_t> error = ncclSuccess;
  std::atomic<int> polls = 0;  // that still see ncclInProgress
  std::atomic<bool> connecting = true, aborted = false;
  std::atomic<int> transfers = 0;  // under way
  bool finalised = false;
  int registered = 0;
  std::jthread connector;

  ~State() {
    for (const int socket : sockets)
      if (socket >= 0) close(socket);
  }
  bool over() const { return aborted || error != ncclSuccess; }
  void fail(ncclResult_t what) {
    ncclResult_t none = ncclSuccess;
    error.compare_exchange_strong(none, what);
  }
};

socklen_t address_of(sockaddr_un& address, const ncclUniqueId& id, int rank) {
  address = {};
  address.sun_family = AF_UNIX;  // a name that begins with 0 lives in no file system
  const int length =
      std::snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s-%d", id.internal, rank);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(length));
}

bool greet(int socket, const Hello& mine, Hello& theirs) {
  return send(socket, &mine, sizeof mine, MSG_NOSIGNAL) == sizeof mine &&
         recv(socket, &theirs, sizeof theirs, MSG_WAITALL) == sizeof theirs;
}

// Every rank calls the lower ones and is called by the higher ones.
void connect_all(State& state, const ncclUniqueId& id, int listener) {
  Hello mine{.rank = state.rank};
  cudaDeviceGetPCIBusId(mine.gpu, sizeof mine.gpu, 0);
  for (int met = 0; met < state.ranks - 1 && !state.over();) {
    const bool call = met < state.rank;
    int peer = -1;
    if (call) {
      sockaddr_un address;
      const socklen_t length = address_of(address, id, met);
      peer = socket(AF_UNIX, SOCK_STREAM, 0);
      if (connect(peer, reinterpret_cast<sockaddr*>(&address), length) != 0) {
        close(peer);
        peer = -1;
      }
    } else {
      peer = accept(listener, nullptr, nullptr);
    }
    if (peer < 0) {
      usleep(500);
      continue;
    }
    Hello theirs;
    if (!greet(peer, mine, theirs)) state.fail(ncclRemoteError);
    if (std::strcmp(mine.gpu, theirs.gpu) == 0) state.fail(ncclInvalidUsage);  // one GPU, two ranks
    fcntl(peer, F_SETFL, O_NONBLOCK);
    state.sockets[static_cast<size_t>(theirs.rank)] = peer;
    ++met;
  }
  close(listener);
  state.connecting = false;
}

// One message: its length, for mistakes of ours, then the bytes.
struct Transfer {
  int peer = 0;
  char* data = nullptr;
  uint64_t bytes = 0;
  uint64_t header = 0;
  size_t at = 0;  // bytes moved, the header's included

  bool done() const { return at == sizeof header + bytes; }
};

// A group: all its transfers go on at once, those with one peer in their order.
struct Group {
  std::shared_ptr<State> state;
  cudaStream_t stream = nullptr;
  std::vector<Transfer> sends, receives;
  std::vector<std::function<void()>> before, after;
  bool begun = false;

  bool poll() {
    if (state->aborted) return true;
    if (state->error != ncclSuccess || broken) return false;
    if (!begun)
      for (const auto& each : before) each();
    begun = true;
    // Opening device memory takes longer than many messages: once open, a few tries.
    bool done = false;
    for (int tries = 0; tries < 20 && !done; ++tries) {
      if (tries > 0) sched_yield();
      done = move_all();
    }
    if (!done) return false;
    for (const auto& each : after) each();
    --state->transfers;
    return true;
  }

 private:
  bool move_all() {
    bool done = true;
    for (std::vector<Transfer>* transfers : {&sends, &receives}) {
      std::vector<char> waits(static_cast<size_t>(state->ranks));
      for (Transfer& t : *transfers) {
        char& wait = waits[static_cast<size_t>(t.peer)];
        if (!wait && !t.done()) wait = !move(t, transfers == &sends);
        done = done && !wait;
      }
    }
    return done;
  }
  bool move(Transfer& t, bool sends_it) {
    const int socket = state->sockets[static_cast<size_t>(t.peer)];
    if (sends_it) t.header = t.bytes;
    while (!t.done()) {
      const bool in_header = t.at < sizeof t.header;
      char* from =
          in_header ? reinterpret_cast<char*>(&t.header) + t.at : t.data + (t.at - sizeof t.header);
      const size_t bytes = (in_header ? sizeof t.header : sizeof t.header + t.bytes) - t.at;
      const ssize_t moved =
          sends_it ? send(socket, from, bytes, MSG_NOSIGNAL) : recv(socket, from, bytes, 0);
      if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return false;
      if (moved <= 0) {
        state->fail(ncclRemoteError);
        return false;
      }
      t.at += static_cast<size_t>(moved);
      if (t.at == sizeof t.header && t.header != t.bytes) {
        std::fprintf(stderr, "rank %d receives %lu bytes from rank %d, which sent %lu\n",
                     state->rank, t.bytes, t.peer, t.header);
        state->fail(ncclInternalError);
        return false;
      }
    }
    return true;
  }
};

thread_local int depth = 0;
thread_local std::shared_ptr<Group> group;

ncclResult_t end_group() {
  if (--depth > 0 || !group) return ncclSuccess;
  const std::shared_ptr<Group> ended = std::move(group);
  group.reset();
  ++ended->state->transfers;
  enqueue_polled(ended->stream, [ended] { return ended->poll(); });
  ended->state->polls = 2;
  return ncclInProgress;
}

template <typename Add>
ncclResult_t add_to_group(const std::shared_ptr<State>& state, cudaStream_t stream, Add add) {
  if (state->connecting || state->polls > 0 || state->finalised) return ncclInvalidUsage;
  if (state->over()) return ncclRemoteError;
  ++depth;
  if (!group) {
    group = std::make_shared<Group>();
    group->state = state;
    group->stream = stream;
  }
  if (group->state != state || group->stream != stream) std::abort();  // we do not
  add(*group);
  return end_group();
}

[[noreturn]] void misused(const char* what) {
  std::fprintf(stderr, "NCCL: %s\n", what);
  std::abort();
}

}  // namespace

void break_nccl(bool now) {
  broken = now;
}

}  // namespace convoy::emulated_gpu

using namespace convoy::emulated_gpu;

struct ncclComm {
  std::shared_ptr<State> state;
};

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int count = 0;
  *id = {};
  std::snprintf(id->internal, sizeof id->internal, "emulated-nccl-%d-%d", getpid(), count++);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  sockaddr_un address;
  const socklen_t length = address_of(address, id, rank);
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener, ranks) != 0) {
    close(listener);
    return ncclSystemError;
  }
  auto state = std::make_shared<State>();
  state->rank = rank;
  state->ranks = ranks;
  state->sockets.resize(static_cast<size_t>(ranks), -1);
  state->connector =
      std::jthread([&state = *state, id, listener] { connect_all(state, id, listener); });
  *comm = new ncclComm{std::move(state)};
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  State& state = *comm->state;
  *error = broken ? ncclRemoteError : state.error.load();
  if (*error != ncclSuccess) return ncclSuccess;
  const bool flushing = state.finalised && state.transfers > 0;
  if (state.connecting || flushing || state.polls > 0) *error = ncclInProgress;
  if (state.polls > 0) --state.polls;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (comm->state->registered > 0) misused("memory is still registered with ncclCommFinalize");
  comm->state->finalised = true;
  comm->state->polls = 2;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm->state->finalised || comm->state->transfers > 0 || comm->state->polls > 0)
    misused("ncclCommDestroy before ncclCommFinalize is over");
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->state->aborted = true;
  comm->state->connector.join();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  return end_group();
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_to_group(comm->state, stream, [&](Group& g) {
    g.sends.push_back({peer, static_cast<char*>(const_cast<void*>(data)), count * sizeof(float)});
  });
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_to_group(comm->state, stream, [&](Group& g) {
    g.receives.push_back({peer, static_cast<char*>(data), count * sizeof(float)});
  });
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
  return add_to_group(comm->state, stream, [&](Group& g) {
    const int ranks = comm->state->ranks, rank = comm->state->rank;
    auto values = std::make_shared<std::vector<std::vector<float>>>(static_cast<size_t>(ranks),
                                                                    std::vector<float>(count));
    const auto of = [&](int peer) {
      return reinterpret_cast<char*>((*values)[static_cast<size_t>(peer)].data());
    };
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank) continue;
      g.sends.push_back({peer, of(rank), count * sizeof(float)});
      g.receives.push_back({peer, of(peer), count * sizeof(float)});
    }
    g.before.push_back(
        [mine = of(rank), from, count] { std::memcpy(mine, from, count * sizeof(float)); });
    g.after.push_back([values, to, count] {
      for (size_t i = 0; i < count; ++i) {
        float sum = 0;
        for (const std::vector<float>& each : *values) sum += each[i];
        static_cast<float*>(to)[i] = sum;
      }
    });
  });
}

ncclResult_t ncclCommRegister(ncclComm_t comm, void* memory, size_t, void** handle) {
  ++comm->state->registered;
  *handle = memory;
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(ncclComm_t comm, void*) {
  --comm->state->registered;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error"
                                   : "an emulated error";
}
const char* ncclGetLastError(ncclComm_t) {
  return "";
}
